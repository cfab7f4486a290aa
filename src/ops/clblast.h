/* Dense products by CLBlast: the one place that includes its header. */
#ifndef OPS_CLBLAST_H
#define OPS_CLBLAST_H

#include "ops/ops_cl.h"

/* y (n, out) = x (n, in) w^T, w (out, in); what y held, NaN included, has no effect. */
dcm_status clblast_product(backend *b, const dense_args *args);

/* Forget compiled programs: before a context that was used is released. */
void clblast_clear(void);

#endif
