/*
 * Gradients of attention through the compressed cache. What each query sees is found here from the schedule alone;
 * the loss is a dense softmax over those units by their places, in double, and its gradients are finite differences.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "each_device.h"
#include "support/fixture.h"
#include "train/units.h"

enum { BIASES = 2 /* levels with biases of their own */, LAYERS = 2, LAYER = 1 };
enum { TOKENS_MAX = 2048, UNITS_MAX = 2 * TOKENS_MAX, SEEN_MAX = 640, DIM_MAX = 32 };

/* ---- Who sees what ---- */

/* A unit by its number: level, node of the level (sinks: the token) and the queries that see it. */
typedef struct unit {
    uint32_t level, first, end, a, b;
    uint64_t node;
    bool sink;
} unit;

typedef struct history {
    uint32_t n, units, group, sinks;
    unit unit[UNITS_MAX];
    uint32_t count[TOKENS_MAX];
    uint32_t (*seen)[SEEN_MAX]; /* numbers in the order of places, for each query */
} history;

/* Results are numbered by level, then by age: turn numbers in order of time into these. */
static void number_merges(history *h)
{
    uint32_t number[UNITS_MAX], next = h->n;
    unit *moved = fx_alloc(sizeof h->unit);
    for (uint32_t u = 0; u < h->n; u++)
        number[u] = u;
    for (uint32_t level = 1; level <= DCM_LEVELS_MAX; level++)
        for (uint32_t u = h->n; u < h->units; u++)
            if (h->unit[u].level == level)
                number[u] = next++;
    for (uint32_t u = 0; u < h->units; u++) {
        unit *to = &moved[number[u]];
        *to = h->unit[u];
        if (to->a != UINT32_MAX) {
            to->a = number[to->a];
            to->b = number[to->b];
        }
    }
    memcpy(h->unit, moved, h->units * sizeof *moved);
    for (uint32_t t = 0; t < h->n; t++)
        for (uint32_t i = 0; i < h->count[t]; i++)
            h->seen[t][i] = number[h->seen[t][i]];
    free(moved);
}

static history *history_new(uint32_t group, uint32_t sinks, uint32_t n)
{
    history *h = fx_alloc(sizeof *h);
    dcm_plan plan;
    uint32_t list[SEEN_MAX], count = 0, nodes = 0;
    *h = (history){.n = n, .units = n, .group = group, .sinks = sinks, .seen = fx_alloc(n * sizeof *h->seen)};
    assert_int_equal(dcm_plan_init(&plan, group, sinks), DCM_OK);
    for (uint32_t t = 0; t < n; t++) {
        const dcm_action action = dcm_plan_step(&plan);
        if (action.kind == DCM_ACTION_MERGE) {
            uint32_t i = 0;
            while (h->unit[list[i]].level != (uint32_t)action.level || h->unit[list[i]].sink)
                i++;
            unit *older = &h->unit[list[i]], *newer = &h->unit[list[i + 1]];
            h->unit[h->units] = (unit){older->level + 1, t, n, list[i], list[i + 1], .node = older->node / 2};
            older->end = newer->end = t;
            list[i] = h->units++;
            memmove(list + i + 1, list + i + 2, (count - i - 2) * sizeof *list);
            count--;
        }
        h->unit[t] = (unit){
            .first = t, .end = n, .a = UINT32_MAX, .b = UINT32_MAX, .sink = t < sinks, .node = t < sinks ? t : nodes++};
        list[count++] = t;
        memcpy(h->seen[t], list, count * sizeof *list);
        h->count[t] = count;
    }
    number_merges(h);
    return h;
}

static void history_free(history *h)
{
    free(h->seen);
    free(h);
}

/* ---- The loss ---- */

typedef struct problem {
    uint32_t heads, kv_heads, dim;
    rope_kind kind;
    float log_r, boundary, wide; /* wide: a factor of the queries */
    double frequency[DIM_MAX / 2];
    float bias[LAYERS * 4 * BIASES]; /* (layers, kv_heads, levels) */
    const history *h;
    double *moved; /* (units, kv_heads): added to the scores */
    double *q, *k, *v, *w; /* (n, heads, dim), (units, kv_heads, dim) twice, (n, heads, dim): dout */
} problem;

static void turn(const problem *p, const double *x, double angle, double *to)
{
    for (uint32_t i = 0; i < p->dim / 2; i++) {
        uint32_t a, b;
        fx_pair(p->kind, p->dim, i, &a, &b);
        const double c = cos(angle * p->frequency[i]), s = sin(angle * p->frequency[i]);
        to[a] = x[a] * c - x[b] * s;
        to[b] = x[a] * s + x[b] * c;
    }
}

/* What query t's head adds to the loss; the attention's result into `out` where it is not NULL. */
static double loss_of(const problem *p, uint32_t t, uint32_t head, double *out)
{
    const uint32_t *seen = p->h->seen[t], count = p->h->count[t], kv = head / (p->heads / p->kv_heads);
    const size_t at = ((size_t)t * p->heads + head) * p->dim;
    double score[SEEN_MAX], turned[DIM_MAX], key[DIM_MAX], most = -INFINITY, total = 0, loss = 0;
    turn(p, p->q + at, count - 1, turned);
    for (uint32_t i = 0; i < count; i++) {
        turn(p, p->k + ((size_t)seen[i] * p->kv_heads + kv) * p->dim, i, key);
        score[i] = 0;
        for (uint32_t c = 0; c < p->dim; c++)
            score[i] += turned[c] * key[c];
        const uint32_t level = p->h->unit[seen[i]].level;
        score[i] = score[i] / sqrt(p->dim) + p->log_r * log(2) * level + p->moved[seen[i] * p->kv_heads + kv];
        if (level)
            score[i] += p->bias[(LAYER * p->kv_heads + kv) * BIASES + (level < BIASES ? level : BIASES) - 1];
        most = fmax(most, score[i]);
    }
    for (uint32_t i = 0; i < count; i++)
        total += exp(score[i] - most);
    for (uint32_t c = 0; c < p->dim; c++) {
        double sum = 0;
        for (uint32_t i = 0; i < count; i++)
            sum += exp(score[i] - most) / total * p->v[((size_t)seen[i] * p->kv_heads + kv) * p->dim + c];
        loss += sum * p->w[at + c];
        if (out)
            out[at + c] = sum;
    }
    for (uint32_t i = 0; i + 1 < count; i++) {
        const unit *a = &p->h->unit[seen[i]], *b = &p->h->unit[seen[i + 1]];
        const double ratio = exp(score[i] - score[i + 1]);
        if (a->level != b->level && !a->sink && ratio <= 1e3 && ratio >= 1e-3)
            loss += p->boundary * fabs(ratio - 1);
    }
    return loss;
}

/* Of the loss by x, which `heads` heads from `head` on of queries first .. end - 1 read. */
static double slope(const problem *p, double *x, uint32_t first, uint32_t end, uint32_t head, uint32_t heads)
{
    const double step = 1e-5, was = *x;
    double sum = 0;
    for (int side = -1; side <= 1; side += 2) {
        *x = was + side * step;
        for (uint32_t t = first; t < end; t++)
            for (uint32_t h = head; h < head + heads; h++)
                sum += side * loss_of(p, t, h, NULL);
    }
    *x = was;
    return sum / (2 * step);
}

/* ---- Against the op ---- */

typedef struct truth {
    double *dq, *dk, *dv, *ds, *out;
} truth;

static double *normals(size_t count, double scale, uint64_t *rng)
{
    double *x = fx_alloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(scale * fx_normal(rng));
    return x;
}

static truth truth_of(const problem *p)
{
    const size_t q = (size_t)p->h->n * p->heads * p->dim, u = (size_t)p->h->units * p->kv_heads * p->dim;
    const uint32_t group = p->heads / p->kv_heads;
    truth x = {fx_alloc(q * sizeof(double)), fx_alloc(u * sizeof(double)), fx_alloc(u * sizeof(double)),
               fx_alloc(u / p->dim * sizeof(double)), fx_alloc(q * sizeof(double))};
    for (uint32_t t = 0; t < p->h->n; t++)
        for (uint32_t h = 0; h < p->heads; h++)
            loss_of(p, t, h, x.out);
    for (size_t i = 0; i < q; i++) {
        const uint32_t t = (uint32_t)(i / (p->heads * p->dim));
        x.dq[i] = slope(p, p->q + i, t, t + 1, (uint32_t)(i / p->dim % p->heads), 1);
    }
    for (size_t i = 0; i < u; i++) {
        const unit *one = &p->h->unit[i / (p->kv_heads * p->dim)];
        const uint32_t head = (uint32_t)(i / p->dim % p->kv_heads) * group;
        x.dk[i] = slope(p, p->k + i, one->first, one->end, head, group);
        x.dv[i] = slope(p, p->v + i, one->first, one->end, head, group);
        if (i % p->dim == 0)
            x.ds[i / p->dim] = slope(p, p->moved + i / p->dim, one->first, one->end, head, group);
    }
    return x;
}

static float *floats(const double *x, size_t count)
{
    float *to = fx_alloc(count * sizeof *to);
    for (size_t i = 0; i < count; i++)
        to[i] = (float)x[i];
    return to;
}

/* Put the units' keys, turned at their anchors, and values into their slots of layer 1 of two. */
static void fill_pool(const problem *p, cache *c, const grad_unit *list)
{
    const kv_pool *pool = &c->slots.pool;
    for (uint32_t u = 0; u < p->h->units; u++)
        for (uint32_t i = 0; i < 2 * p->kv_heads; i++) {
            const uint32_t w = i / p->kv_heads, h = i % p->kv_heads, block = list[u].slot >> KV_SLOT_BITS;
            const size_t at = ((size_t)u * p->kv_heads + h) * p->dim;
            const size_t row = (size_t)((1 * 2 + w) * p->kv_heads + h) * pool->block_units[block] +
                               (list[u].slot & ((1u << KV_SLOT_BITS) - 1));
            double turned[DIM_MAX];
            turn(p, p->k + at, (double)p->h->unit[u].node + (p->h->unit[u].sink ? 0 : p->h->sinks), turned);
            float *x = floats(w ? p->v + at : turned, p->dim);
            assert_int_equal(c->ops->ops->write(pool->block[block], row * p->dim * 4, x, p->dim * 4), DCM_OK);
            free(x);
        }
}

static void check_near(const float *got, const double *expected, size_t count, double scale, const char *what)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabs(got[i] - expected[i]) <= 3e-5 * scale))
            fail_msg("%s of %zu: %g, not %g", what, i, (double)got[i], expected[i]);
}

static double largest(const double *x, size_t count)
{
    double most = 0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

static void check_units(const history *h, const grad_units *units, const cache *c, grad_unit *list)
{
    assert_int_equal(units->count, h->units);
    assert_int_equal(c->ops->ops->read(units->list, 0, list, units->count * sizeof *list), DCM_OK);
    for (uint32_t u = 0; u < h->units; u++) {
        const unit *one = &h->unit[u];
        const uint32_t ring = (uint32_t)c->ring[one->sink ? DCM_LEVELS_MAX : one->level].offset;
        assert_int_equal(list[u].first, one->first);
        assert_int_equal(list[u].end, one->end);
        assert_int_equal(list[u].level, one->level);
        assert_int_equal(list[u].ring, ring);
        assert_int_equal(list[u].a, one->a);
        assert_int_equal(list[u].b, one->b);
    }
}

static void open_step(cache *c, backend *b, const problem *p, uint32_t layers)
{
    const dcm_model_info shape = {.layers = layers, .kv_heads = p->kv_heads, .heads = p->heads, .head_dim = p->dim};
    const dcm_cache_params given = {.kind = DCM_CACHE_DCM,
                                    .group = p->h->group,
                                    .sinks = p->h->sinks ? (int32_t)p->h->sinks : -1,
                                    .log_r = p->log_r,
                                    .kv = DCM_KV_F32,
                                    .chunk = 2 * p->h->n};
    int32_t *tokens = fx_alloc(p->h->n * sizeof *tokens);
    dcm_cache_params params;
    memset(tokens, 0, p->h->n * sizeof *tokens);
    assert_int_equal(cache_check_params(&params, &given), DCM_OK);
    assert_int_equal(cache_open(c, b, &shape, &params, (rope){p->kind, p->dim / 2, p->frequency}), DCM_OK);
    cache_add_biases(c, p->bias, BIASES);
    assert_int_equal(cache_step_begin(c, tokens, p->h->n), DCM_OK);
    assert_int_equal(c->step.n, p->h->n);
    free(tokens);
}

static void run_back(backend *b, const problem *p, const truth *x)
{
    const size_t n = p->h->n, q = n * p->heads * p->dim, u = (size_t)p->h->units * p->kv_heads * p->dim;
    const size_t row = (size_t)(p->heads + 2 * p->kv_heads) * p->dim, q_row = p->heads * p->dim;
    cache c;
    grad_units units = {0};
    grad_unit *list = fx_alloc(p->h->units * sizeof *list);
    float *qkv = fx_alloc(n * row * 4), *out = floats(x->out, q), *dout = floats(p->w, q);
    float *dunits = fx_alloc(2 * u * 4), *dscores = fx_alloc(u / p->dim * 4);
    open_step(&c, b, p, LAYERS);
    assert_int_equal(grad_units_open(&units, &c), DCM_OK);
    check_units(p->h, &units, &c, list);
    fill_pool(p, &c, list);
    fx_pattern(qkv, n * row * 4);
    fx_pattern(dunits, 2 * u * 4);
    fx_pattern(dscores, u / p->dim * 4);
    for (size_t i = 0; i < q; i++)
        qkv[i / q_row * row + i % q_row] = (float)p->q[i];
    buffer *made[] = {fx_make_plain(b, "qkv", qkv, n * row * 4, 4),  fx_make_plain(b, "out", out, q * 4, 4),
                      fx_make_plain(b, "dout", dout, q * 4, 4),      fx_make_plain(b, "lse", qkv, n * p->heads * 8, 4),
                      fx_make_plain(b, "dqkv", qkv, n * row * 4, 4), fx_make_plain(b, "dunits", dunits, 2 * u * 4, 4),
                      fx_make_plain(b, "dscores", dscores, u / p->dim * 4, 4)};
    const attention_back_args args = {&c.slots.pool,   &c.step,  &units,  LAYER,   p->kind,
                                      made[0],         p->heads, made[1], made[2], p->boundary,
                                      p->h->sinks > 0, made[3],  made[4], made[5], made[6]};
    assert_int_equal(b->ops->grad->attention_back(b, &args), DCM_OK);
    const kv_store_back_args store = {&c.step, p->heads, p->kv_heads, p->dim, made[5], made[4]};
    assert_int_equal(b->ops->grad->kv_store_back(b, &store), DCM_OK);
    assert_int_equal(b->ops->read(made[4], 0, qkv, n * row * 4), DCM_OK);
    assert_int_equal(b->ops->read(made[5], 0, dunits, 2 * u * 4), DCM_OK);
    assert_int_equal(b->ops->read(made[6], 0, dscores, u / p->dim * 4), DCM_OK);
    check_near(dscores, x->ds, u / p->dim, largest(x->ds, u / p->dim), "scores' gradient");
    const double dq_most = largest(x->dq, q), dk_most = largest(x->dk, u), dv_most = largest(x->dv, u);
    for (size_t t = 0; t < n; t++)
        check_near(qkv + t * row, x->dq + t * q_row, q_row, dq_most, "queries' gradient");
    const size_t kv_row = (size_t)p->kv_heads * p->dim;
    for (size_t i = 0; i < p->h->units; i++) {
        check_near(dunits + i * 2 * kv_row, x->dk + i * kv_row, kv_row, dk_most, "keys' gradient");
        check_near(dunits + (i * 2 + 1) * kv_row, x->dv + i * kv_row, kv_row, dv_most, "values' gradient");
        if (i < n)
            assert_memory_equal(qkv + i * row + q_row, dunits + i * 2 * kv_row, 2 * kv_row * sizeof *qkv);
    }
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        buffer_free(&made[i]);
    grad_units_close(&units);
    cache_step_done(&c);
    cache_close(&c);
    free(list);
    free(qkv);
    free(out);
    free(dout);
    free(dunits);
    free(dscores);
}

static const problem *now;
static truth expected;

static void run_device(backend *b) { run_back(b, now, &expected); }

static void check_problem(problem p, uint32_t group, uint32_t sinks, uint32_t n)
{
    uint64_t rng = group * 100 + sinks;
    backend *ref;
    history *h = history_new(group, sinks, n);
    p.h = h;
    for (uint32_t i = 0; i < p.dim / 2; i++)
        p.frequency[i] = pow(100, -2.0 * i / p.dim);
    const size_t q = (size_t)n * p.heads * p.dim, u = (size_t)h->units * p.kv_heads * p.dim;
    p.q = normals(q, p.wide ? p.wide : 1, &rng);
    p.k = normals(u, 1, &rng);
    p.v = normals(u, 1, &rng);
    p.w = normals(q, 1, &rng);
    p.moved = fx_alloc((size_t)h->units * p.kv_heads * sizeof *p.moved);
    memset(p.moved, 0, (size_t)h->units * p.kv_heads * sizeof *p.moved);
    fx_fill(p.bias, 1, sizeof p.bias / sizeof *p.bias, FX_NORMAL, &rng);
    now = &p;
    expected = truth_of(&p);
    assert_int_equal(backend_ref_open(&ref, 1, 0), DCM_OK);
    run_back(ref, &p, &expected);
    backend_close(&ref);
    on_every_device(run_device);
    double *all[] = {p.q, p.k, p.v, p.w, p.moved, expected.dq, expected.dk, expected.dv, expected.ds, expected.out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    history_free(h);
}

static void finite_differences(void **state)
{
    (void)state;
    for (uint32_t sinks = 0; sinks <= 4; sinks++) {
        const rope_kind kind = sinks % 2 ? ROPE_HALF : ROPE_INTERLEAVED;
        check_problem((problem){4, 2, 6, kind, .log_r = 0.4f * (float)sinks}, 4, sinks, 40);
        check_problem((problem){3, 1, 16, kind, .boundary = 0.01f}, 8, sinks, 41);
    }
    check_problem((problem){2, 2, 16, ROPE_HALF, .log_r = -0.3f}, 4, 1, 40);
    check_problem((problem){3, 1, 32, ROPE_HALF, .log_r = 0.5f, .boundary = 0.02f}, 2, 2, 30);
    check_problem((problem){3, 1, 32, ROPE_INTERLEAVED}, 64, 4, 20);
}

/* Ratios of a thousand and more: the term is left out on both sides. */
static void boundary_far(void **state)
{
    (void)state;
    check_problem((problem){4, 2, 16, ROPE_HALF, .boundary = 0.001f, .wide = 6}, 4, 2, 40);
}

/* The list alone, of long sequences. */
static void long_lists(void **state)
{
    static const uint32_t sizes[][3] = {{64, 4, 2048},  {2, 0, 500}, {16, 1, 1000},
                                        {256, 4, 2048}, {64, 4, 1},  {64, 4, 3}};
    grad_unit *list = fx_alloc(UNITS_MAX * sizeof *list);
    grad_units units = {0};
    backend *ref;
    (void)state;
    assert_int_equal(backend_ref_open(&ref, 1, 0), DCM_OK);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        history *h = history_new(sizes[i][0], sizes[i][1], sizes[i][2]);
        const problem p = {2, 1, 4, ROPE_HALF, .frequency = {1, 0.1}, .h = h};
        cache c;
        open_step(&c, ref, &p, 1);
        assert_int_equal(grad_units_open(&units, &c), DCM_OK);
        check_units(h, &units, &c, list);
        cache_step_done(&c);
        cache_close(&c);
        history_free(h);
    }
    grad_units_close(&units);
    assert_int_equal(ref->memory.total, 0);
    backend_close(&ref);
    free(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_lists),
        cmocka_unit_test(finite_differences),
        cmocka_unit_test(boundary_far),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
