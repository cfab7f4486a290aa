/* cl_merge_score: all heads of several merges of several levels, in all layers or in one, results in the slot of a, of
 * b, and in a third. */
#include "harness.h"

#include "support/score.h"

#include <stdio.h>
#include <string.h>

enum { HEAD_MAX = 256, HIDDEN_MAX = 128 };

typedef struct score_case {
    fx_cache cache;
    score_shape shape;
    score_layout at;
    uint32_t layer, layers; /* of the cache's */
    float *params;
    size_t bytes;
} score_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const score_case *s = what;
    kv_pool pool;
    step step;
    fx_upload(&s->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const merge_score_args args = {.pool = &pool,
                                   .step = &step,
                                   .layer = s->layer,
                                   .layers = s->layers,
                                   .rope = s->cache.spec.rope,
                                   .shape = s->shape,
                                   .params = ck_buffer(c, side, "params", s->params, s->bytes, 4)};
    return c->side[side]->ops->merge_score(c->side[side], &args);
}

/* A value and how far off a float computation of it may be. */
typedef struct off {
    double value, error;
} off;

/* One KV head of one layer of one merge. */
typedef struct score_row {
    uint32_t merge, layer, head, level;
    const float *p;
} score_row;

/* A unit, channels in the cache's order: keys with the rotation undone, which is three roundings. */
static void unit(const score_case *s, const score_row *row, uint32_t source, off *x)
{
    const fx_cache *cache = &s->cache;
    const uint32_t d = cache->spec.head_dim;
    const merge_pair *pair = fx_merge(cache, row->merge);
    const uint32_t slot = source ? pair->b : pair->a;
    const float *rot = fx_merge_rot(cache, row->merge, source);
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t first, second;
        fx_pair(cache->spec.rope, d, i, &first, &second);
        const double k = fx_get(cache, cache->block, row->layer, 0, row->head, slot, first);
        const double q = fx_get(cache, cache->block, row->layer, 0, row->head, slot, second);
        const double cosine = rot[2 * i], sine = rot[2 * i + 1];
        x[first] = (off){k * cosine + q * sine, 4 * CK_U * (fabs(k * cosine) + fabs(q * sine)) + FLT_MIN};
        x[second] = (off){q * cosine - k * sine, 4 * CK_U * (fabs(q * cosine) + fabs(k * sine)) + FLT_MIN};
    }
    for (uint32_t c = 0; c < d; c++)
        x[d + c] = (off){fx_get(cache, cache->block, row->layer, 1, row->head, slot, c), 0};
}

/* h and s of a unit. Sums of n terms are at least 16 at a time. */
static off network(const score_case *s, const score_row *row, const off *x, off *h)
{
    const uint32_t d = s->shape.head_dim, hidden = s->shape.hidden;
    const float *p = row->p;
    off z[2 * HEAD_MAX], sum = {0};
    double squares = 0, errors = 0, terms = 0;
    for (uint32_t c = 0; c < 2 * d; c++) {
        const double mean = p[s->at.mean + c], scale = p[s->at.scale + c];
        z[c].value = (x[c].value - mean) * scale;
        z[c].error = scale * (x[c].error + 2 * CK_U * (fabs(x[c].value) + fabs(mean)));
        squares += c < d ? z[c].value * z[c].value : 0;
        errors += c < d ? z[c].error * z[c].error : 0;
    }
    for (uint32_t j = 0; j < hidden; j++) {
        const double bias = p[s->at.b1 + row->level * hidden + j], w2 = p[s->at.w2 + j];
        off pre = {bias, 0};
        double absolute = fabs(bias);
        for (uint32_t c = 0; c < 2 * d; c++) {
            const double w = p[s->at.w1 + j * 2 * d + c];
            pre.value += w * z[c].value;
            pre.error += fabs(w) * z[c].error;
            absolute += fabs(w * z[c].value);
        }
        pre.error += (d / 8 + 32) * CK_U * absolute;
        h[j].value = pre.value > 0 ? pre.value : expm1(pre.value);
        h[j].error = pre.error + (pre.value < pre.error ? 8 * CK_U : 0); /* exp is good for 4 units in the last place */
        sum.value += w2 * h[j].value;
        sum.error += fabs(w2) * h[j].error;
        terms += fabs(w2 * h[j].value);
    }
    const double norm = sqrt(squares / d), deviation = p[s->at.deviation];
    sum.error += (hidden + 16) * CK_U * (terms + fabs(deviation * norm));
    sum.error += fabs(deviation) * (sqrt(errors / d) + (d / 16 + 24) * CK_U * norm);
    sum.value += deviation * norm;
    return sum;
}

/* 1 / (1 + exp(-sharp gap)): its slope is at most 1/4, and exp of minus the distance from zero. */
static off sigmoid(double sharp, off gap)
{
    const double x = sharp * gap.value, error = fabs(sharp) * gap.error + 2 * CK_U * fabs(x);
    const double m = 1 / (1 + exp(-x)), slope = fmin(0.25, exp(fmin(0, error - fabs(x))));
    return (off){m, error * slope + 8 * CK_U * m + FLT_MIN};
}

/* A row's result before its key is turned; `terms`: absolute ones. */
static void merged(const score_case *s, const score_row *row, off *y, double *terms)
{
    const uint32_t d = s->shape.head_dim, hidden = s->shape.hidden;
    const float *p = row->p;
    off a[2 * HEAD_MAX], b[2 * HEAD_MAX], ha[HIDDEN_MAX], hb[HIDDEN_MAX];
    unit(s, row, 0, a);
    unit(s, row, 1, b);
    const off sa = network(s, row, a, ha), sb = network(s, row, b, hb);
    const double prior = p[s->at.prior + row->level];
    const off gap = {sa.value - sb.value + prior,
                     sa.error + sb.error + 4 * CK_U * (fabs(sa.value) + fabs(sb.value) + fabs(prior))};
    for (uint32_t c = 0; c < 2 * d; c++) {
        const off m = sigmoid(p[c < d ? s->at.sharp_k : s->at.sharp_v], gap);
        const double va = m.value * a[c].value, vb = (1 - m.value) * b[c].value, scale = p[s->at.scale + c];
        off e = {p[s->at.r + row->level * 2 * d + c], 0};
        double absolute = fabs(e.value);
        for (uint32_t j = 0; j < hidden; j++) {
            const double u = p[s->at.u + j * 2 * d + c];
            e.value += u * (ha[j].value + hb[j].value);
            e.error += fabs(u) * (ha[j].error + hb[j].error);
            absolute += fabs(u) * (fabs(ha[j].value) + fabs(hb[j].value));
        }
        e.error += (hidden + 16) * CK_U * absolute;
        terms[c] = fabs(va) + fabs(vb) + fabs(e.value) / scale;
        y[c].value = va + vb + e.value / scale;
        y[c].error = fabs(a[c].value - b[c].value) * m.error + m.value * a[c].error + (1 - m.value) * b[c].error +
                     e.error / scale + 6 * CK_U * terms[c];
    }
}

static void bound_row(ck *c, const score_case *s, const score_row *row)
{
    const uint32_t d = s->shape.head_dim, out = fx_merge(&s->cache, row->merge)->out;
    const float *rot = fx_merge_rot(&s->cache, row->merge, 2);
    const kv_type type = s->cache.spec.type;
    off y[2 * HEAD_MAX];
    double terms[2 * HEAD_MAX];
    merged(s, row, y, terms);
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t channel[2];
        fx_pair(s->cache.spec.rope, d, i, channel, channel + 1);
        for (int k = 0; k < 2; k++) {
            const double cosine = fabs(rot[2 * i]), sine = fabs(rot[2 * i + 1]);
            const double value = terms[channel[k]] * cosine + terms[channel[!k]] * sine;
            const double error = y[channel[k]].error * cosine + y[channel[!k]].error * sine + 4 * CK_U * value;
            ck_bound_unit(c, &s->cache, row->layer, 0, row->head, out, channel[k], ck_stored(type, value, error));
        }
    }
    for (uint32_t i = 0; i < d; i++)
        ck_bound_unit(c, &s->cache, row->layer, 1, row->head, out, i, ck_stored(type, terms[d + i], y[d + i].error));
}

static void bounds(ck *c, const void *what)
{
    const score_case *s = what;
    const fx_spec *spec = &s->cache.spec;
    for (uint32_t m = 0; m < spec->n_merges; m++)
        for (uint32_t l = s->layer; l < s->layer + s->layers; l++)
            for (uint32_t h = 0; h < spec->kv_heads; h++) {
                const uint32_t level = fx_merge(&s->cache, m)->level;
                bound_row(c, s,
                          &(score_row){m, l, h, level < s->shape.levels ? level : s->shape.levels - 1,
                                       s->params + (l * spec->kv_heads + h) * s->at.row});
            }
}

/* `layer`: that one alone; all where there is none of that number. */
static void one(ck *c, const fx_spec *spec, uint32_t hidden, uint32_t levels, fx_input fill, uint32_t layer)
{
    const bool all = layer >= spec->layers;
    score_case s = {
        .shape = {spec->head_dim, hidden, levels}, .layer = all ? 0 : layer, .layers = all ? spec->layers : 1};
    char of[16] = "";
    if (!all)
        snprintf(of, sizeof of, "%uof", layer);
    if (!ck_case(c, "merge_score/l%s%u_kv%u_d%u_h%u_g%u_m%u_%s_%s_%s", of, spec->layers, spec->kv_heads, spec->head_dim,
                 hidden, levels, spec->n_merges, spec->type == KV_F16 ? "f16" : "f32",
                 spec->rope == ROPE_HALF ? "half" : "interleaved", fx_input_name(fill)))
        return;
    const double size = fill == FX_LARGE ? 100 : fill != FX_TINY ? 1 : spec->type == KV_F16 ? 1e-6 : 1e-20;
    const size_t rows = (size_t)spec->layers * spec->kv_heads;
    fx_cache_new(&s.cache, spec, &c->rng);
    fx_cache_fill_merges(&s.cache, fill, &c->rng);
    s.at = score_layout_of(s.shape);
    s.params = fx_score(s.shape, rows, size, &c->rng);
    s.bytes = rows * s.at.row * sizeof *s.params;
    c->traffic = s.bytes / spec->layers * s.layers + (size_t)spec->n_merges * s.layers * spec->kv_heads * 3 * 2 *
                                                         spec->head_dim * (spec->type == KV_F16 ? 2 : 4);
    ck_run(c, run, bounds, &s);
    fx_cache_free(&s.cache);
    free(s.params);
}

void check_merge_score(ck *c)
{
    static const uint32_t dims[] = {8, 16, 18, 32, 64, 80, 128, 256}, hidden[] = {16, 32, 64, 128};
    for (uint32_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (uint32_t form = 0; form < 4; form++)
            one(c,
                &(fx_spec){2, 3, 9, dims[i], form % 2 ? KV_F32 : KV_F16, form / 2 ? ROPE_HALF : ROPE_INTERLEAVED,
                           .n_merges = 1 + i},
                hidden[(i + form) % 4], 1 + i, FX_NORMAL, 2);
    for (uint32_t layer = 0; layer < 3; layer++)
        one(c, &(fx_spec){3, 2, 4, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 5}, 32, 4, FX_NORMAL, layer);
    one(c, &(fx_spec){30, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 1}, 32, 9, FX_NORMAL, 30); /* SmolLM2-135M */
    one(c, &(fx_spec){1, 1, 1, 64, KV_F16, ROPE_HALF, .n_merges = 65}, 32, 9, FX_NORMAL, 1);
    for (int fill = 1; fill < FX_INPUTS; fill++)
        one(c, &(fx_spec){2, 2, 2, 64, fill % 2 ? KV_F16 : KV_F32, ROPE_INTERLEAVED, .n_merges = 4}, 32, 3,
            (fx_input)fill, 2);
}
