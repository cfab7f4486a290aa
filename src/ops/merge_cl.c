#include "ops/ops_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum { MERGE_ARGS = POOL_ARGS + 7 }; /* shared by both kernels */

/* What the arguments point to. */
typedef struct merge_launch {
    cl_kernel kernel;
    cl_ulong merges, merge_rot, items;
    cl_uint layer, layers, kv_heads;
    pool_sizes sizes;
    clop_arg *args; /* the first that the kernel takes */
} merge_launch;

/* Kernel and first MERGE_ARGS arguments; a->x is not used. */
static dcm_status merge_prepare(backend *b, const merge_gather_args *a, const char *name, merge_launch *l,
                                clop_arg *args)
{
    const kv_pool *pool = a->pool;
    const step *step = a->step;
    const uint32_t blocks = pool_blocks(b, pool, false);
    char options[128];
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u", pool->head_dim,
             a->rope == ROPE_HALF, pool->type == KV_F32, blocks);
    l->merges = step->merges;
    l->merge_rot = step->merge_rot;
    l->layer = a->layer;
    l->layers = a->layers;
    l->kv_heads = pool->kv_heads;
    l->items = (cl_ulong)step->n_merges * a->layers * 2 * pool->kv_heads * (pool->head_dim / 2);
    l->args = pool_args_of(pool, blocks, &l->sizes, args);
    const clop_arg own[] = {CLOP_MEM(step->data), CLOP_VAR(l->merges),   CLOP_VAR(l->merge_rot), CLOP_VAR(l->layer),
                            CLOP_VAR(l->layers),  CLOP_VAR(l->kv_heads), CLOP_VAR(l->items)};
    memcpy(args + POOL_ARGS, own, sizeof own);
    return clop_kernel(b, "merge", options, name, &l->kernel);
}

dcm_status cl_merge_gather(backend *b, const merge_gather_args *a)
{
    merge_launch l;
    dcm_status status;
    if (a->step->n_merges == 0)
        return DCM_OK;
    clop_arg args[MERGE_ARGS + 1] = {[MERGE_ARGS] = CLOP_MEM(a->x)};
    DCM_TRY(status, fail, merge_prepare(b, a, "merge_gather", &l, args));
    DCM_TRY(status, fail,
            pool_launch(b, l.kernel, l.args, (size_t)(args + sizeof args / sizeof *args - l.args), l.items));
fail:
    return status;
}

dcm_status cl_merge_apply(backend *b, const merge_apply_args *a)
{
    merge_launch l;
    dcm_status status;
    if (a->step->n_merges == 0)
        return DCM_OK;
    /* Where the kernel does not read the head, any buffer will do. */
    const buffer *head = a->head ? a->head : a->step->data;
    const merge_gather_args of = {
        .pool = a->pool, .step = a->step, .layer = a->layer, .layers = a->layers, .rope = a->rope};
    const cl_uint mode = a->mode;
    const cl_float weight = a->weight;
    clop_arg args[MERGE_ARGS + 3] = {[MERGE_ARGS] = CLOP_VAR(mode), CLOP_VAR(weight), CLOP_MEM(head)};
    DCM_TRY(status, fail, merge_prepare(b, &of, "merge_apply", &l, args));
    DCM_TRY(status, fail,
            pool_launch(b, l.kernel, l.args, (size_t)(args + sizeof args / sizeof *args - l.args), l.items));
fail:
    return status;
}
