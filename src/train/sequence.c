#include "train/sequence_parts.h"

#include "base/error.h"
#include "base/rng.h"
#include "train/units.h"

#include <math.h>
#include <string.h>

enum {
    PIECE = 64,   /* neighbouring positions whose predictions are compared together */
    UNIT_ROOM = 2 /* units of a sequence: one a token, and less than one merge a token */
};

/* ---- Room ---- */

static dcm_status scratch(sequence *s, size_t rows, size_t columns, buffer **out)
{
    return s->ops->ops->buffer_new(s->ops, rows * columns * sizeof(float), MEM_SCRATCH, out);
}

static dcm_status open_layers(sequence *s)
{
    const dcm_model_info *m = &s->model->config.info;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&s->layer, s->kept, sizeof *s->layer, "activations of a sequence"));
    for (uint32_t i = 0; i < s->kept; i++) {
        DCM_TRY(status, fail, scratch(s, s->most, qkv_columns(m), &s->layer[i].qkv));
        DCM_TRY(status, fail, scratch(s, s->most, attn_columns(m), &s->layer[i].attn));
        DCM_TRY(status, fail, scratch(s, s->most, 2 * (size_t)m->ffn, &s->layer[i].gate_up));
    }
fail:
    return status;
}

static dcm_status open_buffers(sequence *s)
{
    const dcm_model_info *m = &s->model->config.info;
    const size_t n = s->most;
    const struct {
        buffer **out;
        size_t rows, columns;
    } all[] = {
        {&s->inputs, n * m->layers, m->hidden},
        {&s->x, n, m->hidden},
        {&s->target_x, n, m->hidden},
        {&s->logits, PIECE, m->vocab},
        {&s->target, PIECE, m->vocab},
        {&s->loss, n > m->kv_heads ? n : m->kv_heads, 1},
        {&s->dx, n, m->hidden},
        {&s->dnorm, n, m->hidden},
        {&s->dattn, n, attn_columns(m)},
        {&s->attn_full, n, attn_columns(m)},
        {&s->dffn, n, m->ffn},
        {&s->dqkv, n, qkv_columns(m)},
        {&s->lse, n, 2 * (size_t)m->heads},
        {&s->dunits, UNIT_ROOM * n, unit_columns(m)},
        {&s->dscores, UNIT_ROOM * n, m->kv_heads},
    };
    dcm_status status = DCM_OK;
    for (size_t i = 0; i < sizeof all / sizeof *all && status == DCM_OK; i++)
        status = scratch(s, all[i].rows, all[i].columns, all[i].out);
    return status;
}

size_t sequence_bytes(const dcm_model_info *m, uint32_t tokens, bool keep)
{
    const size_t acts = qkv_columns(m) + attn_columns(m) + 2 * (size_t)m->ffn;
    const size_t rows = acts * (keep ? m->layers : 1) + m->hidden * (m->layers + 4) + 2 * attn_columns(m) + m->ffn +
                        qkv_columns(m) + 2 * m->heads + UNIT_ROOM * (unit_columns(m) + m->kv_heads) +
                        (UNIT_ROOM + 1) * m->layers * unit_columns(m);
    return (rows * tokens + 2 * (size_t)PIECE * m->vocab) * sizeof(float);
}

dcm_status sequence_open(sequence *s, const dcm_model *model, uint32_t most, uint32_t sinks, bool keep)
{
    const dcm_model_info *m = &model->config.info;
    dcm_status status;
    s->model = model;
    s->ops = model->ops;
    s->most = most;
    s->sinks = sinks;
    s->kept = keep ? m->layers : 1;
    DCM_TRY(status, fail, mem_new(&s->zeros, (size_t)most * m->hidden, sizeof *s->zeros, "zeros"));
    DCM_TRY(status, fail, transposed_open(&s->turned, model));
    DCM_TRY(status, fail, open_layers(s));
    DCM_TRY(status, fail, open_buffers(s));
fail:
    return status;
}

void sequence_close(sequence *s)
{
    buffer **const all[] = {&s->inputs, &s->x,     &s->target_x,  &s->logits, &s->target, &s->loss, &s->dx,
                            &s->dnorm,  &s->dattn, &s->attn_full, &s->dffn,   &s->dqkv,   &s->lse,  &s->dunits,
                            &s->dscores};
    if (s->ops)
        s->ops->ops->sync(s->ops);
    cache_close(&s->full);
    cache_close(&s->packed);
    grad_units_close(&s->units);
    transposed_close(&s->turned);
    for (uint32_t i = 0; s->layer && i < s->kept; i++) {
        buffer_free(&s->layer[i].qkv);
        buffer_free(&s->layer[i].attn);
        buffer_free(&s->layer[i].gate_up);
    }
    mem_free(&s->layer);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        buffer_free(all[i]);
    mem_free(&s->zeros);
    memset(s, 0, sizeof *s);
}

/* ---- Forward ---- */

/* An empty cache that takes all the tokens in one step: until it ends, it holds every unit that it ever made. */
static dcm_status begin_step(sequence *s, cache *c, const dcm_cache_params *params, const merge_model *merge,
                             bool in_chunks, const int32_t *tokens, uint32_t n)
{
    const model_config *config = &s->model->config;
    const rope turn = {config->rope, config->info.head_dim / 2, config->rope_frequency};
    cache_close(c);
    dcm_status status = cache_open(c, s->ops, &config->info, params, turn);
    c->in_chunks = in_chunks;
    if (status == DCM_OK && merge && merge->bias)
        cache_add_biases(c, merge->bias, merge->score.levels);
    if (status == DCM_OK)
        status = cache_step_begin(c, tokens, n);
    if (status == DCM_OK && c->step.n != n)
        status = dcm_fail(DCM_ERR_MEMORY, "a step of %u tokens does not fit", n);
    return status;
}

/* All layers over a cache; each layer's input is kept where `inputs`. */
static dcm_status run_layers(sequence *s, cache *c, const late_merges *late, buffer *x, bool inputs)
{
    const dcm_model *model = s->model;
    const embed_args embed = {model->embedding, &c->step, x};
    dcm_status status = s->ops->ops->embed(s->ops, &embed);
    for (uint32_t i = 0; i < model->config.info.layers && status == DCM_OK; i++) {
        activations a = activations_of(s, i, x);
        if (inputs)
            status = s->ops->ops->copy(s->inputs, input_at(s, i), x, 0, hidden_bytes(s));
        if (status == DCM_OK)
            status = model_layer_forward(model, &a, &c->slots.pool, &c->step, late, i);
    }
    return status;
}

dcm_status sequence_read(sequence *s, const int32_t *tokens, uint32_t n)
{
    const dcm_cache_params params = {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32, .chunk = n};
    const late_merges none = {0};
    s->n = n;
    const dcm_status status = begin_step(s, &s->full, &params, NULL, false, tokens, n);
    return status == DCM_OK ? run_layers(s, &s->full, &none, s->target_x, false) : status;
}

/* Keys and values of one layer's tokens, from its qkv rows. */
static void add_channels(const sequence *s, uint32_t layer, const float *qkv, channel_sums *sums)
{
    const dcm_model_info *m = &s->model->config.info;
    const size_t columns = unit_columns(m), row = qkv_columns(m), at = layer * columns;
    for (size_t t = s->sinks; t < s->n; t++)
        for (size_t i = 0; i < columns; i++) {
            const double x = qkv[t * row + attn_columns(m) + i];
            sums->sum[at + i] += x;
            sums->square[at + i] += x * x;
        }
}

dcm_status sequence_measure(sequence *s, const int32_t *tokens, uint32_t n, channel_sums *sums)
{
    const dcm_cache_params params = {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32, .chunk = n};
    const dcm_model_info *m = &s->model->config.info;
    const late_merges none = {0};
    float *qkv = NULL;
    dcm_status status;
    s->n = n;
    DCM_TRY(status, done, mem_new(&qkv, n * qkv_columns(m), sizeof *qkv, "keys and values"));
    DCM_TRY(status, done, begin_step(s, &s->full, &params, NULL, false, tokens, n));
    const embed_args embed = {s->model->embedding, &s->full.step, s->target_x};
    DCM_TRY(status, done, s->ops->ops->embed(s->ops, &embed));
    for (uint32_t i = 0; i < m->layers; i++) {
        activations a = activations_of(s, i, s->target_x);
        DCM_TRY(status, done, model_layer_forward(s->model, &a, &s->full.slots.pool, &s->full.step, &none, i));
        DCM_TRY(status, done, s->ops->ops->read(a.qkv, 0, qkv, n * qkv_columns(m) * sizeof *qkv));
        add_channels(s, i, qkv, sums);
    }
    sums->count += n > s->sinks ? n - s->sinks : 0;
done:
    mem_free(&qkv);
    return status;
}

dcm_status sequence_is_finite(sequence *s, bool *finite)
{
    const uint32_t vocab = s->model->config.info.vocab;
    float *logits = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&logits, vocab, sizeof *logits, "predictions"));
    DCM_TRY(status, done, model_head(s->model, s->target_x, s->n - 1, 1, true, s->target));
    DCM_TRY(status, done, s->ops->ops->read(s->target, 0, logits, vocab * sizeof *logits));
    *finite = true;
    for (uint32_t i = 0; i < vocab; i++)
        *finite = *finite && isfinite(logits[i]);
done:
    mem_free(&logits);
    return status;
}

static dcm_status check_room_to_merge(const sequence *s, uint32_t group)
{
    if (s->n <= 2 * group - 1 + s->sinks)
        return dcm_fail(DCM_ERR_USAGE, "%u tokens are too few for L = %u: nothing is merged", s->n, group);
    return DCM_OK;
}

/* The compressed cache's forward pass; with an empty cache all merges are late. */
static dcm_status read_packed(sequence *s, const int32_t *tokens, merge_model *merge, uint32_t group, bool in_chunks)
{
    const dcm_cache_params params = {.kind = DCM_CACHE_DCM,
                                     .group = group,
                                     .sinks = (int32_t)s->sinks,
                                     .far_limit = cache_far_limit(group),
                                     .kv = DCM_KV_F32,
                                     .chunk = 2 * s->n};
    cache *c = &s->packed;
    dcm_status status;
    DCM_TRY(status, fail, check_room_to_merge(s, group));
    DCM_TRY(status, fail, begin_step(s, c, &params, merge, in_chunks, tokens, s->n));
    s->late = (late_merges){.merge = merge};
    for (uint32_t g = 0; g < c->plan.top; g++) {
        s->late.batch[s->late.count] = cache_step_batch(c, g, true);
        s->late.count += s->late.batch[s->late.count].n_merges > 0;
    }
    status = run_layers(s, c, &s->late, s->x, true);
fail:
    return status;
}

/* ---- Loss ---- */

/* dx of positions first .. first + n - 1 of the last output, from the gradient of their logits. */
static dcm_status head_back(sequence *s, uint32_t first, uint32_t n)
{
    const dcm_model *model = s->model;
    const dcm_model_info *m = &model->config.info;
    const linear_args product = {
        .w = s->turned.output, .n = n, .many = true, .x = s->logits, .y = s->dnorm, .ldy = m->hidden};
    const norm_back_args norm = {.n = n,
                                 .cols = m->hidden,
                                 .x = s->x,
                                 .x_offset = (size_t)first * m->hidden,
                                 .gain = model->output_norm,
                                 .eps = model->config.norm_eps,
                                 .dy = s->dnorm,
                                 .dx = s->dx,
                                 .dx_offset = (size_t)first * m->hidden};
    const dcm_status status = s->ops->ops->linear(s->ops, &product);
    return status == DCM_OK ? s->ops->ops->grad->norm_back(s->ops, &norm) : status;
}

static dcm_status compare_piece(sequence *s, uint32_t first, uint32_t n, float scale, size_t loss_at, bool back)
{
    const kl_back_args kl = {.n = n,
                             .vocab = s->model->config.info.vocab,
                             .logits = s->logits,
                             .target = s->target,
                             .scale = scale,
                             .loss = s->loss,
                             .loss_offset = loss_at};
    dcm_status status;
    DCM_TRY(status, fail, model_head(s->model, s->x, first, n, true, s->logits));
    DCM_TRY(status, fail, model_head(s->model, s->target_x, first, n, true, s->target));
    DCM_TRY(status, fail, s->ops->ops->grad->kl_back(s->ops, &kl));
    if (back)
        status = head_back(s, first, n);
fail:
    return status;
}

dcm_status sequence_read_mean(sequence *s, size_t count, double *mean)
{
    float *values = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&values, count, sizeof *values, "losses"));
    DCM_TRY(status, done, s->ops->ops->read(s->loss, 0, values, count * sizeof *values));
    *mean = 0;
    for (size_t i = 0; i < count; i++)
        *mean += values[i] / (double)count;
done:
    mem_free(&values);
    return status;
}

/*
 * KL at positions from `first` on, those that see merged units, in pieces of neighbours, one piece at a random place of
 * each of equal parts; all positions where there are no more than asked for.
 */
static dcm_status compare(sequence *s, uint32_t first, float weight, loss_positions positions, bool back, double *kl)
{
    const uint32_t seeing = s->n - first;
    const uint32_t count = positions.count && positions.count < seeing ? positions.count : seeing;
    const uint32_t pieces = (count + PIECE - 1) / PIECE;
    const float scale = weight / (float)count;
    size_t done = 0;
    dcm_status status = back ? s->ops->ops->write(s->dx, 0, s->zeros, hidden_bytes(s)) : DCM_OK;
    for (uint32_t i = 0; i < pieces && status == DCM_OK; i++) {
        const uint32_t begin = (uint32_t)((uint64_t)seeing * i / pieces);
        const uint32_t room = (uint32_t)((uint64_t)seeing * (i + 1) / pieces) - begin;
        uint32_t n = (uint32_t)((uint64_t)count * (i + 1) / pieces - (uint64_t)count * i / pieces);
        n = n < room ? n : room;
        const uint32_t shift = (uint32_t)(rng_uniform(&positions.seed) * (room - n + 1));
        status = compare_piece(s, first + begin + shift, n, scale, done, back);
        done += n;
    }
    return status == DCM_OK ? sequence_read_mean(s, done, kl) : status;
}

/* ---- The whole ---- */

dcm_status sequence_learn(sequence *s, const int32_t *tokens, learner *l, uint32_t group, loss_weights weights,
                          loss_positions positions, loss_terms *terms)
{
    dcm_status status;
    *terms = (loss_terms){0};
    const uint32_t first = s->sinks + (s->in_chunks ? group : 2 * group - 1);
    DCM_TRY(status, fail, read_packed(s, tokens, &l->merge, group, s->in_chunks));
    DCM_TRY(status, fail, compare(s, first, weights.kl, positions, true, &terms->kl));
    DCM_TRY(status, fail, grad_units_open(&s->units, &s->packed));
    for (uint32_t i = s->model->config.info.layers; i-- > 0;)
        DCM_TRY(status, fail, sequence_layer_back(s, i, l, &weights, terms));
fail:
    return status;
}

dcm_status sequence_test(sequence *s, const int32_t *tokens, learner *l, uint32_t group, double *kl)
{
    const dcm_status status = read_packed(s, tokens, &l->merge, group, false);
    return status == DCM_OK ? compare(s, 2 * group - 1 + s->sinks, 0, (loss_positions){0}, false, kl) : status;
}

dcm_status sequence_test_window(sequence *s, const int32_t *tokens, uint32_t group, double *kl)
{
    const late_merges none = {0};
    const dcm_cache_params params = {.kind = DCM_CACHE_WINDOW,
                                     .sinks = (int32_t)s->sinks,
                                     .window = (uint32_t)dcm_units_after(group, s->sinks, s->n),
                                     .kv = DCM_KV_F32,
                                     .chunk = s->n};
    dcm_status status;
    DCM_TRY(status, fail, check_room_to_merge(s, group));
    DCM_TRY(status, fail, begin_step(s, &s->packed, &params, NULL, false, tokens, s->n));
    DCM_TRY(status, fail, run_layers(s, &s->packed, &none, s->x, false));
    status = compare(s, 2 * group - 1 + s->sinks, 0, (loss_positions){0}, false, kl);
fail:
    return status;
}
