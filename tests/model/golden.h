/* Goldens of tests/golden: reading them, and holding sessions to them. Uses the public interface of libdcm alone. */
#ifndef TESTS_MODEL_GOLDEN_H
#define TESTS_MODEL_GOLDEN_H

#include <dcm/dcm.h>

enum { GOLDEN_TOKENS = 512, DEVICE_NAMES = 16, DEVICE_NAME = 64 };

/* A golden is FOLDER/NAME.csv, made from the first `tokens` ids of FOLDER/ids.txt. */
typedef struct golden_case {
    const char *name;
    dcm_cache_params params; /* `kv` is set by the test */
    size_t tokens;
    bool brief; /* part of shorter runs */
} golden_case;

/* Most the log-probabilities may be off, in nats. */
typedef struct golden_bounds {
    double mean, max;
} golden_bounds;

/* Prints "test: TEXT" on stderr and returns false. */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
bool golden_fail(const char *format, ...);

/* "f32" or "f16". */
const char *golden_kv_name(dcm_kv_type kv);

/* Reads a line of comma-separated ids: at most GOLDEN_TOKENS. */
bool golden_read_ids(const char *folder, int32_t *ids, size_t *count);

/*
 * Feeds the case's tokens but the last, `chunk` at a time, and compares the log-probability of each chunk's next token
 * (log-softmax in double) with FOLDER/PREFIX NAME.csv; with `chunk` 0 every token's, fed in steps of the session's
 * choosing. Prints one line: the differences and "ok" or what is wrong.
 */
bool golden_compare(dcm_model *model, const char *device, const char *folder, const char *prefix, const golden_case *c,
                    dcm_kv_type kv, size_t chunk, golden_bounds bounds, const int32_t *ids);

/*
 * Feeds `count` tokens one by one to a session of `params` and to a full one side by side. The logits must be the same
 * bits through token `same`, and at the token after it, where `count` reaches that far, they must not be. Prints one
 * line.
 */
bool golden_same_bits(dcm_model *model, const char *device, const char *label, const dcm_cache_params *params,
                      const int32_t *ids, size_t count, size_t same);

/* $DCM_TEST_DEVICE, or "ref" and then P.D of every OpenCL device. False when the devices cannot be listed. */
bool golden_devices(char (*names)[DEVICE_NAME], size_t *count);

#endif
