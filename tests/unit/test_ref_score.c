/* The scorer by the reference, against long double formulas written from ops/score.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/fixture.h"
#include "support/score.h"

enum { HEAD_MAX = 128 };

typedef struct rig {
    fx_cache cache;
    score_shape shape;
    score_layout at;
    float *params;
    backend *b;
    kv_pool pool;
    step step;
    buffer *on_device;
} rig;

static void rig_open(rig *r, const fx_spec *spec, uint32_t hidden, uint32_t levels, uint64_t seed)
{
    uint64_t rng = seed;
    const size_t rows = (size_t)spec->layers * spec->kv_heads;
    *r = (rig){.shape = {spec->head_dim, hidden, levels}};
    r->at = score_layout_of(r->shape);
    fx_cache_new(&r->cache, spec, &rng);
    fx_cache_fill_merges(&r->cache, FX_NORMAL, &rng);
    r->params = fx_score(r->shape, rows, 1, &rng);
    assert_int_equal(backend_ref_open(&r->b, 2, 0), DCM_OK);
    fx_upload(&r->cache, fx_make_plain, r->b, &r->pool, &r->step);
    r->on_device = fx_make_plain(r->b, "params", r->params, rows * r->at.row * sizeof *r->params, 4);
}

static void rig_close(rig *r)
{
    buffer_free(&r->on_device);
    fx_free_uploaded(&r->pool, &r->step);
    backend_close(&r->b);
    fx_cache_free(&r->cache);
    free(r->params);
}

static void merged(const rig *r, uint32_t m, uint32_t layer, uint32_t h, long double *y)
{
    const uint32_t d = r->shape.head_dim;
    const merge_pair *pair = fx_merge(&r->cache, m);
    const float *p = r->params + (layer * r->cache.spec.kv_heads + h) * r->at.row;
    const float *rot = fx_merge_rot(&r->cache, m, 2);
    long double a[2 * HEAD_MAX], b[2 * HEAD_MAX], k[HEAD_MAX];
    fx_score_unit(&r->cache, layer, h, pair->a, fx_merge_rot(&r->cache, m, 0), a);
    fx_score_unit(&r->cache, layer, h, pair->b, fx_merge_rot(&r->cache, m, 1), b);
    fx_score_merge(r->shape, p, pair->level, a, b, y);
    memcpy(k, y, d * sizeof *k);
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t one, two;
        fx_pair(r->cache.spec.rope, d, i, &one, &two);
        y[one] = k[one] * rot[2 * i] - k[two] * rot[2 * i + 1];
        y[two] = k[one] * rot[2 * i + 1] + k[two] * rot[2 * i];
    }
}

/* Compare one result, and put what came out into the image of what is expected everywhere else. */
static void check_row(rig *r, void *const *got, uint32_t m, uint32_t layer, uint32_t h)
{
    const uint32_t d = r->shape.head_dim, out = fx_merge(&r->cache, m)->out;
    long double want[2 * HEAD_MAX];
    merged(r, m, layer, h, want);
    for (uint32_t c = 0; c < 2 * d; c++) {
        const double value = fx_get(&r->cache, got, layer, c >= d, h, out, c % d);
        const double bound =
            r->cache.spec.type == KV_F16 ? fabs(value) * 0x1.002p-11 + 0x1.002p-25 : fabs(value) * 0x1p-23 + 1e-13;
        if (!(fabsl(value - want[c]) <= bound))
            fail_msg("merge %u layer %u head %u channel %u: %.9g, not %.9Lg", m, layer, h, c, value, want[c]);
        fx_put(&r->cache, layer, c >= d, h, out, c % d, value);
    }
}

static void run(const fx_spec *spec, uint32_t hidden, uint32_t levels, uint32_t layer, uint32_t layers, uint64_t seed)
{
    rig r;
    void *got[KV_BLOCKS];
    rig_open(&r, spec, hidden, levels, seed);
    const merge_score_args args = {&r.pool, &r.step, layer, layers, spec->rope, r.shape, r.on_device};
    assert_int_equal(r.b->ops->merge_score(r.b, &args), DCM_OK);
    for (uint32_t i = 0; i < r.pool.n_blocks; i++)
        got[i] = r.pool.block[i]->handle;
    for (uint32_t m = 0; m < spec->n_merges; m++)
        for (uint32_t l = layer; l < layer + layers; l++)
            for (uint32_t h = 0; h < spec->kv_heads; h++)
                check_row(&r, got, m, l, h);
    for (uint32_t i = 0; i < r.pool.n_blocks; i++)
        assert_memory_equal(got[i], r.cache.block[i], r.cache.block_bytes[i]);
    rig_close(&r);
}

static void merges(void **state)
{
    (void)state;
    run(&(fx_spec){2, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 9}, 32, 9, 0, 2, 1);
    run(&(fx_spec){3, 2, 4, 18, KV_F32, ROPE_INTERLEAVED, .n_merges = 6}, 16, 3, 1, 1, 2);
    run(&(fx_spec){2, 2, 4, 48, KV_F32, ROPE_HALF, .n_merges = 5}, 64, 1, 0, 2, 3);
    run(&(fx_spec){1, 1, 1, 128, KV_F16, ROPE_HALF, .n_merges = 7}, 48, 2, 0, 1, 4);
}

/* What is told of one KV head of merge m must explain its result, whose residual is nothing. */
static void check_choice(const rig *r, void *const *got, const dcm_merge_choice *choice, uint32_t m, uint32_t h)
{
    const uint32_t d = r->shape.head_dim;
    const merge_pair *pair = fx_merge(&r->cache, m);
    const long double weight = 1 / (1 + expl(-(long double)choice->sharp[1] * choice->gap));
    long double a[2 * HEAD_MAX], b[2 * HEAD_MAX], values = 0, keys = 0;
    fx_score_unit(&r->cache, 0, h, pair->a, fx_merge_rot(&r->cache, m, 0), a);
    fx_score_unit(&r->cache, 0, h, pair->b, fx_merge_rot(&r->cache, m, 1), b);
    for (uint32_t c = 0; c < d; c++) {
        const long double old = a[d + c], new = b[d + c], want = weight *old + (1 - weight) * new;
        assert_true(fabsl(fx_get(&r->cache, got, 0, 1, h, pair->out, c) - want) <= 1e-5 * (fabsl(old) + fabsl(new)));
        values = fmaxl(values, fabsl(old - new));
    }
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t one, two;
        fx_pair(r->cache.spec.rope, d, i, &one, &two);
        keys = fmaxl(keys, hypotl(a[one] - b[one], a[two] - b[two]));
    }
    assert_true(fabsl(choice->spread[0] - keys) <= 1e-6 * keys && fabsl(choice->spread[1] - values) <= 1e-6 * values);
    assert_true(choice->level == pair->level);
    const float *p = r->params + h * r->at.row;
    assert_true(choice->sharp[0] == p[r->at.sharp_k] && choice->sharp[1] == p[r->at.sharp_v]);
}

static void choices(void **state)
{
    const fx_spec spec = {1, 3, 9, 32, KV_F32, ROPE_HALF, .n_merges = 5};
    (void)state;
    for (int how = 0; how < 3; how++) { /* sums in double; in float; strict */
        rig r;
        void *got[KV_BLOCKS];
        dcm_merge_choice seen[5 * 3];
        rig_open(&r, &spec, 16, 3, 5);
        for (uint32_t h = 0; h < spec.kv_heads; h++) {
            float *p = r.params + h * r.at.row;
            memset(p + r.at.u, 0, (r.at.prior - r.at.u) * sizeof *p);
        }
        assert_int_equal(r.b->ops->write(r.on_device, 0, r.params, r.on_device->bytes), DCM_OK);
        if (how == 1)
            backend_ref_sum_floats(r.b, true);
        if (how == 2)
            backend_ref_strict(r.b);
        const merge_score_args args = {&r.pool, &r.step, 0, 1, spec.rope, r.shape, r.on_device, seen};
        assert_int_equal(r.b->ops->merge_score(r.b, &args), DCM_OK);
        for (uint32_t i = 0; i < r.pool.n_blocks; i++)
            got[i] = r.pool.block[i]->handle;
        for (uint32_t m = 0; m < spec.n_merges; m++)
            for (uint32_t h = 0; h < spec.kv_heads; h++)
                check_choice(&r, got, &seen[m * spec.kv_heads + h], m, h);
        rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(merges), cmocka_unit_test(choices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
