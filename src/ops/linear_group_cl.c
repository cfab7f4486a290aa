/* Products with single vectors on devices of coalesced groups: the kernels of cl/linear_group.cl. */
#include "ops/matrix_cl.h"

#include <stdio.h>

enum {
    AHEAD = 4,              /* loads of an item on their way at a time */
    FUSED_WEIGHTS = 4 << 20 /* of smaller matrices each group makes its SwiGLU input anew: cheaper than a launch */
};

static const char FAMILY[] = "weights+weights_group+lanes+linear_group";

typedef struct group_options {
    char text[240];
} group_options;

static group_options options_of(backend *b, const matrix *m)
{
    group_options o;
    snprintf(o.text, sizeof o.text, "%s -DITEMS=%zu -DAHEAD=%d -DCPU=%d -DSUBGROUPS=%d", matrix_cl_of(m)->options,
             matrix_group_size(b), AHEAD, (clop_device(b)->limits.type & CL_DEVICE_TYPE_CPU) != 0,
             clop_tier(b, CLDEV_SUBGROUPS));
    return o;
}

dcm_status linear_swiglu(backend *b, const linear_args *args, buffer **out)
{
    const cl_uint cols = args->w->cols;
    const cl_ulong x_offset = args->x_offset;
    const size_t size = matrix_group_size(b), local[] = {size, 1},
                 global[] = {(cols + size - 1) / size * size, args->n};
    const group_options options = options_of(b, args->w);
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, (size_t)args->n * cols * sizeof(float), out));
    DCM_TRY(status, fail, clop_kernel(b, FAMILY, options.text, "linear_swiglu", &kernel));
    const clop_arg a[] = {CLOP_VAR(cols), CLOP_MEM(args->x), CLOP_VAR(x_offset), CLOP_MEM(*out)};
    status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
fail:
    return status;
}

dcm_status linear_group(backend *b, const linear_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    const group_options options = options_of(b, args->w);
    const size_t local[] = {matrix_group_size(b), 1};
    const bool swiglu = args->input == INPUT_SWIGLU;
    const bool apart = swiglu && (size_t)m->base.rows * m->base.cols > FUSED_WEIGHTS;
    const cl_uint cols = m->base.cols, rows = m->base.rows, input = apart ? INPUT_PLAIN : args->input;
    const cl_uint flags = matrix_flags(args);
    const cl_ulong tile_bytes = m->tile_bytes, y_offset = args->y_offset, ldy = args->ldy;
    const cl_ulong ldx = (cl_ulong)cols * (swiglu && !apart ? 2 : 1), x_offset = apart ? 0 : args->x_offset;
    const cl_float eps = args->eps;
    buffer *x = args->x;
    cl_kernel kernel;
    dcm_status status = DCM_OK;
    if (apart)
        DCM_TRY(status, fail, linear_swiglu(b, args, &x));
    const buffer *gain = args->gain ? args->gain : x, *bias = args->bias ? args->bias : x;
    DCM_TRY(status, fail, clop_kernel(b, FAMILY, options.text, "linear_group", &kernel));
    for (uint32_t i = 0; i < m->n_parts; i++) {
        const matrix_part *part = &m->part[i];
        const size_t global[] = {part->tiles * local[0], args->n};
        const clop_arg a[] = {CLOP_MEM(part->data), CLOP_VAR(tile_bytes), CLOP_VAR(part->tile0), CLOP_VAR(cols),
                              CLOP_VAR(rows),       CLOP_VAR(input),      CLOP_MEM(x),           CLOP_VAR(x_offset),
                              CLOP_VAR(ldx),        CLOP_MEM(gain),       CLOP_VAR(eps),         CLOP_MEM(bias),
                              CLOP_MEM(args->y),    CLOP_VAR(y_offset),   CLOP_VAR(ldy),         CLOP_VAR(flags)};
        DCM_TRY(status, fail, clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local));
    }
fail:
    return status;
}
