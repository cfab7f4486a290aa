/* Inside the reference: the rows of a batch of merges. */
#ifndef REF_MERGE_ROW_H
#define REF_MERGE_ROW_H

#include "ref/pool.h"

/* One row: a KV head's keys or values of one layer of one merge. */
typedef struct merge_row {
    const ref_merge *merge;
    const float *rotation; /* (3, head_dim): of a, b and the result */
    uint32_t layer, head;
    int which;
} merge_row;

static inline merge_row merge_row_of(const ref_pool *pool, const ref_merges *merges, size_t row)
{
    const size_t m = row / pool->kv_heads / 2 / merges->layers;
    return (merge_row){
        .merge = merges->merge + m,
        .rotation = merges->rotations + m * 3 * pool->head_dim,
        .layer = merges->layer + (uint32_t)(row / pool->kv_heads / 2 % merges->layers),
        .head = (uint32_t)(row % pool->kv_heads),
        .which = (int)(row / pool->kv_heads % 2),
    };
}

/* Channel of a stored vector that stands at place c of a row. */
static inline uint32_t merge_channel(const ref_pool *pool, int which, uint32_t c)
{
    const uint32_t half = pool->head_dim / 2;
    if (which == REF_VALUES)
        return c;
    return c < half ? pair_first(pool, c) : pair_second(pool, c - half);
}

static inline size_t merge_rows(const ref_pool *pool, const ref_merges *merges)
{
    return (size_t)merges->n * merges->layers * 2 * pool->kv_heads;
}

/* A row's vector of slot a (0) or b (1), as it is stored. */
static inline void merge_load(const ref_pool *pool, const merge_row *row, int source, float *stored)
{
    const uint32_t slot = source ? row->merge->b : row->merge->a;
    pool_load(pool, pool_at(pool, row->layer, row->which, row->head, slot), stored);
}

#endif
