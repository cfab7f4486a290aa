#include "train/sequence_parts.h"

#include "base/error.h"

#include <string.h>

/* y = x W, W the map that `w` is the transposed matrix of. */
static dcm_status product_back(sequence *s, const matrix *w, buffer *x, buffer *y)
{
    const linear_args args = {.w = w, .n = s->n, .many = true, .x = x, .y = y, .ldy = w->rows};
    return s->ops->ops->linear(s->ops, &args);
}

/* dx of a layer's output becomes that of what came between its attention and its feed-forward part. */
static dcm_status feed_forward_back(sequence *s, uint32_t layer, activations *a)
{
    const dcm_model_info *m = &s->model->config.info;
    const model_layer *l = &s->model->layer[layer];
    const swiglu_back_args swiglu = {.n = s->n, .cols = m->ffn, .x = a->gate_up, .dy = s->dffn, .dx = a->gate_up};
    const norm_back_args norm = {.n = s->n,
                                 .cols = m->hidden,
                                 .x = s->x,
                                 .gain = l->ffn_norm,
                                 .eps = s->model->config.norm_eps,
                                 .dy = s->dnorm,
                                 .dx = s->dx,
                                 .add = true};
    dcm_status status;
    DCM_TRY(status, fail, product_back(s, s->turned.layer[layer].down, s->dx, s->dffn));
    DCM_TRY(status, fail, s->ops->ops->grad->swiglu_back(s->ops, &swiglu));
    DCM_TRY(status, fail, product_back(s, s->turned.layer[layer].gate_up, a->gate_up, s->dnorm));
    DCM_TRY(status, fail, s->ops->ops->copy(s->x, 0, s->inputs, input_at(s, layer), hidden_bytes(s)));
    DCM_TRY(status, fail,
            linear_map_run(s->ops, &l->attn_out,
                           (linear_args){.n = s->n, .many = true, .x = a->attn, .y = s->x, .add = true}));
    status = s->ops->ops->grad->norm_back(s->ops, &norm);
fail:
    return status;
}

/* L_IL of one layer: the same queries over all tokens' own keys and values, as they are in the compressed run. */
static dcm_status distill_attention(sequence *s, uint32_t layer, activations *a, float weight, double *loss)
{
    const model_config *c = &s->model->config;
    const dcm_model_info *m = &c->info;
    kv_pool *pool = &s->full.slots.pool;
    const kv_store_args store = {pool, &s->full.step, layer, c->rope, a->qkv, m->heads};
    const attention_args attend = {pool, &s->full.step, layer, c->rope, a->qkv, m->heads, s->attn_full, true, false};
    const double terms = (double)m->heads * m->layers;
    const square_back_args square = {.n = s->n,
                                     .cols = (uint32_t)attn_columns(m),
                                     .x = a->attn,
                                     .y = s->attn_full,
                                     .dx = s->dattn,
                                     .scale = (float)(weight / (terms * s->n)),
                                     .loss = s->loss};
    double mean = 0;
    dcm_status status;
    DCM_TRY(status, fail, s->ops->ops->kv_store(s->ops, &store));
    DCM_TRY(status, fail, s->ops->ops->attention(s->ops, &attend));
    DCM_TRY(status, fail, s->ops->ops->grad->square_back(s->ops, &square));
    DCM_TRY(status, fail, sequence_read_mean(s, s->n, &mean));
    *loss += mean / terms;
fail:
    return status;
}

/* From the units' gradients to those of the units merged into them and of the parameters, the highest level first. */
static dcm_status merges_back(sequence *s, uint32_t layer, learner *l, float weight, double *loss)
{
    const dcm_model_info *m = &s->model->config.info;
    cache *c = &s->packed;
    const double rows = (double)c->step.n_merges * m->layers * m->kv_heads;
    float *sums = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&sums, m->kv_heads, sizeof *sums, "the heads' losses"));
    status = s->ops->ops->write(s->loss, 0, sums, m->kv_heads * sizeof *sums);
    for (uint32_t g = c->plan.top; g-- > 0 && status == DCM_OK;) {
        const step batch = cache_step_batch(c, g, true);
        const level_merges merges = {.pool = &c->slots.pool,
                                     .step = &batch,
                                     .units = &s->units,
                                     .first = s->n + (uint32_t)c->batch[g].late,
                                     .layer = layer,
                                     .rope = s->model->config.rope,
                                     .dunits = s->dunits,
                                     .dscores = s->dscores,
                                     .magnitude = (float)(weight / rows),
                                     .loss = s->loss};
        status = l->arch->back(l, &merges);
    }
    if (status == DCM_OK && weight > 0)
        status = s->ops->ops->read(s->loss, 0, sums, m->kv_heads * sizeof *sums);
    for (uint32_t h = 0; h < m->kv_heads && weight > 0; h++)
        *loss += sums[h] / weight;
done:
    mem_free(&sums);
    return status;
}

/* Neighbouring ranges in all views of the step, the sinks' left out. */
static double count_boundaries(const cache *c)
{
    const bool sinks = c->plan.sinks > 0;
    double count = 0;
    for (uint32_t t = 0; t < c->step.n; t++) {
        view v;
        memcpy(&v, c->words + c->step.views + t * (size_t)VIEW_WORDS, sizeof v);
        count += v.n_ranges > 1 ? v.n_ranges - 1 - sinks : 0;
    }
    return count;
}

static dcm_status attention_back(sequence *s, uint32_t layer, activations *a, float boundary)
{
    const model_config *c = &s->model->config;
    const dcm_model_info *m = &c->info;
    const double boundaries = boundary > 0 ? count_boundaries(&s->packed) * m->heads * m->layers : 1;
    const attention_back_args args = {.pool = &s->packed.slots.pool,
                                      .step = &s->packed.step,
                                      .units = &s->units,
                                      .layer = layer,
                                      .rope = c->rope,
                                      .qkv = a->qkv,
                                      .heads = m->heads,
                                      .out = a->attn,
                                      .dout = s->dattn,
                                      .boundary = (float)(boundary / boundaries),
                                      .sinks = s->packed.plan.sinks > 0,
                                      .lse = s->lse,
                                      .dqkv = s->dqkv,
                                      .dunits = s->dunits,
                                      .dscores = s->dscores};
    return s->ops->ops->grad->attention_back(s->ops, &args);
}

dcm_status sequence_layer_back(sequence *s, uint32_t layer, learner *l, const loss_weights *w, loss_terms *terms)
{
    const model_config *c = &s->model->config;
    const dcm_model_info *m = &c->info;
    activations a = activations_of(s, layer, s->x);
    const kv_store_back_args store = {.step = &s->packed.step,
                                      .heads = m->heads,
                                      .kv_heads = m->kv_heads,
                                      .head_dim = m->head_dim,
                                      .dunits = s->dunits,
                                      .dqkv = s->dqkv};
    const norm_back_args norm = {.n = s->n,
                                 .cols = m->hidden,
                                 .x = s->inputs,
                                 .x_offset = (size_t)layer * s->n * m->hidden,
                                 .gain = s->model->layer[layer].attn_norm,
                                 .eps = c->norm_eps,
                                 .dy = s->dnorm,
                                 .dx = s->dx,
                                 .add = true};
    dcm_status status;
    if (s->kept == 1) {
        DCM_TRY(status, fail, s->ops->ops->copy(s->x, 0, s->inputs, input_at(s, layer), hidden_bytes(s)));
        DCM_TRY(status, fail,
                model_layer_forward(s->model, &a, &s->packed.slots.pool, &s->packed.step, &s->late, layer));
    }
    if (w->boundary > 0)
        DCM_TRY(status, fail, sequence_measure_boundaries(s, layer, &a, terms));
    DCM_TRY(status, fail, feed_forward_back(s, layer, &a));
    DCM_TRY(status, fail, product_back(s, s->turned.layer[layer].attn_out, s->dx, s->dattn));
    if (w->il > 0)
        DCM_TRY(status, fail, distill_attention(s, layer, &a, w->il, &terms->il));
    DCM_TRY(status, fail, attention_back(s, layer, &a, w->boundary));
    DCM_TRY(status, fail, merges_back(s, layer, l, w->magnitude, &terms->magnitude));
    if (!layer)
        return DCM_OK;
    DCM_TRY(status, fail, s->ops->ops->grad->kv_store_back(s->ops, &store));
    DCM_TRY(status, fail, product_back(s, s->turned.layer[layer].qkv, s->dqkv, s->dnorm));
    status = s->ops->ops->grad->norm_back(s->ops, &norm);
fail:
    return status;
}
