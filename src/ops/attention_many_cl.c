/* Attention of many queries: tiles of consecutive ones at a time. */
#include "ops/ops_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum {
    QUERIES_WIDE = 16,        /* of a tile: QUERIES in cl/attention_many_wide.cl */
    TURNED_FLOATS = 4096,     /* most floats of a group's queries in local memory */
    ROWS_MAX = 64,            /* most queries times heads of a group */
    ITEMS_MAX = 128,          /* of a group, at most */
    LOCAL_BYTES = 48 << 10,   /* that a group needs, at most */
    SEGMENT = 256,            /* places: MANY_SEGMENT in cl/attention_many_group.cl */
    SEGMENTS_MAX = 32,        /* of a view */
    COMBINE_ITEMS = 64,       /* of a group of attention_many_combine */
    PARTIAL_BYTES = 16 << 20, /* most bytes of partial results at a time, unless one tile needs more */
};

/* What the arguments of one step's launches point to. */
typedef struct many {
    backend *b;
    const attention_args *a;
    char options[192];
    uint32_t group, heads, queries, blocks; /* query heads of a KV head; heads and queries of an item or a work-group */
    cl_uint layer, n, all_heads, segments, first, end;
    cl_ulong views, query_rot, qkv_row;
    pool_sizes sizes;
} many;

/* Wide: vectors of queries whose sums fit into the registers together. Group: rows that fit into local memory. */
static void shape_of(many *m, const cldev_limits *limits)
{
    const uint32_t head_dim = m->a->pool->head_dim;
    if (clop_wide(m->b)) {
        m->queries = QUERIES_WIDE;
        m->heads = limits->vector_floats < 16 ? 1 : m->group % 3 == 0 ? 3 : m->group % 2 == 0 ? 2 : 1;
        return;
    }
    const uint32_t fit = TURNED_FLOATS / head_dim < ROWS_MAX ? TURNED_FLOATS / head_dim : ROWS_MAX;
    m->heads = 1;
    for (uint32_t heads = 2; heads <= 4; heads++)
        if (m->group % heads == 0 && heads * 16 <= fit)
            m->heads = heads;
    m->queries = fit / m->heads / 16 * 16;
}

static many many_of(backend *b, const attention_args *a)
{
    const kv_pool *pool = a->pool;
    const cldev_limits *limits = &clop_device(b)->limits;
    const uint32_t splits = (a->step->max_units + SEGMENT - 1) / SEGMENT;
    many m = {.b = b,
              .a = a,
              .group = a->heads / pool->kv_heads,
              .blocks = pool_blocks(b, pool, false),
              .layer = a->layer,
              .n = a->step->n,
              .all_heads = a->heads,
              .segments = splits < SEGMENTS_MAX ? splits : SEGMENTS_MAX,
              .views = a->step->views,
              .query_rot = a->step->query_rot,
              .qkv_row = (cl_ulong)(a->heads + 2 * pool->kv_heads) * pool->head_dim};
    shape_of(&m, limits);
    snprintf(m.options, sizeof m.options,
             "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DGROUP=%u -DHEADS=%u -DQUERIES=%u -DVECTOR_FLOATS=%u -DCPU=%d "
             "-DKV_ARGS=%u",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, m.group, m.heads, m.queries,
             limits->vector_floats, (limits->type & CL_DEVICE_TYPE_CPU) != 0, m.blocks);
    return m;
}

static dcm_status many_wide(many *m)
{
    const attention_args *a = m->a;
    cl_kernel kernel;
    dcm_status status;
    DCM_TRY(status, fail,
            clop_kernel(m->b, "attention_many+attention_many_wide", m->options, "attention_many_wide", &kernel));
    clop_arg args[POOL_ARGS + 9] = {[POOL_ARGS] = CLOP_MEM(a->pool->table),
                                    CLOP_MEM(a->step->data),
                                    CLOP_VAR(m->views),
                                    CLOP_VAR(m->query_rot),
                                    CLOP_MEM(a->qkv),
                                    CLOP_VAR(m->qkv_row),
                                    CLOP_VAR(m->layer),
                                    CLOP_VAR(m->n),
                                    CLOP_MEM(a->out)};
    clop_arg *const from = pool_args_of(a->pool, m->blocks, &m->sizes, args);
    const size_t local[3] = {1, 1, 1},
                 global[3] = {(m->n + m->queries - 1) / m->queries, a->pool->kv_heads, m->group / m->heads};
    status = clop_launch(m->b, kernel, from, (size_t)(args + sizeof args / sizeof *args - from), 3, global, local);
fail:
    return status;
}

/* Queries m->first .. m->end - 1. */
static dcm_status many_group_some(many *m, cl_kernel attention, cl_kernel combine, buffer *partial)
{
    const attention_args *a = m->a;
    dcm_status status;
    clop_arg args[POOL_ARGS + 12] = {[POOL_ARGS] = CLOP_MEM(a->pool->table),
                                     CLOP_MEM(a->step->data),
                                     CLOP_VAR(m->views),
                                     CLOP_VAR(m->query_rot),
                                     CLOP_MEM(a->qkv),
                                     CLOP_VAR(m->qkv_row),
                                     CLOP_VAR(m->layer),
                                     CLOP_VAR(m->first),
                                     CLOP_VAR(m->end),
                                     CLOP_VAR(m->all_heads),
                                     CLOP_MEM(a->out),
                                     CLOP_MEM(partial)};
    clop_arg *const from = pool_args_of(a->pool, m->blocks, &m->sizes, args);
    const size_t count = m->end - m->first, items = m->queries * m->heads / 4 * (a->pool->head_dim / 8);
    const size_t local[3] = {items, 1, 1};
    const size_t global[3] = {m->segments * items, (count + m->queries - 1) / m->queries, a->heads / m->heads};
    DCM_TRY(status, fail,
            clop_launch(m->b, attention, from, (size_t)(args + sizeof args / sizeof *args - from), 3, global, local));
    if (m->segments > 1) {
        const clop_arg combine_args[] = {CLOP_MEM(partial),  CLOP_VAR(m->segments), CLOP_MEM(a->step->data),
                                         CLOP_VAR(m->views), CLOP_VAR(m->first),    CLOP_MEM(a->out)};
        const size_t combine_local[3] = {COMBINE_ITEMS, 1, 1}, combine_global[3] = {COMBINE_ITEMS, a->heads, count};
        status = clop_launch(m->b, combine, combine_args, sizeof combine_args / sizeof *combine_args, 3, combine_global,
                             combine_local);
    }
fail:
    return status;
}

static dcm_status many_group(many *m)
{
    static const char family[] = "attention_many+attention_many_group";
    const size_t bytes = (size_t)m->all_heads * m->segments * (m->a->pool->head_dim + 2) * sizeof(cl_float);
    const size_t tiles = PARTIAL_BYTES / (bytes * m->queries) > 0 ? PARTIAL_BYTES / (bytes * m->queries) : 1;
    const size_t most = m->segments == 1 || tiles * m->queries > m->n ? m->n : tiles * m->queries;
    cl_kernel attention, combine;
    buffer *partial = m->a->out; /* stands for it where there is one segment */
    dcm_status status;
    DCM_TRY(status, fail, clop_kernel(m->b, family, m->options, "attention_many_group", &attention));
    DCM_TRY(status, fail, clop_kernel(m->b, family, m->options, "attention_many_combine", &combine));
    if (m->segments > 1)
        DCM_TRY(status, fail, clop_scratch(m->b, CLOP_SCRATCH_ATTENTION, most * bytes, &partial));
    for (m->first = 0; m->first < m->n; m->first = m->end) {
        m->end = (cl_uint)(m->n - m->first < most ? m->n : m->first + most);
        DCM_TRY(status, fail, many_group_some(m, attention, combine, partial));
    }
fail:
    return status;
}

/* Whether the device has the local memory and the items that the group shape needs. */
bool cl_attention_many_fits(backend *b)
{
    const cldev_limits *limits = &clop_device(b)->limits;
    return clop_wide(b) || (limits->local_memory >= LOCAL_BYTES && limits->max_work_group >= ITEMS_MAX);
}

dcm_status cl_attention_many(backend *b, const attention_args *a)
{
    many m = many_of(b, a);
    return clop_wide(b) ? many_wide(&m) : many_group(&m);
}
