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

/* Links that follow each other, not issued yet: back ends may make one launch of all (CHAIN_STAGES of chain_cl.c). */
enum { CHAIN_LINKS = 64, LAYER_LINKS = 4 * MODEL_MAX_PARTS + 1 };

typedef struct link_chain {
    op_link link[CHAIN_LINKS];
    size_t count;
} link_chain;

/* Append all parts of a map: the arguments' w, bias, y_offset and ldy are filled in here. */
static void chain_add(link_chain *chain, const linear_map *map, linear_args args)
{
    args.ldy = map->rows;
    for (uint32_t i = 0; i < map->parts; i++) {
        args.w = map->part[i].w;
        args.bias = map->part[i].bias;
        args.y_offset = map->part[i].y_offset;
        chain->link[chain->count++] = (op_link){.kind = LINK_LINEAR, .linear = args};
    }
}

/* Issue the chain, and empty it. */
static dcm_status chain_run(backend *ops, link_chain *chain)
{
    const size_t count = chain->count;
    chain->count = 0;
    return ops->ops->chain(ops, chain->link, count);
}

dcm_status linear_map_run(backend *ops, const linear_map *map, linear_args args)
{
    link_chain chain;
    chain.count = 0;
    chain_add(&chain, map, args);
    return chain_run(ops, &chain);
}

/* What comes before a layer's attention: queries, keys and values. */
static void layer_begin(const dcm_model *model, const activations *a, const step *s, uint32_t index, link_chain *chain)
{
    const model_layer *l = &model->layer[index];
    chain_add(chain, &l->qkv,
              (linear_args){.n = s->n,
                            .many = a->reading,
                            .input = INPUT_RMSNORM,
                            .x = a->x,
                            .gain = l->attn_norm,
                            .eps = model->config.norm_eps,
                            .y = a->qkv});
}

/* The chain is issued before what is no link. */
static dcm_status layer_attend(const dcm_model *model, const activations *a, kv_pool *pool, const step *s,
                               const late_merges *late, uint32_t index, link_chain *chain)
{
    const model_config *c = &model->config;
    backend *ops = model->ops;
    const kv_store_args store = {pool, s, index, c->rope, a->qkv, c->info.heads};
    const bool together = s->n == 1 && !a->reading; /* kv_store and attention */
    const attention_args attend = {pool,    s,          index, c->rope, a->qkv, c->info.heads,
                                   a->attn, a->reading, together};
    dcm_status status = DCM_OK;
    if (!together || late->count)
        DCM_TRY(status, fail, chain_run(ops, chain));
    if (!together)
        DCM_TRY(status, fail, ops->ops->kv_store(ops, &store));
    for (uint32_t i = 0; i < late->count; i++)
        DCM_TRY(status, fail, merge_run(late->merge, pool, &late->batch[i], index, 1, c->rope));
    chain->link[chain->count++] = (op_link){.kind = LINK_ATTENTION, .attention = attend};
fail:
    return status;
}

/* What comes after it. */
static void layer_end(const dcm_model *model, const activations *a, const step *s, uint32_t index, link_chain *chain)
{
    const model_layer *l = &model->layer[index];
    chain_add(chain, &l->attn_out,
              (linear_args){.n = s->n, .many = a->reading, .x = a->attn, .y = a->x, .add = true});
    chain_add(chain, &l->gate_up,
              (linear_args){.n = s->n,
                            .many = a->reading,
                            .input = INPUT_RMSNORM,
                            .x = a->x,
                            .gain = l->ffn_norm,
                            .eps = model->config.norm_eps,
                            .y = a->gate_up});
    chain_add(chain, &l->down,
              (linear_args){
                  .n = s->n, .many = a->reading, .input = INPUT_SWIGLU, .x = a->gate_up, .y = a->x, .add = true});
}

/* Append a layer to a chain that has room for it. */
static dcm_status layer_add(const dcm_model *model, const activations *a, kv_pool *pool, const step *s,
                            const late_merges *late, uint32_t index, link_chain *chain)
{
    layer_begin(model, a, s, index, chain);
    const dcm_status status = layer_attend(model, a, pool, s, late, index, chain);
    if (status == DCM_OK)
        layer_end(model, a, s, index, chain);
    return status;
}

dcm_status model_layer_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s,
                               const late_merges *late, uint32_t index)
{
    link_chain chain;
    dcm_status status;
    chain.count = 0;
    DCM_TRY(status, fail, layer_add(model, a, pool, s, late, index, &chain));
    DCM_TRY(status, fail, chain_run(model->ops, &chain));
    return DCM_OK;
fail:
    return dcm_fail_in(status, "layer %u", index);
}

/* Where nobody looks at the layers, chains are as long as they can be; a message names the last of their layers. */
dcm_status model_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s, const late_merges *late)
{
    const embed_args embed = {model->embedding, s, a->x};
    const uint32_t layers = model->config.info.layers;
    link_chain chain;
    uint32_t i = 0;
    dcm_status status = model->ops->ops->embed(model->ops, &embed);
    if (status != DCM_OK)
        return status;
    for (chain.count = 0; i < layers; i++) {
        DCM_TRY(status, fail, layer_add(model, a, pool, s, late, i, &chain));
        if (!a->seen && i + 1 < layers && chain.count + LAYER_LINKS <= CHAIN_LINKS)
            continue;
        DCM_TRY(status, fail, chain_run(model->ops, &chain));
        if (a->seen && (status = a->seen(a->seen_context, i)) != DCM_OK)
            return status;
    }
    return DCM_OK;
fail:
    return dcm_fail_in(status, "layer %u", i);
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
