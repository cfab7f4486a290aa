/* Products by CLBlast: the one place that includes its header. A row of a product does not depend on their number. */
#ifndef OPS_CLBLAST_H
#define OPS_CLBLAST_H

#include "ops/ops_cl.h"

/* y (n, out) = x (n, in) w^T, w (out, in); what y held, NaN included, has no effect. */
dcm_status clblast_product(backend *b, const dense_args *args);

/* c (m, n) = a (m, k) b (k, n), or added to what c holds; row-major, a without gaps; offsets and rows in floats. */
typedef struct clblast_gemm_args {
    size_t m, n, k;
    const buffer *a, *b, *c;
    size_t a_offset, c_offset, ldb, ldc;
    bool a_transposed; /* a is (k, m) */
    bool add;
} clblast_gemm_args;

dcm_status clblast_gemm(backend *b, const clblast_gemm_args *args);

/* Forget compiled programs: before a context that was used is released. */
void clblast_clear(void);

#endif
