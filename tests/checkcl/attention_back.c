/*
 * cl_attention_back and cl_kv_store_back, one after the other: steps of prompts, all head sizes and groups of heads,
 * with and without the boundary term.
 */
#include "harness.h"

#include "ops/grad.h"

#include <stdio.h>
#include <string.h>

typedef struct back_case {
    fx_cache cache;
    uint32_t layer, units;
    float boundary;
    bool sinks;
    grad_unit *unit;
    float *qkv, *out, *dout, *pattern;
    size_t qkv_bytes, out_bytes, lse_bytes, dunits_bytes, dscores_bytes;
} back_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const back_case *a = what;
    const fx_spec *spec = &a->cache.spec;
    const grad_ops *grad = c->side[side]->ops->grad;
    kv_pool pool;
    step step;
    fx_upload(&a->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const grad_units units = {ck_buffer(c, side, "units", a->unit, a->units * sizeof *a->unit, 4), a->units};
    const attention_back_args args = {.pool = &pool,
                                      .step = &step,
                                      .units = &units,
                                      .layer = a->layer,
                                      .rope = spec->rope,
                                      .qkv = ck_buffer(c, side, "qkv", a->qkv, a->qkv_bytes, 4),
                                      .heads = spec->heads,
                                      .out = ck_buffer(c, side, "out", a->out, a->out_bytes, 4),
                                      .dout = ck_buffer(c, side, "dout", a->dout, a->out_bytes, 4),
                                      .boundary = a->boundary,
                                      .sinks = a->sinks,
                                      .lse = ck_buffer(c, side, "lse", a->pattern, a->lse_bytes, 4),
                                      .dqkv = ck_buffer(c, side, "dqkv", a->pattern, a->qkv_bytes, 4),
                                      .dunits = ck_buffer(c, side, "dunits", a->pattern, a->dunits_bytes, 4),
                                      .dscores = ck_buffer(c, side, "dscores", a->pattern, a->dscores_bytes, 4)};
    const kv_store_back_args store = {&step, spec->heads, spec->kv_heads, spec->head_dim, args.dunits, args.dqkv};
    const dcm_status status = grad->attention_back(c->side[side], &args);
    return status == DCM_OK ? grad->kv_store_back(c->side[side], &store) : status;
}

/* ---- Bounds ---- */

/* A unit as a query head sees it. */
typedef struct seen_unit {
    uint32_t unit, range;
    double score, error;       /* of the score, before exp */
    double p, p_error;         /* the error relative */
    double slope, slope_error; /* ds */
} seen_unit;

/* Of the gradient of a unit's channel: what inputs' errors make of it, its terms' absolute sum, the number of terms. */
typedef struct channel {
    double lost, terms;
    uint32_t count;
} channel;

/* A query head in a range's frame, and the same of absolute terms. */
typedef struct turned {
    double x[256], absolute[256];
} turned;

typedef struct bounding {
    const back_case *a;
    turned range[VIEW_RANGES];
    seen_unit *seen;
    channel *dunits, *dscores; /* as the ops'; keys turned as they are stored */
    double *dqkv, *lse;
} bounding;

static void turn_query(const back_case *a, const float *q, const float *rot, turned *to)
{
    const uint32_t d = a->cache.spec.head_dim;
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t x, y;
        fx_pair(a->cache.spec.rope, d, i, &x, &y);
        const double c = rot[2 * i], s = rot[2 * i + 1];
        to->x[x] = q[x] * c - q[y] * s;
        to->x[y] = q[x] * s + q[y] * c;
        to->absolute[x] = fabs(q[x] * c) + fabs(q[y] * s);
        to->absolute[y] = fabs(q[x] * s) + fabs(q[y] * c);
    }
}

static double get(const back_case *a, int w, uint32_t kv, uint32_t unit, uint32_t c)
{
    return fx_get(&a->cache, a->cache.block, a->layer, w, kv, a->unit[unit].slot, c);
}

static uint32_t unit_of(const back_case *a, uint32_t slot)
{
    uint32_t u = 0;
    while (u < a->units && a->unit[u].slot != slot)
        u++;
    return u;
}

/* Scores of what query t sees, and dout . v as slope. */
static void score_units(bounding *b, uint32_t t, const float *q, const float *dout, uint32_t kv)
{
    const back_case *a = b->a;
    const uint32_t d = a->cache.spec.head_dim;
    const view *v = fx_view(&a->cache, t);
    seen_unit *u = b->seen;
    for (uint32_t r = 0; r < v->n_ranges; r++) {
        const double bias = fx_bias(&a->cache, v->range + r, a->layer, kv);
        turn_query(a, q, fx_query_rot(&a->cache, t, r), &b->range[r]);
        for (uint32_t j = 0; j < v->range[r].count; j++, u++) {
            double score = 0, terms = 0, slope = 0, slope_terms = 0;
            *u = (seen_unit){.unit = unit_of(a, fx_slot(&a->cache, v->range + r, j)), .range = r};
            for (uint32_t c = 0; c < d; c++) {
                const double k = get(a, 0, kv, u->unit, c), x = get(a, 1, kv, u->unit, c);
                score += b->range[r].x[c] * k;
                terms += b->range[r].absolute[c] * fabs(k);
                slope += dout[c] * x;
                slope_terms += fabs(dout[c] * x);
            }
            u->score = score / sqrt(d) + bias;
            u->error = CK_U * ((d + 12) * terms / sqrt(d) + 2 * fabs(bias));
            u->slope = slope;
            u->slope_error = CK_U * (d + 4) * slope_terms;
        }
    }
}

/* From scores to weights: errors of the score, of the log of the sum, of exp, and of scaling down what was summed. */
static double weigh_units(bounding *b, uint32_t n, double *lse_error)
{
    double most = -INFINITY, total = 0, moved = 0;
    for (uint32_t j = 0; j < n; j++)
        most = fmax(most, b->seen[j].score);
    for (uint32_t j = 0; j < n; j++)
        total += exp(b->seen[j].score - most);
    const double lse = most + log(total);
    for (uint32_t j = 0; j < n; j++) {
        seen_unit *u = &b->seen[j];
        u->p = exp(u->score - lse);
        u->p_error = u->error + CK_U * (32 + 4 * fabs(u->score) + 2 * (most - u->score));
        moved += u->p * expm1(u->p_error);
    }
    *lse_error = moved + CK_U * (2 * n + 8 * VIEW_RANGES + 4 * fabs(lse));
    for (uint32_t j = 0; j < n; j++)
        b->seen[j].p_error = expm1(b->seen[j].p_error + *lse_error);
    return lse;
}

/* ds = p (dout . v - D), and the boundary term. */
static void slope_units(bounding *b, uint32_t n, double delta, double delta_error)
{
    const double boundary = b->a->boundary;
    for (uint32_t j = 0; j < n; j++) {
        seen_unit *u = &b->seen[j];
        const double terms = fabs(u->slope) + fabs(delta);
        u->slope_error = u->p * (1 + u->p_error) * (u->slope_error + delta_error + 4 * CK_U * terms) +
                         u->p * u->p_error * fabs(u->slope - delta);
        u->slope = u->p * (u->slope - delta);
    }
    for (uint32_t j = 0; boundary != 0 && j + 1 < n; j++) {
        seen_unit *older = &b->seen[j], *newer = older + 1;
        if (older->range == newer->range || (b->a->sinks && older->range == 0))
            continue;
        const double step = older->score - newer->score, error = older->error + newer->error + 8 * CK_U * fabs(step);
        const double up = fabs(step) > log(1e3) ? 0 : copysign(boundary * exp(step), step);
        double lost = fabs(up) * expm1(error + 8 * CK_U);
        if (fabs(step) <= error || fabs(fabs(step) - log(1e3)) <= error + 8 * CK_U)
            lost += 2 * boundary * exp(step);
        older->slope += up;
        newer->slope -= up;
        older->slope_error += lost;
        newer->slope_error += lost;
    }
}

static void add_term(channel *to, double factor, double factor_error, double x)
{
    to->lost += factor_error * fabs(x);
    to->terms += fabs(factor * x);
    to->count++;
}

static double bound_of(const channel *c, double largest)
{
    return c->lost + CK_U * (c->count + 24) * c->terms + (c->count + 1) * (double)FLT_MIN * (1 + largest);
}

/* Bounds of a row that is turned back and scaled. */
static void turn_back(const back_case *a, const channel *row, const float *rot, double scale, double *bound)
{
    const uint32_t d = a->cache.spec.head_dim;
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t x, y;
        fx_pair(a->cache.spec.rope, d, i, &x, &y);
        const double c = fabs(rot[2 * i]), s = fabs(rot[2 * i + 1]);
        const double first = bound_of(row + x, 1e4), second = bound_of(row + y, 1e4);
        bound[x] += scale * (first * c + second * s);
        bound[y] += scale * (first * s + second * c);
    }
}

static void bound_head(bounding *b, uint32_t t, uint32_t h)
{
    const back_case *a = b->a;
    const fx_spec *spec = &a->cache.spec;
    const uint32_t d = spec->head_dim, kv = h / (spec->heads / spec->kv_heads), n = fx_view(&a->cache, t)->units;
    const size_t head = (size_t)t * spec->heads + h, at = ((size_t)t * (spec->heads + 2 * spec->kv_heads) + h) * d;
    double delta = 0, delta_terms = 0, *lse = b->lse + 2 * head;
    for (uint32_t c = 0; c < d; c++) {
        delta += (double)a->out[head * d + c] * a->dout[head * d + c];
        delta_terms += fabs((double)a->out[head * d + c] * a->dout[head * d + c]);
    }
    score_units(b, t, a->qkv + at, a->dout + head * d, kv);
    weigh_units(b, n, &lse[0]);
    lse[1] = CK_U * (d + 4) * delta_terms + FLT_MIN * d;
    slope_units(b, n, delta, lse[1]);
    for (uint32_t j = 0; j < n;) {
        const uint32_t r = b->seen[j].range;
        channel frame[256] = {0};
        for (; j < n && b->seen[j].range == r; j++) {
            const seen_unit *u = &b->seen[j];
            channel *dk = b->dunits + ((size_t)u->unit * 2 * spec->kv_heads + kv) * d, *dv = dk + spec->kv_heads * d;
            add_term(b->dscores + u->unit * spec->kv_heads + kv, u->slope, u->slope_error, 1);
            for (uint32_t c = 0; c < d; c++) {
                add_term(frame + c, u->slope, u->slope_error, get(a, 0, kv, u->unit, c));
                add_term(dk + c, u->slope, u->slope_error, b->range[r].absolute[c]);
                add_term(dv + c, u->p, u->p * u->p_error, a->dout[head * d + c]);
            }
        }
        for (uint32_t c = 0; c < d; c++)
            frame[c].count = n + 8 * VIEW_RANGES;
        turn_back(a, frame, fx_query_rot(&a->cache, t, r), 1 / sqrt(d), b->dqkv + at);
    }
}

static void bounds(ck *c, const void *what)
{
    const back_case *a = what;
    const fx_spec *spec = &a->cache.spec;
    const size_t d = spec->head_dim, row = 2 * spec->kv_heads * d;
    double *dunits = ck_bound(c, "dunits"), *dscores = ck_bound(c, "dscores");
    bounding b = {.a = a,
                  .seen = fx_alloc(a->cache.step.max_units * sizeof *b.seen),
                  .dunits = fx_alloc(a->units * row * sizeof *b.dunits),
                  .dscores = fx_alloc(a->units * spec->kv_heads * sizeof *b.dscores),
                  .dqkv = ck_bound(c, "dqkv"),
                  .lse = ck_bound(c, "lse")};
    memset(b.dunits, 0, a->units * row * sizeof *b.dunits);
    memset(b.dscores, 0, a->units * spec->kv_heads * sizeof *b.dscores);
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t h = 0; h < spec->heads; h++)
            bound_head(&b, t, h);
    for (uint32_t u = 0; u < a->units; u++) {
        if (a->unit[u].first == a->unit[u].end)
            continue;
        const float *rot = (const float *)a->cache.words + a->unit[u].rotation;
        for (size_t i = 0; i < spec->kv_heads; i++)
            dscores[u * spec->kv_heads + i] = bound_of(b.dscores + u * spec->kv_heads + i, 1);
        for (size_t i = 0; i < spec->kv_heads; i++)
            turn_back(a, b.dunits + u * row + i * d, rot, 1 / sqrt((double)d), dunits + u * row + i * d);
        for (size_t i = row / 2; i < row; i++)
            dunits[u * row + i] = bound_of(b.dunits + u * row + i, 1e4);
    }
    for (uint32_t t = 0; t < spec->n; t++)
        memcpy(b.dqkv + t * (spec->heads * d + row) + spec->heads * d, dunits + t * row, row * sizeof *dunits);
    free(b.seen);
    free(b.dunits);
    free(b.dscores);
}

/* ---- Cases ---- */

/* What queries see, in the order that they come to see it, and one unit that none sees. */
static void list_units(back_case *a)
{
    const fx_spec *spec = &a->cache.spec;
    a->unit = fx_alloc((a->cache.table_words + 1) * sizeof *a->unit);
    for (uint32_t t = 0; t < spec->n; t++) {
        const view *v = fx_view(&a->cache, t);
        for (uint32_t r = 0; r < v->n_ranges; r++)
            for (uint32_t j = 0; j < v->range[r].count; j++) {
                const uint32_t slot = fx_slot(&a->cache, v->range + r, j), u = unit_of(a, slot);
                if (u == a->units)
                    a->unit[a->units++] = (grad_unit){
                        .slot = slot,
                        .ring = v->range[r].ring,
                        .first = t,
                        .rotation = (uint32_t)a->cache.step.key_rot + u % spec->n * spec->head_dim,
                    };
                a->unit[u].end = t + 1;
            }
    }
    a->unit[a->units] = a->unit[0];
    a->unit[a->units].slot = a->cache.words[a->cache.step.slots];
    a->unit[a->units].first = a->unit[a->units].end = 0;
    a->units++;
}

static void one(ck *c, fx_spec spec, fx_prompt prompt, fx_input fill, float boundary)
{
    back_case a = {.layer = spec.layers - 1, .boundary = boundary, .sinks = prompt.sinks > 0};
    if (!ck_case(c, "attention_back/L%u_W%u_S%u_after%u_h%u_kv%u_d%u_n%u_%s_%s%s%s_%s", prompt.group, prompt.window,
                 prompt.sinks, prompt.before, spec.heads, spec.kv_heads, spec.head_dim, spec.n,
                 spec.type == KV_F16 ? "f16" : "f32", spec.rope == ROPE_HALF ? "half" : "interleaved",
                 spec.bias != 0 ? "_bias" : "", boundary != 0 ? "_boundary" : "", fx_input_name(fill)))
        return;
    fx_seen *seen;
    spec.n_ranges = fx_prompt_seen(&prompt, spec.n, &seen);
    spec.seen = seen;
    const size_t row = (size_t)(spec.heads + 2 * spec.kv_heads) * spec.head_dim, q = spec.heads * spec.head_dim;
    fx_cache_new(&a.cache, &spec, &c->rng);
    fx_cache_fill_views(&a.cache, a.layer, fill, &c->rng);
    list_units(&a);
    a.qkv_bytes = spec.n * row * 4;
    a.out_bytes = spec.n * q * 4;
    a.lse_bytes = (size_t)spec.n * spec.heads * 8;
    a.dunits_bytes = a.units * (row - q) * 4;
    a.dscores_bytes = (size_t)a.units * spec.kv_heads * 4;
    a.qkv = fx_alloc(a.qkv_bytes);
    a.out = fx_alloc(a.out_bytes);
    a.dout = fx_alloc(a.out_bytes);
    a.pattern = fx_alloc(a.qkv_bytes + a.lse_bytes + a.dunits_bytes);
    fx_pattern(a.pattern, a.qkv_bytes + a.lse_bytes + a.dunits_bytes);
    fx_pattern(a.qkv, a.qkv_bytes);
    for (uint32_t t = 0; t < spec.n; t++)
        fx_fill(a.qkv + t * row, 1, q, FX_NORMAL, &c->rng);
    fx_fill(a.out, spec.n, q, fill == FX_LARGE || fill == FX_TINY ? fill : FX_NORMAL, &c->rng);
    fx_fill(a.dout, spec.n, q, FX_NORMAL, &c->rng);
    c->traffic = 2 * a.qkv_bytes + 2 * a.out_bytes + a.dunits_bytes;
    ck_run(c, run, bounds, &a);
    fx_cache_free(&a.cache);
    free(seen);
    free(a.unit);
    free(a.qkv);
    free(a.out);
    free(a.dout);
    free(a.pattern);
}

void check_attention_back(ck *c)
{
    static const uint32_t sizes[] = {1, 2, 15, 16, 17, 31, 33, 64, 70};
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 8};
    static const uint32_t dims[] = {2, 6, 8, 16, 48, 64, 96, 128, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const fx_spec spec = {2, 1, 3, 64, KV_F32, ROPE_INTERLEAVED, .n = sizes[i]};
        one(c, spec, (fx_prompt){.before = 60 + 3 * sizes[i], .group = 16, .sinks = 4}, FX_NORMAL, 0);
        one(c, spec, (fx_prompt){.group = 4, .sinks = i % 5}, FX_NORMAL, 0.01f);
        one(c, spec, (fx_prompt){.before = 7 * sizes[i], .sinks = 4, .window = 60}, FX_NORMAL, 0);
        one(c, spec, (fx_prompt){.before = 2 * sizes[i]}, FX_NORMAL, 0);
    }
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        one(c, (fx_spec){1, 2, 2 * groups[i], 64, KV_F32, ROPE_HALF, .n = 19},
            (fx_prompt){.before = 100, .group = 16, .sinks = 4}, FX_NORMAL, 0);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t form = 0; form < 2; form++) /* one of the two where few models have the size */
            if (dims[i] == 8 || dims[i] == 64 || dims[i] == 128 || form == i % 2)
                one(c,
                    (fx_spec){1, 1, 3, dims[i], form ? KV_F32 : KV_F16, form ? ROPE_HALF : ROPE_INTERLEAVED, .n = 18,
                              .bias = 0.4f},
                    (fx_prompt){.before = 100, .group = 32, .sinks = 4}, FX_NORMAL, form ? 0.02f : 0);
    for (int fill = 0; fill < FX_INPUTS; fill++)
        one(c, (fx_spec){1, 3, 9, 64, KV_F32, ROPE_INTERLEAVED, .n = 20},
            (fx_prompt){.before = 150, .group = 32, .sinks = 4}, (fx_input)fill, 0);
    one(c, (fx_spec){1, 3, 9, 64, KV_F32, ROPE_HALF, .n = 200}, (fx_prompt){.group = 16, .sinks = 4}, FX_NORMAL, 0.01f);
}
