/* cl_attention: views of one to fourteen ranges, sizes about the tiles and splits, all head sizes and groups of heads.
 */
#include "harness.h"

#include "base/half.h"

#include <stdio.h>
#include <string.h>

typedef struct attention_case {
    fx_cache cache;
    uint32_t layer;
    bool many, store;
    float *qkv, *out;
    size_t qkv_bytes, out_bytes;
} attention_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const attention_case *a = what;
    kv_pool pool;
    step step;
    fx_upload(&a->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const attention_args args = {.pool = &pool,
                                 .step = &step,
                                 .layer = a->layer,
                                 .rope = a->cache.spec.rope,
                                 .qkv = ck_buffer(c, side, "qkv", a->qkv, a->qkv_bytes, 4),
                                 .heads = a->cache.spec.heads,
                                 .out = ck_buffer(c, side, "out", a->out, a->out_bytes, 4),
                                 .many = a->many,
                                 .store = a->store};
    return c->side[side]->ops->attention(c->side[side], &args);
}

/* One unit as a query head sees it. */
typedef struct unit_score {
    uint32_t slot;
    double score, error; /* of the score, before exp */
} unit_score;

/* Scores of all units of a view; returns the largest. */
static double score_units(const attention_case *a, uint32_t t, const float *q, uint32_t kv, unit_score *out)
{
    const fx_spec *spec = &a->cache.spec;
    const view *v = fx_view(&a->cache, t);
    const uint32_t d = spec->head_dim;
    double most = -INFINITY;
    for (uint32_t r = 0; r < v->n_ranges; r++) {
        const float *rot = fx_query_rot(&a->cache, t, r);
        double turned[256], absolute[256];
        for (uint32_t i = 0; i < d / 2; i++) {
            uint32_t x, y;
            fx_pair(spec->rope, d, i, &x, &y);
            const double cosine = rot[2 * i], sine = rot[2 * i + 1];
            turned[x] = q[x] * cosine - q[y] * sine;
            turned[y] = q[x] * sine + q[y] * cosine;
            absolute[x] = fabs(q[x] * cosine) + fabs(q[y] * sine);
            absolute[y] = fabs(q[x] * sine) + fabs(q[y] * cosine);
        }
        const double bias = fx_bias(&a->cache, v->range + r, a->layer, kv);
        for (uint32_t j = 0; j < v->range[r].count; j++, out++) {
            double score = 0, terms = 0;
            out->slot = fx_slot(&a->cache, v->range + r, j);
            for (uint32_t c = 0; c < d; c++) {
                const double key = fx_get(&a->cache, a->cache.block, a->layer, 0, kv, out->slot, c);
                score += turned[c] * key;
                terms += absolute[c] * fabs(key);
            }
            out->score = score / sqrt(d) + bias;
            out->error = CK_U * ((d + 8) * terms / sqrt(d) + 2 * fabs(bias));
            most = fmax(most, out->score);
        }
    }
    return most;
}

/*
 * A weight's relative error comes from its score's, from the difference to the maximum and from exp; the result moves
 * by the weighted distances of the values from it. To this comes the rounding of two sums over the units.
 */
static void bound_head(const attention_case *a, uint32_t t, uint32_t h, unit_score *units, double *bound)
{
    const fx_spec *spec = &a->cache.spec;
    const uint32_t d = spec->head_dim, kv = h / (spec->heads / spec->kv_heads), n = fx_view(&a->cache, t)->units;
    const float *q = a->qkv + (size_t)t * (spec->heads + 2 * spec->kv_heads) * d + h * d;
    const double most = score_units(a, t, q, kv, units);
    double total = 0, moved = 0;
    for (uint32_t j = 0; j < n; j++)
        total += exp(units[j].score - most);
    for (uint32_t j = 0; j < n; j++) {
        const double distance = most - units[j].score;
        units[j].error = expm1(units[j].error + CK_U * (16 + 2 * distance + fabs(most)));
        units[j].score = exp(-distance) / total;
        moved += units[j].score * units[j].error;
    }
    for (uint32_t c = 0; c < d; c++) {
        double out = 0, terms = 0, lost = 0, largest = 0;
        for (uint32_t j = 0; j < n; j++)
            out += units[j].score * fx_get(&a->cache, a->cache.block, a->layer, 1, kv, units[j].slot, c);
        for (uint32_t j = 0; j < n; j++) {
            const double value = fx_get(&a->cache, a->cache.block, a->layer, 1, kv, units[j].slot, c);
            terms += units[j].score * fabs(value);
            lost += units[j].score * units[j].error * fabs(value - out);
            largest = fmax(largest, fabs(value));
        }
        bound[c] =
            (lost + (n + 16) * CK_U * (terms + fabs(out))) / (1 - fmin(moved, 0.5)) + (n + 1) * FLT_MIN * (1 + largest);
    }
}

/*
 * A new unit, the last of the view, whose channels are halves and whose anchor turns by nothing: what is stored is
 * exact. The cache gets the unit only behind the op (see bounds).
 */
static void make_new_unit(attention_case *a, uint64_t *rng)
{
    const fx_spec *spec = &a->cache.spec;
    const view *v = fx_view(&a->cache, 0);
    const view_range *last = v->range + v->n_ranges - 1;
    float *rot = (float *)a->cache.words + a->cache.step.key_rot,
          *unit = a->qkv + (size_t)spec->heads * spec->head_dim;
    const size_t items = 2 * (size_t)spec->kv_heads * spec->head_dim;
    a->cache.words[a->cache.step.slots] = fx_slot(&a->cache, last, last->count - 1);
    for (uint32_t i = 0; i < spec->head_dim; i++)
        rot[i] = i % 2 ? 0.0f : 1.0f;
    fx_fill(unit, 1, items, FX_NORMAL, rng);
    for (size_t i = 0; i < items; i++)
        unit[i] = half_to_float(float_to_half(unit[i]));
}

static void put_new_unit(const attention_case *a)
{
    const fx_spec *spec = &a->cache.spec;
    const float *unit = a->qkv + (size_t)spec->heads * spec->head_dim;
    fx_cache cache = a->cache; /* the same blocks */
    for (int w = 0; w < 2; w++)
        for (uint32_t h = 0; h < spec->kv_heads; h++)
            for (uint32_t i = 0; i < spec->head_dim; i++)
                fx_put(&cache, a->layer, w, h, cache.words[cache.step.slots], i, *unit++);
}

static void bounds(ck *c, const void *what)
{
    const attention_case *a = what;
    const fx_spec *spec = &a->cache.spec;
    if (a->store)
        put_new_unit(a);
    double *bound = ck_bound(c, "out");
    unit_score *units = fx_alloc(a->cache.step.max_units * sizeof *units);
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t h = 0; h < spec->heads; h++)
            bound_head(a, t, h, units, bound + ((size_t)t * spec->heads + h) * spec->head_dim);
    free(units);
}

/* The case that ck_case has named. */
static void run_case(ck *c, const fx_spec *spec, fx_input fill, bool many, bool store)
{
    attention_case a = {.layer = spec->layers - 1, .many = many, .store = store};
    const size_t row = (size_t)(spec->heads + 2 * spec->kv_heads) * spec->head_dim,
                 q_items = (size_t)spec->heads * spec->head_dim;
    fx_cache_new(&a.cache, spec, &c->rng);
    fx_cache_fill_views(&a.cache, a.layer, fill, &c->rng);
    a.qkv_bytes = spec->n * row * 4;
    a.out_bytes = spec->n * q_items * 4;
    a.qkv = fx_alloc(a.qkv_bytes);
    a.out = fx_alloc(a.out_bytes);
    fx_pattern(a.qkv, a.qkv_bytes);
    fx_pattern(a.out, a.out_bytes);
    for (uint32_t t = 0; t < spec->n; t++) {
        fx_fill(a.qkv + t * row, 1, q_items, fill == FX_EQUAL || fill == FX_TINY ? fill : FX_NORMAL, &c->rng);
        c->traffic +=
            (size_t)fx_view(&a.cache, t)->units * 2 * spec->kv_heads * spec->head_dim * (spec->type == KV_F16 ? 2 : 4);
    }
    if (store)
        make_new_unit(&a, &c->rng);
    ck_run(c, run, bounds, &a);
    fx_cache_free(&a.cache);
    free(a.qkv);
    free(a.out);
}

/* "h9_kv3_d64_..._f16_half_bias_normal" behind `what`. */
static bool name_case(ck *c, const char *what, const fx_spec *spec, fx_input fill)
{
    return ck_case(c, "attention/%s_h%u_kv%u_d%u_n%u_%s_%s%s_%s", what, spec->heads, spec->kv_heads, spec->head_dim,
                   spec->n, spec->type == KV_F16 ? "f16" : "f32", spec->rope == ROPE_HALF ? "half" : "interleaved",
                   spec->bias != 0 ? "_bias" : "", fx_input_name(fill));
}

/* Ranges of random ends, for the kernels of single queries and those of many. */
static void one(ck *c, const fx_spec *spec, fx_input fill)
{
    uint32_t units = 0;
    char what[64];
    for (uint32_t r = 0; r < spec->n_ranges; r++)
        units += spec->count[r];
    for (int many = 0; many < 2; many++) {
        snprintf(what, sizeof what, "%su%u_r%u", many ? "many_" : "", units, spec->n_ranges);
        if (name_case(c, what, spec, fill))
            run_case(c, spec, fill, many, false);
    }
}

/* One query, whose own unit is stored first. */
static void with_store(ck *c, const fx_spec *spec)
{
    char what[64];
    snprintf(what, sizeof what, "store_u%u_r%u", spec->count[0] + spec->count[1], spec->n_ranges);
    if (name_case(c, what, spec, FX_NORMAL))
        run_case(c, spec, FX_NORMAL, false, true);
}

/* A step of a prompt: merges or evictions between its tokens. */
static void step_of(ck *c, fx_spec spec, fx_prompt prompt, fx_input fill)
{
    char what[64];
    snprintf(what, sizeof what, "many_L%u_W%u_S%u_after%u", prompt.group, prompt.window, prompt.sinks, prompt.before);
    if (!name_case(c, what, &spec, fill))
        return;
    fx_seen *seen;
    spec.n_ranges = fx_prompt_seen(&prompt, spec.n, &seen);
    spec.seen = seen;
    run_case(c, &spec, fill, true, false);
    free(seen);
}

static void check_steps(ck *c)
{
    static const uint32_t sizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const uint32_t dims[] = {8, 16, 24, 32, 40, 64, 96, 128, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const fx_spec spec = {2, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = sizes[i]};
        step_of(c, spec, (fx_prompt){.before = 60 + 3 * sizes[i], .group = 16, .sinks = 4}, FX_NORMAL);
        step_of(c, spec, (fx_prompt){.before = 7 * sizes[i], .sinks = 4, .window = 60}, FX_NORMAL);
        step_of(c, spec, (fx_prompt){.before = 2 * sizes[i]}, FX_NORMAL);
    }
    /* From the first token on, with the levels filling one by one inside a step. */
    for (uint32_t group = 2; group <= 32; group *= 2)
        step_of(c, (fx_spec){1, 1, 2, 32, KV_F32, ROPE_HALF, .n = 70}, (fx_prompt){.group = group, .sinks = group / 2},
                FX_NORMAL);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        step_of(c, (fx_spec){1, 2, 2 * groups[i], 64, KV_F16, ROPE_HALF, .n = 19},
                (fx_prompt){.before = 200, .group = 16, .sinks = 4}, FX_NORMAL);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int form = 0; form < 2; form++)
            step_of(c,
                    (fx_spec){1, 1, 3, dims[i], form ? KV_F32 : KV_F16, form ? ROPE_HALF : ROPE_INTERLEAVED, .n = 18,
                              .bias = 0.4f},
                    (fx_prompt){.before = 300, .group = 32, .sinks = 4}, FX_NORMAL);
    for (int fill = 0; fill < FX_INPUTS; fill++)
        step_of(c, (fx_spec){1, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 20},
                (fx_prompt){.before = 150, .group = 32, .sinks = 4}, (fx_input)fill);
    step_of(c, (fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 33, .bias = -0.3f},
            (fx_prompt){.before = 40000, .group = 4096, .sinks = 4}, FX_NORMAL);
    step_of(c, (fx_spec){1, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 96},
            (fx_prompt){.before = 4000, .group = 256, .sinks = 4}, FX_NORMAL);
}

void check_attention(ck *c)
{
    static const uint32_t dims[] = {8, 16, 48, 64, 96, 128, 256};
    static const uint32_t units[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const fx_spec spec = {2, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 1, .count = {units[i]}};
        one(c, &spec, FX_NORMAL);
        with_store(c, &spec);
    }
    with_store(c, &(fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 4093}});
    for (int fill = 0; fill < FX_INPUTS; fill++) {
        one(c, &(fx_spec){2, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 2, .n_ranges = 3, .count = {4, 77, 50}},
            (fx_input)fill);
        one(c, &(fx_spec){2, 2, 2, 64, KV_F32, ROPE_HALF, .n = 2, .n_ranges = 2, .count = {33, 64}}, (fx_input)fill);
    }
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int form = 0; form < 2; form++)
            one(c,
                &(fx_spec){1, 2, 6, dims[i], form ? KV_F32 : KV_F16, form ? ROPE_HALF : ROPE_INTERLEAVED, .n = 2,
                           .n_ranges = 3, .count = {4, 61, 20}, .bias = 0.4f},
                FX_NORMAL);
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        one(c, &(fx_spec){1, 2, 2 * groups[i], 64, KV_F16, ROPE_HALF, .n = 1, .n_ranges = 2, .count = {17, 90}},
            FX_NORMAL);
    one(c,
        &(fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 3, .n_ranges = 14,
                   .count = {4, 1, 2, 1, 30, 1, 1, 64, 1, 3, 16, 1, 15, 128}, .bias = -0.3f},
        FX_NORMAL);
    one(c, &(fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 40, .n_ranges = 2, .count = {4, 100}}, FX_NORMAL);
    /* One split is 64 places up to 4096 units, 128 beyond. */
    one(c, &(fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 4092}}, FX_NORMAL);
    one(c, &(fx_spec){1, 1, 3, 64, KV_F16, ROPE_INTERLEAVED, .n = 2, .n_ranges = 2, .count = {4, 4093}}, FX_NORMAL);
    one(c, &(fx_spec){1, 1, 3, 64, KV_F32, ROPE_INTERLEAVED, .n = 1, .n_ranges = 3, .count = {4, 9000, 511}, .bias = 1},
        FX_OUTLIER);
    check_steps(c);
}
