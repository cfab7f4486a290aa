/* The OpenCL back end's own part, on every device: buffers and their limits, staged writes, scratch, matrices in
 * several buffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ops/ops_cl.h"
#include "support/fixture.h"
#include "each_device.h"

static void *fresh(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

/* ---- Writes ---- */

/* Pieces of odd sizes, larger than all staging together; the source is spoilt as soon as each write returns. */
static void check_writes(backend *b)
{
    const size_t bytes = 5 * 1000 * 1000;
    const size_t pieces[] = {1, 3000000, 77, 262144, 262145, 0};
    uint8_t *expected = fresh(bytes), *source = fresh(bytes), *seen = fresh(bytes);
    uint64_t seed = 1;
    buffer *buf;
    assert_int_equal(b->ops->buffer_new(b, bytes, MEM_TABLES, &buf), DCM_OK);
    for (size_t i = 0; i < bytes; i++)
        expected[i] = (uint8_t)rng_next(&seed);
    for (size_t at = 0, i = 0; at < bytes; i++) {
        const size_t left = bytes - at, size = i < 6 ? pieces[i] : 99991, piece = size < left ? size : left;
        memcpy(source, expected + at, piece);
        assert_int_equal(b->ops->write(buf, at, source, piece), DCM_OK);
        memset(source, 0xee, piece);
        at += piece;
    }
    assert_int_equal(b->ops->read(buf, 0, seen, bytes), DCM_OK);
    assert_memory_equal(seen, expected, bytes);
    assert_int_equal(b->ops->read(buf, 12345, seen, 99), DCM_OK);
    assert_memory_equal(seen, expected + 12345, 99);
    assert_int_equal(b->ops->sync(b), DCM_OK);
    buffer_free(&buf);
    assert_null(buf);
    free(expected);
    free(source);
    free(seen);
}

static void writes(void **state)
{
    (void)state;
    on_every_device(check_writes);
}

/* ---- Limits and counters ---- */

static void check_limits(backend *b)
{
    const mem_counter before = b->memory;
    buffer *a, *c, *scratch, *grown;
    b->max_memory = before.total + 1000;
    assert_int_equal(b->ops->buffer_new(b, 1001, MEM_CACHE, &a), DCM_ERR_MEMORY);
    assert_null(a);
    assert_non_null(strstr(dcm_error(), "1001"));
    assert_int_equal(b->ops->buffer_new(b, 600, MEM_CACHE, &a), DCM_OK);
    assert_int_equal(b->memory.now[MEM_CACHE], before.now[MEM_CACHE] + 600);
    assert_int_equal(b->ops->buffer_new(b, 401, MEM_TABLES, &c), DCM_ERR_MEMORY);
    assert_int_equal(b->ops->buffer_new(b, 400, MEM_TABLES, &c), DCM_OK);
    buffer_free(&a);
    buffer_free(&c);
    b->max_memory = SIZE_MAX;
    b->max_alloc = 5000;
    assert_int_equal(b->ops->buffer_new(b, 5001, MEM_CACHE, &a), DCM_ERR_MEMORY);
    assert_int_equal(clop_scratch(b, CLOP_SCRATCH_DENSE, 5001, &scratch), DCM_ERR_MEMORY);
    assert_int_equal(memcmp(b->memory.now, before.now, sizeof before.now), 0);
    assert_int_equal(clop_scratch(b, CLOP_SCRATCH_DENSE, 3000, &scratch), DCM_OK);
    assert_int_equal(clop_scratch(b, CLOP_SCRATCH_DENSE, 100, &grown), DCM_OK);
    assert_ptr_equal(grown, scratch);
    assert_int_equal(clop_scratch(b, CLOP_SCRATCH_DENSE, 4000, &grown), DCM_OK);
    assert_true(grown->bytes >= 4000);
    assert_int_equal(b->memory.total, before.total + 4000);
}

static void limits(void **state)
{
    (void)state;
    on_every_device(check_limits);
}

/* ---- Matrices ---- */

enum { ROWS = 100, COLS = 96, BLOCK_BYTES = 34, BLOCKS = ROWS * COLS / 32 };

/* Random Q8_0 blocks; the scales are halves from 2^-7. */
static void random_blocks(uint8_t *data)
{
    uint64_t seed = 7;
    for (size_t i = 0; i < (size_t)BLOCKS * BLOCK_BYTES; i++)
        data[i] = i % BLOCK_BYTES == 0 ? 0x00 : i % BLOCK_BYTES == 1 ? 0x20 : (uint8_t)rng_next(&seed);
}

/* W x for a fixed x. */
static void product(backend *b, const matrix *w, float *y)
{
    float x[COLS];
    buffer *bx, *by;
    for (int i = 0; i < COLS; i++)
        x[i] = (float)(i * 37 % 101) / 50 - 1;
    assert_int_equal(b->ops->buffer_new(b, sizeof x, MEM_SCRATCH, &bx), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, ROWS * sizeof(float), MEM_SCRATCH, &by), DCM_OK);
    assert_int_equal(b->ops->write(bx, 0, x, sizeof x), DCM_OK);
    const linear_args args = {.w = w, .n = 1, .x = bx, .y = by, .ldy = ROWS};
    assert_int_equal(b->ops->linear(b, &args), DCM_OK);
    assert_int_equal(b->ops->read(by, 0, y, ROWS * sizeof(float)), DCM_OK);
    buffer_free(&bx);
    buffer_free(&by);
}

/* A largest buffer of two tiles of 16 rows makes four buffers of it: the same bits as from one. */
static void check_parts(backend *b)
{
    uint8_t *data = fresh((size_t)BLOCKS * BLOCK_BYTES);
    float whole[ROWS], parts[ROWS], again[ROWS];
    matrix *m;
    random_blocks(data);
    for (int shape = CLOP_SHAPE_WIDE; shape <= CLOP_SHAPE_GROUP; shape++) {
        const size_t max_alloc = b->max_alloc, before = b->memory.now[MEM_WEIGHTS];
        clop_set_shape(b, shape);
        assert_int_equal(b->ops->matrix_new(b, QUANT_Q8_0, ROWS, COLS, data, &m), DCM_OK);
        assert_int_equal(b->memory.now[MEM_WEIGHTS], before + m->bytes);
        product(b, m, whole);
        product(b, m, again);
        assert_memory_equal(whole, again, sizeof whole);
        matrix_free(&m);
        b->max_alloc = 2 * 16 * (size_t)COLS / 32 * BLOCK_BYTES;
        assert_int_equal(b->ops->matrix_new(b, QUANT_Q8_0, ROWS, COLS, data, &m), DCM_OK);
        b->max_alloc = max_alloc;
        product(b, m, parts);
        assert_memory_equal(whole, parts, sizeof whole);
        matrix_free(&m);
        assert_null(m);
        assert_int_equal(b->memory.now[MEM_WEIGHTS], before);
        b->max_alloc = 1000;
        assert_int_equal(b->ops->matrix_new(b, QUANT_Q8_0, ROWS, COLS, data, &m), DCM_ERR_MEMORY);
        assert_null(m);
        b->max_alloc = max_alloc;
    }
    free(data);
}

static void parts(void **state)
{
    (void)state;
    on_every_device(check_parts);
}

/* Each allocation fails in turn: nothing stays counted, and the next attempt works. */
static void check_failures(backend *b)
{
    uint8_t *data = fresh((size_t)BLOCKS * BLOCK_BYTES);
    const size_t before = b->memory.total;
    dcm_status status = DCM_ERR_MEMORY;
    matrix *m;
    long n = 1;
    random_blocks(data);
    for (; n < 100 && status != DCM_OK; n++) {
        mem_fail_at(n);
        status = b->ops->matrix_new(b, QUANT_Q8_0, ROWS, COLS, data, &m);
        mem_fail_at(0);
        if (status != DCM_OK) {
            assert_int_equal(status, DCM_ERR_MEMORY);
            assert_null(m);
            assert_int_equal(b->memory.total, before);
        }
    }
    assert_in_range(n, 4, 99);
    matrix_free(&m);
    free(data);
}

static void failures(void **state)
{
    (void)state;
    on_every_device(check_failures);
}

enum { UNITS = 77, HEADS = 6, KV_HEADS = 2, HEAD_DIM = 16 };

/* Attention over a cache to which the token's own unit is yet to be added, in one op or in two. */
static void attend(backend *b, const fx_cache *cache, const float *qkv, bool together, float *out, void *pool_bytes)
{
    const size_t row = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    kv_pool pool;
    step step;
    buffer *in, *to;
    fx_upload(cache, fx_make_plain, b, &pool, &step);
    in = fx_make_plain(b, "qkv", qkv, row * sizeof(float), 4);
    assert_int_equal(b->ops->buffer_new(b, HEADS * HEAD_DIM * sizeof(float), MEM_SCRATCH, &to), DCM_OK);
    if (!together)
        assert_int_equal(b->ops->kv_store(b, &(kv_store_args){&pool, &step, 1, cache->spec.rope, in, HEADS}), DCM_OK);
    const attention_args args = {&pool, &step, 1, cache->spec.rope, in, HEADS, to, .store = together};
    assert_int_equal(b->ops->attention(b, &args), DCM_OK);
    assert_int_equal(b->ops->read(to, 0, out, HEADS * HEAD_DIM * sizeof(float)), DCM_OK);
    for (uint32_t i = 0; i < pool.n_blocks; i++) {
        assert_int_equal(b->ops->read(pool.block[i], 0, pool_bytes, pool.block[i]->bytes), DCM_OK);
        pool_bytes = (char *)pool_bytes + pool.block[i]->bytes;
    }
    buffer_free(&in);
    buffer_free(&to);
    fx_free_uploaded(&pool, &step);
}

/* Storing and attending in one op leaves the bits that two leave, in the cache and in the result. */
static void check_store(backend *b)
{
    enum { ROOM = 1 << 20 };
    uint64_t rng = 5;
    char *pools = fresh(2 * ROOM);
    float qkv[(HEADS + 2 * KV_HEADS) * HEAD_DIM], out[2][HEADS * HEAD_DIM];
    fx_fill(qkv, 1, sizeof qkv / sizeof *qkv, FX_NORMAL, &rng);
    for (int form = 0; form < 8; form++) {
        const fx_spec spec = {2, KV_HEADS, HEADS, HEAD_DIM, form & 1 ? KV_F32 : KV_F16,
                              form & 2 ? ROPE_HALF : ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, UNITS - 4}};
        fx_cache cache;
        fx_cache_new(&cache, &spec, &rng);
        fx_cache_fill_views(&cache, 1, FX_NORMAL, &rng);
        cache.words[cache.step.slots] = fx_slot(&cache, &fx_view(&cache, 0)->range[1], UNITS - 5);
        memset(pools, 0, 2 * ROOM);
        clop_set_shape(b, form & 4 ? CLOP_SHAPE_GROUP : CLOP_SHAPE_WIDE);
        attend(b, &cache, qkv, false, out[0], pools);
        attend(b, &cache, qkv, true, out[1], pools + ROOM);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        assert_memory_equal(pools, pools + ROOM, ROOM);
        fx_cache_free(&cache);
    }
    free(pools);
}

static void stores(void **state)
{
    (void)state;
    on_every_device(check_store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes),
        cmocka_unit_test(limits),
        cmocka_unit_test(parts),
        cmocka_unit_test(failures),
        cmocka_unit_test(stores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
