/* Gradients of the pair MLP's parts of the reference: the dense product, merges by a head, their inputs; against
 * differences of losses written in long double from ops.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops/grad.h"
#include "support/fixture.h"

static float *filled(size_t items, uint64_t *rng)
{
    float *x = fx_alloc(items * sizeof *x);
    fx_fill(x, 1, items, FX_NORMAL, rng);
    return x;
}

/* ---- Dense ---- */

typedef struct dense_problem {
    uint32_t n, in, out;
    activation act;
    float *x, *w, *bias, *y, *dy;
} dense_problem;

static long double dense_at(const dense_problem *p, uint32_t t, uint32_t o)
{
    long double sum = p->bias[o];
    for (uint32_t i = 0; i < p->in; i++)
        sum += (long double)p->x[t * p->in + i] * p->w[o * p->in + i];
    return p->act == ACT_ELU && sum < 0 ? expm1l(sum) : sum;
}

static long double dense_loss(const dense_problem *p)
{
    long double loss = 0;
    for (uint32_t t = 0; t < p->n; t++)
        for (uint32_t o = 0; o < p->out; o++)
            loss += p->dy[t * p->out + o] * dense_at(p, t, o);
    return loss;
}

/* Differences over the floats next to *x at some distance, exact in their step; ELU bends once, at 0. */
static void check_dense_items(const dense_problem *p, float *x, size_t items, const float *before, const float *got)
{
    for (size_t i = 0; i < items; i++) {
        const float at = x[i], up = at + 0x1p-12f, down = at - 0x1p-12f;
        x[i] = up;
        const long double above = dense_loss(p);
        x[i] = down;
        const long double want = (above - dense_loss(p)) / ((long double)up - down) + (before ? before[i] : 0);
        x[i] = at;
        if (!(fabsl(got[i] - want) <= 2e-6L * (1 + fabsl(want))))
            fail_msg("n%u in%u out%u, item %zu: %.9g, not %.9Lg", p->n, p->in, p->out, i, got[i], want);
    }
}

static void dense_case(uint32_t n, uint32_t in, uint32_t out, activation act, bool wants_dx, int threads)
{
    uint64_t rng = n * 1000 + in * 10 + out;
    const size_t xs = (size_t)n * in, ws = (size_t)out * in, ys = (size_t)n * out;
    dense_problem p = {n, in, out, act, filled(xs, &rng), filled(ws, &rng), filled(out, &rng), filled(ys, &rng),
                       filled(ys, &rng)};
    float *dw = filled(ws, &rng), *dbias = filled(out, &rng), *got = fx_alloc((xs + ws + out) * sizeof *got);
    backend *b = NULL;
    assert_int_equal(backend_ref_open(&b, threads, 0), DCM_OK);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t o = 0; o < out; o++)
            p.y[t * out + o] = (float)dense_at(&p, t, o);
    dense_back_args a = {.n = n, .in = in, .out = out, .act = act};
    a.x = fx_make_plain(b, "x", p.x, xs * 4, 4), a.w = fx_make_plain(b, "w", p.w, ws * 4, 4);
    a.y = act == ACT_ELU ? fx_make_plain(b, "y", p.y, ys * 4, 4) : NULL, a.dy = fx_make_plain(b, "dy", p.dy, ys * 4, 4);
    a.dw = fx_make_plain(b, "dw", dw, ws * 4, 4), a.dbias = fx_make_plain(b, "dbias", dbias, out * 4, 4);
    a.dx = wants_dx ? fx_make_plain(b, "dx", p.x, xs * 4, 4) : NULL;
    assert_int_equal(b->ops->grad->dense_back(b, &a), DCM_OK);
    assert_int_equal(b->ops->read(a.dw, 0, got, ws * 4), DCM_OK);
    check_dense_items(&p, p.w, ws, dw, got);
    assert_int_equal(b->ops->read(a.dbias, 0, got, out * 4), DCM_OK);
    check_dense_items(&p, p.bias, out, dbias, got);
    if (wants_dx) {
        assert_int_equal(b->ops->read(a.dx, 0, got, xs * 4), DCM_OK);
        check_dense_items(&p, p.x, xs, NULL, got);
    }
    buffer *buffers[] = {a.x, a.w, a.y, a.dy, a.dw, a.dbias, a.dx};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        buffer_free(buffers + i);
    backend_close(&b);
    free(p.x), free(p.w), free(p.bias), free(p.y), free(p.dy), free(dw), free(dbias), free(got);
}

static void dense(void **state)
{
    (void)state;
    dense_case(1, 1, 1, ACT_ELU, true, 1);
    dense_case(7, 5, 3, ACT_ELU, true, 1);
    dense_case(7, 5, 3, ACT_NONE, true, 1);
    dense_case(4, 6, 1, ACT_NONE, false, 1);
    dense_case(33, 32, 32, ACT_ELU, true, 3); /* shared among threads */
}

/* ---- Merges ---- */

enum { MERGES = 3, HEADS = 2, DIM = 8, ROWS = MERGES * 2 * HEADS, LAYERS = 2, LAYER = 1 };
enum { FIRST = 2 * MERGES + 1, UNITS = FIRST + MERGES };

static const uint32_t numbers[MERGES][2] = {{4, 1}, {0, 5}, {2, 3}};

typedef struct merge_problem {
    fx_cache cache;
    merge_mode mode;
    float weight;
    float *head, *dhead, *dx, *dunits;
} merge_problem;

/* Channel c of row r of source 0 or 1, keys without rotation. */
static long double source_at(const merge_problem *p, size_t r, int source, uint32_t c)
{
    const uint32_t m = (uint32_t)(r / 2 / HEADS), h = (uint32_t)(r % HEADS);
    const int w = (int)(r / HEADS % 2);
    const merge_pair *pair = fx_merge(&p->cache, m);
    const uint32_t slot = source ? pair->b : pair->a;
    if (w == 1)
        return fx_get(&p->cache, p->cache.block, LAYER, w, h, slot, c);
    const float *rotation = fx_merge_rot(&p->cache, m, (uint32_t)source);
    for (uint32_t i = 0;; i++) {
        uint32_t ch[2];
        fx_pair(p->cache.spec.rope, DIM, i, ch, ch + 1);
        const long double x = fx_get(&p->cache, p->cache.block, LAYER, w, h, slot, ch[0]),
                          y = fx_get(&p->cache, p->cache.block, LAYER, w, h, slot, ch[1]);
        if (c == ch[0])
            return x * rotation[2 * i] + y * rotation[2 * i + 1];
        if (c == ch[1])
            return y * rotation[2 * i] - x * rotation[2 * i + 1];
    }
}

/* Channel of the cache at place i of row r. */
static uint32_t channel_at(const merge_problem *p, size_t r, uint32_t i)
{
    uint32_t ch[2];
    if (r / HEADS % 2 == 1)
        return i;
    fx_pair(p->cache.spec.rope, DIM, i % (DIM / 2), ch, ch + 1);
    return ch[i >= DIM / 2];
}

static size_t row_of(uint32_t unit, size_t r) { return (unit * 2 * HEADS + r % (2 * HEADS)) * DIM; }

static uint32_t unit_of(size_t r, int source) { return numbers[r / 2 / HEADS][source]; }

/* The loss of row r: its result with a and b moved by `move` in channel c, and the head at `logit`, times dunits. */
static long double gate_loss(const merge_problem *p, size_t r, const long double *move, uint32_t c, long double logit)
{
    const long double w = p->mode == MERGE_GATE ? 1 / (1 + expl(-logit)) : p->weight;
    const float *result = p->dunits + row_of(FIRST + (uint32_t)(r / 2 / HEADS), r);
    long double loss = 0;
    for (uint32_t i = 0; i < DIM; i++) {
        const long double a = source_at(p, r, 0, i) + (i == c ? move[0] : 0),
                          b = source_at(p, r, 1, i) + (i == c ? move[1] : 0);
        loss += result[i] * (w * a + (1 - w) * b);
    }
    return loss;
}

static void close_to(float got, long double want, const char *what, size_t r, uint32_t i)
{
    if (!(fabsl(got - want) <= 1e-6L * (1e-3L + fabsl(want))))
        fail_msg("%s, row %zu, %u: %.9g, not %.9Lg", what, r, i, got, want);
}

static void check_apply(const merge_problem *p, const float *dunits, const float *dhead)
{
    const long double h = 1e-5L;
    for (size_t r = 0; r < ROWS; r++) {
        const long double logit = p->head[r], none[2] = {0};
        const size_t result = row_of(FIRST + (uint32_t)(r / 2 / HEADS), r);
        for (uint32_t i = 0; p->mode == MERGE_DIRECT && i < DIM; i++)
            close_to(dhead[r * DIM + i], p->dunits[result + channel_at(p, r, i)], "direct", r, i);
        for (int source = 0; source < 2; source++)
            for (uint32_t i = 0; i < DIM; i++) {
                const long double up[2] = {source ? 0 : h, source ? h : 0}, down[2] = {-up[0], -up[1]};
                const size_t at = row_of(unit_of(r, source), r) + i;
                long double slope = (gate_loss(p, r, up, i, logit) - gate_loss(p, r, down, i, logit)) / (2 * h);
                if (p->mode == MERGE_DIRECT)
                    slope = 0;
                close_to(dunits[at], p->dunits[at] + slope, "source", r, i);
            }
        if (p->mode == MERGE_GATE)
            close_to(dhead[r], (gate_loss(p, r, none, 0, logit + h) - gate_loss(p, r, none, 0, logit - h)) / (2 * h),
                     "gate", r, 0);
        assert_memory_equal(dunits + result, p->dunits + result, DIM * sizeof *dunits);
    }
}

/* The loss is dx . x, x's places filled as ops.h says. */
static void check_gather(const merge_problem *p, const float *dunits)
{
    for (size_t r = 0; r < ROWS; r++)
        for (int source = 0; source < 2; source++)
            for (uint32_t i = 0; i < DIM; i++) {
                const size_t at = row_of(unit_of(r, source), r) + channel_at(p, r, i);
                close_to(dunits[at], (long double)p->dunits[at] + p->dx[(r * 2 + (size_t)source) * DIM + i], "gather",
                         r, i);
            }
}

static void run_merges(const merge_problem *p, bool gather, int threads)
{
    const size_t dunit_bytes = (size_t)UNITS * 2 * HEADS * DIM * 4, head_bytes = ROWS * DIM * 4;
    grad_unit list[UNITS];
    kv_pool pool;
    step step;
    backend *b = NULL;
    memset(list, 0xff, sizeof list);
    for (uint32_t m = 0; m < MERGES; m++)
        list[FIRST + m].a = numbers[m][0], list[FIRST + m].b = numbers[m][1];
    assert_int_equal(backend_ref_open(&b, threads, 0), DCM_OK);
    fx_upload(&p->cache, fx_make_plain, b, &pool, &step);
    buffer *dunits = fx_make_plain(b, "dunits", p->dunits, dunit_bytes, 4),
           *units_list = fx_make_plain(b, "units", list, sizeof list, 4),
           *head = fx_make_plain(b, "head", p->head, head_bytes, 4),
           *dhead = fx_make_plain(b, "dhead", p->dhead, head_bytes, 4),
           *dx = fx_make_plain(b, "dx", p->dx, 2 * head_bytes, 4);
    const grad_units units = {units_list, UNITS};
    const merge_apply_back_args apply = {&pool,         &step,   &units,    FIRST, LAYER, p->cache.spec.rope,
                                         p->mode,       p->weight, head,    dhead, dunits};
    const merge_gather_back_args back = {&pool, &step, &units, FIRST, p->cache.spec.rope, dx, dunits};
    assert_int_equal(gather ? b->ops->grad->merge_gather_back(b, &back) : b->ops->grad->merge_apply_back(b, &apply),
                     DCM_OK);
    float *got = fx_alloc(dunit_bytes), *got_head = fx_alloc(head_bytes);
    assert_int_equal(b->ops->read(dunits, 0, got, dunit_bytes), DCM_OK);
    assert_int_equal(b->ops->read(dhead, 0, got_head, head_bytes), DCM_OK);
    if (gather)
        check_gather(p, got);
    else
        check_apply(p, got, got_head);
    free(got), free(got_head);
    buffer_free(&dunits), buffer_free(&units_list), buffer_free(&head), buffer_free(&dhead), buffer_free(&dx);
    fx_free_uploaded(&pool, &step);
    backend_close(&b);
}

static void each_rope(merge_mode mode, float weight, bool gather)
{
    for (int rope = ROPE_INTERLEAVED; rope <= ROPE_HALF; rope++) {
        uint64_t rng = 7 + (uint64_t)mode;
        merge_problem p = {.mode = mode, .weight = weight};
        const fx_spec spec = {LAYERS, HEADS, HEADS, DIM, KV_F32, (rope_kind)rope, .n_merges = MERGES};
        fx_cache_new(&p.cache, &spec, &rng);
        fx_cache_fill_merges(&p.cache, FX_NORMAL, &rng);
        p.head = filled(ROWS * DIM, &rng), p.dhead = filled(ROWS * DIM, &rng), p.dx = filled(ROWS * 2 * DIM, &rng);
        p.dunits = filled((size_t)UNITS * 2 * HEADS * DIM, &rng);
        run_merges(&p, gather, 1);
        free(p.head), free(p.dhead), free(p.dx), free(p.dunits);
        fx_cache_free(&p.cache);
    }
}

static void gate(void **state)
{
    (void)state;
    each_rope(MERGE_GATE, 0, false);
}

static void direct(void **state)
{
    (void)state;
    each_rope(MERGE_DIRECT, 0, false);
}

static void constant(void **state)
{
    (void)state;
    each_rope(MERGE_CONSTANT, 0.5f, false);
    each_rope(MERGE_CONSTANT, 0.3f, false);
    each_rope(MERGE_CONSTANT, 0, false);
}

static void gather(void **state)
{
    (void)state;
    each_rope(MERGE_GATE, 0, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(dense), cmocka_unit_test(gate), cmocka_unit_test(direct),
                                       cmocka_unit_test(constant), cmocka_unit_test(gather)};
    return cmocka_run_group_tests_name("pair_back", tests, NULL, NULL);
}
