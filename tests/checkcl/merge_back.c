/* cl_merge_apply_back and cl_merge_gather_back. */
#include "harness.h"

#include <string.h>

#include "ops/grad.h"

typedef struct back_case {
    fx_cache cache;
    bool gather;
    merge_mode mode;
    float weight;
    uint32_t layer, first;
    size_t rows, units;
    grad_unit *list;
    float *head, *dhead, *dx, *dunits;
    size_t head_bytes;
} back_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const back_case *m = what;
    const fx_spec *spec = &m->cache.spec;
    const size_t row = spec->head_dim * 4;
    kv_pool pool;
    step step;
    fx_upload(&m->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const grad_units units = {ck_buffer(c, side, "units", m->list, m->units * sizeof *m->list, 4), (uint32_t)m->units};
    buffer *dunits = ck_buffer(c, side, "dunits", m->dunits, m->units * 2 * spec->kv_heads * row, 4);
    const grad_ops *ops = c->side[side]->ops->grad;
    if (m->gather) {
        const merge_gather_back_args args = {.pool = &pool,
                                             .step = &step,
                                             .units = &units,
                                             .first = m->first,
                                             .rope = spec->rope,
                                             .dx = ck_buffer(c, side, "dx", m->dx, m->rows * 2 * row, 4),
                                             .dunits = dunits};
        return ops->merge_gather_back(c->side[side], &args);
    }
    const bool head = m->mode != MERGE_CONSTANT;
    const merge_apply_back_args args = {.pool = &pool,
                                        .step = &step,
                                        .units = &units,
                                        .first = m->first,
                                        .layer = m->layer,
                                        .rope = spec->rope,
                                        .mode = m->mode,
                                        .weight = m->weight,
                                        .head = head ? ck_buffer(c, side, "head", m->head, m->head_bytes, 4) : NULL,
                                        .dhead = head ? ck_buffer(c, side, "dhead", m->dhead, m->head_bytes, 4) : NULL,
                                        .dunits = dunits};
    return ops->merge_apply_back(c->side[side], &args);
}

/* First float of row r of a unit. */
static size_t row_of(const back_case *m, uint32_t unit, size_t r)
{
    const size_t parts = 2 * (size_t)m->cache.spec.kv_heads;
    return (unit * parts + r % parts) * m->cache.spec.head_dim;
}

/* Absolute values of channels of both sources without rotation, added: each turned back by three roundings. */
static double apart(const back_case *m, size_t r)
{
    const fx_spec *spec = &m->cache.spec;
    const size_t merge = r / 2 / spec->kv_heads;
    const uint32_t h = (uint32_t)(r % spec->kv_heads), parts = 2 * spec->kv_heads;
    const merge_pair *pair = fx_merge(&m->cache, (uint32_t)merge);
    const float *result = m->dunits + row_of(m, m->first + (uint32_t)(r / parts), r);
    const int w = (int)(r / spec->kv_heads % 2);
    double sum = 0;
    for (uint32_t i = 0; i < spec->head_dim / 2; i++) {
        uint32_t ch[2] = {2 * i, 2 * i + 1};
        if (w == 0)
            fx_pair(spec->rope, spec->head_dim, i, ch, ch + 1);
        for (int source = 0; source < 2; source++) {
            const uint32_t slot = source ? pair->b : pair->a;
            const double terms = fabs(fx_get(&m->cache, m->cache.block, m->layer, w, h, slot, ch[0])) +
                                 fabs(fx_get(&m->cache, m->cache.block, m->layer, w, h, slot, ch[1]));
            sum += terms * (fabs(result[ch[0]]) + fabs(result[ch[1]]));
        }
    }
    return sum;
}

/* Of before + share x value: sigmoids are good for 16 roundings. */
static double share_bound(double before, double share, double value)
{
    const double term = share * fabs(value);
    return 18 * CK_U * term + 2 * CK_U * (fabs(before) + term) + FLT_MIN * (1 + fabs(value));
}

/* Single sums and copies are bit for bit. */
static void bounds(ck *c, const void *what)
{
    const back_case *m = what;
    const uint32_t d = m->cache.spec.head_dim, parts = 2 * m->cache.spec.kv_heads;
    if (m->gather || m->mode == MERGE_DIRECT)
        return;
    double *dunits = ck_bound(c, "dunits"), *dhead = m->mode == MERGE_GATE ? ck_bound(c, "dhead") : NULL;
    for (size_t r = 0; r < m->rows; r++) {
        const uint32_t unit = m->first + (uint32_t)(r / parts);
        const size_t result = row_of(m, unit, r), a = row_of(m, m->list[unit].a, r), b = row_of(m, m->list[unit].b, r);
        const double logit = dhead ? m->head[r] : 0, open = dhead ? 1 / (1 + exp(-logit)) : m->weight,
                     shut = dhead ? 1 / (1 + exp(logit)) : 1 - open;
        for (uint32_t i = 0; i < d; i++) {
            dunits[a + i] = share_bound(m->dunits[a + i], open, m->dunits[result + i]);
            dunits[b + i] = share_bound(m->dunits[b + i], shut, m->dunits[result + i]);
        }
        if (dhead)
            dhead[r] = open * shut * apart(m, r) * (d + 48) * CK_U + FLT_MIN * (1 + apart(m, r));
    }
}

/* Sources are units of any order before the results. */
static void make_units(back_case *m)
{
    const uint32_t n = m->cache.spec.n_merges;
    m->first = 2 * n + 3;
    m->units = m->first + n + 1;
    m->list = fx_alloc(m->units * sizeof *m->list);
    memset(m->list, 0xff, m->units * sizeof *m->list);
    for (uint32_t i = 0; i < n; i++) {
        m->list[m->first + i].a = 2 * i + 1;
        m->list[m->first + i].b = 2 * (n - 1 - i);
    }
}

static void one(ck *c, const fx_spec *spec, const char *name, merge_mode mode, float weight, fx_input fill)
{
    back_case m = {.gather = !strcmp(name, "gather"), .mode = mode, .weight = weight, .layer = spec->layers - 1};
    const size_t row = spec->head_dim;
    if (!ck_case(c, "merge_back/%s_l%u_kv%u_d%u_m%u_%s_%s_%s", name, spec->layers, spec->kv_heads, spec->head_dim,
                 spec->n_merges, spec->type == KV_F16 ? "f16" : "f32",
                 spec->rope == ROPE_HALF ? "half" : "interleaved", fx_input_name(fill)))
        return;
    fx_cache_new(&m.cache, spec, &c->rng);
    fx_cache_fill_merges(&m.cache, fill, &c->rng);
    make_units(&m);
    m.rows = (size_t)spec->n_merges * 2 * spec->kv_heads;
    m.head_bytes = m.rows * (mode == MERGE_DIRECT ? row : 1) * 4;
    m.head = fx_alloc(m.head_bytes), m.dhead = fx_alloc(m.head_bytes), m.dx = fx_alloc(m.rows * 2 * row * 4);
    m.dunits = fx_alloc(m.units * 2 * spec->kv_heads * row * 4);
    fx_fill(m.head, 1, m.head_bytes / 4, FX_NORMAL, &c->rng);
    m.head[m.rows / 2] = -90; /* a gate as good as closed */
    fx_pattern(m.dhead, m.head_bytes);
    fx_fill(m.dx, m.rows, 2 * row, fill, &c->rng);
    fx_fill(m.dunits, m.units, 2 * spec->kv_heads * row, fill, &c->rng);
    c->traffic = m.rows * row * 4 * (m.gather ? 6 : 5);
    ck_run(c, run, bounds, &m);
    fx_cache_free(&m.cache);
    free(m.list), free(m.head), free(m.dhead), free(m.dx), free(m.dunits);
}

static void each(ck *c, const fx_spec *spec, fx_input fill)
{
    one(c, spec, "gather", MERGE_CONSTANT, 0, fill);
    one(c, spec, "newer", MERGE_CONSTANT, 0, fill);
    one(c, spec, "third", MERGE_CONSTANT, 1 / 3.0f, fill);
    one(c, spec, "gate", MERGE_GATE, 0, fill);
    one(c, spec, "direct", MERGE_DIRECT, 0, fill);
}

void check_merge_back(ck *c)
{
    static const uint32_t dims[] = {8, 16, 64, 96, 128};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int form = 0; form < 2; form++)
            each(c,
                 &(fx_spec){2, 3, 9, dims[i], form ? KV_F32 : KV_F16, form ? ROPE_HALF : ROPE_INTERLEAVED,
                            .n_merges = 1 + (uint32_t)i},
                 FX_NORMAL);
    each(c, &(fx_spec){2, 1, 1, 64, KV_F16, ROPE_HALF, .n_merges = 65}, FX_NORMAL);
    for (int fill = 1; fill < FX_INPUTS; fill++)
        each(c, &(fx_spec){2, 2, 2, 64, fill % 2 ? KV_F16 : KV_F32, ROPE_INTERLEAVED, .n_merges = 4}, (fx_input)fill);
}
