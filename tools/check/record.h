/*
 * Records of `dcm check`: what one device computed, in little, to hold another machine's device against.
 *
 * The file, all little-endian:
 *
 *     8 bytes   "DCMCHECK"
 *     u32       RECORD_VERSION
 *     u32       bytes of the header
 *     u64       bytes of the body
 *     u64       FNV-1a (64 bits) of header and body
 *     header    JSON: "options" and, for people, who made it: commit, host_cpu, date, command_line, device, driver,
 *               platform, tuning, model
 *     body      "steps" record_steps, then for each of "caches" a list of units (record_unit), the bounds of digests
 *               and the digests themselves, each (layers, 2, units) f32; keys before values
 *
 * "options" must be the same on both machines: model_digest, vocab, layers, kv_heads, head_dim, strict and policy,
 * where a merge with parameters is named by their digest. "steps" is a number, "caches" a list of [step, units]. The
 * body has exactly the bytes that these say, and the file nothing more.
 *
 * A digest is the sum of a unit's values in one layer, each with a sign that depends on its place alone: a wrong value
 * shows in it as large as it is. Bounds are those that the recording run found (check.h): a change of how they are
 * found is a new version, or records made before it would raise false alarms.
 */
#ifndef RECORD_H
#define RECORD_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "output.h"

enum { RECORD_VERSION = 4, RECORD_TOP = 64, RECORD_CACHES = 64 };

/* One step: the token that was fed, and the logits after it. */
typedef struct record_step {
    int32_t token;
    float bound;
    double log_sum;         /* of the exponentials of all logits */
    uint64_t checksum;      /* FNV-1a of all logits; equal bits are information, no verdict */
    int32_t id[RECORD_TOP]; /* the largest logits, the lower id first among equals; -1 where the vocabulary ends */
    float value[RECORD_TOP];
} record_step;

typedef struct record_unit {
    uint64_t first; /* token, from 0 */
    uint32_t level, unused;
} record_unit;

typedef struct record_cache {
    uint64_t step;
    size_t units;
    record_unit *unit;
    float *bound;  /* (layers, 2, units) */
    float *digest; /* (layers, 2, units) */
} record_cache;

typedef struct record {
    json_t *header;
    uint32_t layers;
    int32_t vocab;
    size_t steps, caches;
    record_step *step;
    record_cache cache[RECORD_CACHES];
} record;

/*
 * Read and check a file: sizes before they are used, memory at most twice the file's size. 0, or 3 after a message (5
 * for memory). Release in any case.
 */
int record_read(record *r, const char *path);

/* Write; the caller closes. `r->header` has "options" already; sizes are added. False when memory runs out. */
bool record_write(record *r, FILE *out);

void record_release(record *r);

/* ---- What is in a record ---- */

/* All but token and bound of a step. */
void record_sketch(record_step *s, const float *logits, size_t vocab);

uint64_t record_checksum(const float *logits, size_t vocab);

/* The digest of n values. */
float record_digest(const float *values, size_t n);

#endif
