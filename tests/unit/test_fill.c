/*
 * A cache filled at once against one that was fed token by token: plan, slots and uploads of further steps must be the
 * same; and sessions filled on every device, which go on by the schedule.
 */
#include <dcm/dcm.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/half.h"
#include "cache/fill.h"
#include "cache/ring.h"
#include "support/tiny_model.h"
#include "ref_cache.h"

/* ---- Caches ---- */

static const dcm_cache_params policies[] = {
    {.kind = DCM_CACHE_DCM, .group = 2, .sinks = -1},
    {.kind = DCM_CACHE_DCM, .group = 4},
    {.kind = DCM_CACHE_DCM, .group = 64, .sinks = 7},
    {.kind = DCM_CACHE_DCM, .group = 16, .kv = DCM_KV_F32},
    {.kind = DCM_CACHE_FULL},
    {.kind = DCM_CACHE_WINDOW, .window = 5},
    {.kind = DCM_CACHE_WINDOW, .window = 300},
    {.kind = DCM_CACHE_WINDOW, .window = 40, .sinks = -1},
};

static void feed(cache *c, uint64_t tokens)
{
    const int32_t token = 3;
    while (tokens--) {
        assert_int_equal(cache_step_begin(c, &token, 1), DCM_OK);
        cache_step_done(c);
    }
}

static void check_same(const cache *filled, const cache *fed)
{
    assert_memory_equal(&filled->plan, &fed->plan, sizeof fed->plan);
    assert_int_equal(cache_units(filled), cache_units(fed));
    assert_int_equal(filled->slots.pool.n_blocks, fed->slots.pool.n_blocks);
    assert_memory_equal(filled->slots.pool.block_units, fed->slots.pool.block_units,
                        sizeof fed->slots.pool.block_units);
    assert_int_equal(filled->merges, fed->merges);
    assert_int_equal(filled->bytes_written, fed->bytes_written);
    for (uint32_t g = 0; g < RINGS; g++)
        for (uint64_t i = 0; i < ring_count(fed, g); i++)
            assert_int_equal(ring_get(filled, g, ring_first(fed, g) + i), ring_get(fed, g, ring_first(fed, g) + i));
}

/* Every number of every block, used or not, is finite; they differ, and fill the range. */
static void check_numbers(const cache *c)
{
    const kv_pool *pool = &c->slots.pool;
    double low = 1, high = -1;
    for (uint32_t b = 0; b < pool->n_blocks; b++)
        for (size_t i = 0; i < pool->block[b]->bytes / (pool->type == KV_F32 ? 4 : 2); i++) {
            const double x = pool->type == KV_F32 ? ((const float *)pool->block[b]->handle)[i]
                                                  : half_to_float(((const uint16_t *)pool->block[b]->handle)[i]);
            assert_true(x >= -1 && x <= 1);
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
    assert_true(low < -0.9 && high > 0.9);
}

static void as_if_fed(void **state)
{
    static const uint64_t depths[] = {1, 2, 3, 5, 7, 40, 63, 64, 65, 300, 301, 511, 1000, 2345};
    (void)state;
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            cache filled, fed;
            open_cache(&filled, &policies[p]);
            open_cache(&fed, &policies[p]);
            feed(&fed, depths[d]);
            assert_int_equal(cache_fill(&filled, depths[d], 1), DCM_OK);
            check_same(&filled, &fed);
            check_numbers(&filled);
            for (int i = 0; i < 150; i++) { /* on by the schedule: the same uploads, on the device too */
                feed(&filled, 1);
                feed(&fed, 1);
                assert_memory_equal(filled.words + filled.step.slots, fed.words + fed.step.slots, 4);
                assert_int_equal(filled.step.n_merges, fed.step.n_merges);
                assert_memory_equal(filled.words + filled.step.merges, fed.words + fed.step.merges,
                                    (size_t)fed.step.n_merges * sizeof(merge_pair));
            }
            check_same(&filled, &fed);
            for (uint32_t g = 0; g < RINGS; g++)
                for (uint64_t i = 0; i < ring_count(&fed, g); i++) {
                    const cache_ring *r = &filled.ring[g];
                    const uint64_t node = ring_first(&fed, g) + i;
                    const uint32_t *device = filled.slots.pool.table->handle;
                    assert_int_equal(device[r->offset + (node & r->mask)], ring_get(&fed, g, node));
                }
            cache_close(&filled);
            cache_close(&fed);
        }
}

/* What no memory allows is refused with the bytes, and leaves nothing behind. */
static void no_memory(void **state)
{
    cache c;
    (void)state;
    open_cache(&c, &(dcm_cache_params){.kind = DCM_CACHE_FULL});
    ref->max_memory = 100000;
    assert_int_equal(cache_fill(&c, 100000, 1), DCM_ERR_MEMORY);
    assert_non_null(strstr(dcm_error(), "bytes"));
    ref->max_memory = SIZE_MAX;
    cache_close(&c);
    for (long n = 1;; n++) {
        open_cache(&c, &policies[2]);
        mem_fail_at(n);
        const dcm_status status = cache_fill(&c, 1000, 1);
        mem_fail_at(0);
        cache_close(&c);
        if (status == DCM_OK)
            break;
        assert_int_equal(status, DCM_ERR_MEMORY);
        assert_true(n < 100);
    }
}

/* ---- Sessions ---- */

static void must(dcm_status status)
{
    if (status != DCM_OK)
        fail_msg("%s", dcm_error());
}

static void check_session(dcm_model *model, const dcm_cache_params *params, uint64_t depth)
{
    dcm_model_info info;
    dcm_session *filled, *fed;
    dcm_session_stats a, b;
    const int32_t id = 5;
    dcm_model_get_info(model, &info);
    float *logits = malloc(info.vocab * sizeof *logits);
    assert_non_null(logits);
    must(dcm_session_open(&filled, model, params));
    must(dcm_session_open(&fed, model, params));
    must(dcm_session_fill(filled, depth, 7));
    assert_int_equal(dcm_session_fill(filled, depth, 7), DCM_ERR_USAGE);
    for (uint64_t i = 0; i < depth; i++)
        must(dcm_session_feed(fed, &id, 1, NULL));
    for (int i = 0; i < 20; i++) {
        dcm_session_get_stats(filled, &a);
        dcm_session_get_stats(fed, &b);
        assert_int_equal(a.tokens, b.tokens);
        assert_int_equal(a.merges, b.merges);
        assert_int_equal(a.units, b.units);
        assert_int_equal(a.cache_bytes, b.cache_bytes);
        assert_int_equal(a.cache_written, b.cache_written);
        must(dcm_session_feed(filled, &id, 1, logits));
        must(dcm_session_feed(fed, &id, 1, NULL));
        for (uint32_t k = 0; k < info.vocab; k++)
            assert_true(isfinite(logits[k]));
    }
    must(dcm_session_feed(filled, (const int32_t[40]){1, 2, 3}, 40, logits)); /* and as a prompt */
    free(logits);
    dcm_session_close(&filled);
    dcm_session_close(&fed);
}

static void sessions(void **state)
{
    char path[] = "/tmp/dcm-fill-XXXXXX", name[32] = "ref";
    dcm_device_entry *entries;
    size_t count;
    (void)state;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(tiny_model_save(NULL, path));
    must(dcm_device_list(&entries, &count));
    for (size_t i = 0; i <= count; i++) {
        dcm_device *device = NULL;
        dcm_model *model = NULL;
        if (i)
            snprintf(name, sizeof name, "%u.%u", entries[i - 1].platform_index, entries[i - 1].device_index);
        if (i && !entries[i - 1].usable)
            continue;
        must(dcm_device_open(&device, &(dcm_device_params){.name = name, .threads = i ? 0 : 1}));
        must(dcm_model_open(&model, device, path));
        check_session(model, &(dcm_cache_params){.kind = DCM_CACHE_DCM, .group = 4, .merge = "newer"}, 60);
        check_session(model, &(dcm_cache_params){.kind = DCM_CACHE_DCM, .group = 16, .merge = "mean"}, 11);
        check_session(model, &(dcm_cache_params){.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32}, 70);
        check_session(model, &(dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = 9}, 30);
        dcm_model_close(&model);
        dcm_device_close(&device);
    }
    dcm_free(entries);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_if_fed), cmocka_unit_test(no_memory),
                                       cmocka_unit_test(sessions)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
