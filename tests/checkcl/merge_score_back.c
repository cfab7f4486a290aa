/* cl_merge_score_back: all heads of several merges of one level in one layer; gradients of other units, layers and
 * levels, and of mean and scale, must stay. */
#include "score_bounds.h"

#include <stdio.h>
#include <string.h>

#include "ops/grad.h"

typedef struct back_case {
    score_case of;
    uint32_t first, units;
    grad_unit *list;
    float *dunits, *dscores, *dparams, *loss;
    size_t dunits_bytes, dscores_bytes, loss_bytes;
    float magnitude;
} back_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const back_case *b = what;
    const score_case *s = &b->of;
    kv_pool pool;
    step step;
    fx_upload(&s->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const grad_units units = {ck_buffer(c, side, "units", b->list, b->units * sizeof *b->list, 4), b->units};
    const merge_score_back_args args = {.pool = &pool,
                                        .step = &step,
                                        .units = &units,
                                        .first = b->first,
                                        .layer = s->layer,
                                        .rope = s->cache.spec.rope,
                                        .shape = s->shape,
                                        .params = ck_buffer(c, side, "params", s->params, s->bytes, 4),
                                        .dparams = ck_buffer(c, side, "dparams", b->dparams, s->bytes, 4),
                                        .dunits = ck_buffer(c, side, "dunits", b->dunits, b->dunits_bytes, 4),
                                        .dscores = ck_buffer(c, side, "dscores", b->dscores, b->dscores_bytes, 4),
                                        .magnitude = b->magnitude,
                                        .loss = ck_buffer(c, side, "loss", b->loss, b->loss_bytes, 4)};
    return c->side[side]->ops->grad->merge_score_back(c->side[side], &args);
}

/* One row on its way back. */
typedef struct back_off {
    score_off a, b;
    off g[2 * SCORE_HEAD_MAX], q[2 * SCORE_HEAD_MAX], gap, d_gap;
} back_off;

/* Element of dunits: channel c of [k ; v]. */
static size_t gradient_at(const back_case *b, uint32_t unit, uint32_t head, uint32_t c)
{
    const fx_spec *spec = &b->of.cache.spec;
    return (((size_t)unit * 2 + (c >= spec->head_dim)) * spec->kv_heads + head) * spec->head_dim + c % spec->head_dim;
}

static off key_size(const off *k, uint32_t d)
{
    double squares = 0, errors = 0;
    for (uint32_t c = 0; c < d; c++) {
        squares += k[c].value * k[c].value;
        errors += k[c].error * k[c].error;
    }
    const double size = sqrt(squares);
    return (off){size, sqrt(errors) + score_roundings(d) * CK_U * size};
}

/* Adds the magnitude's gradient to r->g; returns its value. */
static off magnitude(const back_case *b, const score_row *row, back_off *r)
{
    const score_case *s = &b->of;
    const uint32_t d = s->shape.head_dim;
    off k[2 * SCORE_HEAD_MAX];
    score_off_load(s, row, fx_merge(&s->cache, row->merge)->out, fx_merge_rot(&s->cache, row->merge, 2), k);
    const off size = key_size(k, d), weight = off_of(b->magnitude);
    const off t = off_mul(off_of(0.5), off_add(key_size(r->a.x, d), key_size(r->b.x, d)));
    const off gap = off_sub(off_div(size, t), off_of(1));
    const off slope = off_div(off_mul(off_mul(off_of(2), weight), gap), off_mul(t, size));
    for (uint32_t c = 0; c < d; c++)
        r->g[c] = off_add(r->g[c], off_mul(slope, k[c]));
    return off_mul(off_mul(weight, gap), gap);
}

/* D's gradient, and those of the weights' parameters. */
static void back_gap(const back_case *b, const score_row *row, off_terms *sums, back_off *r)
{
    const score_case *s = &b->of;
    const uint32_t d = s->shape.head_dim;
    const size_t places[2] = {s->at.sharp_k, s->at.sharp_v};
    r->gap = score_off_gap(s, row, &r->a, &r->b);
    r->d_gap = off_of(0);
    for (uint32_t k = 0; k < 2; k++) {
        const double sharp = row->p[places[k]];
        off_terms of = {0};
        for (uint32_t c = k * d; c < (k + 1) * d; c++)
            off_term(&of, off_mul(r->g[c], off_sub(r->a.x[c], r->b.x[c])));
        const off both = off_mul(score_off_sigmoid(sharp, r->gap), score_off_sigmoid(-sharp, r->gap));
        const off slope = off_mul(off_sum(&of, score_roundings(d)), both);
        r->d_gap = off_add(r->d_gap, off_mul(slope, off_of(sharp)));
        off_term(sums + places[k], off_mul(slope, r->gap));
    }
    off_term(sums + s->at.prior + row->level, r->d_gap);
    off_term(sums + s->at.deviation, off_mul(r->d_gap, off_sub(r->a.norm, r->b.norm)));
}

/* One unit's gradient dx, and the network's. */
static void back_unit(const back_case *b, const score_row *row, off_terms *sums, const back_off *r, bool older, off *dx)
{
    const score_case *s = &b->of;
    const uint32_t d = s->shape.head_dim, x = 2 * d, hidden = s->shape.hidden;
    const score_off *u = older ? &r->a : &r->b;
    const off gap = {older ? r->d_gap.value : -r->d_gap.value, r->d_gap.error};
    const off turn = off_div(off_mul(gap, off_of(row->p[s->at.deviation])), off_mul(off_of(d), u->norm));
    off_terms dz[2 * SCORE_HEAD_MAX] = {0};
    for (uint32_t c = 0; c < d; c++)
        off_term(dz + c, off_mul(turn, u->z[c]));
    for (uint32_t j = 0; j < hidden; j++) {
        off_terms dh = {0};
        off_term(&dh, off_mul(gap, off_of(row->p[s->at.w2 + j])));
        for (uint32_t c = 0; c < x; c++)
            off_term(&dh, off_mul(off_of(row->p[s->at.u + j * x + c]), r->q[c]));
        const off slope = u->h[j].value > 0 ? (off){1, u->h[j].value < u->h[j].error ? u->h[j].error : 0}
                                            : off_add(u->h[j], off_of(1));
        const off pre = off_mul(off_sum(&dh, score_roundings(x)), slope);
        off_term(sums + s->at.b1 + row->level * hidden + j, pre);
        off_term(sums + s->at.w2 + j, off_mul(gap, u->h[j]));
        for (uint32_t c = 0; c < x; c++) {
            off_term(dz + c, off_mul(off_of(row->p[s->at.w1 + j * x + c]), pre));
            off_term(sums + s->at.w1 + j * x + c, off_mul(pre, u->z[c]));
            off_term(sums + s->at.u + j * x + c, off_mul(r->q[c], u->h[j]));
        }
    }
    for (uint32_t c = 0; c < x; c++) {
        const double sharp = row->p[c < d ? s->at.sharp_k : s->at.sharp_v];
        const off m = score_off_sigmoid(older ? sharp : -sharp, r->gap);
        dx[c] = off_add(off_mul(off_sum(dz + c, hidden + 8), off_of(row->p[s->at.scale + c])), off_mul(m, r->g[c]));
    }
}

static void bound_units(ck *c, const back_case *b, const score_row *row, uint32_t unit, const off *dx)
{
    double *bound = ck_bound(c, "dunits");
    for (uint32_t i = 0; i < 2 * b->of.shape.head_dim; i++) {
        const size_t at = gradient_at(b, unit, row->head, i);
        bound[at] = off_add(dx[i], off_of(b->dunits[at])).error;
    }
}

/* One merge and KV head; its magnitude's value. */
static off bound_merge(ck *c, const back_case *b, uint32_t m, uint32_t head, off_terms *sums)
{
    const score_case *s = &b->of;
    const score_row row = score_row_at(s, m, s->layer, head);
    const uint32_t x = 2 * s->shape.head_dim;
    static back_off r;
    off loss = {0}, dx[2 * SCORE_HEAD_MAX];
    score_off_run(s, &row, 0, &r.a);
    score_off_run(s, &row, 1, &r.b);
    for (uint32_t i = 0; i < x; i++)
        r.g[i] = off_of(b->dunits[gradient_at(b, b->first + m, head, i)]);
    if (b->magnitude > 0)
        loss = magnitude(b, &row, &r);
    for (uint32_t i = 0; i < x; i++) {
        r.q[i] = off_div(r.g[i], off_of(row.p[s->at.scale + i]));
        off_term(sums + s->at.r + row.level * x + i, r.q[i]);
    }
    off_term(sums + s->at.bias + row.level, off_of(b->dscores[(b->first + m) * s->cache.spec.kv_heads + head]));
    back_gap(b, &row, sums, &r);
    back_unit(b, &row, sums, &r, true, dx);
    bound_units(c, b, &row, b->list[b->first + m].a, dx);
    back_unit(b, &row, sums, &r, false, dx);
    bound_units(c, b, &row, b->list[b->first + m].b, dx);
    return loss;
}

static void bounds(ck *c, const void *what)
{
    const back_case *b = what;
    const score_case *s = &b->of;
    const uint32_t merges = s->cache.step.n_merges;
    double *bound = ck_bound(c, "dparams"), *losses = ck_bound(c, "loss");
    off_terms *sums = fx_alloc(s->at.row * sizeof *sums);
    for (uint32_t head = 0; head < s->cache.spec.kv_heads; head++) {
        const size_t row = (s->layer * s->cache.spec.kv_heads + head) * s->at.row;
        off_terms loss = {0};
        memset(sums, 0, s->at.row * sizeof *sums);
        for (uint32_t m = 0; m < merges; m++)
            off_term(&loss, bound_merge(c, b, m, head, sums));
        for (size_t i = s->at.w1; i <= s->at.sharp_v; i++)
            if (sums[i].absolute > 0)
                bound[row + i] = off_add(off_sum(sums + i, merges + 8), off_of(b->dparams[row + i])).error;
        if (b->magnitude > 0)
            losses[head] = off_add(off_sum(&loss, merges + 8), off_of(b->loss[head])).error;
    }
    free(sums);
}

/* Merges into slots of their own: of twice as many as there are, the second half's sources, which hold what might have
 * come out. */
static void make_merges(score_case *s, uint32_t level, fx_input fill, uint64_t *rng)
{
    const uint32_t n = s->cache.spec.n_merges / 2;
    fx_cache_fill_merges(&s->cache, fill, rng);
    s->cache.step.n_merges = n;
    for (uint32_t m = 0; m < n; m++) {
        merge_pair *pair = (merge_pair *)(s->cache.words + s->cache.step.merges) + m;
        pair->out = fx_merge(&s->cache, n + m)->a;
        pair->level = level;
    }
}

/* Units: 2n tokens in some order, then the merged ones, then others. */
static void make_units(back_case *b, uint64_t *rng)
{
    const fx_spec *spec = &b->of.cache.spec;
    const uint32_t n = b->of.cache.step.n_merges;
    b->first = 2 * n + 3;
    b->units = b->first + n + 2;
    b->list = fx_alloc(b->units * sizeof *b->list);
    for (uint32_t m = 0; m < n; m++) {
        b->list[b->first + m].a = 2 * ((m + 1) % n) + 1;
        b->list[b->first + m].b = 2 * ((m + 1) % n) + 2;
    }
    b->dunits_bytes = (size_t)b->units * 2 * spec->kv_heads * spec->head_dim * sizeof(float);
    b->dunits = fx_alloc(b->dunits_bytes);
    fx_fill(b->dunits, 1, b->dunits_bytes / sizeof(float), FX_NORMAL, rng);
    b->dscores_bytes = (size_t)b->units * spec->kv_heads * sizeof(float);
    b->dscores = fx_alloc(b->dscores_bytes);
    fx_fill(b->dscores, 1, b->dscores_bytes / sizeof(float), FX_NORMAL, rng);
}

static void one(ck *c, const fx_spec *of, uint32_t hidden, uint32_t levels, uint32_t level, float weight, fx_input fill)
{
    back_case b = {.of = {.shape = {of->head_dim, hidden, levels}, .layer = of->layers - 1}, .magnitude = weight};
    fx_spec spec = *of;
    spec.n_merges *= 2;
    if (!ck_case(c, "merge_score_back/kv%u_d%u_h%u_g%uof%u_m%u%s_%s_%s_%s", of->kv_heads, of->head_dim, hidden, level,
                 levels, of->n_merges, weight > 0 ? "_magnitude" : "", of->type == KV_F16 ? "f16" : "f32",
                 of->rope == ROPE_HALF ? "half" : "interleaved", fx_input_name(fill)))
        return;
    fx_cache_new(&b.of.cache, &spec, &c->rng);
    make_merges(&b.of, level, fill, &c->rng);
    score_case_params(&b.of, fill, &c->rng);
    make_units(&b, &c->rng);
    b.dparams = fx_alloc(b.of.bytes);
    fx_fill(b.dparams, 1, b.of.bytes / sizeof(float), FX_NORMAL, &c->rng);
    b.loss_bytes = of->kv_heads * sizeof(float);
    b.loss = fx_alloc(b.loss_bytes);
    c->traffic = 2 * b.of.bytes / of->layers + b.dunits_bytes * 3;
    ck_run(c, run, bounds, &b);
    fx_cache_free(&b.of.cache);
    free(b.of.params);
    free(b.list);
    free(b.dunits);
    free(b.dscores);
    free(b.dparams);
    free(b.loss);
}

void check_merge_score_back(ck *c)
{
    static const uint32_t dims[] = {8, 16, 18, 32, 64, 80, 128}, hidden[] = {16, 32, 64};
    for (uint32_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (uint32_t form = i % 2; form < 4 - i % 2; form += 3 - 2 * (i % 2)) /* both ropes, types */
            one(c,
                &(fx_spec){2, 3, 9, dims[i], form % 2 ? KV_F32 : KV_F16, form / 2 ? ROPE_HALF : ROPE_INTERLEAVED,
                           .n_merges = 1 + i},
                hidden[(i + form) % 3], 1 + i, form, form % 3 ? 0.3f : 0, FX_NORMAL);
    one(c, &(fx_spec){2, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 256}, 32, 9, 2, 0.1f, FX_NORMAL);
    for (int fill = 1; fill < FX_INPUTS; fill++)
        one(c, &(fx_spec){2, 2, 2, 64, fill % 2 ? KV_F16 : KV_F32, ROPE_INTERLEAVED, .n_merges = 4}, 32, 3, 1, 0.2f,
            (fx_input)fill);
}
