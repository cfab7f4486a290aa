#include "model/model.h"

#include "base/error.h"

#include <string.h>

static dcm_status new_scratch(const dcm_model *model, size_t tokens, size_t columns, buffer **out)
{
    return model->ops->ops->buffer_new(model->ops, tokens * columns * sizeof(float), MEM_SCRATCH, out);
}

static size_t qkv_columns(const dcm_model_info *m) { return ((size_t)m->heads + 2 * m->kv_heads) * m->head_dim; }

static size_t attn_columns(const dcm_model_info *m) { return (size_t)m->heads * m->head_dim; }

size_t activations_bytes(const dcm_model *model)
{
    const dcm_model_info *m = &model->config.info;
    return (m->hidden + qkv_columns(m) + attn_columns(m) + 2 * (size_t)m->ffn) * sizeof(float);
}

dcm_status activations_open(activations *a, const dcm_model *model, uint32_t tokens)
{
    const dcm_model_info *m = &model->config.info;
    dcm_status status;
    *a = (activations){.tokens = tokens};
    DCM_TRY(status, fail, new_scratch(model, tokens, m->hidden, &a->x));
    DCM_TRY(status, fail, new_scratch(model, tokens, qkv_columns(m), &a->qkv));
    DCM_TRY(status, fail, new_scratch(model, tokens, attn_columns(m), &a->attn));
    DCM_TRY(status, fail, new_scratch(model, tokens, 2 * (size_t)m->ffn, &a->gate_up));
    return DCM_OK;
fail:
    activations_close(a);
    return status;
}

void activations_close(activations *a)
{
    buffer_free(&a->x);
    buffer_free(&a->qkv);
    buffer_free(&a->attn);
    buffer_free(&a->gate_up);
    buffer_free(&a->logits);
    memset(a, 0, sizeof *a);
}

dcm_status linear_map_run(backend *ops, const linear_map *map, linear_args args)
{
    args.ldy = map->rows;
    for (uint32_t i = 0; i < map->parts; i++) {
        args.w = map->part[i].w;
        args.bias = map->part[i].bias;
        args.y_offset = map->part[i].y_offset;
        const dcm_status status = ops->ops->linear(ops, &args);
        if (status != DCM_OK)
            return status;
    }
    return DCM_OK;
}

dcm_status model_layer_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s,
                               const late_merges *late, uint32_t index)
{
    const model_layer *l = &model->layer[index];
    const model_config *c = &model->config;
    backend *ops = model->ops;
    const kv_store_args store = {pool, s, index, c->rope, a->qkv, c->info.heads};
    const bool together = s->n == 1 && !a->reading; /* kv_store and attention */
    const attention_args attend = {pool,    s,          index, c->rope, a->qkv, c->info.heads,
                                   a->attn, a->reading, together};
    dcm_status status;
    DCM_TRY(status, fail,
            linear_map_run(ops, &l->qkv,
                    (linear_args){.n = s->n,
                                  .many = a->reading,
                                  .input = INPUT_RMSNORM,
                                  .x = a->x,
                                  .gain = l->attn_norm,
                                  .eps = c->norm_eps,
                                  .y = a->qkv}));
    if (!together)
        DCM_TRY(status, fail, ops->ops->kv_store(ops, &store));
    for (uint32_t i = 0; i < late->count; i++)
        DCM_TRY(status, fail, merge_run(late->merge, pool, &late->batch[i], index, 1, c->rope));
    DCM_TRY(status, fail, ops->ops->attention(ops, &attend));
    DCM_TRY(
        status, fail,
        linear_map_run(ops, &l->attn_out,
                       (linear_args){.n = s->n, .many = a->reading, .x = a->attn, .y = a->x, .add = true}));
    DCM_TRY(status, fail,
            linear_map_run(ops, &l->gate_up,
                    (linear_args){.n = s->n,
                                  .many = a->reading,
                                  .input = INPUT_RMSNORM,
                                  .x = a->x,
                                  .gain = l->ffn_norm,
                                  .eps = c->norm_eps,
                                  .y = a->gate_up}));
    DCM_TRY(
        status, fail,
        linear_map_run(ops, &l->down,
                (linear_args){
                    .n = s->n, .many = a->reading, .input = INPUT_SWIGLU, .x = a->gate_up, .y = a->x, .add = true}));
    return DCM_OK;
fail:
    return dcm_fail_in(status, "layer %u", index);
}

dcm_status model_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s, const late_merges *late)
{
    const embed_args embed = {model->embedding, s, a->x};
    dcm_status status = model->ops->ops->embed(model->ops, &embed);
    for (uint32_t i = 0; status == DCM_OK && i < model->config.info.layers; i++) {
        status = model_layer_forward(model, a, pool, s, late, i);
        if (status == DCM_OK && a->seen)
            status = a->seen(a->seen_context, i);
    }
    return status;
}

dcm_status model_head(const dcm_model *model, buffer *x, uint32_t first, uint32_t n, bool many, buffer *y)
{
    const linear_args args = {.w = model->output,
                              .n = n,
                              .many = many,
                              .input = INPUT_RMSNORM,
                              .x = x,
                              .x_offset = (size_t)first * model->config.info.hidden,
                              .gain = model->output_norm,
                              .eps = model->config.norm_eps,
                              .y = y,
                              .ldy = model->config.info.vocab};
    return model->ops->ops->linear(model->ops, &args);
}

dcm_status model_logits(const dcm_model *model, activations *a, uint32_t first, uint32_t n, bool many)
{
    const size_t vocab = model->config.info.vocab;
    if (!a->logits || a->logits->bytes < n * vocab * sizeof(float)) {
        buffer_free(&a->logits);
        const dcm_status status = new_scratch(model, n, vocab, &a->logits);
        if (status != DCM_OK)
            return status;
    }
    return model_head(model, a->x, first, n, many, a->logits);
}
