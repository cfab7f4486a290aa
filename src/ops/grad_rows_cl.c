/* Gradients row by row: the kernels of cl/grad_rows.cl. */
#include "ops/grad_cl.h"

#include <stdio.h>

enum { GROUP = 256, GROUP_MIN = 16 };

/* Work-items of a row: one with vectors of 16, or a group. */
static size_t items_of(backend *b)
{
    size_t items = GROUP;
    while (items > clop_device(b)->limits.max_work_group)
        items /= 2;
    return clop_wide(b) || items < GROUP_MIN ? 1 : items;
}

static dcm_status launch(backend *b, const char *name, uint32_t n, const clop_arg *args, size_t count)
{
    const size_t local = items_of(b), global = n * local;
    char options[32];
    cl_kernel kernel;
    if (n == 0)
        return DCM_OK;
    snprintf(options, sizeof options, "-DITEMS=%zu", local);
    const dcm_status status = clop_kernel(b, "grad_rows", options, name, &kernel);
    return status == DCM_OK ? clop_launch(b, kernel, args, count, 1, &global, &local) : status;
}

dcm_status cl_norm_back(backend *b, const norm_back_args *a)
{
    const cl_ulong x_offset = a->x_offset, dx_offset = a->dx_offset;
    const cl_uint add = a->add;
    const clop_arg args[] = {CLOP_VAR(a->cols), CLOP_MEM(a->x),      CLOP_VAR(x_offset),
                             CLOP_MEM(a->gain), CLOP_VAR(a->eps),    CLOP_MEM(a->dy),
                             CLOP_MEM(a->dx),   CLOP_VAR(dx_offset), CLOP_VAR(add)};
    return launch(b, "norm_back", a->n, args, sizeof args / sizeof *args);
}

dcm_status cl_swiglu_back(backend *b, const swiglu_back_args *a)
{
    const clop_arg args[] = {CLOP_VAR(a->cols), CLOP_MEM(a->x), CLOP_MEM(a->dy), CLOP_MEM(a->dx)};
    return launch(b, "swiglu_back", a->n, args, sizeof args / sizeof *args);
}

dcm_status cl_kl_back(backend *b, const kl_back_args *a)
{
    const cl_ulong loss_offset = a->loss_offset;
    const clop_arg args[] = {CLOP_VAR(a->vocab), CLOP_MEM(a->logits), CLOP_MEM(a->target),
                             CLOP_VAR(a->scale), CLOP_MEM(a->loss),   CLOP_VAR(loss_offset)};
    return launch(b, "kl_back", a->n, args, sizeof args / sizeof *args);
}

dcm_status cl_square_back(backend *b, const square_back_args *a)
{
    const clop_arg args[] = {CLOP_VAR(a->cols),  CLOP_MEM(a->x),  CLOP_MEM(a->y),
                             CLOP_VAR(a->scale), CLOP_MEM(a->dx), CLOP_MEM(a->loss)};
    return launch(b, "square_back", a->n, args, sizeof args / sizeof *args);
}

dcm_status grad_elu_back(backend *b, uint32_t n, uint32_t cols, const buffer *y, const buffer *dy)
{
    const clop_arg args[] = {CLOP_VAR(cols), CLOP_MEM(y), CLOP_MEM(dy)};
    return launch(b, "elu_back", n, args, sizeof args / sizeof *args);
}
