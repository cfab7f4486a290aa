/* Gathering and applying merges by the reference, against long double formulas written from ops.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "support/fixture.h"

static const fx_spec specs[] = {{1, 1, 1, 2, KV_F32, ROPE_INTERLEAVED, .n_merges = 1},
                                {3, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n_merges = 40},
                                {2, 2, 4, 48, KV_F32, ROPE_HALF, .n_merges = 5},
                                {2, 1, 5, 18, KV_F32, ROPE_INTERLEAVED, .n_merges = 3},
                                {2, 3, 3, 20, KV_F16, ROPE_HALF, .n_merges = 4}};
enum { SPECS = sizeof specs / sizeof *specs };

/* The vector of `slot` turned back by the inverse of `rotation` (keys), in half-split channel order. */
static void plain(const fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, const float *rotation,
                  long double *out)
{
    const uint32_t d = cache->spec.head_dim;
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t first = i, second = i + d / 2;
        if (w == 0)
            fx_pair(cache->spec.rope, d, i, &first, &second);
        const long double x = fx_get(cache, cache->block, layer, w, h, slot, first);
        const long double y = fx_get(cache, cache->block, layer, w, h, slot, second);
        const long double c = w == 0 ? rotation[2 * i] : 1, s = w == 0 ? rotation[2 * i + 1] : 0;
        out[i] = c * x + s * y;
        out[i + d / 2] = c * y - s * x;
    }
}

typedef struct rig {
    fx_cache cache;
    backend *b;
    kv_pool pool;
    step step;
    uint32_t layer, layers;
    size_t rows;
} rig;

/* All layers for even seeds, the last one alone for odd ones. */
static void rig_open(rig *r, const fx_spec *spec, int threads, uint64_t seed)
{
    uint64_t rng = seed;
    *r = (rig){.layer = seed % 2 ? spec->layers - 1 : 0, .layers = seed % 2 ? 1 : spec->layers};
    r->rows = (size_t)spec->n_merges * r->layers * 2 * spec->kv_heads;
    fx_cache_new(&r->cache, spec, &rng);
    fx_cache_fill_merges(&r->cache, FX_NORMAL, &rng);
    fx_put(&r->cache, 0, 0, 0, fx_merge(&r->cache, 0)->a, 1, -0.0); /* a copy keeps its sign */
    assert_int_equal(backend_ref_open(&r->b, threads, 0), DCM_OK);
    fx_upload(&r->cache, fx_make_plain, r->b, &r->pool, &r->step);
}

static void rig_close(rig *r)
{
    fx_free_uploaded(&r->pool, &r->step);
    backend_close(&r->b);
    fx_cache_free(&r->cache);
}

/* Run `check` on every row of the documented order. */
static void each_row(rig *r,
                     void (*check)(rig *, size_t row, uint32_t m, uint32_t layer, int w, uint32_t h, void *data),
                     void *data)
{
    const fx_spec *spec = &r->cache.spec;
    for (uint32_t m = 0; m < spec->n_merges; m++)
        for (uint32_t l = 0; l < r->layers; l++)
            for (uint32_t w = 0; w < 2; w++)
                for (uint32_t h = 0; h < spec->kv_heads; h++)
                    check(r, ((m * r->layers + l) * 2 + w) * spec->kv_heads + h, m, r->layer + l, (int)w, h, data);
}

static void check_gathered(rig *r, size_t row, uint32_t m, uint32_t layer, int w, uint32_t h, void *data)
{
    const uint32_t d = r->cache.spec.head_dim;
    const merge_pair *pair = fx_merge(&r->cache, m);
    const float *x = (const float *)data + row * 2 * d;
    long double want[2 * 256];
    plain(&r->cache, layer, w, h, pair->a, fx_merge_rot(&r->cache, m, 0), want);
    plain(&r->cache, layer, w, h, pair->b, fx_merge_rot(&r->cache, m, 1), want + d);
    for (uint32_t c = 0; c < 2 * d; c++)
        if (!(fabsl(x[c] - want[c]) <= fabsl(want[c]) * 0x1p-24L + 1e-14L))
            fail_msg("row %zu, %u: %.9g, not %.9Lg", row, c, x[c], want[c]);
}

static void gather(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * SPECS; i++) {
        const fx_spec *spec = specs + i / 2;
        float *first = NULL;
        for (int threads = 1; threads <= 4; threads += 3) {
            rig r;
            rig_open(&r, spec, threads, 90 + i);
            const size_t bytes = r.rows * 2 * spec->head_dim * 4;
            float *x = fx_alloc(bytes);
            buffer *bx = fx_make_plain(r.b, "x", x, bytes, 4);
            const merge_gather_args args = {&r.pool, &r.step, r.layer, r.layers, spec->rope, bx};
            assert_int_equal(r.b->ops->merge_gather(r.b, &args), DCM_OK);
            assert_int_equal(r.b->ops->read(bx, 0, x, bytes), DCM_OK);
            each_row(&r, check_gathered, x);
            if (first)
                assert_memory_equal(first, x, bytes);
            else
                first = fx_alloc(bytes), memcpy(first, x, bytes);
            buffer_free(&bx);
            rig_close(&r);
            free(x);
        }
        free(first);
    }
}

typedef struct applied {
    merge_mode mode;
    float weight;
    const float *head;
    void *blocks[KV_BLOCKS];
    fx_cache after; /* borrows everything from the rig's; its blocks are those expected */
} applied;

static void check_applied(rig *r, size_t row, uint32_t m, uint32_t layer, int w, uint32_t h, void *data)
{
    applied *a = data;
    const uint32_t d = r->cache.spec.head_dim;
    const merge_pair *pair = fx_merge(&r->cache, m);
    const float *turn = fx_merge_rot(&r->cache, m, 2);
    long double one[256], two[256];
    plain(&r->cache, layer, w, h, pair->a, fx_merge_rot(&r->cache, m, 0), one);
    plain(&r->cache, layer, w, h, pair->b, fx_merge_rot(&r->cache, m, 1), two);
    const long double s = a->mode == MERGE_GATE ? 1 / (1 + expl(-(long double)a->head[row])) : a->weight;
    for (uint32_t c = 0; a->mode == MERGE_COPY && c < d; c++) {
        const double got = fx_get(&r->cache, a->blocks, layer, w, h, pair->out, c);
        const double want = fx_get(&r->cache, r->cache.block, layer, w, h, pair->a, c);
        if (memcmp(&got, &want, sizeof got))
            fail_msg("copy, channel %u: %.9g, not %.9g", c, got, want);
        fx_put(&a->after, layer, w, h, pair->out, c, got);
    }
    if (a->mode == MERGE_COPY)
        return;
    for (uint32_t c = 0; c < d; c++)
        one[c] = a->mode == MERGE_DIRECT ? a->head[row * d + c] : s * one[c] + (1 - s) * two[c];
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t places[2] = {i, i + d / 2};
        long double want[2] = {one[i], one[i + d / 2]};
        if (w == 0) {
            fx_pair(r->cache.spec.rope, d, i, places, places + 1);
            want[0] = one[i] * turn[2 * i] - one[i + d / 2] * turn[2 * i + 1];
            want[1] = one[i] * turn[2 * i + 1] + one[i + d / 2] * turn[2 * i];
        }
        for (int k = 0; k < 2; k++) {
            const double got = fx_get(&r->cache, a->blocks, layer, w, h, pair->out, places[k]);
            const double bound =
                r->cache.spec.type == KV_F16 ? fabs(got) * 0x1.002p-11 + 0x1.002p-25 : fabs(got) * 0x1p-23 + 1e-14;
            if (!(fabsl(got - want[k]) <= bound))
                fail_msg("mode %d row %zu channel %u: %.9g, not %.9Lg", (int)a->mode, row, places[k], got, want[k]);
            fx_put(&a->after, layer, w, h, pair->out, places[k], got);
        }
    }
}

static void run_apply(const fx_spec *spec, merge_mode mode, float weight, uint64_t seed)
{
    rig r;
    uint64_t rng = seed;
    rig_open(&r, spec, 3, seed);
    const size_t width = mode == MERGE_DIRECT ? spec->head_dim : 1;
    float *head = fx_alloc(r.rows * width * 4);
    fx_fill(head, r.rows, width, FX_NORMAL, &rng);
    head[0] = -200; /* a gate that is closed */
    buffer *bh = fx_make_plain(r.b, "head", head, r.rows * width * 4, 4);
    const bool headed = mode == MERGE_GATE || mode == MERGE_DIRECT;
    const merge_apply_args args = {&r.pool, &r.step, r.layer, r.layers, spec->rope, mode, weight, headed ? bh : NULL};
    assert_int_equal(r.b->ops->merge_apply(r.b, &args), DCM_OK);
    applied a = {.mode = mode, .weight = weight, .head = head, .after = r.cache};
    for (uint32_t i = 0; i < r.pool.n_blocks; i++) {
        a.blocks[i] = r.pool.block[i]->handle;
        a.after.block[i] = fx_alloc(r.cache.block_bytes[i]);
        memcpy(a.after.block[i], r.cache.block[i], r.cache.block_bytes[i]);
    }
    each_row(&r, check_applied, &a);
    /* All else is as it was. */
    for (uint32_t i = 0; i < r.pool.n_blocks; i++) {
        assert_memory_equal(a.blocks[i], a.after.block[i], r.cache.block_bytes[i]);
        free(a.after.block[i]);
    }
    buffer_free(&bh);
    rig_close(&r);
    free(head);
}

static void apply(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * SPECS; i++) {
        run_apply(specs + i / 2, MERGE_CONSTANT, 0.5f, 120 + i);
        run_apply(specs + i / 2, MERGE_CONSTANT, 0, 130 + i);
        run_apply(specs + i / 2, MERGE_GATE, 0, 140 + i);
        run_apply(specs + i / 2, MERGE_DIRECT, 0, 150 + i);
        run_apply(specs + i / 2, MERGE_COPY, 0, 160 + i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gather), cmocka_unit_test(apply)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
