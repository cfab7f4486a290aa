#include "ops/matrix_cl.h"

#include <stdio.h>
#include <string.h>

enum { CHAIN_MAX = 4, CHAIN_APART = 16 /* words of a counter: APART in cl/linear_chain.cl */ };

/* As in cl/linear_chain.cl. */
typedef struct chain_stage {
    cl_ulong tile_bytes, x_offset, y_offset;
    cl_uint tiles, cols, rows, input, flags;
    cl_float eps;
} chain_stage;

/* The number of the first maps that one launch can do: single vectors, all by one program; 1: it is no chain. */
static size_t chain_length(backend *b, const linear_args *args, size_t count)
{
    const matrix_cl *first = matrix_cl_of(args->w);
    size_t n = 0;
    if (!clop_wide(b) || !(clop_device(b)->limits.type & CL_DEVICE_TYPE_CPU))
        return 1;
    for (; n < count && n < CHAIN_MAX; n++) {
        const matrix_cl *m = matrix_cl_of(args[n].w);
        if (args[n].n != 1 || args[n].many || m->n_parts != 1 || m->family != first->family ||
            strcmp(m->options, first->options) != 0)
            break;
    }
    return n ? n : 1;
}

static chain_stage stage_of(const linear_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    return (chain_stage){.tile_bytes = m->tile_bytes,
                         .x_offset = args->x_offset,
                         .y_offset = args->y_offset,
                         .tiles = m->part[0].tiles,
                         .cols = m->base.cols,
                         .rows = m->base.rows,
                         .input = args->input,
                         .flags = matrix_flags(args),
                         .eps = args->eps};
}

static dcm_status launch_chain(backend *b, const linear_args *args, cl_uint count)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    const uint32_t units = clop_device(b)->limits.compute_units;
    const size_t items = units ? units : 1, local = 1;
    chain_stage stages[CHAIN_MAX] = {0};
    clop_arg a[2 + 5 * CHAIN_MAX + 3] = {CLOP_VAR(stages), CLOP_VAR(count)};
    cl_ulong work_stride = 0;
    buffer *work, *marks;
    cl_kernel kernel;
    char family[64];
    dcm_status status;
    for (size_t i = 0; i < CHAIN_MAX; i++) {
        const linear_args *s = &args[i < count ? i : 0];
        const clop_arg buffers[] = {CLOP_MEM(matrix_cl_of(s->w)->part[0].data), CLOP_MEM(s->x),
                                    CLOP_MEM(s->gain ? s->gain : s->x), CLOP_MEM(s->bias ? s->bias : s->x),
                                    CLOP_MEM(s->y)};
        const size_t floats = matrix_work_floats(s->w);
        stages[i] = stage_of(s);
        memcpy(a + 2 + 5 * i, buffers, sizeof buffers);
        work_stride = floats > work_stride ? floats : work_stride;
    }
    snprintf(family, sizeof family, "%s+linear_chain", m->family);
    DCM_TRY(status, fail, clop_kernel(b, family, m->options, "linear_chain", &kernel));
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, items * work_stride * sizeof(cl_float), &work));
    DCM_TRY(status, fail,
            clop_scratch(b, CLOP_SCRATCH_CHAIN, (CHAIN_MAX * (items + 1) + 1) * CHAIN_APART * sizeof(cl_uint), &marks));
    const clop_arg rest[] = {CLOP_MEM(work), CLOP_VAR(work_stride), CLOP_MEM(marks)};
    memcpy(a + 2 + 5 * CHAIN_MAX, rest, sizeof rest);
    status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 1, &items, &local);
fail:
    return status;
}

dcm_status cl_linear_chain(backend *b, const linear_args *args, size_t count)
{
    dcm_status status = DCM_OK;
    for (size_t n; count && status == DCM_OK; args += n, count -= n) {
        n = chain_length(b, args, count);
        status = n > 1 ? launch_chain(b, args, (cl_uint)n) : b->ops->linear(b, args);
    }
    return status;
}
