#include "ops/ops_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

dcm_status cl_kv_store(backend *b, const kv_store_args *a)
{
    const kv_pool *pool = a->pool;
    const uint32_t blocks = pool_blocks(b, pool, false);
    char options[128];
    cl_kernel kernel;
    dcm_status status;
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u", pool->head_dim,
             a->rope == ROPE_HALF, pool->type == KV_F32, blocks);
    DCM_TRY(status, fail, clop_kernel(b, "cache", options, "kv_store", &kernel));
    const cl_ulong slots = a->step->slots, key_rot = a->step->key_rot;
    const cl_ulong items = (cl_ulong)a->step->n * pool->kv_heads * (pool->head_dim / 2);
    const cl_uint layer = a->layer, heads = a->heads, kv_heads = pool->kv_heads;
    pool_sizes sizes;
    clop_arg args[POOL_ARGS + 8] = {[POOL_ARGS] = CLOP_MEM(a->step->data),
                                    CLOP_MEM(a->qkv),
                                    CLOP_VAR(slots),
                                    CLOP_VAR(key_rot),
                                    CLOP_VAR(layer),
                                    CLOP_VAR(heads),
                                    CLOP_VAR(kv_heads),
                                    CLOP_VAR(items)};
    clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    DCM_TRY(status, fail, pool_launch(b, kernel, first, (size_t)(args + sizeof args / sizeof *args - first), items));
fail:
    return status;
}
