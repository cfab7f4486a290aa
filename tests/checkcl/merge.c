/* cl_merge_gather and cl_merge_apply: all heads of several merges, in all layers or in one, results in the slot of a,
 * of b, and in a third. */
#include "harness.h"

#include <stdio.h>
#include <string.h>

typedef struct merge_case {
    fx_cache cache;
    merge_mode mode;
    float weight;
    uint32_t layer, layers; /* of the cache's */
    float *head, *x;
    size_t rows, head_bytes, x_bytes;
} merge_case;

static dcm_status run_gather(ck *c, int side, const void *what)
{
    const merge_case *m = what;
    kv_pool pool;
    step step;
    fx_upload(&m->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const merge_gather_args args = {.pool = &pool,
                                    .step = &step,
                                    .layer = m->layer,
                                    .layers = m->layers,
                                    .rope = m->cache.spec.rope,
                                    .x = ck_buffer(c, side, "x", m->x, m->x_bytes, 4)};
    return c->side[side]->ops->merge_gather(c->side[side], &args);
}

static dcm_status run_apply(ck *c, int side, const void *what)
{
    const merge_case *m = what;
    kv_pool pool;
    step step;
    fx_upload(&m->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const bool head = m->mode == MERGE_GATE || m->mode == MERGE_DIRECT;
    const merge_apply_args args = {.pool = &pool,
                                   .step = &step,
                                   .layer = m->layer,
                                   .layers = m->layers,
                                   .rope = m->cache.spec.rope,
                                   .mode = m->mode,
                                   .weight = m->weight,
                                   .head = head ? ck_buffer(c, side, "head", m->head, m->head_bytes, 4) : NULL};
    return c->side[side]->ops->merge_apply(c->side[side], &args);
}

/* One row: which merge, layer, keys or values, head. */
typedef struct merge_row {
    size_t index;
    uint32_t merge, layer, head;
    int w;
} merge_row;

static merge_row row_at(const merge_case *m, size_t index)
{
    const fx_spec *spec = &m->cache.spec;
    return (merge_row){index, (uint32_t)(index / spec->kv_heads / 2 / m->layers),
                       m->layer + (uint32_t)(index / spec->kv_heads / 2 % m->layers),
                       (uint32_t)(index % spec->kv_heads), (int)(index / spec->kv_heads % 2)};
}

/* Sums of absolute terms of pair i of a source (0: a, 1: b) with its rotation undone. */
static void source_terms(const merge_case *m, const merge_row *row, uint32_t source, uint32_t i,
                         const uint32_t *channel, double *terms)
{
    const merge_pair *pair = fx_merge(&m->cache, row->merge);
    const float *rot = fx_merge_rot(&m->cache, row->merge, source) + 2 * i;
    double x[2];
    for (int k = 0; k < 2; k++)
        x[k] = fabs(
            fx_get(&m->cache, m->cache.block, row->layer, row->w, row->head, source ? pair->b : pair->a, channel[k]));
    const double c = row->w == 0 ? fabs(rot[0]) : 1, s = row->w == 0 ? fabs(rot[1]) : 0;
    terms[0] = x[0] * c + x[1] * s;
    terms[1] = x[0] * s + x[1] * c;
}

/* Keys are turned back: three roundings. Values are copied. */
static void gather_bounds(ck *c, const void *what)
{
    const merge_case *m = what;
    const fx_spec *spec = &m->cache.spec;
    const uint32_t d = spec->head_dim;
    double *bound = ck_bound(c, "x");
    for (size_t r = 0; r < m->rows; r++) {
        const merge_row row = row_at(m, r);
        for (uint32_t source = 0; row.w == 0 && source < 2; source++)
            for (uint32_t i = 0; i < d / 2; i++) {
                uint32_t channel[2];
                double terms[2];
                fx_pair(spec->rope, d, i, channel, channel + 1);
                source_terms(m, &row, source, i, channel, terms);
                for (uint32_t k = 0; k < 2; k++)
                    bound[(r * 2 + source) * d + i + k * d / 2] = 4 * CK_U * terms[k] + FLT_MIN;
            }
    }
    /* Values: bit for bit against the reference, which converts them exactly. */
}

/* Absolute terms and errors of pair i of a row before it is turned to its new anchor. */
static void mixed_terms(const merge_case *m, const merge_row *row, uint32_t i, const uint32_t *channel, double *terms,
                        double *errors)
{
    const uint32_t d = m->cache.spec.head_dim;
    double a[2], b[2];
    source_terms(m, row, 0, i, channel, a);
    source_terms(m, row, 1, i, channel, b);
    for (uint32_t k = 0; k < 2; k++) {
        const size_t place = row->w == 0 ? i + k * d / 2 : channel[k];
        const double logit = m->mode == MERGE_GATE ? m->head[row->index] : 0;
        const double w = m->mode == MERGE_GATE ? 1 / (1 + exp(-logit)) : m->weight;
        terms[k] = m->mode == MERGE_DIRECT ? fabs(m->head[row->index * d + place]) : w * a[k] + (1 - w) * b[k];
        errors[k] = m->mode == MERGE_DIRECT ? 0 : 8 * CK_U * terms[k];
        /* The gate: exp is good for units in the last place of its argument and result; 1 - w loses what w lost. */
        if (m->mode == MERGE_GATE)
            errors[k] += (16 + 2 * fabs(logit)) * CK_U * w * (a[k] + b[k]) + FLT_MIN * (a[k] + b[k]);
    }
}

/* Copies are bit for bit. */
static void apply_bounds(ck *c, const void *what)
{
    const merge_case *m = what;
    if (m->mode == MERGE_COPY)
        return;
    const fx_spec *spec = &m->cache.spec;
    const uint32_t d = spec->head_dim;
    for (size_t r = 0; r < m->rows; r++) {
        const merge_row row = row_at(m, r);
        const float *rot = fx_merge_rot(&m->cache, row.merge, 2);
        for (uint32_t i = 0; i < d / 2; i++) {
            uint32_t channel[2] = {2 * i, 2 * i + 1};
            double terms[2], errors[2];
            if (row.w == 0)
                fx_pair(spec->rope, d, i, channel, channel + 1);
            mixed_terms(m, &row, i, channel, terms, errors);
            const double cosine = row.w == 0 ? fabs(rot[2 * i]) : 1, sine = row.w == 0 ? fabs(rot[2 * i + 1]) : 0;
            for (int k = 0; k < 2; k++) {
                const double value = terms[k] * cosine + terms[!k] * sine;
                const double error = errors[k] * cosine + errors[!k] * sine + (row.w == 0 ? 4 * CK_U * value : 0);
                ck_bound_unit(c, &m->cache, row.layer, row.w, row.head, fx_merge(&m->cache, row.merge)->out, channel[k],
                              ck_stored(spec->type, value, error));
            }
        }
    }
}

/* `layer`: that one alone; all where there is none of that number. */
static void one(ck *c, const fx_spec *spec, const char *what, merge_mode mode, float weight, fx_input fill,
                uint32_t layer)
{
    const bool all = layer >= spec->layers;
    merge_case m = {.mode = mode, .weight = weight, .layer = all ? 0 : layer, .layers = all ? spec->layers : 1};
    const bool gather = strcmp(what, "gather") == 0;
    char of[16] = "";
    if (!all)
        snprintf(of, sizeof of, "%uof", layer);
    if (!ck_case(c, "merge/%s_l%s%u_kv%u_d%u_m%u_%s_%s_%s", what, of, spec->layers, spec->kv_heads, spec->head_dim,
                 spec->n_merges, spec->type == KV_F16 ? "f16" : "f32", spec->rope == ROPE_HALF ? "half" : "interleaved",
                 fx_input_name(fill)))
        return;
    fx_cache_new(&m.cache, spec, &c->rng);
    fx_cache_fill_merges(&m.cache, fill, &c->rng);
    if (mode == MERGE_COPY) /* a zero keeps its sign */
        fx_put(&m.cache, 0, 0, 0, fx_merge(&m.cache, 0)->a, 1, -0.0);
    m.rows = (size_t)spec->n_merges * m.layers * 2 * spec->kv_heads;
    m.x_bytes = m.rows * 2 * spec->head_dim * 4;
    m.x = fx_alloc(m.x_bytes);
    fx_pattern(m.x, m.x_bytes);
    m.head_bytes = m.rows * (mode == MERGE_DIRECT ? spec->head_dim : 1) * 4;
    m.head = fx_alloc(m.head_bytes);
    fx_fill(m.head, 1, m.head_bytes / 4, fill == FX_LARGE ? FX_NORMAL : fill, &c->rng);
    m.head[m.rows / 2] = -90; /* a gate as good as closed */
    c->traffic = m.rows * spec->head_dim *
                 (gather ? 8 + 2 * (spec->type == KV_F16 ? 2 : 4) : 3 * (spec->type == KV_F16 ? 2 : 4));
    ck_run(c, gather ? run_gather : run_apply, gather ? gather_bounds : apply_bounds, &m);
    fx_cache_free(&m.cache);
    free(m.x);
    free(m.head);
}

static void each_of(ck *c, const fx_spec *spec, fx_input fill, uint32_t layer)
{
    one(c, spec, "gather", MERGE_CONSTANT, 0, fill, layer);
    one(c, spec, "newer", MERGE_CONSTANT, 0, fill, layer);
    one(c, spec, "mean", MERGE_CONSTANT, 0.5f, fill, layer);
    one(c, spec, "older", MERGE_CONSTANT, 1, fill, layer);
    one(c, spec, "gate", MERGE_GATE, 0, fill, layer);
    one(c, spec, "direct", MERGE_DIRECT, 0, fill, layer);
    one(c, spec, "copy", MERGE_COPY, 0, fill, layer);
}

static void each(ck *c, const fx_spec *spec, fx_input fill) { each_of(c, spec, fill, spec->layers); }

void check_merge(ck *c)
{
    static const uint32_t dims[] = {8, 16, 48, 64, 96, 128, 256};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int form = 0; form < 2; form++)
            each(c,
                 &(fx_spec){3, 3, 9, dims[i], form ? KV_F32 : KV_F16, form ? ROPE_HALF : ROPE_INTERLEAVED,
                            .n_merges = 1 + (uint32_t)i},
                 FX_NORMAL);
    for (uint32_t layer = 0; layer < 3; layer++)
        each_of(c, &(fx_spec){3, 2, 4, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 5}, FX_NORMAL, layer);
    each(c, &(fx_spec){1, 1, 1, 64, KV_F32, ROPE_INTERLEAVED, .n_merges = 1}, FX_NORMAL);
    each(c, &(fx_spec){2, 1, 1, 64, KV_F16, ROPE_HALF, .n_merges = 65}, FX_NORMAL);
    for (int fill = 1; fill < FX_INPUTS; fill++)
        each(c, &(fx_spec){2, 2, 2, 64, fill % 2 ? KV_F16 : KV_F32, ROPE_INTERLEAVED, .n_merges = 4}, (fx_input)fill);
}
