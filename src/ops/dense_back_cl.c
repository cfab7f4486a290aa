/* Gradients of the dense product: the kernels of cl/dense_back.cl, or CLBlast's. */
#include "ops/clblast.h"
#include "ops/grad_cl.h"

#include <stdio.h>

enum { ROWS = 4, COLS = 32, SIDE = 16, PARTS = 16 }; /* as in cl/dense_back.cl */

/* c (rows, cols) = a b, or added to it; a is (rows, terms), or (terms, rows) where it is to be transposed. */
typedef struct product {
    const buffer *a, *b, *c;
    cl_uint rows, cols, terms;
    bool transposed, add;
} product;

static dcm_status own_product(backend *b, const char *options, const product *p)
{
    static const size_t local[] = {1, 1};
    const size_t global[] = {((size_t)p->rows + ROWS - 1) / ROWS, ((size_t)p->cols + COLS - 1) / COLS};
    const cl_ulong row = p->transposed ? 1 : p->terms, step = p->transposed ? p->rows : 1;
    const cl_uint add = p->add;
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, "dense_back", options, "dense_back_product", &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg args[] = {CLOP_MEM(p->a),    CLOP_VAR(row),     CLOP_VAR(step),     CLOP_MEM(p->b), CLOP_MEM(p->c),
                             CLOP_VAR(p->rows), CLOP_VAR(p->cols), CLOP_VAR(p->terms), CLOP_VAR(add)};
    return clop_launch(b, kernel, args, sizeof args / sizeof *args, 2, global, local);
}

static dcm_status make_product(backend *b, const char *options, const product *p)
{
    const clop_dense route = clop_get_dense(b);
    if (route == CLOP_DENSE_OWN || (route == CLOP_DENSE_AUTO && clop_wide(b)))
        return own_product(b, options, p);
    return clblast_gemm(b, &(clblast_gemm_args){.m = p->rows,
                                                .n = p->cols,
                                                .k = p->terms,
                                                .a = p->a,
                                                .b = p->b,
                                                .c = p->c,
                                                .ldb = p->cols,
                                                .ldc = p->cols,
                                                .a_transposed = p->transposed,
                                                .add = p->add});
}

static dcm_status add_bias(backend *b, const char *options, size_t parts, const dense_back_args *a)
{
    const size_t local = parts * SIDE, global = ((size_t)a->out + SIDE - 1) / SIDE * local;
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, "dense_back", options, "dense_back_bias", &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg args[] = {CLOP_MEM(a->dy), CLOP_VAR(a->n), CLOP_VAR(a->out), CLOP_MEM(a->dbias)};
    return clop_launch(b, kernel, args, sizeof args / sizeof *args, 1, &global, &local);
}

dcm_status cl_dense_back(backend *b, const dense_back_args *a)
{
    const size_t parts = clop_wide(b) || clop_device(b)->limits.max_work_group < PARTS * SIDE ? 1 : PARTS;
    const product inputs = {a->dy, a->w, a->dx, a->n, a->in, a->out, false, false};
    const product weights = {a->dy, a->x, a->dw, a->out, a->in, a->n, true, true};
    char options[32];
    dcm_status status = DCM_OK;
    if (a->n == 0)
        return DCM_OK;
    snprintf(options, sizeof options, "-DPARTS=%zu", parts);
    if (a->act == ACT_ELU)
        DCM_TRY(status, fail, grad_elu_back(b, a->n, a->out, a->y, a->dy));
    if (a->dx)
        DCM_TRY(status, fail, make_product(b, options, &inputs));
    DCM_TRY(status, fail, make_product(b, options, &weights));
    DCM_TRY(status, fail, add_bias(b, options, parts, a));
fail:
    return status;
}
