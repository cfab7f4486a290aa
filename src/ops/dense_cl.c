#include "ops/clblast.h"

enum {
    SIDE = 16,             /* of dense_group's tile */
    FINISH_GROUP = 64,     /* work-items of dense_finish's groups */
    CLBLAST_COLS_MIN = 16, /* fewer columns go to dense_group; that may not depend on the rows, whose bits it decides */
    SHARES_PER_UNIT = 4    /* work-items per compute unit that dense_wide aims at */
};

static const char *options_of(const dense_args *args) { return args->act == ACT_ELU ? "-DELU=1" : "-DELU=0"; }

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

static dcm_status dense_own(backend *b, const dense_args *args, const char *name, const size_t *global,
                            const size_t *local)
{
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, "dense", options_of(args), name, &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg a[] = {CLOP_MEM(args->x), CLOP_MEM(args->w),  CLOP_MEM(args->bias), CLOP_MEM(args->y),
                          CLOP_VAR(args->n), CLOP_VAR(args->in), CLOP_VAR(args->out)};
    return clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
}

static dcm_status dense_wide(backend *b, const dense_args *args)
{
    static const size_t local[] = {1, 1};
    const size_t units = clop_device(b)->limits.compute_units, most = (units ? units : 1) * SHARES_PER_UNIT;
    const size_t rows = ((size_t)args->n + 3) / 4, quads = ((size_t)args->out + 3) / 4;
    const size_t wanted = (most + rows - 1) / rows, global[] = {rows, wanted < quads ? wanted : quads};
    return dense_own(b, args, "dense_wide", global, local);
}

static dcm_status dense_group(backend *b, const dense_args *args)
{
    static const size_t local[] = {SIDE, SIDE};
    const size_t global[] = {round_up(args->out, SIDE), round_up(args->n, SIDE)};
    return dense_own(b, args, "dense_group", global, local);
}

static dcm_status dense_clblast(backend *b, const dense_args *args)
{
    const size_t local[] = {FINISH_GROUP, 1}, global[] = {round_up(args->out, FINISH_GROUP), args->n};
    cl_kernel kernel;
    dcm_status status = clblast_product(b, args);
    if (status == DCM_OK)
        status = clop_kernel(b, "dense", options_of(args), "dense_finish", &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg a[] = {CLOP_MEM(args->bias), CLOP_MEM(args->y), CLOP_VAR(args->out)};
    return clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
}

dcm_status cl_dense(backend *b, const dense_args *args)
{
    const clop_dense route = clop_get_dense(b);
    const bool large = args->out >= CLBLAST_COLS_MIN;
    if (route == CLOP_DENSE_CLBLAST || (route == CLOP_DENSE_AUTO && large && !clop_wide(b)))
        return dense_clblast(b, args);
    if (clop_wide(b) || clop_device(b)->limits.max_work_group < SIDE * SIDE)
        return dense_wide(b, args);
    return dense_group(b, args);
}
