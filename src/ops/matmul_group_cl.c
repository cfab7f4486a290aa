/* Products with many vectors on devices of coalesced groups: the kernels of cl/matmul_group.cl, or CLBlast. */
#include "ops/clblast.h"
#include "ops/matrix_cl.h"

#include <stdio.h>

static const char FAMILY[] = "weights+weights_group+matmul_group";

enum {
    SIDE = 16, /* as in cl/matmul_group.cl: a group is SIDE x SIDE items */
    ROWS = 128,
    DEPTH = 32,
    TOKENS_SMALL = 64, /* of a group */
    TOKENS_LARGE = 128,
    LOCAL_LARGE = 36 << 10,  /* bytes of local memory that its group may take; OpenCL 1.2 promises 32 KiB */
    TYPICAL_BLOCKS = 2,      /* groups of tokens that a step of a prompt has at least */
    UNITS_MIN = 8,           /* compute units that are reckoned with at least */
    SHARES_MAX = 16,         /* of the columns */
    SHARE_STEPS_MIN = 4,     /* columns of a share at least, in DEPTH */
    PANEL_BYTES = 128 << 20, /* of unpacked weights at a time, for CLBlast */
    SUM_GROUP = 64
};

/* What the launches' arguments point to. */
typedef struct group_launch {
    char options[224];
    cl_uint n, cols, rows, flags, shares;
    cl_ulong tile_bytes, x_offset, y_offset, ldy;
    cl_float eps;
    const buffer *x, *gain, *bias, *y, *sums; /* absent ones stand for by x */
    uint32_t tokens;                          /* of a group */
} group_launch;

static size_t blocks_of(size_t n, size_t size) { return (n + size - 1) / size; }

/*
 * Shares of the columns, so that a step of a prompt keeps all compute units busy. They decide the order of sums: of the
 * matrix and the device alone, not of the tokens.
 */
static uint32_t shares_of(backend *b, const matrix *m)
{
    const size_t found = clop_device(b)->limits.compute_units, units = found > UNITS_MIN ? found : UNITS_MIN;
    const size_t groups = blocks_of(m->rows, ROWS) * TYPICAL_BLOCKS;
    const size_t wanted = (units + groups / 2) / groups, most = blocks_of(m->cols, DEPTH) / SHARE_STEPS_MIN;
    const size_t shares = wanted < most ? wanted : most;
    return shares < 1 ? 1 : shares > SHARES_MAX ? SHARES_MAX : (uint32_t)shares;
}

static group_launch launch_of(backend *b, const linear_args *args, bool mma)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    const cldev_limits *limits = &clop_device(b)->limits;
    group_launch l = {.n = args->n,
                      .cols = m->base.cols,
                      .rows = m->base.rows,
                      .flags = matrix_flags(args),
                      .shares = shares_of(b, args->w),
                      .tile_bytes = m->tile_bytes,
                      .x_offset = args->x_offset,
                      .y_offset = args->y_offset,
                      .ldy = args->ldy,
                      .eps = args->eps,
                      .x = args->x,
                      .gain = args->gain ? args->gain : args->x,
                      .bias = args->bias ? args->bias : args->x,
                      .y = args->y};
    const size_t groups = blocks_of(l.rows, ROWS) * blocks_of(l.n, TOKENS_LARGE) * l.shares;
    /* Sums and fragments of 128 tokens leave room for one group on a unit of NVIDIA's: slower by an eighth. */
    const bool large = !mma && groups >= limits->compute_units && limits->local_memory >= LOCAL_LARGE;
    l.tokens = large ? TOKENS_LARGE : TOKENS_SMALL;
    snprintf(l.options, sizeof l.options, "%s -DTOKENS=%u -DMMA=%d -DCPU=%d", m->options, l.tokens, mma,
             (limits->type & CL_DEVICE_TYPE_CPU) != 0);
    return l;
}

/* All tokens' inputs, transformed, into scratch as (n, cols); plain ones are taken where they are. */
static dcm_status prepare(backend *b, const linear_args *args, group_launch *l)
{
    buffer *scratch;
    cl_kernel kernel;
    dcm_status status = DCM_OK;
    if (args->input == INPUT_PLAIN)
        return status;
    if (args->input == INPUT_SWIGLU) {
        DCM_TRY(status, fail, linear_swiglu(b, args, &scratch));
    } else {
        const size_t local[] = {SIDE * SIDE}, global[] = {l->n * local[0]};
        DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, (size_t)l->n * l->cols * sizeof(float), &scratch));
        DCM_TRY(status, fail, clop_kernel(b, FAMILY, l->options, "matmul_normalise", &kernel));
        const clop_arg a[] = {CLOP_VAR(l->cols), CLOP_MEM(l->x),   CLOP_VAR(l->x_offset),
                              CLOP_MEM(l->gain), CLOP_VAR(l->eps), CLOP_MEM(scratch)};
        DCM_TRY(status, fail, clop_launch(b, kernel, a, sizeof a / sizeof *a, 1, global, local));
    }
    l->x = scratch;
    l->x_offset = 0;
fail:
    return status;
}

/* The sum of `shares` partial results into y: with none, y becomes its bias (and what it held, with flag 1). */
static dcm_status sum_shares(backend *b, const group_launch *l, cl_uint shares, cl_uint flags, const buffer *partial)
{
    const size_t local[] = {SUM_GROUP, 1}, global[] = {blocks_of(l->rows, SUM_GROUP) * SUM_GROUP, l->n};
    const clop_arg a[] = {CLOP_VAR(shares), CLOP_VAR(l->rows),     CLOP_MEM(partial), CLOP_MEM(l->bias),
                          CLOP_MEM(l->y),   CLOP_VAR(l->y_offset), CLOP_VAR(l->ldy),  CLOP_VAR(flags)};
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, FAMILY, l->options, "matmul_sum", &kernel);
    return status == DCM_OK ? clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local) : status;
}

dcm_status matmul_group(backend *b, const linear_args *args, bool mma)
{
    static const size_t local[] = {SIDE, SIDE, 1};
    const matrix_cl *m = matrix_cl_of(args->w);
    group_launch l = launch_of(b, args, mma);
    buffer *partial = NULL;
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, prepare(b, args, &l));
    DCM_TRY(status, fail, clop_kernel(b, FAMILY, l.options, "matmul_group", &kernel));
    if (l.shares > 1)
        DCM_TRY(status, fail,
                clop_scratch(b, CLOP_SCRATCH_UNPACKED, (size_t)l.shares * l.n * l.rows * sizeof(float), &partial));
    for (uint32_t i = 0; i < m->n_parts; i++) {
        const matrix_part *part = &m->part[i];
        const buffer *y = partial ? partial : l.y;
        const size_t global[] = {blocks_of(l.n, l.tokens) * SIDE,
                                 blocks_of((size_t)part->tiles * MATRIX_TILE, ROWS) * SIDE, l.shares};
        const clop_arg a[] = {
            CLOP_MEM(part->data), CLOP_VAR(l.tile_bytes), CLOP_VAR(part->tile0), CLOP_VAR(part->tiles),
            CLOP_VAR(l.cols),     CLOP_VAR(l.rows),       CLOP_VAR(l.n),         CLOP_MEM(l.x),
            CLOP_VAR(l.x_offset), CLOP_MEM(l.bias),       CLOP_MEM(y),           CLOP_VAR(l.y_offset),
            CLOP_VAR(l.ldy),      CLOP_VAR(l.flags)};
        DCM_TRY(status, fail, clop_launch(b, kernel, a, sizeof a / sizeof *a, 3, global, local));
    }
    if (partial)
        status = sum_shares(b, &l, l.shares, l.flags, partial);
fail:
    return status;
}

/* Tiles first .. first + count - 1 of a part: unpacked, then multiplied. */
static dcm_status clblast_panel(backend *b, const group_launch *l, const matrix_part *part, cl_uint first,
                                cl_uint count, const buffer *unpacked)
{
    static const size_t local[] = {SIDE * SIDE, 1};
    const size_t rows = (size_t)(part->tile0 + first) * MATRIX_TILE, end = rows + (size_t)count * MATRIX_TILE;
    const size_t global[] = {blocks_of(l->cols, DEPTH) * local[0], blocks_of((size_t)count * MATRIX_TILE, ROWS)};
    const clop_arg a[] = {CLOP_MEM(part->data), CLOP_VAR(l->tile_bytes), CLOP_VAR(first),
                          CLOP_VAR(count),      CLOP_VAR(l->cols),       CLOP_MEM(unpacked)};
    cl_kernel kernel;
    dcm_status status = clop_kernel(b, FAMILY, l->options, "matmul_unpack", &kernel);
    if (status == DCM_OK)
        status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
    if (status != DCM_OK)
        return status;
    return clblast_gemm(b, &(clblast_gemm_args){.m = l->n,
                                                .n = (end < l->rows ? end : l->rows) - rows,
                                                .k = l->cols,
                                                .a = l->x,
                                                .a_offset = l->x_offset,
                                                .b = unpacked,
                                                .ldb = (size_t)count * MATRIX_TILE,
                                                .c = l->y,
                                                .c_offset = l->y_offset + rows,
                                                .ldc = l->ldy,
                                                .add = l->flags != 0});
}

dcm_status matmul_clblast(backend *b, const linear_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    const size_t tile_floats = (size_t)args->w->cols * MATRIX_TILE, fit = PANEL_BYTES / sizeof(float) / tile_floats;
    group_launch l = launch_of(b, args, false);
    dcm_status status;
    DCM_TRY(status, fail, prepare(b, args, &l));
    if (args->bias)
        DCM_TRY(status, fail, sum_shares(b, &l, 0, l.flags, l.x));
    for (uint32_t i = 0; i < m->n_parts; i++) {
        const matrix_part *part = &m->part[i];
        const uint32_t most = fit < 1 ? 1 : fit < part->tiles ? (uint32_t)fit : part->tiles;
        buffer *unpacked;
        DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_UNPACKED, most * tile_floats * sizeof(float), &unpacked));
        for (uint32_t first = 0; first < part->tiles; first += most) {
            const uint32_t count = part->tiles - first < most ? part->tiles - first : most;
            DCM_TRY(status, fail, clblast_panel(b, &l, part, first, count, unpacked));
        }
    }
fail:
    return status;
}
