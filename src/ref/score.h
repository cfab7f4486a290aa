/* The scorer, a merge model with a small network per layer and KV head, and its gradients. */
#ifndef REF_SCORE_H
#define REF_SCORE_H

#include "ref/ref.h"

enum { REF_HIDDEN_MAX = 256 };

/*
 * Parameters; those of one (layer, KV head) are arrays, and `row` floats further on in all of them are those of the
 * next one, KV heads inside layers. d is the pool's head_dim; channels are in the cache's order, keys then values.
 */
typedef struct ref_score {
    uint32_t hidden; /* H, at most REF_HIDDEN_MAX */
    uint32_t levels; /* G: of a merge of a higher level the last one counts */
    size_t row;
    const float *mean, *scale;                  /* (2d) */
    const float *w1, *b1, *w2;                  /* (H, 2d), (G, H), (H) */
    const float *u, *r;                         /* (H, 2d), (G, 2d) */
    const float *prior;                         /* (G) */
    const float *deviation, *sharp_k, *sharp_v; /* () */
} ref_score;

/*
 * Merge into slots `out`. Of a unit x = [k ; v], its key turned back, z = (x - mean) scale, h = ELU(w1 z + b1[level]),
 * s = w2 . h + deviation sqrt(mean of the keys' z^2). With D = s_a - s_b + prior[level] and m = 1 / (1 + exp(-sharp D))
 * the result is m a + (1 - m) b + (u^T (h_a + h_b) + r[level]) / scale, m for keys by sharp_k, for values by sharp_v;
 * its key is turned by its anchor.
 */
void ref_merge_score(const ref_pool *pool, const ref_merges *merges, const ref_score *score, int threads);

#endif
