/*
 * Parts of `dcm check`: one stream of tokens through several devices, each in a process of its own, and what they
 * compute compared. The command itself is cmd_check.c beside this folder.
 */
#ifndef CHECK_H
#define CHECK_H

#include <dcm/plan.h>
#include <dcm/session.h>

#include <sys/types.h>

#include "options.h"
#include "output.h"
#include "record.h"
#include "runtime.h"
#include "table.h"

enum {
    CHECK_DEVICES = 14,              /* most that may be named */
    CHECK_SIDES = CHECK_DEVICES + 3, /* and the references that the bounds come from */
    CHECK_BLOCK = 16,                /* most steps whose tokens are sent to a device at a time */
    CHECK_PROMPT_TOKENS = 512,       /* most of the first tokens that are read as a prompt too */
    CHECK_ROWS = 128,                /* most logits of CHECK_EACH at a time: as many as a group of any kernel takes */
    CHECK_FACTOR = 8, /* a bound is so many times what the reference differs by between double and float sums */
    CHECK_HALVES = 2, /* and, of units in f16, so many times what it differs by from units in f32: check_allowed */
    CHECK_TEXT = 512
};

/*
 * How a device computes: tokens one by one, or many in a step, by other kernels, with the logits after the last alone
 * or after each, by other kernels again. The reference makes the same bits of all three, so that what it computes one
 * by one is what the others are held against.
 */
typedef enum check_form { CHECK_DECODE, CHECK_PROMPT, CHECK_EACH, CHECK_FORMS } check_form;

/* ---- A device in a process of its own (side.c; process.c is the process) ---- */

/* What every process computes with. */
typedef struct check_job {
    char path[4096]; /* of the model; "" for a shape */
    dcm_model_info shape;
    dcm_weights weights;
    dcm_cache_params cache;
    device_options device; /* the name aside */
    int64_t seconds;       /* most for one answer */
} check_job;

/* What a process says of its model once it is open. */
typedef struct check_model {
    uint32_t vocab, layers, kv_heads, head_dim;
    uint64_t digest, merge_digest; /* merge_digest: of its parameters, 0 without */
    char merge[16];                /* as in dcm_session_stats */
} check_model;

/* One head's choice of one layer of one merge. */
typedef struct check_chosen {
    uint32_t layer;
    dcm_merge_choice choice;
} check_chosen;

/* What is summed up about one device in one form, against the baseline. A step is named by its token, from 1. */
typedef struct check_totals {
    uint64_t steps;               /* whose logits were compared */
    uint64_t same_bits;           /* of them: equal bit for bit */
    uint64_t other_bits;          /* the first that is not; 0: none */
    uint64_t no_number;           /* the first with a logit of its own that is none; 0: none */
    double max_abs, bound, ratio; /* at the step where ratio = max_abs / bound was largest */
    uint64_t worst_step;
    double nmse, kl;        /* largest of any step */
    uint64_t parted;        /* first step whose greedy choice differs; 0: none */
    double margin, allowed; /* there: between the two choices by the baseline; twice the bound */
    size_t caches;          /* compared */
    double cache_max_abs, cache_ratio;
    char cache_worst[128]; /* "after 256: layer 3, keys of tokens 8 to 15"; strict: the first that differs */
} check_totals;

/* A device's cache, layer by layer. */
typedef struct check_cache {
    dcm_unit *units;
    size_t n_units;
    float *values; /* one layer's: (units, 2, kv_heads, head_dim) */
    size_t room;   /* of units */
} check_cache;

typedef struct check_side {
    const char *name;
    bool asked_for; /* else a reference, for the bounds alone */
    bool quiet;     /* its process says errors only */
    bool in_f32;    /* ref-f32: ref with units in f32, whatever the job says */
    pid_t pid;      /* 0: none */
    int socket;     /* -1: none */
    bool prompts;   /* compared in the other forms too: an OpenCL device that was asked for */
    check_model model;
    json_t *facts;            /* device, driver, platform, tuning */
    char trouble[CHECK_TEXT]; /* what became of it; "" while it works */
    int code;                 /* that its process told with it; 0: none */
    float *logits;            /* (CHECK_BLOCK + 1, vocab): after the tokens fed last; the last row: of other forms */
    size_t n_logits;          /* of the tokens fed last */
    check_chosen *chosen;     /* by a scorer in the steps fed last, in order; the reference tells, others do not */
    size_t n_chosen, chosen_room;
    check_cache cache[CHECK_FORMS];
    check_totals sum[CHECK_FORMS];
} check_side;

/* Start the process and open everything in it. 0, or an exit code after a message. */
int check_side_open(check_side *s, const check_job *job);

/* End the process and note why, with an exit code; false. */
bool check_side_end(check_side *s, int code, const char *why);

/* Kill the process and free what the side has. */
void check_side_close(check_side *s);

static inline bool check_works(const check_side *s) { return s->pid != 0; }

/*
 * Feed `count` tokens one by one; the logits after each into s->logits, choices into s->chosen. Errors, a process that
 * ended and one that does not answer leave a text in s->trouble. Returns after how many tokens there are logits.
 */
size_t check_side_feed(check_side *s, const check_job *job, const int32_t *ids, size_t count);

/*
 * Let it read `count` tokens as a prompt, or as what comes next in one, beside those that were fed one by one and those
 * of other forms; then take the logits, after each of them in turn (CHECK_EACH: CHECK_ROWS at most) or after the last.
 * Errors as above; false and NULL then.
 */
bool check_side_read(check_side *s, check_form form, const int32_t *ids, size_t count);
const float *check_side_row(check_side *s, const check_job *job);

/* Ask for a cache: its units, and room for its values; then for a layer of it. Errors as above; false then. */
bool check_side_units(check_side *s, const check_job *job, check_form form);
bool check_side_layer(check_side *s, const check_job *job, check_form form, uint32_t layer);

/* ---- Numbers (compare.c) ---- */

/* How far the logits `b` are from `a`. */
typedef struct check_difference {
    double max_abs; /* infinite where one of them is no number */
    double nmse;    /* sum of squared differences over that of `a` */
    double kl;      /* of the probabilities of `a` to those of `b`, in nats */
    int32_t top_a, top_b;
    double margin; /* of top_a over top_b by `a` */
    bool same_bits;
    bool no_number; /* in `b` */
} check_difference;

check_difference check_compare(const float *a, const float *b, size_t vocab);

/*
 * The same from a record's largest logits: max_abs and nmse are of those, kl takes the others together as one, and a
 * margin is at least what is told.
 */
check_difference check_compare_sketch(const record_step *a, const float *b, size_t vocab);

/* ---- The run (run.c) ---- */

typedef struct check_choices check_choices;

typedef struct check_run {
    check_job job;
    check_side side[CHECK_SIDES]; /* the first is the baseline */
    size_t sides, ref, with_floats;
    int32_t *ids; /* known tokens; what follows is the baseline's greedy continuation */
    size_t known;
    uint64_t steps, seed;
    arg_ints cache_at;
    bool quiet;
    const float *greedy;    /* the baseline's logits that the next token is chosen by */
    double largest_bound;   /* of the logits of any step */
    check_choices *choices; /* of ref: (DCM_LEVELS_MAX, layers); NULL: no scorer's merge so far */
    double *gap_off;        /* (layers): most that a gap may be off, by all that were seen so far */
    record made;            /* of the baseline, where `save` is asked for */
    const char *save;
    record *against; /* the baseline in place of a device; NULL: none */
    output_file steps_out;
    uint64_t read[CHECK_FORMS]; /* tokens read as prompts so far */
    bool stopped;               /* the baseline or a reference failed */

    /* Of the last steps, for those who read them again: step i in row (i - 1) mod CHECK_ROWS. */
    double kept_bound[CHECK_ROWS];
    float *kept; /* (CHECK_ROWS, vocab): the baseline's logits; NULL: nobody does, or a record has them */
} check_run;

/* Open all sides and run all steps. 0, or an exit code after a message. */
int check_all(check_run *run);

/* How many of the first tokens are read as a prompt too; 0: a single token is none. */
uint64_t check_prompt_tokens(const check_run *run);

/* Add to a side's trouble where it was; without the baseline or a reference there is nothing to compare with. */
void check_lost(check_run *run, check_side *s, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Is it the baseline, or a reference that the bounds come from? */
bool check_carries(const check_run *run, const check_side *s);

/* A difference as a part of its bound. Without a bound nothing is within it. */
double check_ratio(double difference, double bound);

/* ---- Caches (caches.c) ---- */

/*
 * Compare all units after `step` tokens with those that the baseline has when decoding: of all sides, or of the
 * prompts of those that read them.
 */
void check_caches(check_run *run, check_form form, uint64_t step);

/* ---- Bounds (bounds.c) ---- */

/* Are all of them finite? */
bool check_all_numbers(const float *x, size_t n);

/* Largest difference of two arrays; infinite where one has no number. */
double check_max_abs(const float *a, const float *b, size_t n);

/* A measure: what ref differs by from side `other`, a reference too, in the `at`-th of what is measured. */
typedef double check_apart(const check_run *run, size_t other, size_t at);

/*
 * How far right computations may be apart in a measure: the factor times what ref-float tells, and, where units are in
 * f16, twice what ref-f32 does. In f16 a last bit of a sum may turn a stored half into the next one, or not, as chance
 * has it, so that ref-float alone does not tell. A number that can be turned lies midway between two halves: storing it
 * moved it by half of what the turn moves it by. ref-f32 shows what storing all of them does.
 */
double check_allowed(const check_run *run, check_apart *apart, size_t at);

/* One rounding of a stored value, as a part of it. */
double check_rounding(dcm_kv_type kv);

/* A bound: what is allowed, one rounding of the largest of n values at least. Logits round as units in f32 do. */
double check_bound(dcm_kv_type kv, double allowed, const float *values, size_t n);

/* Take over what the references chose in the steps fed last. False when memory runs out. */
bool check_take_choices(check_run *run);

void check_free_choices(check_run *run);

/* Most that a value of the layer read last, of keys (kind 0) or values (1), may be off by what the references tell. */
double check_layer_allowed(const check_run *run, uint32_t kind);

/*
 * Most that a value of a unit may be off in one head. `token`, the check_bound of what its layer allows and of its own
 * values, is that of a token's own unit. A scorer's merge makes m a + (1 - m) b, m = 1 / (1 + exp(-sharp D)): where D
 * may be off by d, what the references' largest differences of D in the layer allow, m moves by the larger of
 * |m(D + d) - m(D)| and |m(D - d) - m(D)|, and the unit by that times what a and b are apart, beside what a and b are
 * off themselves. Other merges weigh by constants, or are not known from inside: `token` itself. check_choice_moves:
 * how far m moves.
 */
double check_choice_moves(const dcm_merge_choice *choice, uint32_t kind, double gap);
double check_unit_bound(const check_run *run, const dcm_unit *unit, uint32_t layer, uint32_t head, uint32_t kind,
                        double token);

/* ---- Records (recording.c) ---- */

/* Room in run->made for all steps and caches. 0, or 5 after a message. */
int check_record_begin(check_run *run);

/* Note a step's logits, the baseline's. */
void check_record_step(check_run *run, uint64_t step, int32_t token, const float *logits, double bound);

/* Note the units, then layer by layer the digests, of the caches compared after `step`. */
bool check_record_units(check_run *run, uint64_t step);
void check_record_layer(check_run *run, uint64_t step, uint32_t layer);

/* What is the same wherever a record can be used: model and policy. */
json_t *check_record_options(const check_run *run, const check_model *model);

/* Write run->made to an opened file with facts for people. 0, or 5 after a message. */
int check_record_write(check_run *run, json_t *facts, FILE *out);

/* Take tokens, steps and caches from run->against. 0, or 3 after a message where the options are others. */
int check_record_take(check_run *run);

/* Is the record of this model? 0, or 3 after a message. */
int check_record_fits(const check_run *run, const check_model *model);

/* The caches of run->against after `step`. */
const record_cache *check_record_cache(const check_run *run, uint64_t step);

/* ---- Results (report.c) ---- */

/* Print the table. `meta`: the reference is taken. */
void check_print(const check_run *run, table_format format, json_t *meta);

/* The exit code of the whole run. */
int check_code(const check_run *run);

#endif
