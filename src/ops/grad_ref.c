#include "ops/grad.h"
#include "ops/ops_ref.h"
#include "ref/grad.h"

#include "base/error.h"
#include "base/memory.h"

#include <string.h>

static dcm_status op_norm_back(backend *b, const norm_back_args *a)
{
    ref_norm_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x) + a->x_offset, floats_of(a->gain), a->eps,
                  floats_of(a->dy), floats_of(a->dx) + a->dx_offset, a->add);
    return DCM_OK;
}

static dcm_status op_swiglu_back(backend *b, const swiglu_back_args *a)
{
    ref_swiglu_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x), floats_of(a->dy), floats_of(a->dx));
    return DCM_OK;
}

static dcm_status op_kl_back(backend *b, const kl_back_args *a)
{
    ref_kl_back((ref_rows){a->n, a->vocab, threads_of(b)}, floats_of(a->logits), floats_of(a->target), a->scale,
                floats_of(a->loss) + a->loss_offset);
    return DCM_OK;
}

static dcm_status op_square_back(backend *b, const square_back_args *a)
{
    ref_square_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x), floats_of(a->y), a->scale,
                    floats_of(a->dx), floats_of(a->loss));
    return DCM_OK;
}

static dcm_status op_attention_back(backend *b, const attention_back_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const uint32_t n = a->step->n;
    ref_query *queries = NULL;
    ref_unit *units = NULL;
    ref_attention_back_args args = {.layer = a->layer,
                                    .heads = a->heads,
                                    .n = n,
                                    .units = a->units->count,
                                    .qkv = floats_of(a->qkv),
                                    .out = floats_of(a->out),
                                    .dout = floats_of(a->dout),
                                    .boundary = a->boundary,
                                    .sinks = a->sinks,
                                    .lse = floats_of(a->lse),
                                    .dqkv = floats_of(a->dqkv),
                                    .dunits = floats_of(a->dunits),
                                    .dscores = floats_of(a->dscores)};
    dcm_status status;
    DCM_TRY(status, done, mem_new(&queries, n, sizeof *queries, "views"));
    DCM_TRY(status, done, mem_new(&units, a->units->count, sizeof *units, "units"));
    for (uint32_t t = 0; t < n; t++)
        queries[t].n_ranges = ranges_of(a->pool, a->step, a->layer, t, queries[t].range);
    for (uint32_t u = 0; u < a->units->count; u++) {
        const grad_unit *unit = (const grad_unit *)a->units->list->handle + u;
        units[u] = (ref_unit){unit->slot, words_at(a->step, unit->rotation)};
    }
    args.query = queries;
    args.unit = units;
    status = ref_attention_back(&pool, &args, threads_of(b));
done:
    mem_free(&queries);
    mem_free(&units);
    return status;
}

static dcm_status op_kv_store_back(backend *b, const kv_store_back_args *a)
{
    const size_t from = (size_t)a->heads * a->head_dim, row = 2 * (size_t)a->kv_heads * a->head_dim;
    (void)b;
    for (uint32_t t = 0; t < a->step->n; t++)
        memcpy(floats_of(a->dqkv) + t * (from + row) + from, floats_of(a->dunits) + t * row, row * sizeof(float));
    return DCM_OK;
}

/* The units that n merges were made of; the caller frees *out. */
static dcm_status sources_of(const grad_units *units, uint32_t first, uint32_t n, ref_sources **out)
{
    const grad_unit *unit = (const grad_unit *)units->list->handle + first;
    const dcm_status status = mem_new(out, n, sizeof **out, "units");
    for (uint32_t m = 0; status == DCM_OK && m < n; m++)
        (*out)[m] = (ref_sources){unit[m].a, unit[m].b};
    return status;
}

static dcm_status op_merge_score_back(backend *b, const merge_score_back_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_score score = score_of(a->shape, floats_of(a->params));
    ref_sources *source = NULL;
    ref_score_back_args args = {.merges = merges_of(a->step, a->layer, 1),
                                .first = a->first,
                                .dparams = floats_of(a->dparams),
                                .dunits = floats_of(a->dunits),
                                .dscores = floats_of(a->dscores),
                                .magnitude = a->magnitude,
                                .loss = floats_of(a->loss)};
    dcm_status status = sources_of(a->units, a->first, a->step->n_merges, &source);
    args.source = source;
    if (status == DCM_OK)
        status = ref_merge_score_back(&pool, &score, &args, threads_of(b));
    mem_free(&source);
    return status;
}

static dcm_status op_dense_back(backend *b, const dense_back_args *a)
{
    const ref_dense_back_args args = {.n = a->n,
                                      .in = a->in,
                                      .out = a->out,
                                      .elu = a->act == ACT_ELU,
                                      .x = floats_of(a->x),
                                      .w = floats_of(a->w),
                                      .y = floats_of(a->y),
                                      .dy = floats_of(a->dy),
                                      .dx = floats_of(a->dx),
                                      .dw = floats_of(a->dw),
                                      .dbias = floats_of(a->dbias)};
    ref_dense_back(&args, threads_of(b));
    return DCM_OK;
}

static dcm_status op_merge_apply_back(backend *b, const merge_apply_back_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, 1);
    ref_sources *source = NULL;
    const dcm_status status = sources_of(a->units, a->first, a->step->n_merges, &source);
    const ref_merge_grads grads = {source, a->first, floats_of(a->dunits)};
    if (status == DCM_OK)
        ref_merge_apply_back(&pool, &merges, (ref_merge_mode)a->mode, a->weight, floats_of(a->head),
                             floats_of(a->dhead), &grads, threads_of(b));
    mem_free(&source);
    return status;
}

static dcm_status op_merge_gather_back(backend *b, const merge_gather_back_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    ref_sources *source = NULL;
    const dcm_status status = sources_of(a->units, a->first, a->step->n_merges, &source);
    const ref_merge_grads grads = {source, a->first, floats_of(a->dunits)};
    if (status == DCM_OK)
        ref_merge_gather_back(&pool, a->step->n_merges, floats_of(a->dx), &grads, threads_of(b));
    mem_free(&source);
    return status;
}

const grad_ops ref_grad_ops = {
    .merge_score_back = op_merge_score_back,
    .norm_back = op_norm_back,
    .swiglu_back = op_swiglu_back,
    .kl_back = op_kl_back,
    .square_back = op_square_back,
    .dense_back = op_dense_back,
    .merge_apply_back = op_merge_apply_back,
    .merge_gather_back = op_merge_gather_back,
    .attention_back = op_attention_back,
    .kv_store_back = op_kv_store_back,
};
