#include "ops/matrix_cl.h"

enum {
    SHARE_MIN = 12 << 10, /* columns of tiles of a share at least: each prepares its own input */
    FUSED_TOKENS_MAX = 2, /* more tokens are prepared by a launch of their own */
    INPUT_PREPARED = 3    /* as in cl/linear.cl, beside linear_input */
};

/* What the arguments of a launch point to. */
typedef struct linear_launch {
    cl_ulong tile_bytes, x_offset, ldx, work_stride, y_offset, ldy;
    cl_uint cols, rows, input, flags;
    cl_float eps;
    const buffer *x, *gain, *bias, *work; /* absent ones stand for by x */
} linear_launch;

static linear_launch launch_of(const linear_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    return (linear_launch){
        .tile_bytes = m->tile_bytes,
        .x_offset = args->x_offset,
        .ldx = (cl_ulong)m->base.cols * (args->input == INPUT_SWIGLU ? 2 : 1),
        .work_stride = matrix_work_floats(args->w),
        .y_offset = args->y_offset,
        .ldy = args->ldy,
        .cols = m->base.cols,
        .rows = m->base.rows,
        .input = args->input,
        .flags = matrix_flags(args),
        .eps = args->eps,
        .x = args->x,
        .gain = args->gain ? args->gain : args->x,
        .bias = args->bias ? args->bias : args->x,
        .work = args->x,
    };
}

/* Prepare all tokens' inputs once. */
static dcm_status prepare_wide(backend *b, const matrix_cl *m, linear_launch *l, size_t n)
{
    static const size_t local[] = {1};
    const clop_arg a[] = {CLOP_VAR(l->cols),     CLOP_VAR(l->input), CLOP_MEM(l->x),
                          CLOP_VAR(l->x_offset), CLOP_VAR(l->ldx),   CLOP_MEM(l->gain),
                          CLOP_VAR(l->eps),      CLOP_MEM(l->work),  CLOP_VAR(l->work_stride)};
    cl_kernel kernel;
    dcm_status status = clop_kernel(b, m->family, m->options, "linear_prepare", &kernel);
    if (status == DCM_OK)
        status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 1, &n, local);
    l->input = INPUT_PREPARED;
    return status;
}

/* Shares that a part's tiles are cut into: at least one a compute unit, at most `most`. */
static size_t shares_of(uint32_t units, uint32_t most, uint32_t tiles, uint32_t cols)
{
    const size_t wanted = (size_t)tiles * cols / SHARE_MIN;
    const size_t shares = wanted < units ? units : wanted < most ? wanted : most;
    return shares < tiles ? shares : tiles;
}

static dcm_status linear_wide(backend *b, const linear_args *args)
{
    static const size_t local[] = {1, 1};
    const matrix_cl *m = matrix_cl_of(args->w);
    const uint32_t limit = clop_device(b)->limits.compute_units, units = limit ? limit : 1,
                   most = units * tuning_number(&clop_tuned_of(b)->tuning, TUNE_SHARES);
    const bool work = args->input != INPUT_PLAIN || matrix_needs_work(args->w), fused = args->n <= FUSED_TOKENS_MAX;
    linear_launch l = launch_of(args);
    cl_kernel kernel;
    dcm_status status = clop_kernel(b, m->family, m->options, "linear_wide", &kernel);
    if (status == DCM_OK && work) {
        buffer *scratch;
        const size_t floats = l.work_stride * args->n * (fused ? most : 1);
        status = clop_scratch(b, CLOP_SCRATCH_LINEAR, floats * sizeof(float), &scratch);
        l.work = scratch;
    }
    if (status == DCM_OK && work && !fused)
        status = prepare_wide(b, m, &l, args->n);
    for (uint32_t i = 0; i < m->n_parts && status == DCM_OK; i++) {
        const matrix_part *part = &m->part[i];
        const size_t global[] = {shares_of(units, most, part->tiles, m->base.cols), args->n};
        const clop_arg a[] = {
            CLOP_MEM(part->data), CLOP_VAR(l.tile_bytes),  CLOP_VAR(part->tile0), CLOP_VAR(part->tiles),
            CLOP_VAR(l.cols),     CLOP_VAR(l.rows),        CLOP_VAR(l.input),     CLOP_MEM(l.x),
            CLOP_VAR(l.x_offset), CLOP_VAR(l.ldx),         CLOP_MEM(l.gain),      CLOP_VAR(l.eps),
            CLOP_MEM(l.work),     CLOP_VAR(l.work_stride), CLOP_MEM(l.bias),      CLOP_MEM(args->y),
            CLOP_VAR(l.y_offset), CLOP_VAR(l.ldy),         CLOP_VAR(l.flags)};
        status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
    }
    return status;
}

dcm_status cl_linear(backend *b, const linear_args *args)
{
    if (args->many)
        return cl_matmul(b, args);
    return clop_wide(b) ? linear_wide(b, args) : linear_group(b, args);
}
