/* kv_store and attention of the reference, against long double formulas written from ops.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "base/rng.h"
#include "support/fixture.h"

static void rotate(const fx_cache *cache, long double *x, const float *rotation)
{
    for (uint32_t i = 0; i < cache->spec.head_dim / 2; i++) {
        uint32_t a, b;
        fx_pair(cache->spec.rope, cache->spec.head_dim, i, &a, &b);
        const long double c = rotation[2 * i], s = rotation[2 * i + 1], first = x[a], second = x[b];
        x[a] = c * first - s * second;
        x[b] = s * first + c * second;
    }
}

/* Channel c of query head h of token t, of the value the softmax average takes: its result, and sum of absolute terms.
 */
static void expect(const fx_cache *cache, uint32_t layer, const float *q, uint32_t t, uint32_t h, long double *out,
                   long double *absolute)
{
    const fx_spec *spec = &cache->spec;
    const view *v = fx_view(cache, t);
    const uint32_t d = spec->head_dim, kv = h * spec->kv_heads / spec->heads;
    long double sum = 0;
    memset(out, 0, d * sizeof *out);
    memset(absolute, 0, d * sizeof *absolute);
    for (uint32_t r = 0; r < v->n_ranges; r++)
        for (uint32_t j = 0; j < v->range[r].count; j++) {
            const uint32_t slot = fx_slot(cache, v->range + r, j);
            long double turned[256], score = 0;
            for (uint32_t c = 0; c < d; c++)
                turned[c] = q[c];
            rotate(cache, turned, fx_query_rot(cache, t, r));
            for (uint32_t c = 0; c < d; c++)
                score += turned[c] * fx_get(cache, cache->block, layer, 0, kv, slot, c);
            /* Scores of the test inputs are small enough for exp without a maximum. */
            const long double weight = expl(score / sqrtl(d) + fx_bias(cache, v->range + r, layer, kv));
            sum += weight;
            for (uint32_t c = 0; c < d; c++) {
                const long double term = weight * fx_get(cache, cache->block, layer, 1, kv, slot, c);
                out[c] += term;
                absolute[c] += fabsl(term);
            }
        }
    for (uint32_t c = 0; c < d; c++) {
        out[c] /= sum;
        absolute[c] /= sum;
    }
}

static void check_attention(const fx_cache *cache, uint32_t layer, const float *qkv, const float *out)
{
    const fx_spec *spec = &cache->spec;
    const uint32_t d = spec->head_dim, row = (spec->heads + 2 * spec->kv_heads) * d;
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t h = 0; h < spec->heads; h++) {
            long double want[256], absolute[256];
            expect(cache, layer, qkv + t * row + h * d, t, h, want, absolute);
            for (uint32_t c = 0; c < d; c++) {
                const float got = out[(t * spec->heads + h) * d + c];
                const long double bound = fabsl(want[c]) * 0x1p-24L + absolute[c] * 0x1p-40L + 0x1p-149L;
                if (!(fabsl(got - want[c]) <= bound))
                    fail_msg("token %u head %u channel %u: %.9g, not %.9Lg", t, h, c, got, want[c]);
            }
        }
}

static void run_attention(const fx_spec *spec, fx_input input, uint64_t seed)
{
    uint64_t rng = seed;
    const uint32_t layer = spec->layers - 1;
    const size_t row = (spec->heads + 2 * (size_t)spec->kv_heads) * spec->head_dim;
    const size_t out_bytes = (size_t)spec->n * spec->heads * spec->head_dim * 4;
    fx_cache cache;
    fx_cache_new(&cache, spec, &rng);
    fx_cache_fill_views(&cache, layer, input, &rng);
    float *qkv = fx_alloc(spec->n * row * 4), *first = fx_alloc(out_bytes), *out = fx_alloc(out_bytes);
    fx_pattern(qkv, spec->n * row * 4);
    for (uint32_t t = 0; t < spec->n; t++)
        fx_fill(qkv + t * row, 1, spec->heads * spec->head_dim, FX_NORMAL, &rng);
    for (int threads = 1; threads <= 4; threads++) {
        backend *b = NULL;
        kv_pool pool;
        step s;
        assert_int_equal(backend_ref_open(&b, threads, 0), DCM_OK);
        fx_upload(&cache, fx_make_plain, b, &pool, &s);
        buffer *bq = fx_make_plain(b, "qkv", qkv, spec->n * row * 4, 4),
               *bo = fx_make_plain(b, "out", out, out_bytes, 4);
        const attention_args args = {&pool, &s, layer, spec->rope, bq, spec->heads, bo};
        assert_int_equal(b->ops->attention(b, &args), DCM_OK);
        assert_int_equal(b->ops->read(bo, 0, threads == 1 ? first : out, out_bytes), DCM_OK);
        if (threads > 1)
            assert_memory_equal(first, out, out_bytes);
        fx_free_uploaded(&pool, &s);
        buffer_free(&bq), buffer_free(&bo);
        backend_close(&b);
    }
    check_attention(&cache, layer, qkv, first);
    free(qkv), free(first), free(out);
    fx_cache_free(&cache);
}

static void attention(void **state)
{
    static const fx_spec specs[] = {
        {1, 1, 1, 2, KV_F32, ROPE_HALF, .n = 1, .n_ranges = 1, .count = {1}},
        {1, 1, 1, 8, KV_F32, ROPE_INTERLEAVED, .n = 1, .n_ranges = 1, .count = {1}},
        {2, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 2, .n_ranges = 4, .count = {4, 37, 16, 5}, .bias = 0.7f},
        {3, 2, 2, 48, KV_F32, ROPE_HALF, .n = 3, .n_ranges = 3, .count = {1, 1, 63}, .bias = -0.25f},
        {1, 2, 8, 128, KV_F16, ROPE_HALF, .n = 1, .n_ranges = 2, .count = {65, 64}},
        {2, 1, 7, 20, KV_F32, ROPE_INTERLEAVED, .n = 5, .n_ranges = 14,
         .count = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, .bias = 0.1f},
    };
    (void)state;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        run_attention(specs + i, i % 2 ? FX_NORMAL : FX_TINY, 40 + i);
    run_attention(specs + 2, FX_NORMAL, 77);
    run_attention(specs + 3, FX_EQUAL, 78);
}

/* A score of 1e4 above all others takes all the weight; no infinity comes of it. */
static void one_unit_wins(void **state)
{
    const fx_spec spec = {1, 1, 1, 8, KV_F32, ROPE_HALF, .n = 1, .n_ranges = 1, .count = {100}};
    uint64_t rng = 9;
    fx_cache cache;
    kv_pool pool;
    step s;
    backend *b = NULL;
    float qkv[24], out[8];
    (void)state;
    fx_cache_new(&cache, &spec, &rng);
    fx_cache_fill_views(&cache, 0, FX_NORMAL, &rng);
    const uint32_t slot = fx_slot(&cache, fx_view(&cache, 0)->range, 57);
    long double turned[8];
    for (uint32_t c = 0; c < 8; c++)
        turned[c] = qkv[c] = 100;
    rotate(&cache, turned, fx_query_rot(&cache, 0, 0));
    for (uint32_t c = 0; c < 8; c++)
        fx_put(&cache, 0, 0, 0, slot, c, 2 * (double)turned[c]);
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    fx_upload(&cache, fx_make_plain, b, &pool, &s);
    buffer *bq = fx_make_plain(b, "qkv", qkv, sizeof qkv, 4), *bo = fx_make_plain(b, "out", out, sizeof out, 4);
    const attention_args args = {&pool, &s, 0, ROPE_HALF, bq, 1, bo};
    assert_int_equal(b->ops->attention(b, &args), DCM_OK);
    assert_int_equal(b->ops->read(bo, 0, out, sizeof out), DCM_OK);
    for (uint32_t c = 0; c < 8; c++)
        assert_true(out[c] == (float)fx_get(&cache, cache.block, 0, 1, 0, slot, c));
    fx_free_uploaded(&pool, &s);
    buffer_free(&bq), buffer_free(&bo);
    backend_close(&b);
    fx_cache_free(&cache);
}

/* The stored element nearest to `want`, and not another. */
static void check_stored(const fx_cache *cache, void *const *blocks, uint32_t layer, int w, uint32_t h, uint32_t slot,
                         uint32_t c, long double want)
{
    const double got = fx_get(cache, blocks, layer, w, h, slot, c);
    const double bound = cache->spec.type == KV_F16 ? fabs(got) * 0x1.002p-11 + 0x1.002p-25 : fabs(got) * 0x1p-23;
    if (!(fabsl(got - want) <= bound))
        fail_msg("slot %x head %u channel %u: %.9g, not %.9Lg", slot, h, c, got, want);
    fx_put((fx_cache *)cache, layer, w, h, slot, c, got); /* so that the images can be compared afterwards */
}

static void run_store(const fx_spec *spec, uint64_t seed)
{
    const uint32_t d = spec->head_dim, layer = spec->layers / 2, row = (spec->heads + 2 * spec->kv_heads) * d;
    uint64_t rng = seed;
    fx_cache cache;
    kv_pool pool;
    step s;
    backend *b = NULL;
    float *qkv = fx_alloc((size_t)spec->n * row * 4);
    fx_cache_new(&cache, spec, &rng);
    fx_fill(qkv, spec->n, row, FX_NORMAL, &rng);
    assert_int_equal(backend_ref_open(&b, 3, 0), DCM_OK);
    fx_upload(&cache, fx_make_plain, b, &pool, &s);
    buffer *bq = fx_make_plain(b, "qkv", qkv, (size_t)spec->n * row * 4, 4);
    const kv_store_args args = {&pool, &s, layer, spec->rope, bq, spec->heads};
    assert_int_equal(b->ops->kv_store(b, &args), DCM_OK);
    void *blocks[KV_BLOCKS];
    for (uint32_t i = 0; i < pool.n_blocks; i++)
        blocks[i] = pool.block[i]->handle;
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t h = 0; h < spec->kv_heads; h++) {
            const float *key = qkv + t * row + (spec->heads + h) * d, *value = key + spec->kv_heads * d;
            long double turned[256];
            for (uint32_t c = 0; c < d; c++)
                turned[c] = key[c];
            rotate(&cache, turned, fx_key_rot(&cache, t));
            for (uint32_t c = 0; c < d; c++) {
                check_stored(&cache, blocks, layer, 0, h, cache.words[cache.step.slots + t], c, turned[c]);
                check_stored(&cache, blocks, layer, 1, h, cache.words[cache.step.slots + t], c, value[c]);
            }
        }
    /* All else is as it was. */
    for (uint32_t i = 0; i < pool.n_blocks; i++)
        assert_memory_equal(blocks[i], cache.block[i], cache.block_bytes[i]);
    fx_free_uploaded(&pool, &s);
    buffer_free(&bq);
    backend_close(&b);
    fx_cache_free(&cache);
    free(qkv);
}

static void store(void **state)
{
    static const fx_spec specs[] = {{1, 1, 1, 2, KV_F32, ROPE_INTERLEAVED, .n = 1},
                                    {3, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 60},
                                    {3, 2, 4, 48, KV_F32, ROPE_HALF, .n = 19},
                                    {2, 1, 5, 18, KV_F16, ROPE_HALF, .n = 3}};
    (void)state;
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        run_store(specs + i, 60 + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(attention), cmocka_unit_test(one_unit_wins),
                                       cmocka_unit_test(store)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
