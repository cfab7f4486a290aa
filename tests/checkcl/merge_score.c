/* cl_merge_score: all heads of several merges of several levels, in all layers or in one, results in the slot of a, of
 * b, and in a third. */
#include "score_bounds.h"

#include <stdio.h>
#include <string.h>

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

/* A row's result before its key is turned; `terms`: absolute ones. */
static void merged(const score_case *s, const score_row *row, off *y, double *terms)
{
    const uint32_t d = s->shape.head_dim, hidden = s->shape.hidden;
    const float *p = row->p;
    score_off a, b;
    score_off_run(s, row, 0, &a);
    score_off_run(s, row, 1, &b);
    const off gap = score_off_gap(s, row, &a, &b);
    for (uint32_t c = 0; c < 2 * d; c++) {
        const off m = score_off_sigmoid(p[c < d ? s->at.sharp_k : s->at.sharp_v], gap);
        const double va = m.value * a.x[c].value, vb = (1 - m.value) * b.x[c].value;
        off_terms sum = {0};
        off_term(&sum, off_of(p[s->at.r + row->level * 2 * d + c]));
        for (uint32_t j = 0; j < hidden; j++) /* h_a + h_b is one rounding; its parts' absolute values count */
            for (int k = 0; k < 2; k++)
                off_term(&sum, off_mul(off_of(p[s->at.u + j * 2 * d + c]), k ? b.h[j] : a.h[j]));
        const off e = off_div(off_sum(&sum, hidden + 16), off_of(p[s->at.scale + c]));
        terms[c] = fabs(va) + fabs(vb) + fabs(e.value);
        y[c].value = va + vb + e.value;
        y[c].error = fabs(a.x[c].value - b.x[c].value) * m.error + m.value * a.x[c].error +
                     (1 - m.value) * b.x[c].error + e.error + 6 * CK_U * terms[c];
    }
}

static void bound_row(ck *c, const score_case *s, const score_row *row)
{
    const uint32_t d = s->shape.head_dim, out = fx_merge(&s->cache, row->merge)->out;
    const float *rot = fx_merge_rot(&s->cache, row->merge, 2);
    const kv_type type = s->cache.spec.type;
    off y[2 * SCORE_HEAD_MAX];
    double terms[2 * SCORE_HEAD_MAX];
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
                const score_row row = score_row_at(s, m, l, h);
                bound_row(c, s, &row);
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
    fx_cache_new(&s.cache, spec, &c->rng);
    fx_cache_fill_merges(&s.cache, fill, &c->rng);
    score_case_params(&s, fill, &c->rng);
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
        for (uint32_t form = i % 2; form < 4 - i % 2; form += 3 - 2 * (i % 2)) /* both ropes, types */
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
