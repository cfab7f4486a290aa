/* Made-up parameters of a scorer for tests. */
#ifndef SUPPORT_SCORE_H
#define SUPPORT_SCORE_H

#include "ops/score.h"

/* `rows` rows of parameters for units whose channels are about `size`; paddings hold FX_PATTERN. The caller frees it.
 */
float *fx_score(score_shape shape, size_t rows, double size, uint64_t *rng);

#endif
