/* The scorer, a merge model with a small network per layer and KV head, and its gradients. */
#ifndef REF_SCORE_H
#define REF_SCORE_H

#include <dcm/merge.h>

#include "ref/ref.h"

enum { REF_HIDDEN_MAX = 256 };

/*
 * Parameters, in this order in memory; those of one (layer, KV head) are arrays, and `row` floats further on in all of
 * them are those of the next one, KV heads inside layers. d is the pool's head_dim; channels are in the cache's order,
 * keys then values.
 */
typedef struct ref_score {
    uint32_t hidden; /* H, at most REF_HIDDEN_MAX */
    uint32_t levels; /* G: of a merge of a higher level the last one counts */
    size_t row;
    const float *mean, *scale;                  /* (2d) */
    const float *w1, *b1, *w2;                  /* (H, 2d), (G, H), (H) */
    const float *u, *r;                         /* (H, 2d), (G, 2d) */
    const float *prior, *bias;                  /* (G), (G) */
    const float *deviation, *sharp_k, *sharp_v; /* () */
} ref_score;

/*
 * Merge into slots `out`. Of a unit x = [k ; v], its key turned back, z = (x - mean) scale, h = ELU(w1 z + b1[level]),
 * s = w2 . h + deviation sqrt(mean of the keys' z^2). With D = s_a - s_b + prior[level] and m = 1 / (1 + exp(-sharp D))
 * the result is m a + (1 - m) b + (u^T (h_a + h_b) + r[level]) / scale, m for keys by sharp_k, for values by sharp_v;
 * its key is turned by its anchor; bias[level] is attention's. `seen` (NULL: not wanted) is (merges, layers, kv_heads):
 * what was decided.
 */
void ref_merge_score(const ref_pool *pool, const ref_merges *merges, const ref_score *score, dcm_merge_choice *seen,
                     int threads);

/* Gradients are arrays as those of the parameters and of the units. */
typedef struct ref_score_back_args {
    ref_merges merges;         /* all of one layer and one level; results are units first, first + 1, ... */
    const ref_sources *source; /* (n) */
    uint32_t first;
    float *dparams; /* as the parameters from the first mean on: added to, but for mean and scale */
    float *dunits;  /* (units, 2, kv_heads, head_dim): those of sources are added to */
    const float *dscores; /* (units, kv_heads): those of results are added to bias's */
    float magnitude;
    float *loss; /* (kv_heads), added to; not used for magnitude 0 */
} ref_score_back_args;

/*
 * The way back through ref_merge_score. With magnitude m > 0 the loss has m (|k| / t - 1)^2 of every result's key as it
 * is stored, t = (|k_a| + |k_b|) / 2 taken as a constant; nothing where t is 0. A norm of 0 has the gradient 0.
 */
dcm_status ref_merge_score_back(const ref_pool *pool, const ref_score *score, const ref_score_back_args *args,
                                int threads);

#endif
