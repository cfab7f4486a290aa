#include "ref/strict.h"

#include "ops/ops_ref.h"

static dcm_status strict_linear(backend *b, const linear_args *a)
{
    const ref_linear_args args = {
        .type = a->w->type,
        .w = data_of(a->w),
        .rows = a->w->rows,
        .cols = a->w->cols,
        .n = a->n,
        .input = (ref_input)a->input,
        .x = floats_of(a->x) + a->x_offset,
        .gain = floats_of(a->gain),
        .eps = a->eps,
        .bias = floats_of(a->bias),
        .y = floats_of(a->y) + a->y_offset,
        .ldy = a->ldy,
        .add = a->add,
    };
    return ref_linear_strict(&args, threads_of(b));
}

static dcm_status strict_dense(backend *b, const dense_args *a)
{
    const ref_linear_args args = {
        .type = QUANT_F32,
        .w = a->w->handle,
        .rows = a->out,
        .cols = a->in,
        .n = a->n,
        .x = floats_of(a->x),
        .bias = floats_of(a->bias),
        .y = floats_of(a->y),
        .ldy = a->out,
        .elu = a->act == ACT_ELU,
    };
    return ref_linear_strict(&args, threads_of(b));
}

static dcm_status strict_kv_store(backend *b, const kv_store_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    ref_kv_store_strict(&pool, a->layer, floats_of(a->qkv), a->heads, a->step->n, words_at(a->step, a->step->slots),
                        words_at(a->step, a->step->key_rot), threads_of(b));
    return DCM_OK;
}

static dcm_status strict_attention(backend *b, const attention_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const size_t d = pool.head_dim, row = (a->heads + 2 * (size_t)pool.kv_heads) * d;
    if (a->store)
        strict_kv_store(b, &(kv_store_args){a->pool, a->step, a->layer, a->rope, a->qkv, a->heads});
    for (uint32_t t = 0; t < a->step->n; t++) {
        ref_range ranges[VIEW_RANGES];
        const uint32_t n_ranges = ranges_of(a->pool, a->step, a->layer, t, ranges);
        ref_attention_strict(&pool, a->layer, ranges, n_ranges, floats_of(a->qkv) + t * row, a->heads,
                             floats_of(a->out) + t * a->heads * d, threads_of(b));
    }
    return DCM_OK;
}

static dcm_status strict_merge_gather(backend *b, const merge_gather_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    ref_merge_gather_strict(&pool, &merges, floats_of(a->x), threads_of(b));
    return DCM_OK;
}

static dcm_status strict_merge_apply(backend *b, const merge_apply_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    ref_merge_apply_strict(&pool, &merges, (ref_merge_mode)a->mode, a->weight, floats_of(a->head), threads_of(b));
    return DCM_OK;
}

static dcm_status strict_merge_score(backend *b, const merge_score_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    const ref_score score = score_of(a->shape, floats_of(a->params));
    ref_merge_score_strict(&pool, &merges, &score, a->seen, threads_of(b));
    return DCM_OK;
}

/* Rows of a table are exact anyway. */
void ref_strict_ops(ops *table)
{
    table->linear = strict_linear;
    table->kv_store = strict_kv_store;
    table->attention = strict_attention;
    table->merge_gather = strict_merge_gather;
    table->dense = strict_dense;
    table->merge_apply = strict_merge_apply;
    table->merge_score = strict_merge_score;
}
