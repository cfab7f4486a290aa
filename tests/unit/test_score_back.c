/* Gradients of the scorer by the reference, against finite differences of its formula in long double. */
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
#include "support/score.h"

enum { HEAD = 6, X = 2 * HEAD, LAYERS = 2, HEADS = 2, MERGES = 3, UNITS = 12, FIRST = 7, LAYER = 1 };

/* A layer's merges on their way back: the sources are units 2m and 2m + 1, the results FIRST + m. */
typedef struct rig {
    fx_cache cache;
    score_shape shape;
    score_layout at;
    uint32_t level;
    float magnitude;
    float *params, dunits[UNITS * 2 * HEADS * HEAD], dscores[UNITS * HEADS];
    long double unit[MERGES][HEADS][2][X]; /* a and b, the key turned back */
    long double size[MERGES][HEADS];       /* t */
} rig;

/* Gradient of unit `unit`, channel c of [k ; v]. */
static size_t gradient_at(uint32_t unit, uint32_t head, uint32_t c)
{
    return ((unit * 2 + (c >= HEAD)) * HEADS + head) * HEAD + c % HEAD;
}

static long double key_size(const long double *k)
{
    long double squares = 0;
    for (uint32_t c = 0; c < HEAD; c++)
        squares += k[c] * k[c];
    return sqrtl(squares);
}

/* Sum of results and of their bias times their gradients, and the magnitude term. */
static long double loss(const rig *r, uint32_t head)
{
    const float *p = r->params + (LAYER * HEADS + head) * r->at.row;
    const uint32_t level = r->level < r->shape.levels ? r->level : r->shape.levels - 1;
    long double sum = 0, y[X];
    for (uint32_t m = 0; m < MERGES; m++) {
        sum += (long double)p[r->at.bias + level] * r->dscores[(FIRST + m) * HEADS + head];
        fx_score_merge(r->shape, p, r->level, r->unit[m][head][0],
                       r->unit[m][head][1], y);
        for (uint32_t c = 0; c < X; c++)
            sum += y[c] * r->dunits[gradient_at(FIRST + m, head, c)];
        sum += r->magnitude * powl(key_size(y) / r->size[m][head] - 1, 2);
    }
    return sum;
}

static void rig_open(rig *r, rope_kind rope, uint32_t level, float magnitude)
{
    uint64_t rng = 11;
    const fx_spec spec = {LAYERS, HEADS, HEADS, HEAD, KV_F32, rope, .n_merges = 2 * MERGES};
    *r = (rig){.shape = {HEAD, 16, 2}, .level = level, .magnitude = magnitude};
    r->at = score_layout_of(r->shape);
    fx_cache_new(&r->cache, &spec, &rng);
    fx_cache_fill_merges(&r->cache, FX_NORMAL, &rng);
    r->params = fx_score(r->shape, LAYERS * HEADS, 1, &rng);
    r->cache.step.n_merges = MERGES;
    fx_fill(r->dunits, 1, sizeof r->dunits / sizeof *r->dunits, FX_NORMAL, &rng);
    fx_fill(r->dscores, 1, sizeof r->dscores / sizeof *r->dscores, FX_NORMAL, &rng);
    for (uint32_t m = 0; m < MERGES; m++) {
        merge_pair *pair = (merge_pair *)(r->cache.words + r->cache.step.merges) + m;
        pair->out = fx_merge(&r->cache, MERGES + m)->a; /* results in slots of their own */
        pair->level = level;
        for (uint32_t h = 0; h < HEADS; h++)
            for (int s = 0; s < 2; s++) {
                fx_score_unit(&r->cache, LAYER, h, s ? pair->b : pair->a, fx_merge_rot(&r->cache, m, (uint32_t)s),
                              r->unit[m][h][s]);
                r->size[m][h] += key_size(r->unit[m][h][s]) / 2;
            }
    }
}

/* What came back, and what it was added to. */
typedef struct result {
    float *before, *dparams, dunits[UNITS * 2 * HEADS * HEAD], loss[HEADS];
    size_t bytes;
} result;

static void run(rig *r, result *out)
{
    uint64_t rng = 3;
    backend *b;
    kv_pool pool;
    step s;
    grad_unit units[UNITS] = {0};
    for (uint32_t m = 0; m < MERGES; m++)
        units[FIRST + m].a = 2 * m, units[FIRST + m].b = 2 * m + 1;
    out->bytes = (size_t)LAYERS * HEADS * r->at.row * sizeof(float);
    out->before = fx_alloc(out->bytes);
    out->dparams = fx_alloc(out->bytes);
    fx_fill(out->before, 1, out->bytes / sizeof(float), FX_NORMAL, &rng);
    assert_int_equal(backend_ref_open(&b, 2, 0), DCM_OK);
    fx_upload(&r->cache, fx_make_plain, b, &pool, &s);
    buffer *params = fx_make_plain(b, "params", r->params, out->bytes, 4);
    buffer *dparams = fx_make_plain(b, "dparams", out->before, out->bytes, 4);
    buffer *dunits = fx_make_plain(b, "dunits", r->dunits, sizeof r->dunits, 4);
    buffer *dscores = fx_make_plain(b, "dscores", r->dscores, sizeof r->dscores, 4);
    buffer *loss_of = fx_make_plain(b, "loss", (float[HEADS]){1, 2}, sizeof out->loss, 4);
    grad_units list = {fx_make_plain(b, "units", units, sizeof units, 4), UNITS};
    const rope_kind rope = r->cache.spec.rope;
    const merge_score_args forward = {&pool, &s, LAYER, 1, rope, r->shape, params};
    assert_int_equal(b->ops->merge_score(b, &forward), DCM_OK);
    const merge_score_back_args back = {&pool,  &s,      &list,  FIRST,   LAYER,        rope,   r->shape,
                                        params, dparams, dunits, dscores, r->magnitude, loss_of};
    assert_int_equal(b->ops->grad->merge_score_back(b, &back), DCM_OK);
    b->ops->read(dparams, 0, out->dparams, out->bytes);
    b->ops->read(dunits, 0, out->dunits, sizeof out->dunits);
    b->ops->read(loss_of, 0, out->loss, sizeof out->loss);
    buffer *made[] = {params, dparams, dunits, dscores, loss_of, list.list};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        buffer_free(&made[i]);
    fx_free_uploaded(&pool, &s);
    backend_close(&b);
}

static void compare(const char *what, size_t i, double got, long double want)
{
    if (!(fabsl(got - want) <= 2e-6L + 2e-5L * fabsl(want)))
        fail_msg("%s %zu: %.9g, by differences %.9Lg", what, i, got, want);
}

static void check_params(rig *r, const result *out)
{
    for (uint32_t row = 0; row < LAYERS * HEADS; row++)
        for (size_t i = 0; i < r->at.row; i++) {
            const size_t at = row * r->at.row + i;
            if (row / HEADS != LAYER || i < r->at.w1 || i > r->at.sharp_v) {
                assert_true(out->dparams[at] == out->before[at]);
                continue;
            }
            const float kept = r->params[at], up = kept + 0x1p-11f, down = kept - 0x1p-11f;
            r->params[at] = up;
            const long double above = loss(r, row % HEADS);
            r->params[at] = down;
            const long double slope = (above - loss(r, row % HEADS)) / ((long double)up - down);
            r->params[at] = kept;
            compare("parameter", i, (double)out->dparams[at] - out->before[at], slope);
        }
}

static void check_units(rig *r, const result *out)
{
    for (uint32_t unit = 0; unit < UNITS; unit++)
        for (uint32_t h = 0; h < HEADS; h++)
            for (uint32_t c = 0; c < X; c++) {
                const size_t at = gradient_at(unit, h, c);
                if (unit >= 2 * MERGES) {
                    assert_true(out->dunits[at] == r->dunits[at]);
                    continue;
                }
                long double *x = &r->unit[unit / 2][h][unit % 2][c];
                const long double kept = *x, turn = 0x1p-12L;
                *x = kept + turn;
                const long double above = loss(r, h);
                *x = kept - turn;
                const long double slope = (above - loss(r, h)) / (2 * turn);
                *x = kept;
                compare("unit's channel", at, (double)out->dunits[at] - r->dunits[at], slope);
            }
}

/* The magnitude's value alone, in `loss` beside what it held. */
static void check_loss(rig *r, const result *out)
{
    for (uint32_t h = 0; h < HEADS; h++) {
        const long double all = loss(r, h);
        const float magnitude = r->magnitude;
        r->magnitude = 0;
        compare("loss", h, out->loss[h] - (1.0 + h), all - loss(r, h));
        r->magnitude = magnitude;
    }
}

static void differences(void **state)
{
    (void)state;
    for (int form = 0; form < 4; form++) {
        rig r;
        result out;
        rig_open(&r, form % 2 ? ROPE_HALF : ROPE_INTERLEAVED, (uint32_t)form, form < 2 ? 0 : 0.7f);
        run(&r, &out);
        check_params(&r, &out);
        check_units(&r, &out);
        check_loss(&r, &out);
        free(out.before);
        free(out.dparams);
        fx_cache_free(&r.cache);
        free(r.params);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(differences)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
