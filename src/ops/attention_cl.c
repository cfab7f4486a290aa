#include "ops/attention_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>
#include <string.h>

enum {
    GROUP_ITEMS = 128,       /* work-items of a group of attention_group: ITEMS in cl/attention_group.cl */
    COMBINE_ITEMS = 64,      /* and of attention_combine */
    PARTIAL_BYTES = 16 << 20 /* most bytes of partial results at a time, unless one query needs more */
};

/* What the arguments of one step's launches point to. */
typedef struct attention_launch {
    cl_kernel attention, combine;
    bool wide;
    uint32_t blocks;
    cl_uint layer, first, splits;
    cl_ulong views, query_rot, qkv_row, slots, key_rot;
    pool_sizes sizes;
    buffer *ended;
} attention_launch;

void attention_options(char *options, size_t size, backend *b, const attention_args *a, uint32_t blocks)
{
    const kv_pool *pool = a->pool;
    const cldev_limits *limits = &clop_device(b)->limits;
    const bool wide = clop_wide(b), cpu = limits->type & CL_DEVICE_TYPE_CPU;
    const size_t used = strlen(options);
    snprintf(options + used, size - used,
             " -DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DGROUP=%u -DWIDE=%d -DCPU=%d -DKV_ARGS=%u -DX86=%d -DSTORE=%d "
             "-DFP16=%d -DSUBGROUPS=%d -DVECTOR_FLOATS=%u",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, a->heads / pool->kv_heads, wide, cpu, blocks,
             clop_tier(b, CLDEV_HALF16), a->store, clop_tier(b, CLDEV_FP16), clop_tier(b, CLDEV_SUBGROUPS),
             limits->vector_floats);
}

static dcm_status attention_prepare(backend *b, const attention_args *a, attention_launch *l)
{
    const kv_pool *pool = a->pool;
    char options[224] = "";
    dcm_status status;
    l->wide = clop_wide(b);
    l->blocks = pool_blocks(b, pool, a->step->n == 1);
    l->slots = a->step->slots;
    l->key_rot = a->step->key_rot;
    const char *name = l->wide ? "attention_wide" : "attention_group";
    const char *family = l->wide ? "attention_view+attention_wide+attention_combine"
                                 : "attention_view+lanes+attention_group+attention_combine";
    l->layer = a->layer;
    l->splits = attention_splits(a->step->max_units);
    l->views = a->step->views;
    l->query_rot = a->step->query_rot;
    l->qkv_row = (cl_ulong)(a->heads + 2 * pool->kv_heads) * pool->head_dim;
    attention_options(options, sizeof options, b, a, l->blocks);
    DCM_TRY(status, fail, clop_kernel(b, family, options, name, &l->attention));
    DCM_TRY(status, fail, clop_kernel(b, family, options, "attention_combine", &l->combine));
fail:
    return status;
}

/* Queries l->first .. l->first + count - 1. */
static dcm_status attention_some(backend *b, const attention_args *a, attention_launch *l, buffer *partial,
                                 uint32_t count)
{
    const kv_pool *pool = a->pool;
    dcm_status status;
    clop_arg args[POOL_ARGS + 13] = {[POOL_ARGS] = CLOP_MEM(pool->table),
                                     CLOP_MEM(a->step->data),
                                     CLOP_VAR(l->views),
                                     CLOP_VAR(l->query_rot),
                                     CLOP_MEM(a->qkv),
                                     CLOP_VAR(l->qkv_row),
                                     CLOP_VAR(l->layer),
                                     CLOP_VAR(l->first),
                                     CLOP_MEM(partial)};
    clop_arg *const from = pool_args_of(pool, l->blocks, &l->sizes, args);
    size_t arg_count = l->blocks + 10;
    if (a->store) {
        from[arg_count++] = (clop_arg)CLOP_VAR(l->slots);
        from[arg_count++] = (clop_arg)CLOP_VAR(l->key_rot);
    }
    if (l->wide)
        from[arg_count++] = (clop_arg)CLOP_MEM(a->out);
    if (l->wide && a->store)
        from[arg_count++] = (clop_arg)CLOP_MEM(l->ended);
    const size_t items = l->wide ? 1 : GROUP_ITEMS;
    const size_t local[3] = {items, 1, 1}, global[3] = {l->splits * items, pool->kv_heads, count};
    DCM_TRY(status, fail, clop_launch(b, l->attention, from, arg_count, 3, global, local));
    if (l->wide && (l->splits == 1 || a->store))
        return DCM_OK;

    const clop_arg combine_args[] = {CLOP_MEM(partial),  CLOP_VAR(l->splits), CLOP_MEM(a->step->data),
                                     CLOP_VAR(l->views), CLOP_VAR(l->first),  CLOP_MEM(a->out)};
    const size_t parts = l->wide ? 1 : COMBINE_ITEMS;
    const size_t combine_local[3] = {parts, 1, 1}, combine_global[3] = {parts, a->heads, count};
    DCM_TRY(status, fail,
            clop_launch(b, l->combine, combine_args, sizeof combine_args / sizeof *combine_args, 3, combine_global,
                        combine_local));
fail:
    return status;
}

dcm_status cl_attention(backend *b, const attention_args *a)
{
    attention_launch l;
    buffer *partial;
    dcm_status status;
    const bool many = a->many && cl_attention_many_fits(b);
    attention_args stored;
    /* In attention's launch a group stores what it alone reads; but the wide shape combines the splits there, too. */
    if (a->store && (many || (clop_wide(b) && !clop_device(b)->limits.ordered))) {
        const kv_store_args store = {a->pool, a->step, a->layer, a->rope, a->qkv, a->heads};
        DCM_TRY(status, fail, cl_kv_store(b, &store));
        stored = *a;
        stored.store = false;
        a = &stored;
    }
    if (many)
        return cl_attention_many(b, a);
    DCM_TRY(status, fail, attention_prepare(b, a, &l));
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_ENDED, a->pool->kv_heads * sizeof(cl_uint), &l.ended));
    const uint32_t n = a->step->n;
    const size_t bytes = attention_partial_bytes(a);
    const size_t fit = PARTIAL_BYTES / bytes > 0 ? PARTIAL_BYTES / bytes : 1, most = fit < n ? fit : n;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_ATTENTION, most * bytes, &partial));
    for (l.first = 0; l.first < n; l.first += (cl_uint)most)
        DCM_TRY(status, fail, attention_some(b, a, &l, partial, (uint32_t)(n - l.first < most ? n - l.first : most)));
fail:
    return status;
}
