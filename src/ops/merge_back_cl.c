/* Gradients of merges by the pair MLP or constants: the kernels of cl/merge_back.cl. */
#include "ops/grad_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

static dcm_status kernel_of(backend *b, const kv_pool *pool, rope_kind rope, const char *name, cl_kernel *kernel)
{
    char options[128];
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u", pool->head_dim,
             rope == ROPE_HALF, pool->type == KV_F32, pool_blocks(b, pool, false));
    return clop_kernel(b, "merge+merge_back", options, name, kernel);
}

dcm_status cl_merge_apply_back(backend *b, const merge_apply_back_args *a)
{
    const kv_pool *pool = a->pool;
    const step *step = a->step;
    const uint32_t blocks = pool_blocks(b, pool, false);
    const cl_ulong merges = step->merges, merge_rot = step->merge_rot;
    const cl_ulong rows = (cl_ulong)step->n_merges * 2 * pool->kv_heads;
    const cl_uint layers = 1, mode = a->mode;
    /* Where the kernel does not read or write one, any buffer will do. */
    const buffer *head = a->head ? a->head : a->dunits, *dhead = a->dhead ? a->dhead : a->dunits;
    pool_sizes sizes;
    cl_kernel kernel;
    if (rows == 0)
        return DCM_OK;
    const dcm_status status = kernel_of(b, pool, a->rope, "merge_apply_back", &kernel);
    if (status != DCM_OK)
        return status;
    clop_arg args[POOL_ARGS + 14] = {
        [POOL_ARGS] = CLOP_MEM(step->data),
        CLOP_VAR(merges),
        CLOP_VAR(merge_rot),
        CLOP_VAR(a->layer),
        CLOP_VAR(layers),
        CLOP_VAR(pool->kv_heads),
        CLOP_VAR(rows),
        CLOP_VAR(mode),
        CLOP_VAR(a->weight),
        CLOP_MEM(head),
        CLOP_MEM(a->units->list),
        CLOP_VAR(a->first),
        CLOP_MEM(dhead),
        CLOP_MEM(a->dunits),
    };
    const clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    return pool_launch(b, kernel, first, (size_t)(args + sizeof args / sizeof *args - first), rows);
}

dcm_status cl_merge_gather_back(backend *b, const merge_gather_back_args *a)
{
    const kv_pool *pool = a->pool;
    const cl_ulong items = (cl_ulong)a->step->n_merges * 2 * pool->kv_heads * pool->head_dim;
    cl_kernel kernel;
    if (items == 0)
        return DCM_OK;
    const dcm_status status = kernel_of(b, pool, a->rope, "merge_gather_back", &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg args[] = {CLOP_MEM(a->units->list), CLOP_VAR(a->first), CLOP_VAR(pool->kv_heads),
                             CLOP_VAR(items),          CLOP_MEM(a->dx),    CLOP_MEM(a->dunits)};
    return pool_launch(b, kernel, args, sizeof args / sizeof *args, items);
}
