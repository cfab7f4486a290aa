/* The scorer for tests: made-up parameters, and its formula in long double, written from ops/score.h. */
#ifndef SUPPORT_SCORE_H
#define SUPPORT_SCORE_H

#include "ops/score.h"
#include "support/fixture.h"

/* `rows` rows of parameters for units whose channels are about `size`; paddings hold FX_PATTERN. The caller frees it.
 */
float *fx_score(score_shape shape, size_t rows, double size, uint64_t *rng);

/* [k ; v] of a slot, its key turned back by `rot`, channels in the cache's order. */
void fx_score_unit(const fx_cache *c, uint32_t layer, uint32_t h, uint32_t slot, const float *rot, long double *x);

/* The result of two such units by one row of parameters. */
void fx_score_merge(score_shape shape, const float *p, uint32_t level, const long double *a, const long double *b,
                    long double *y);

#endif
