/* Attention of many queries: tiles of consecutive ones at a time. */
#include "ops/ops_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum { QUERIES_WIDE = 16 /* of a tile: QUERIES in cl/attention_many_wide.cl */ };

/* Query heads of an item of the wide shape: vectors of queries whose sums fit into the registers together. */
static uint32_t heads_at_once(const cldev_limits *limits, uint32_t group)
{
    return limits->vector_floats < 16 ? 1 : group % 3 == 0 ? 3 : group % 2 == 0 ? 2 : 1;
}

dcm_status cl_attention_many(backend *b, const attention_args *a)
{
    const kv_pool *pool = a->pool;
    const cldev_limits *limits = &clop_device(b)->limits;
    const uint32_t group = a->heads / pool->kv_heads, at_once = heads_at_once(limits, group);
    const cl_uint layer = a->layer, n = a->step->n;
    const cl_ulong views = a->step->views, query_rot = a->step->query_rot,
                   qkv_row = (cl_ulong)(a->heads + 2 * pool->kv_heads) * pool->head_dim;
    pool_sizes sizes;
    char options[160];
    cl_kernel kernel;
    dcm_status status;
    snprintf(options, sizeof options,
             "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DGROUP=%u -DHEADS=%u -DVECTOR_FLOATS=%u -DCPU=%d",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, group, at_once, limits->vector_floats,
             (limits->type & CL_DEVICE_TYPE_CPU) != 0);
    DCM_TRY(status, fail,
            clop_kernel(b, "attention_many+attention_many_wide", options, "attention_many_wide", &kernel));
    clop_arg args[POOL_ARGS + 9] = {[POOL_ARGS] = CLOP_MEM(pool->table),
                                    CLOP_MEM(a->step->data),
                                    CLOP_VAR(views),
                                    CLOP_VAR(query_rot),
                                    CLOP_MEM(a->qkv),
                                    CLOP_VAR(qkv_row),
                                    CLOP_VAR(layer),
                                    CLOP_VAR(n),
                                    CLOP_MEM(a->out)};
    pool_args(pool, &sizes, args);
    const size_t local[3] = {1, 1, 1},
                 global[3] = {(n + QUERIES_WIDE - 1) / QUERIES_WIDE, pool->kv_heads, group / at_once};
    status = clop_launch(b, kernel, args, sizeof args / sizeof *args, 3, global, local);
fail:
    return status;
}
