#include "ops/grad_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum {
    UNITS_WIDE = 32, /* of a work-item: UNITS in cl/attention_back_wide.cl */
    ITEMS = 32,      /* of a work-group: ITEMS in cl/attention_back_group.cl */
};

/* What the arguments of a layer's launches point to. */
typedef struct back {
    backend *b;
    const attention_back_args *a;
    const char *family;
    char options[192];
    bool wide;
    uint32_t blocks;
    cl_uint layer, count, sinks;
    cl_ulong views, query_rot, qkv_row;
    cl_float boundary;
    buffer *edge;
    pool_sizes sizes;
} back;

static dcm_status query_back(back *k)
{
    const attention_back_args *a = k->a;
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, clop_kernel(k->b, k->family, k->options, "query_back", &kernel));
    clop_arg args[POOL_ARGS + 14] = {[POOL_ARGS] = CLOP_MEM(a->pool->table),
                                     CLOP_MEM(a->step->data),
                                     CLOP_VAR(k->views),
                                     CLOP_VAR(k->query_rot),
                                     CLOP_MEM(a->qkv),
                                     CLOP_VAR(k->qkv_row),
                                     CLOP_VAR(k->layer),
                                     CLOP_MEM(a->out),
                                     CLOP_MEM(a->dout),
                                     CLOP_VAR(k->boundary),
                                     CLOP_VAR(k->sinks),
                                     CLOP_MEM(a->lse),
                                     CLOP_MEM(a->dqkv),
                                     CLOP_MEM(k->edge)};
    clop_arg *const from = pool_args_of(a->pool, k->blocks, &k->sizes, args);
    const size_t items = k->wide ? 1 : ITEMS, local[2] = {items, 1};
    const size_t global[2] = {a->step->n * items, k->wide ? a->pool->kv_heads : a->heads};
    status = clop_launch(k->b, kernel, from, (size_t)(args + sizeof args / sizeof *args - from), 2, global, local);
fail:
    return status;
}

static dcm_status unit_back(back *k)
{
    const attention_back_args *a = k->a;
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, clop_kernel(k->b, k->family, k->options, "unit_back", &kernel));
    clop_arg args[POOL_ARGS + 14] = {[POOL_ARGS] = CLOP_MEM(a->pool->table),
                                     CLOP_MEM(a->step->data),
                                     CLOP_VAR(k->views),
                                     CLOP_VAR(k->query_rot),
                                     CLOP_MEM(a->qkv),
                                     CLOP_VAR(k->qkv_row),
                                     CLOP_VAR(k->layer),
                                     CLOP_MEM(a->dout),
                                     CLOP_MEM(a->lse),
                                     CLOP_MEM(k->edge),
                                     CLOP_MEM(a->units->list),
                                     CLOP_VAR(k->count),
                                     CLOP_MEM(a->dunits),
                                     CLOP_MEM(a->dscores)};
    clop_arg *const from = pool_args_of(a->pool, k->blocks, &k->sizes, args);
    const size_t items = k->wide ? 1 : ITEMS, local[2] = {items, 1};
    const size_t groups = k->wide ? (k->count + UNITS_WIDE - 1) / UNITS_WIDE : k->count;
    const size_t global[2] = {groups * items, a->pool->kv_heads};
    status = clop_launch(k->b, kernel, from, (size_t)(args + sizeof args / sizeof *args - from), 2, global, local);
fail:
    return status;
}

dcm_status cl_attention_back(backend *b, const attention_back_args *a)
{
    const kv_pool *pool = a->pool;
    const cldev_limits *limits = &clop_device(b)->limits;
    back k = {.b = b,
              .a = a,
              .wide = clop_wide(b),
              .blocks = pool_blocks(b, pool, false),
              .layer = a->layer,
              .count = a->units->count,
              .sinks = a->sinks,
              .views = a->step->views,
              .query_rot = a->step->query_rot,
              .qkv_row = (cl_ulong)(a->heads + 2 * pool->kv_heads) * pool->head_dim,
              .boundary = a->boundary,
              .edge = a->lse}; /* stands for it where there is no boundary term */
    dcm_status status;
    k.family = k.wide ? "attention_view+attention_back+attention_back_wide"
                      : "attention_view+attention_back+group_fold+attention_back_group";
    snprintf(k.options, sizeof k.options,
             "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DGROUP=%u -DBOUNDARY=%d -DCPU=%d -DKV_ARGS=%u -DX86=%d",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, a->heads / pool->kv_heads, a->boundary != 0,
             (limits->type & CL_DEVICE_TYPE_CPU) != 0, k.blocks, clop_tier(b, CLDEV_HALF16));
    if (a->boundary != 0)
        DCM_TRY(status, fail,
                clop_scratch(b, CLOP_SCRATCH_BOUNDARY, (size_t)a->step->n * a->heads * VIEW_RANGES * sizeof(cl_float),
                             &k.edge));
    DCM_TRY(status, fail, query_back(&k));
    status = unit_back(&k);
fail:
    return status;
}

dcm_status cl_kv_store_back(backend *b, const kv_store_back_args *a)
{
    const cl_ulong row = (cl_ulong)2 * a->kv_heads * a->head_dim, at = (cl_ulong)a->heads * a->head_dim;
    const cl_ulong dqkv_row = at + row, items = a->step->n * row;
    const clop_arg args[] = {CLOP_MEM(a->dunits), CLOP_MEM(a->dqkv), CLOP_VAR(dqkv_row),
                             CLOP_VAR(at),        CLOP_VAR(row),     CLOP_VAR(items)};
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail, clop_kernel(b, "kv_store_back", "", "kv_store_back", &kernel));
    status = pool_launch(b, kernel, args, sizeof args / sizeof *args, items);
fail:
    return status;
}
