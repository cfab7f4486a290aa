/* How far off float computations of the scorer may be: what bounds of its op and of its gradients are made of. */
#ifndef CHECKCL_SCORE_BOUNDS_H
#define CHECKCL_SCORE_BOUNDS_H

#include "harness.h"
#include "support/score.h"

enum { SCORE_HEAD_MAX = 256 };

typedef struct score_case {
    fx_cache cache;
    score_shape shape;
    score_layout at;
    uint32_t layer, layers; /* of the cache's */
    float *params;
    size_t bytes;
} score_case;

/* Parameters for units of the kind `fill`. */
void score_case_params(score_case *s, fx_input fill, uint64_t *rng);

/* A value and how far off a float computation of it may be. */
typedef struct off {
    double value, error;
} off;

static inline off off_of(double value) { return (off){value, 0}; }

static inline off off_add(off a, off b)
{
    return (off){a.value + b.value, a.error + b.error + 2 * CK_U * (fabs(a.value) + fabs(b.value))};
}

static inline off off_sub(off a, off b) { return off_add(a, (off){-b.value, b.error}); }

static inline off off_mul(off a, off b)
{
    const double error = fabs(a.value) * b.error + fabs(b.value) * a.error + a.error * b.error;
    return (off){a.value * b.value, error + 2 * CK_U * fabs(a.value * b.value) + FLT_MIN};
}

static inline off off_div(off a, off b)
{
    const double value = a.value / b.value, low = fabs(b.value) - b.error;
    return (off){value, (a.error + fabs(value) * b.error) / low + 4 * CK_U * fabs(value) + FLT_MIN};
}

/* A sum, ended by off_sum with how many roundings a term may go through. */
typedef struct off_terms {
    double value, error, absolute;
} off_terms;

static inline void off_term(off_terms *t, off x)
{
    t->value += x.value;
    t->error += x.error;
    t->absolute += fabs(x.value);
}

static inline off off_sum(const off_terms *t, double roundings)
{
    return (off){t->value, t->error + roundings * CK_U * t->absolute};
}

/* One KV head of one layer of one merge. */
typedef struct score_row {
    uint32_t merge, layer, head, level;
    const float *p;
} score_row;

score_row score_row_at(const score_case *s, uint32_t merge, uint32_t layer, uint32_t head);

/* A unit [k ; v], channels in the cache's order, keys with the rotation undone; and what the network makes of it. */
typedef struct score_off {
    off x[2 * SCORE_HEAD_MAX], z[2 * SCORE_HEAD_MAX], h[SCORE_HIDDEN_MAX];
    off norm, s;
} score_off;

/* The vectors of a slot with the rotation undone. */
void score_off_load(const score_case *s, const score_row *row, uint32_t slot, const float *rot, off *x);

/* Source 0 (a) or 1 (b). */
void score_off_run(const score_case *s, const score_row *row, uint32_t source, score_off *u);

/* D, and 1 / (1 + exp(-sharp D)). */
off score_off_gap(const score_case *s, const score_row *row, const score_off *a, const score_off *b);
off score_off_sigmoid(double sharp, off gap);

/* Roundings of a term of a sum over n channels, at least 16 at a time. */
static inline double score_roundings(uint32_t n) { return n / 16.0 + 32; }

#endif
