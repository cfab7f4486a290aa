/* Parts of `dcm bench`: what is measured, and how it is told. The command itself is cmd_bench.c beside this folder. */
#ifndef BENCH_H
#define BENCH_H

#include <stdio.h>

#include "energy.h"
#include "policies.h"
#include "runtime.h"
#include "table.h"

enum { BENCH_BUSY_PERCENT = 10 }; /* repetitions or bandwidth apart by more than this: the machine was busy */

/* ---- Shapes (shape.c) ---- */

/* True for "shape:...". */
bool bench_is_shape(const char *model);

/* Read "shape:NAME" or "shape:layers=..,...": 0, or 2 after a message. */
int bench_shape_read(const char *model, dcm_model_info *shape);

/* Bytes that the shape's weights take on a device. */
size_t bench_shape_weight_bytes(const dcm_model_info *shape, dcm_weights weights);

/* Pseudo-random ids below `vocab`: token number i of every sequence of a seed is the same. */
int32_t bench_token(uint64_t seed, uint64_t i, uint32_t vocab);

/* ---- Cases ---- */

/* One decoded token. */
typedef struct bench_step {
    uint64_t token; /* its number in the sequence, from 1 */
    uint64_t ns;
    size_t units;       /* after it */
    const char *action; /* what the cache did for it: "append", "merge", "retire" or "evict" */
    int level;          /* merged from; -1: none */
    uint32_t repetition;
} bench_step;

/*
 * Where the time goes, by the device's own clock: of steps that follow the timed ones in the same sequence, or of a
 * prompt read once more.
 */
enum { BENCH_KERNELS = 128 };
typedef struct bench_profile {
    uint64_t tokens;
    uint64_t wall_ns, span_ns, wait_ns; /* span and wait as in dcm_profile */
    size_t count;
    dcm_profile_entry kernel[BENCH_KERNELS];
} bench_profile;

typedef enum bench_state { BENCH_WAITING, BENCH_OK, BENCH_BUSY, BENCH_NO_MEMORY, BENCH_INTERRUPTED } bench_state;

/* One test with one policy at one depth. */
typedef struct bench_case {
    const policy *policy;
    bool decode;    /* tgN, else ppN */
    uint64_t size;  /* N */
    uint64_t depth; /* tokens in the cache before it */
    char test[64];  /* "tg64 @ d4096" */
    char name[POLICY_TEXT];
    double *rate, *prefill_rate; /* of each repetition done: tokens a second, of the test and of the depth's prefill */
    uint32_t repetitions;
    bench_step *step; /* decode: of all repetitions; room for all */
    size_t steps;
    double joules, metered_seconds; /* decode: over all repetitions */
    size_t metered_steps;
    size_t units, unit_bytes, cache_bytes, peak_bytes, host_peak_bytes; /* after the last token */
    size_t needed;                                                      /* BENCH_NO_MEMORY: bytes in all, at least */
    double read_gb_s;       /* decode: of the device, reading a step's bytes at a time; 0: not measured */
    bench_profile *profile; /* NULL: none was made */
    bench_state state;
} bench_case;

/* Everything that one run measures; the cases of a policy stand together, those of a test by rising depth. */
typedef struct bench {
    runtime r;
    size_t memory_limit; /* 0: not known */
    policy_list policies;
    bench_case *cases;
    size_t count, per_policy, depths; /* cases in all, of a policy, of a test */
    uint32_t repetitions;
    uint64_t warmup, seed;
    bool quiet, breakdown, fill;
    int failed; /* the exit code of what has been said already; 0: nothing */
    energy meter;
    float *logits;
    double read_start, read_end;     /* GB/s; 0: not measured */
    double launch_us, round_trip_us; /* of an empty kernel; 0: not measured */
} bench;

/* ---- What is asked for (setup.c) ---- */

typedef struct bench_options {
    const char *model, *caches, *merge, *steps, *plot, *compare;
    arg_ints prompts, tokens, depths, groups;
    int64_t sinks, window, far_limit, chunk, repetitions, warmup, seed;
    double log_r;
    int kv, weights, format;
    bool table4, breakdown, fill;
    device_options device;
    verbosity_options words;
} bench_options;

void bench_add_options(args *a, bench_options *o);

/* Check the parsed options, and make the policies and cases of them: nothing is opened yet. 0, or the exit code after a
 * message. */
int bench_take_options(const args *a, bench_options *o, bench *b);

/* ---- Measuring (run.c) ---- */

/*
 * Measure all cases; signals are caught. 0; 130 or 143 when one stopped it; else the exit code after a message. Cases
 * that do not fit are marked, with a word on stderr, and the others go on.
 */
int bench_run(bench *b);

/* ---- Memory (memory.c) ---- */

/* Most resident bytes of this process since bench_reset_host_peak; 0: unknown. */
void bench_reset_host_peak(void);
size_t bench_host_peak(void);

/* Mark a case and the `deeper` ones of its test, which need as much or more, and say so. `session`, `why` may be NULL.
 */
void bench_refuse(const bench *b, const dcm_session *session, bench_case *c, size_t deeper, const char *why);

/* Mark all cases as those of a model that does not fit; b->r.info says what it takes. */
void bench_refuse_all(bench *b);

/* Check before hours are spent that the case will fit; else mark it. */
bool bench_fits(const bench *b, const dcm_session *session, bench_case *c);

/* ---- Energy (meter.c) ---- */

/* Find what counts the energy of the opened device, where something is decoded, and measure what is drawn when idle. */
void bench_meter_open(bench *b);

/* Joules of 1,000 decoded tokens; NAN where nothing counts them or the test was too short for what does. */
double bench_joules_per_1k(const bench *b, const bench_case *c);

/* Mean power while decoding; NAN as above. */
double bench_watts(const bench *b, const bench_case *c);

/* Members "energy" (method, scope, of, idle_watts; or null) and "energy_missing" (why, or null). */
json_t *bench_meter_meta(const bench *b);

/* The same below a table. */
void bench_meter_note(const bench *b, table_format format);

/* ---- Profiles (profile.c) ---- */

/* Add what was counted while `tokens` tokens took wall_ns. */
void bench_profile_add(bench_profile *p, const dcm_profile *more, uint64_t tokens, uint64_t wall_ns);

/* Milliseconds and launches a token of a family, or of all (NULL; launches without transfers). NAN for no profile. */
double bench_profile_ms(const bench_profile *p, const char *family);
double bench_profile_launches(const bench_profile *p, const char *family);

/* The rows of --breakdown as objects, and as a table of their own. */
json_t *bench_breakdown(const bench *b);
void bench_print_breakdown(const bench *b, table_format format);

/* ---- Results (report.c) ---- */

/* Seconds or rates: the value below which a share of the sorted `values` lies (nearest rank); NAN for none. */
double bench_quantile(const double *sorted, size_t count, double share);

/* Mark the cases of a busy machine, and say so on stderr. */
void bench_judge(bench *b);

/* Print all cases that were begun. `old`: rows of an earlier run for ratios, or NULL. `meta`: the reference is taken.
 */
void bench_print(const bench *b, table_format format, json_t *meta, const json_t *old);

/* "ok", "busy", ...; static. */
const char *bench_state_name(bench_state state);

/* Milliseconds of a decoded token; NAN for none. */
void bench_step_times(const bench *b, const bench_case *c, double *p50, double *p99);

/* Draw the decoding tests begun: step time against context, as an SVG (plot.c). */
void bench_plot(const bench *b, FILE *out);

/* Write one JSON line a step. */
void bench_write_steps(const bench *b, FILE *out);

/* ---- The paper's table (table4.c) ---- */

enum { BENCH_TABLE4_TOKENS = 100000 };

/* Options that --table4 sets itself: 0, or 2 after a message. */
int bench_table4_check(const args *a);

/* Print the three cases of --table4: full, L = 512, L = 256. `meta`: the reference is taken. */
void bench_print_table4(const bench *b, table_format format, json_t *meta);

/* ---- Earlier results (old.c) ---- */

/* Read the result of an earlier run: 0, or 3 after a message when it is none of this schema. Takes at most eight times
 * the file's size + 1 MiB. */
int bench_read_old(const char *path, json_t **old);

/* The same of a file's bytes. */
int bench_parse_old(const char *path, const char *text, size_t size, json_t **old);

#endif
