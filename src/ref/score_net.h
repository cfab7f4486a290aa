/* Inside the reference: the scorer's network at one (layer, KV head) of one merge. */
#ifndef REF_SCORE_NET_H
#define REF_SCORE_NET_H

#include <math.h>

#include "ref/pool.h"
#include "ref/score.h"

/* One unit and what the network makes of it. */
typedef struct score_unit {
    double x[2 * REF_HEAD_MAX], z[2 * REF_HEAD_MAX];
    double h[REF_HIDDEN_MAX];
    double norm; /* sqrt(mean of the keys' z^2) */
    double s;
} score_unit;

/* The parameters of layer `layer`, KV head `head`. */
static inline ref_score score_at(const ref_score *score, size_t row)
{
    const size_t at = row * score->row;
    ref_score s = *score;
    const float **const arrays[] = {&s.mean, &s.scale, &s.w1,   &s.b1,        &s.w2,      &s.u,
                                    &s.r,    &s.prior, &s.bias, &s.deviation, &s.sharp_k, &s.sharp_v};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] += at;
    return s;
}

static inline uint32_t score_level(const ref_score *score, uint32_t level)
{
    return level < score->levels ? level : score->levels - 1;
}

/* u->x: a slot's key, turned back by `rotation`, and value. */
static inline void score_load(const ref_pool *pool, uint32_t layer, uint32_t head, uint32_t slot, const float *rotation,
                              score_unit *u)
{
    const uint32_t d = pool->head_dim;
    for (int which = REF_KEYS; which <= REF_VALUES; which++) {
        float stored[REF_HEAD_MAX];
        pool_load(pool, pool_at(pool, layer, which, head, slot), stored);
        for (uint32_t c = 0; c < d; c++)
            u->x[(size_t)which * d + c] = stored[c];
    }
    pool_rotate(pool, u->x, rotation, -1);
}

/* z, h, norm and s of u->x. */
static inline void score_run(const ref_score *p, uint32_t d, uint32_t level, score_unit *u)
{
    double squares = 0;
    u->s = 0;
    for (uint32_t c = 0; c < 2 * d; c++) {
        u->z[c] = (u->x[c] - p->mean[c]) * p->scale[c];
        squares += c < d ? u->z[c] * u->z[c] : 0;
    }
    for (uint32_t j = 0; j < p->hidden; j++) {
        const double sum = ref_dot(p->w1 + (size_t)j * 2 * d, u->z, 2 * d) + p->b1[(size_t)level * p->hidden + j];
        u->h[j] = sum > 0 ? sum : expm1(sum);
        u->s += p->w2[j] * u->h[j];
    }
    u->norm = sqrt(squares / d);
    u->s += *p->deviation * u->norm;
}

static inline double score_gap(const ref_score *p, uint32_t level, const score_unit *a, const score_unit *b)
{
    return a->s - b->s + p->prior[level];
}

static inline double score_sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* The merged unit [k ; v], its key without rotation. */
static inline void score_merge(const ref_score *p, uint32_t d, uint32_t level, const score_unit *a, const score_unit *b,
                               double *y)
{
    const double gap = score_gap(p, level, a, b);
    const double keys = score_sigmoid(*p->sharp_k * gap), values = score_sigmoid(*p->sharp_v * gap);
    for (uint32_t c = 0; c < 2 * d; c++) {
        const double m = c < d ? keys : values;
        double e = p->r[(size_t)level * 2 * d + c];
        for (uint32_t j = 0; j < p->hidden; j++)
            e += p->u[(size_t)j * 2 * d + c] * (a->h[j] + b->h[j]);
        y[c] = m * a->x[c] + (1 - m) * b->x[c] + e / p->scale[c];
    }
}

#endif
