/*
 * checkcl's harness: one case runs an op of the reference and of an OpenCL device on the same arguments and compares
 * all memory that the op can reach. A family is a function that names its cases with ck_case() and runs each that it is
 * told to with ck_run().
 *
 * Every buffer lies between margins. What an op must leave alone (margins, inputs, gaps, unused units) has to come back
 * bit for bit; what it writes must lie within a bound that the family derives for each element, from float's epsilon
 * and the sum of absolute terms.
 */
#ifndef CHECKCL_HARNESS_H
#define CHECKCL_HARNESS_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "ops/ops.h"
#include "ops/ops_cl.h"
#include "support/fixture.h"

/* Half of float's epsilon: the largest relative error of one rounding. */
#define CK_U 0x1p-24

enum { CK_REF, CK_CL, CK_SIDES };
enum { CK_BUFFERS = 16 };

/* One buffer of a case, on both sides. */
typedef struct ck_buf {
    char name[24];
    size_t bytes;
    unsigned item;         /* bytes of an element: 4 (float) or 2 (half) */
    unsigned char *before; /* margins included, as all below */
    unsigned char *after[CK_SIDES];
    cl_mem whole;
    double *bound; /* one an element; 0: bit for bit */
    buffer side[CK_SIDES];
} ck_buf;

/* What a child process does: one family on one device. */
typedef struct ck {
    backend *side[CK_SIDES];
    cldev *device;
    const char *filter;  /* fnmatch pattern or part of a name; NULL: all */
    const char *variant; /* appended to case names; "" where the family has one form */
    uint64_t seed;
    bool list, bench;
    bool count;       /* cases are counted in n_cases, and none is run */
    bool small;       /* only the cases of small.c, and buffers without margins: for Oclgrind, which sees their ends */
    bool strict;      /* both sides compute strictly: the same bits are asked for */
    double read_gb_s; /* bandwidth of this run, for --bench */
    double launch_us;

    size_t n_cases;

    /* Of the case at hand. */
    char name[160];
    uint64_t rng;
    size_t traffic; /* bytes that the op must read and write at least */
    ck_buf buf[CK_BUFFERS];
    size_t n_bufs;
    matrix *matrix[CK_SIDES];
} ck;

/* Name a case, e.g. ck_case(c, "attention/h%u_d%u", h, d); true when it is to be run, with c->rng seeded from the name.
 */
bool ck_case(ck *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Whether small.c names the case; the first of its patterns that no call has met, or NULL. */
bool ck_is_small(const char *name);
const char *ck_small_unmet(void);

/* One side's buffer `name`; at first use it is made on both sides with `bytes` of `data` (elements of `item` bytes). */
buffer *ck_buffer(ck *c, int side, const char *name, const void *data, size_t bytes, unsigned item);

/* One side's matrix; a case has one at most. NULL where it fails. */
matrix *ck_matrix(ck *c, int side, quant_type type, uint32_t rows, uint32_t cols, const void *data);

/* fx_make over ck_buffer. */
typedef struct ck_maker {
    ck *c;
    int side;
} ck_maker;
buffer *ck_make(void *maker, const char *name, const void *data, size_t bytes, unsigned item);

/* Bounds of a buffer's elements, all 0 at first; bounds by element of a cache's blocks. */
double *ck_bound(ck *c, const char *name);
void ck_bound_unit(ck *c, const fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t channel,
                   double bound);

/* Build the arguments of one side and run the op. */
typedef dcm_status (*ck_op)(ck *c, int side, const void *what);

/* Set the bounds; called when both sides' buffers are there. */
typedef void (*ck_bounds)(ck *c, const void *what);

/* Run a case on both sides, compare, report, release; with --bench time it too. */
void ck_run(ck *c, ck_op op, ck_bounds bounds, const void *what);

/* The parts of ck_run, for the broken family. ck_compare: true when all is well; else `why` says what is not. */
bool ck_compare(ck *c, double *worst, char *why, size_t size);
bool ck_read_back(ck *c, char *why, size_t size);
void ck_pass(const ck *c, double worst, const char *note);
void ck_fail(const ck *c, const char *why);
void ck_release(ck *c);

/* Names of kernels launched by this process; times of the launches since ck_events_start. */
void ck_print_kernels(void);
void ck_events_start(void);
double ck_events_us(size_t *launches);

/* Error of storing `value`, itself off by `error`, as the cache does, on both sides. */
double ck_stored(kv_type type, double value, double error);

/* ---- Families ---- */

typedef enum ck_variants {
    CK_ONE = 0,    /* one form of kernels */
    CK_SHAPES = 3, /* wide (1) and group (2) */
    CK_CLBLAST = 4,
    CK_FLOAT = 8,  /* wide without integer products, where the device has them */
    CK_MMA = 16,   /* group, on matrix units, where the device has them */
    CK_NO_HALF16 = 32, /* wide as without AVX-512: no half16, registers of 8 floats; where the device has half16 */
    CK_GROUP_PLAIN = 64, /* group without fp16 and sub-groups, where the device has one of them */
    CK_STRICT = 128    /* after all others: strict back ends */
} ck_variants;

typedef struct ck_family {
    const char *name;
    void (*run)(ck *c);
    ck_variants variants;
} ck_family;

/* Terminated by an entry with name NULL. */
extern const ck_family ck_families[];

/* Run one family in all its variants; the child's work. */
void ck_run_family(ck *c, const ck_family *family);

void check_attention(ck *c);
void check_attention_back(ck *c);
void check_broken(ck *c);
void check_dense(ck *c);
void check_dense_back(ck *c);
void check_embed(ck *c);
void check_grad_rows(ck *c);
void check_kv_store(ck *c);
void check_linear(ck *c);
void check_merge(ck *c);
void check_merge_back(ck *c);
void check_merge_score(ck *c);
void check_merge_score_back(ck *c);
void check_probe(ck *c);
/* Not run with the others: a child that never ends, and one that dies. */
void check_hang(ck *c);
void check_crash(ck *c);

#endif
