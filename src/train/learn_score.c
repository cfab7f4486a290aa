#include "train/learner.h"

#include "base/error.h"
#include "base/rng.h"
#include "ops/ops_ref.h"
#include "ref/score_net.h"
#include "train/adamw.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const double LOG_R = -0.2; /* of -0.3, -0.2, -0.1, 0 the best with a scorer trained without biases */

/* Of a normal distribution, by Box and Muller. */
static double normal(uint64_t *rng)
{
    const double u = 1 - rng_uniform(rng), v = rng_uniform(rng);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

static size_t rows_of(const learner *l) { return (size_t)l->facts.layers * l->facts.kv_heads; }

static void fill_kind(uint8_t *kind, size_t first, size_t count, adamw_kind value)
{
    for (size_t i = 0; i < count; i++)
        kind[first + i] = (uint8_t)value;
}

static void set_kinds(learner *t)
{
    const score_layout l = score_layout_of(t->score);
    const size_t x = 2 * (size_t)t->score.head_dim, h = t->score.hidden;
    for (size_t i = 0; i < rows_of(t); i++) {
        uint8_t *kind = t->kind + i * l.row;
        fill_kind(kind, 0, l.row, ADAMW_PLAIN);
        fill_kind(kind, l.mean, 2 * x, ADAMW_FROZEN);
        fill_kind(kind, l.w1, h * x, ADAMW_DECAY);
        fill_kind(kind, l.u, h * x, ADAMW_SLOW); /* what is added to a unit is not bounded, as its choice is */
        fill_kind(kind, l.r, t->score.levels * x, ADAMW_SLOW);
        fill_kind(kind, l.bias, t->score.levels, ADAMW_FAST);
        fill_kind(kind, l.sharp_v + 1, l.row - l.sharp_v - 1, ADAMW_FROZEN);
    }
}

/* Mean and variance of a channel of the sums. */
static double mean_of(const channel_sums *s, size_t at) { return s->sum[at] / (double)s->count; }

static double variance_of(const channel_sums *s, size_t at)
{
    return fmax(s->square[at] / (double)s->count - mean_of(s, at) * mean_of(s, at), 1e-8);
}

/*
 * Keys get one scale a head: what sets a key apart is in its few large channels, and the deviation from the mean, which
 * scales of their own would flatten, is the best sign of a unit worth keeping that needs no training.
 */
static void set_channels(learner *t, const channel_sums *sums)
{
    const score_layout l = score_layout_of(t->score);
    const size_t heads = t->facts.kv_heads, d = t->score.head_dim;
    for (size_t i = 0; i < rows_of(t); i++) {
        const size_t keys = (i / heads * 2 * heads + i % heads) * d, values = keys + heads * d;
        float *mean = t->param + i * l.row + l.mean, *scale = t->param + i * l.row + l.scale;
        double variance = 0;
        for (size_t c = 0; c < d; c++)
            variance += variance_of(sums, keys + c) / (double)d;
        for (size_t c = 0; c < d; c++) {
            mean[c] = (float)mean_of(sums, keys + c);
            scale[c] = (float)(1 / sqrt(variance));
            mean[d + c] = (float)mean_of(sums, values + c);
            scale[d + c] = (float)(1 / sqrt(variance_of(sums, values + c)));
        }
    }
}

/*
 * The unit whose key is further from the mean is kept rather than the other; the network adds nothing at first (w2 and
 * u are 0), and where it looks is random. A unit of r tokens counts for less than one token: LOG_R log r.
 */
static void set_first(learner *t, uint64_t seed)
{
    const score_layout l = score_layout_of(t->score);
    const size_t x = 2 * (size_t)t->score.head_dim;
    uint64_t rng = seed;
    for (size_t i = 0; i < rows_of(t); i++) {
        float *row = t->param + i * l.row;
        for (size_t c = 0; c < l.row; c++)
            row[c] = 0;
        for (size_t c = 0; c < x; c++)
            row[l.scale + c] = 1;
        for (size_t c = 0; c < t->score.hidden * x; c++)
            row[l.w1 + c] = (float)(normal(&rng) / sqrt((double)x));
        for (size_t g = 0; g < t->score.levels; g++)
            row[l.bias + g] = (float)(LOG_R * (double)(g + 1) * log(2));
        row[l.deviation] = 6;
        row[l.sharp_k] = row[l.sharp_v] = 4;
    }
}

static dcm_status check_shape(const dcm_train_params *p)
{
    if (p->hidden % 16 || p->hidden > SCORE_HIDDEN_MAX)
        return dcm_fail(DCM_ERR_USAGE, "%u hidden units: a multiple of 16 up to %d is needed", p->hidden,
                        SCORE_HIDDEN_MAX);
    if (p->levels > DCM_LEVELS_MAX)
        return dcm_fail(DCM_ERR_USAGE, "%u levels: at most %d", p->levels, DCM_LEVELS_MAX);
    return DCM_OK;
}

static dcm_status open_score(learner *t, const dcm_train_params *p, const safetensors *from)
{
    float *loaded = NULL;
    dcm_status status;
    DCM_TRY(status, fail, check_shape(p));
    t->score = (score_shape){t->facts.head_dim, p->hidden, p->levels};
    if (from)
        DCM_TRY(status, fail, score_file_load(from, &t->facts, &t->score, &loaded));
    t->count = rows_of(t) * score_layout_of(t->score).row;
    DCM_TRY(status, fail, learner_room(t));
    set_kinds(t);
    if (loaded)
        memcpy(t->param, loaded, t->count * sizeof *loaded);
    else
        set_first(t, p->seed);
    DCM_TRY(status, fail, t->ops->ops->buffer_new(t->ops, t->count * sizeof(float), MEM_SCRATCH, &t->dparams));
    status = merge_open_score(&t->merge, t->ops, &t->facts, t->score, t->param);
fail:
    mem_free(&loaded);
    return status;
}

static void close_score(learner *t) { buffer_free(&t->dparams); }

static dcm_status upload(learner *t, const float *params) { return merge_set_score(&t->merge, params); }

static dcm_status forget(learner *t) { return learner_zero(t, t->dparams); }

static dcm_status read_gradient(learner *t, float *gradient)
{
    return t->ops->ops->read(t->dparams, 0, gradient, t->count * sizeof *gradient);
}

static dcm_status back(learner *t, const level_merges *m)
{
    const merge_score_back_args args = {.pool = m->pool,
                                        .step = m->step,
                                        .units = m->units,
                                        .first = m->first,
                                        .layer = m->layer,
                                        .rope = m->rope,
                                        .shape = t->score,
                                        .params = t->merge.params,
                                        .dparams = t->dparams,
                                        .dunits = m->dunits,
                                        .dscores = m->dscores,
                                        .magnitude = m->magnitude,
                                        .loss = m->loss};
    return t->ops->ops->grad->merge_score_back(t->ops, &args);
}

static double share(const learner *t, const done_merge *m)
{
    const ref_score all = score_of(t->score, t->used);
    const ref_score p = score_at(&all, (size_t)m->layer * t->facts.kv_heads + m->head);
    const uint32_t d = t->facts.head_dim, level = score_level(&all, m->pair.level);
    score_unit a, b;
    score_load(m->pool, m->layer, m->head, m->pair.a, m->rotation, &a);
    score_load(m->pool, m->layer, m->head, m->pair.b, m->rotation + d, &b);
    score_run(&p, d, level, &a);
    score_run(&p, d, level, &b);
    return score_sigmoid(*p.sharp_k * (a.s - b.s + p.prior[level]));
}

static void describe(const learner *t, char *text, size_t size)
{
    snprintf(text, size, "hidden=%u levels=%u", t->score.hidden, t->score.levels);
}

static dcm_status save(const learner *t, const char *path, const float *params, const st_note *notes, size_t n_notes)
{
    return score_file_save(path, &t->facts, t->score, params, notes, n_notes, ST_F16);
}

const learner_arch learner_score = {.name = "score",
                                    .open = open_score,
                                    .close = close_score,
                                    .set_channels = set_channels,
                                    .upload = upload,
                                    .forget = forget,
                                    .read = read_gradient,
                                    .back = back,
                                    .share = share,
                                    .describe = describe,
                                    .save = save};
