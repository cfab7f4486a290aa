#include "ops/matrix_cl.h"
#include "ops/tune_cl.h"

#include <stdio.h>

enum { ITEMS_PER_UNIT = 4 /* shares of a matrix per compute unit */ };

/* What the kernels need beside the matrix. */
typedef struct matmul {
    char options[224];
    cl_uint n, cols, rows, input, flags;
    cl_float eps;
    cl_ulong tile_bytes, x_offset, ldx, y_offset, ldy;
    uint32_t panel; /* tokens of a panel */
    uint32_t tiles; /* of rows, that an item multiplies a panel with at a time */
    size_t panels;
    const buffer *x, *gain, *bias, *y; /* absent ones stand for by x */
    buffer *panel_data;
} matmul;

static matmul matmul_of(backend *b, const linear_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->w);
    matmul p = {.n = args->n,
                .cols = m->base.cols,
                .rows = m->base.rows,
                .input = args->input,
                .flags = matrix_flags(args),
                .eps = args->eps,
                .tile_bytes = m->tile_bytes,
                .x_offset = args->x_offset,
                .ldx = (cl_ulong)m->base.cols * (args->input == INPUT_SWIGLU ? 2 : 1),
                .y_offset = args->y_offset,
                .ldy = args->ldy,
                .x = args->x,
                .gain = args->gain ? args->gain : args->x,
                .bias = args->bias ? args->bias : args->x,
                .y = args->y};
    p.panel = tuning_number(&clop_tuned_of(b)->tuning, TUNE_PANEL);
    p.panels = (p.n + p.panel - 1) / p.panel;
    p.tiles = clop_device(b)->limits.vector_floats < MATRIX_TILE ? 1 : 2;
    snprintf(p.options, sizeof p.options, "%s -DPANEL=%u -DTILES=%u", m->options, p.panel, p.tiles);
    return p;
}

/* All tokens' inputs, transformed, into panels. */
static dcm_status prepare_wide(backend *b, matmul *p)
{
    static const size_t local[] = {1};
    buffer *rows;
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, p->panels * p->cols * sizeof(float), &rows));
    DCM_TRY(status, fail,
            clop_scratch(b, CLOP_SCRATCH_PANELS, p->panels * p->panel * p->cols * sizeof(float), &p->panel_data));
    DCM_TRY(status, fail, clop_kernel(b, "weights+matmul", p->options, "matmul_prepare", &kernel));
    const clop_arg a[] = {CLOP_VAR(p->n),        CLOP_VAR(p->cols),      CLOP_VAR(p->input), CLOP_MEM(p->x),
                          CLOP_VAR(p->x_offset), CLOP_VAR(p->ldx),       CLOP_MEM(p->gain),  CLOP_VAR(p->eps),
                          CLOP_MEM(rows),        CLOP_MEM(p->panel_data)};
    return clop_launch(b, kernel, a, sizeof a / sizeof *a, 1, &p->panels, local);
fail:
    return status;
}

/* Shares of the tiles and of the panels, so that there are enough items for all compute units. */
static void shares(backend *b, const matmul *p, uint32_t tiles, size_t *global)
{
    const uint32_t units = clop_device(b)->limits.compute_units;
    const size_t groups = (tiles + p->tiles - 1) / p->tiles, most = (units ? units : 1) * (size_t)ITEMS_PER_UNIT;
    global[0] = groups < most ? groups : most;
    global[1] = (most + groups - 1) / groups;
    if (global[1] > p->panels)
        global[1] = p->panels;
}

static dcm_status matmul_wide(backend *b, const linear_args *args)
{
    static const size_t local[] = {1, 1};
    const matrix_cl *m = matrix_cl_of(args->w);
    matmul p = matmul_of(b, args);
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, prepare_wide(b, &p));
    DCM_TRY(status, fail, clop_kernel(b, "weights+matmul", p.options, "matmul_wide", &kernel));
    for (uint32_t i = 0; i < m->n_parts; i++) {
        const matrix_part *part = &m->part[i];
        size_t global[2];
        buffer *unpacked;
        shares(b, &p, part->tiles, global);
        DCM_TRY(status, fail,
                clop_scratch(b, CLOP_SCRATCH_UNPACKED,
                             global[0] * global[1] * p.tiles * MATRIX_TILE * p.cols * sizeof(float), &unpacked));
        const clop_arg a[] = {CLOP_MEM(part->data),  CLOP_VAR(p.tile_bytes), CLOP_VAR(part->tile0),
                              CLOP_VAR(part->tiles), CLOP_VAR(p.cols),       CLOP_VAR(p.rows),
                              CLOP_VAR(p.n),         CLOP_MEM(p.panel_data), CLOP_MEM(unpacked),
                              CLOP_MEM(p.bias),      CLOP_MEM(p.y),          CLOP_VAR(p.y_offset),
                              CLOP_VAR(p.ldy),       CLOP_VAR(p.flags)};
        DCM_TRY(status, fail, clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local));
    }
    return DCM_OK;
fail:
    return status;
}

dcm_status cl_matmul(backend *b, const linear_args *args)
{
    switch (tune_engine(b)) {
    case CLOP_MANY_GROUP: return matmul_group(b, args, false);
    case CLOP_MANY_MMA: return matmul_group(b, args, true);
    case CLOP_MANY_CLBLAST: return matmul_clblast(b, args);
    default: return matmul_wide(b, args);
    }
}
