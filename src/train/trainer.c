#include "train/trainer.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

static const dcm_train_params defaults = {.tokens = 2048,
                                          .sinks = DCM_DEFAULT_SINKS,
                                          .hidden = 32,
                                          .levels = 8,
                                          .depth = 9,
                                          .beta1 = 0.9f,
                                          .beta2 = 0.99f,
                                          .eps = 1e-8f,
                                          .decay = 0.01f,
                                          .clip = 1,
                                          .kl = 1,
                                          .positions = 512};

static dcm_status fill_params(dcm_train_params *p, const dcm_train_params *given)
{
    static const dcm_train_params none;
    const dcm_train_params *d = &defaults;
    *p = given ? *given : none;
    p->tokens = p->tokens ? p->tokens : d->tokens;
    p->sinks = p->sinks < 0 ? 0 : p->sinks ? p->sinks : d->sinks;
    p->hidden = p->hidden ? p->hidden : d->hidden;
    p->levels = p->levels ? p->levels : d->levels;
    p->depth = p->depth ? p->depth : d->depth;
    p->beta1 = p->beta1 ? p->beta1 : d->beta1;
    p->beta2 = p->beta2 ? p->beta2 : d->beta2;
    p->eps = p->eps ? p->eps : d->eps;
    p->decay = p->decay ? p->decay : d->decay;
    p->clip = p->clip ? p->clip : d->clip;
    p->kl = p->kl < 0 ? 0 : p->kl ? p->kl : d->kl;
    p->positions = p->positions ? p->positions : d->positions;
    if (p->magnitude > 0 && p->arch != DCM_TRAIN_SCORE)
        return dcm_fail(DCM_ERR_USAGE, "the magnitude term is a scorer's alone");
    if (p->tokens < 8 || p->tokens > 1 << 20)
        return dcm_fail(DCM_ERR_USAGE, "sequences of %u tokens: 8 to %d are allowed", p->tokens, 1 << 20);
    return DCM_OK;
}

static dcm_status check_memory(const dcm_trainer *t)
{
    const backend *ops = t->model->ops;
    const dcm_model_info *m = &t->model->config.info;
    const size_t left = ops->max_memory - ops->memory.total, weights = transposed_bytes(m);
    const size_t need = weights + sequence_bytes(m, t->params.tokens, !t->params.again);
    if (need <= left)
        return DCM_OK;
    const size_t less = weights + sequence_bytes(m, t->params.tokens, false);
    return dcm_fail(DCM_ERR_MEMORY,
                    "training with sequences of %u tokens takes %zu bytes, %zu of them weights, but %zu of %zu are "
                    "left%s",
                    t->params.tokens, need, weights, left, ops->max_memory,
                    less <= left ? ": running layers a second time would fit" : ": shorter sequences take less");
}

static dcm_status open_params(dcm_trainer *t)
{
    const dcm_train_params *p = &t->params;
    const learner *l = &t->learner;
    dcm_status status;
    DCM_TRY(status, fail, learner_open(&t->learner, t->model, p));
    DCM_TRY(status, fail, mem_new(&t->gradient, l->count, sizeof *t->gradient, "gradients"));
    DCM_TRY(status, fail, mem_new(&t->adamw.mean, l->count, sizeof(float), "means of gradients"));
    DCM_TRY(status, fail, mem_new(&t->adamw.average, l->count, sizeof(float), "the parameters' average"));
    DCM_TRY(status, fail, mem_new(&t->adamw.square, l->count, sizeof(float), "squares of gradients"));
    t->adamw.count = l->count;
    t->adamw.param = l->param;
    t->adamw.kind = l->kind;
    t->adamw.beta1 = p->beta1;
    t->adamw.beta2 = p->beta2;
    t->adamw.eps = p->eps;
    t->adamw.decay = p->decay;
    memcpy(t->adamw.average, l->param, l->count * sizeof *l->param);
fail:
    return status;
}

static dcm_status forget(dcm_trainer *t)
{
    t->learnt = 0;
    memcpy(t->next_kl, t->mean_kl, sizeof t->next_kl);
    return t->learner.arch->forget(&t->learner);
}

dcm_status dcm_trainer_open(dcm_trainer **out, dcm_model *model, const dcm_train_params *params)
{
    const dcm_model_info *m = &model->config.info;
    const size_t channels = (size_t)m->layers * 2 * m->kv_heads * m->head_dim;
    dcm_trainer *t = NULL;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, fail, mem_new(&t, 1, sizeof *t, "a trainer"));
    t->model = model;
    DCM_TRY(status, fail, fill_params(&t->params, params));
    DCM_TRY(status, fail, check_memory(t));
    DCM_TRY(status, fail, open_params(t));
    for (uint32_t g = 0; g < DCM_LEVELS_MAX; g++)
        t->mean_kl[g] = 25.0f / (float)(1 << g); /* about what is found: only its changes matter to AdamW */
    DCM_TRY(status, fail, forget(t));
    DCM_TRY(status, fail, mem_new(&t->sums.sum, channels, sizeof *t->sums.sum, "means of channels"));
    DCM_TRY(status, fail, mem_new(&t->sums.square, channels, sizeof *t->sums.square, "scales of channels"));
    DCM_TRY(status, fail, mem_new(&t->tokens, t->params.tokens, sizeof *t->tokens, "a sequence"));
    DCM_TRY(status, fail,
            sequence_open(&t->sequence, model, t->params.tokens, (uint32_t)t->params.sinks, !t->params.again));
    t->sequence.in_chunks = t->params.mode == DCM_TRAIN_CHUNKED;
    *out = t;
    return DCM_OK;
fail:
    dcm_trainer_close(&t);
    return status;
}

void dcm_trainer_close(dcm_trainer **trainer)
{
    if (!trainer || !*trainer)
        return;
    dcm_trainer *t = *trainer;
    sequence_close(&t->sequence);
    learner_close(&t->learner);
    mem_free(&t->gradient);
    mem_free(&t->adamw.mean);
    mem_free(&t->adamw.square);
    mem_free(&t->adamw.average);
    mem_free(&t->sums.sum);
    mem_free(&t->sums.square);
    mem_free(&t->tokens);
    mem_free(trainer);
}

/* ---- Sequences ---- */

static dcm_status take_tokens(dcm_trainer *t, const int32_t *tokens, size_t count)
{
    const uint32_t vocab = t->model->config.info.vocab;
    t->n = 0;
    if (!count || count > t->params.tokens)
        return dcm_fail(DCM_ERR_USAGE, "a sequence of %zu tokens, where 1 to %u are allowed", count, t->params.tokens);
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return dcm_fail(DCM_ERR_USAGE, "token %zu is %d, not an id of the vocabulary of %u", i, (int)tokens[i],
                            vocab);
    memcpy(t->tokens, tokens, count * sizeof *tokens);
    return DCM_OK;
}

dcm_status trainer_begin(dcm_trainer *t)
{
    memcpy(t->adamw.average, t->learner.param, t->learner.count * sizeof *t->learner.param);
    return learner_use(&t->learner, t->learner.param);
}

/* The average or the parameters, onto the device. */
static dcm_status use(dcm_trainer *t, const float *params)
{
    return t->learner.used == params ? DCM_OK : learner_use(&t->learner, params);
}

/* A loss that is no number is then the merge model's or the device's, not the model's. */
static dcm_status check_model(dcm_trainer *t)
{
    bool finite = true;
    const dcm_status status = sequence_is_finite(&t->sequence, &finite);
    if (status == DCM_OK && !finite)
        return dcm_fail(DCM_ERR_FILE, "the predictions of the model itself are no numbers: its weights may hold NaN");
    return status;
}

dcm_status dcm_trainer_measure(dcm_trainer *t, const int32_t *tokens, size_t count)
{
    dcm_status status;
    if (t->params.from || t->adamw.step || t->learnt)
        return dcm_fail(DCM_ERR_USAGE, "channels are measured before a new merge model's first step");
    if (!t->learner.arch->set_channels)
        return DCM_OK;
    DCM_TRY(status, fail, take_tokens(t, tokens, count));
    DCM_TRY(status, fail, sequence_measure(&t->sequence, t->tokens, (uint32_t)count, &t->sums));
    DCM_TRY(status, fail, check_model(t));
    if (t->sums.count) {
        t->learner.arch->set_channels(&t->learner, &t->sums);
        status = trainer_begin(t);
    }
fail:
    return status;
}

dcm_status dcm_trainer_read(dcm_trainer *t, const int32_t *tokens, size_t count)
{
    dcm_status status = take_tokens(t, tokens, count);
    if (status == DCM_OK)
        status = sequence_read(&t->sequence, t->tokens, (uint32_t)count);
    if (status == DCM_OK)
        status = check_model(t);
    t->n = status == DCM_OK ? (uint32_t)count : 0;
    return status;
}

static dcm_status check_group(const dcm_trainer *t, uint32_t group, uint32_t *level)
{
    dcm_plan plan;
    const dcm_status status = dcm_plan_init(&plan, group, 0);
    *level = plan.top;
    if (status == DCM_OK && !t->n)
        return dcm_fail(DCM_ERR_USAGE, "no sequence was read");
    return status;
}

dcm_status dcm_trainer_learn(dcm_trainer *t, uint32_t group, uint64_t seed, dcm_train_losses *losses)
{
    const dcm_train_params *p = &t->params;
    uint32_t level;
    loss_terms terms;
    dcm_status status;
    DCM_TRY(status, fail, check_group(t, group, &level));
    DCM_TRY(status, fail, use(t, t->learner.param));
    const loss_weights weights = {p->kl / t->mean_kl[level], p->il, p->magnitude, p->boundary};
    DCM_TRY(status, fail,
            sequence_learn(&t->sequence, t->tokens, &t->learner, group, weights, (loss_positions){p->positions, seed},
                           &terms));
    *losses = (dcm_train_losses){terms.kl, terms.il, terms.magnitude, terms.boundary};
    if (!isfinite(terms.kl) || !isfinite(terms.il) || !isfinite(terms.magnitude)) {
        DCM_TRY(status, fail, forget(t));
        return dcm_fail(DCM_ERR_DEVICE, "the loss is not finite (KL %g, L_IL %g, magnitude %g) with L = %u", terms.kl,
                        terms.il, terms.magnitude, group);
    }
    t->next_kl[level] = 0.9f * t->next_kl[level] + 0.1f * (float)terms.kl;
    t->learnt++;
fail:
    return status;
}

dcm_status dcm_trainer_test(dcm_trainer *t, uint32_t group, double *kl)
{
    uint32_t level;
    dcm_status status = check_group(t, group, &level);
    if (status == DCM_OK)
        status = use(t, t->adamw.average);
    return status == DCM_OK ? sequence_test(&t->sequence, t->tokens, &t->learner, group, kl) : status;
}

dcm_status dcm_trainer_test_window(dcm_trainer *t, uint32_t group, double *kl)
{
    uint32_t level;
    const dcm_status status = check_group(t, group, &level);
    return status == DCM_OK ? sequence_test_window(&t->sequence, t->tokens, group, kl) : status;
}

/* ---- Updates ---- */

dcm_status dcm_trainer_update(dcm_trainer *t, double rate, double *norm)
{
    learner *l = &t->learner;
    dcm_status status;
    if (!t->learnt)
        return dcm_fail(DCM_ERR_USAGE, "nothing was learnt since the last update");
    if (!isfinite(rate))
        return dcm_fail(DCM_ERR_USAGE, "a learning rate of %g", rate);
    DCM_TRY(status, fail, l->arch->read(l, t->gradient));
    const double length = adamw_norm(&t->adamw, t->gradient) / t->learnt, share = 1.0 / t->learnt;
    if (norm)
        *norm = length;
    if (!isfinite(length)) {
        DCM_TRY(status, fail, forget(t));
        return dcm_fail(DCM_ERR_DEVICE, "the gradient of step %llu is not finite",
                        (unsigned long long)t->adamw.step + 1);
    }
    adamw_update(&t->adamw, t->gradient, length > t->params.clip ? share * t->params.clip / length : share, rate);
    memcpy(t->mean_kl, t->next_kl, sizeof t->mean_kl);
    DCM_TRY(status, fail, forget(t));
    status = learner_use(l, l->param);
fail:
    return status;
}

uint64_t dcm_trainer_steps(const dcm_trainer *t) { return t->adamw.step; }

double dcm_train_rate(double peak, uint64_t step, uint64_t warmup, uint64_t steps)
{
    return cosine_rate(peak, step, warmup, steps);
}
