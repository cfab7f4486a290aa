/*
 * The cache's bookkeeping against a direct simulation: a list of units in the order of their places, merged by the
 * schedule, each known by the tokens it covers. What a step uploads (slots, merges, views, rotations) must name exactly
 * those units.
 */
#include "cache/cache.h"
#include "cache/view.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ref_cache.h"

enum { UNITS = 4096, CHUNK_MAX = 512 };

typedef struct unit {
    uint64_t first, tokens; /* covers tokens first .. first + tokens - 1; none when tokens is 0 */
} unit;

/*
 * What a slot of the device holds, which is the reference: in place of a unit's first keys, 8 halves, stands what it
 * covers. Small whole numbers survive a copy of halves.
 */
static unit *at(const cache *c, uint32_t slot)
{
    const kv_pool *pool = &c->slots.pool;
    const uint32_t block = slot >> KV_SLOT_BITS, index = slot & ((1u << KV_SLOT_BITS) - 1);
    assert_int_equal(shape.head_dim * 2, sizeof(unit));
    assert_non_null(pool->block[block]);
    assert_true(index < pool->block_units[block]);
    return (unit *)pool->block[block]->handle + index;
}

static size_t most_staged, most_late, most_far; /* over the runs of a test */

/* The history as the paper has it: an array of units, oldest first. */
typedef struct history {
    unit unit[UNITS];
    uint32_t count, far;
    uint64_t tokens;
} history;

static void remove_at(history *h, uint32_t i)
{
    h->count--;
    memmove(&h->unit[i], &h->unit[i + 1], (h->count - i) * sizeof *h->unit);
}

/* The paper's rule on a full near queue: scan from the newest unit for the first below its place's limit. */
static void merge_or_retire(history *h, uint32_t group, uint32_t sinks)
{
    uint32_t limit = 1, left = group, ratio = 0;
    for (uint32_t i = h->count; i-- > sinks + h->far && !ratio; left--) {
        if (!left) {
            limit *= 2;
            left = group / limit;
        }
        if (h->unit[i].tokens < limit)
            ratio = (uint32_t)h->unit[i].tokens;
    }
    if (!ratio) {
        h->far++;
        return;
    }
    uint32_t oldest = sinks;
    while (h->unit[oldest].tokens != ratio)
        oldest++;
    assert_int_equal(h->unit[oldest + 1].tokens, ratio);
    h->unit[oldest].tokens *= 2;
    remove_at(h, oldest + 1);
}

static void history_step(history *h, const cache *c, uint32_t group, uint32_t sinks)
{
    if (c->kind == DCM_CACHE_WINDOW && h->count == c->window)
        remove_at(h, sinks);
    if (c->kind == DCM_CACHE_DCM && h->count - (h->count < sinks ? h->count : sinks) - h->far == 2 * group - 1)
        merge_or_retire(h, group, sinks);
    assert_true(h->count < UNITS);
    h->unit[h->count++] = (unit){h->tokens++, 1};
}

static void check_rotation(const float *r, uint64_t angle)
{
    for (uint32_t i = 0; i < PAIRS; i++) {
        assert_true(fabs(r[2 * i] - cos((double)angle * frequency[i])) < 1e-7);
        assert_true(fabs(r[2 * i + 1] - sin((double)angle * frequency[i])) < 1e-7);
    }
}

/* Anchor of a unit by the tokens it covers: its index among its level's nodes, counted from the sinks. */
static uint64_t anchor(unit u, uint32_t sinks)
{
    return u.first < sinks ? u.first : (u.first - sinks) / u.tokens + sinks;
}

/* Units of L tokens, and what each of them weighs less by where there are more than the limit. */
static double crowded(const history *h, const dcm_cache_params *params)
{
    const uint32_t usual = params->group > 128 ? params->group / 8 : 16;
    const uint32_t limit = params->far_limit ? (uint32_t)params->far_limit : usual;
    uint32_t far = 0;
    for (uint32_t i = 0; i < h->count; i++)
        far += h->unit[i].tokens == params->group;
    if (params->kind != DCM_CACHE_DCM || params->far_limit < 0 || far <= limit)
        return 0;
    most_far = far > most_far ? far : most_far;
    return log((double)far / limit);
}

static void check_view(const cache *c, const history *h, uint32_t i, uint32_t sinks, const dcm_cache_params *params)
{
    const double less = crowded(h, params);
    view v;
    memcpy(&v, c->words + c->step.views + (size_t)i * VIEW_WORDS, sizeof v);
    assert_int_equal(v.units, h->count);
    uint32_t place = 0;
    for (uint32_t r = 0; r < v.n_ranges; r++) {
        const view_range *range = &v.range[r];
        assert_int_equal(range->place, place);
        for (uint32_t j = 0; j < range->count; j++, place++) {
            const uint32_t slot = c->table[range->ring + ((range->begin + j) & range->mask)];
            const unit want = h->unit[place], got = *at(c, slot);
            assert_int_equal(got.first, want.first);
            assert_int_equal(got.tokens, want.tokens);
            const float *bias = (const float *)c->words + range->bias;
            const double weight = params->log_r * log((double)want.tokens);
            const double expected = weight - (want.tokens == params->group ? less : 0);
            for (uint32_t head = 0; head < c->slots.pool.layers * c->slots.pool.kv_heads; head++)
                assert_true(fabs(bias[head] - expected) < 1e-6);
            const float *rot = (const float *)c->words + c->step.query_rot + ((size_t)i * VIEW_RANGES + r) * 2 * PAIRS;
            if (j == 0 || j + 1 == range->count) /* query turn minus key turn is the distance of places */
                check_rotation(rot, h->count - 1 - place + anchor(want, sinks));
        }
    }
    assert_int_equal(place, h->count);
}

/* Merges of one kind; returns how many. Those that are not late are done before the step's units are there. */
static uint32_t apply_merges(const cache *c, uint32_t sinks, bool late)
{
    uint32_t count = 0;
    for (uint32_t g = 0; g < DCM_LEVELS_MAX; g++) {
        const step batch = cache_step_batch(c, g, late);
        count += batch.n_merges;
        for (uint32_t m = 0; m < batch.n_merges; m++) {
            merge_pair p;
            memcpy(&p, c->words + batch.merges + m * MERGE_WORDS, sizeof p);
            const unit a = *at(c, p.a), b = *at(c, p.b);
            const float *rot = (const float *)c->words + batch.merge_rot + (size_t)m * 3 * 2 * PAIRS;
            assert_int_equal(a.tokens, 1u << g);
            assert_int_equal(b.tokens, a.tokens);
            assert_int_equal(b.first, a.first + a.tokens);
            const unit out = {a.first, 2 * a.tokens};
            check_rotation(rot, anchor(a, sinks));
            check_rotation(rot + 2 * PAIRS, anchor(b, sinks));
            check_rotation(rot + 4 * PAIRS, anchor(out, sinks));
            *at(c, p.out) = out;
        }
    }
    return count;
}

/*
 * Bytes for `units` units: between feeds of single tokens 1.02 x units and one step of growth, while a prompt is read
 * 1.02 x (units + chunk). The first tokens may have a whole block of 64 units.
 */
static void check_bytes(const cache *c, bool reading)
{
    const size_t units = cache_units(c), unit = c->slots.unit_bytes, allocated = ref->memory.now[MEM_CACHE];
    const size_t step = allocated / 8 > 64 * unit ? allocated / 8 : 64 * unit;
    const size_t chunk = c->chunk > 64 ? c->chunk : 64;
    assert_int_equal(allocated, slots_allocated(&c->slots) * unit);
    if (!reading)
        assert_true((double)allocated <= 1.02 * (double)(units * unit) + (double)step);
    else if (c->kind != DCM_CACHE_FULL)
        assert_true((double)allocated <= 1.02 * (double)((units + chunk) * unit));
    else
        assert_true((double)allocated <= 1.02 * (double)((units + chunk) * unit) + (double)step);
}

/* Steps of random lengths up to params->chunk; now and then tokens one by one, as after a prompt. */
static void run(const dcm_cache_params *params, uint64_t tokens)
{
    cache c;
    history *h = calloc(1, sizeof *h);
    const int32_t ids[CHUNK_MAX] = {0};
    assert_non_null(h);
    open_cache(&c, params);
    const uint32_t sinks = c.plan.sinks;
    uint64_t seed = params->chunk * 977 + params->group;
    for (int turn = 0; h->tokens < tokens; turn++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const bool reading = params->chunk > 1 && turn % 16 < 12;
        const uint32_t most = reading ? 2 + (uint32_t)(seed >> 33) % (params->chunk - 1) : 1;
        if (!reading)
            assert_int_equal(cache_settle(&c), DCM_OK);
        assert_int_equal(cache_step_begin(&c, ids, most), DCM_OK);
        const uint32_t n = c.step.n;
        assert_in_range(n, 1, most);
        const uint32_t early = apply_merges(&c, sinks, false);
        for (uint32_t i = 0; i < n; i++)
            *at(&c, c.words[c.step.slots + i]) = (unit){h->tokens + i, 1};
        const uint32_t late = apply_merges(&c, sinks, true);
        assert_int_equal(early + late, c.step.n_merges);
        assert_true(n > params->group || !late);
        most_late = late > most_late ? late : most_late;
        for (uint32_t i = 0; i < n; i++) {
            history_step(h, &c, params->group, sinks);
            check_rotation((const float *)c.words + c.step.key_rot + (size_t)i * 2 * PAIRS, h->tokens - 1);
            check_view(&c, h, i, sinks, params);
        }
        cache_step_done(&c);
        check_bytes(&c, reading);
        most_staged = c.slots.staged > most_staged ? c.slots.staged : most_staged;
    }
    assert_int_equal(cache_units(&c), h->count);
    cache_close(&c);
    free(h);
}

static void dcm_token_by_token(void **state)
{
    (void)state;
    for (uint32_t group = 2; group <= 64; group *= 2)
        for (int sinks = -1; sinks <= 4; sinks += sinks < 0 ? 2 : 3)
            run(&(dcm_cache_params){.group = group, .sinks = sinks, .log_r = 0.5f, .chunk = 1}, 40 * group + 200);
    most_far = 0;
    run(&(dcm_cache_params){.group = 256, .chunk = 64}, 14000);
    assert_true(most_far > 32 && most_far < 64);
}

static void dcm_in_chunks(void **state)
{
    (void)state;
    most_staged = most_late = most_far = 0;
    for (uint32_t group = 2; group <= 64; group *= 2)
        for (uint32_t chunk = 2; chunk <= CHUNK_MAX; chunk += chunk / 2 + 1)
            run(&(dcm_cache_params){.group = group, .sinks = 1, .chunk = chunk, .far_limit = (int)chunk % 9 - 1},
                40 * group + 200);
    assert_true(most_staged > 0 && most_late > 0 && most_far > 0);
}

static void full_and_window(void **state)
{
    (void)state;
    for (uint32_t chunk = 1; chunk <= 300; chunk *= 7) {
        run(&(dcm_cache_params){.kind = DCM_CACHE_FULL, .chunk = chunk}, 3000);
        run(&(dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = 5, .chunk = chunk}, 700);
        run(&(dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = 64, .sinks = -1, .chunk = chunk}, 700);
    }
}

static void params_are_checked(void **state)
{
    (void)state;
    const dcm_cache_params bad[] = {
        {.group = 3},
        {.group = 8192},
        {.group = 1},
        {.sinks = -2},
        {.window = 9},
        {.log_r = NAN},
        {.kind = 7},
        {.kv = 5},
        {.kind = DCM_CACHE_FULL, .group = 4},
        {.kind = DCM_CACHE_FULL, .sinks = 4},
        {.kind = DCM_CACHE_WINDOW},
        {.kind = DCM_CACHE_WINDOW, .window = 4},
        {.kind = DCM_CACHE_WINDOW, .window = 9, .merge = "mean"},
    };
    dcm_cache_params out;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(cache_check_params(&out, &bad[i]), DCM_ERR_USAGE);
    assert_int_equal(cache_check_params(&out, NULL), DCM_OK);
    assert_int_equal(out.group, 256);
    assert_int_equal(out.sinks, 4);
}

/* No block passes the device's largest allocation, even where an eighth of the cache would. */
static void blocks_fit_the_device(void **state)
{
    (void)state;
    const size_t whole = ref->max_alloc;
    ref->max_alloc = 70 * unit_bytes(shape.layers, shape.kv_heads, shape.head_dim, KV_F16);
    cache c;
    const int32_t ids[64] = {0};
    open_cache(&c, &(dcm_cache_params){.kind = DCM_CACHE_FULL, .chunk = 64});
    for (int i = 0; i < 60; i++) {
        assert_int_equal(cache_step_begin(&c, ids, 64), DCM_OK);
        cache_step_done(&c);
    }
    for (uint32_t b = 0; b < c.slots.pool.n_blocks; b++)
        assert_in_range(c.slots.pool.block_units[b], 64, 70);
    /* The most blocks a pool can have: a word of what to do, and the counters still hold. */
    dcm_status status = DCM_OK;
    while (status == DCM_OK)
        status = cache_step_begin(&c, ids, 64), cache_step_done(&c);
    assert_int_equal(status, DCM_ERR_MEMORY);
    assert_non_null(strstr(dcm_error(), "63 blocks"));
    cache_close(&c);
    ref->max_alloc = 1;
    open_cache(&c, &(dcm_cache_params){.kind = DCM_CACHE_FULL});
    assert_int_equal(cache_step_begin(&c, ids, 1), DCM_ERR_MEMORY);
    cache_close(&c);
    ref->max_alloc = whole;
}

/* No memory for the staging block: an error that says so, or shorter steps, down to single tokens. */
static void short_of_memory(void **state)
{
    (void)state;
    const size_t whole = ref->max_memory;
    const int32_t ids[64] = {0};
    for (int yields = 0; yields < 2; yields++)
        for (size_t left = 0; left < 16; left += 5) {
            cache c;
            open_cache(&c, &(dcm_cache_params){.group = 16, .chunk = 64});
            c.yields = yields;
            for (int i = 0; i < 64; i++) /* 64 slots, about 35 units */
                assert_int_equal(cache_step_begin(&c, ids, i ? 1 : 32), DCM_OK), cache_step_done(&c);
            ref->max_memory = ref->memory.total + left * c.slots.unit_bytes;
            dcm_status status = DCM_OK;
            for (int i = 0; i < 10 && status == DCM_OK; i++)
                status = cache_step_begin(&c, ids, 64), cache_step_done(&c);
            assert_int_equal(status, yields ? DCM_OK : DCM_ERR_MEMORY);
            if (!yields)
                assert_non_null(strstr(dcm_error(), "while a prompt is read"));
            assert_true(yields ? c.chunk <= 32 && c.step.n <= 32 : c.chunk == 64);
            ref->max_memory = whole;
            cache_close(&c);
        }
}

/* Each allocation fails in turn: a memory error, nothing leaked (teardown counts), and the cache closes. */
static void allocations_fail(void **state)
{
    (void)state;
    const int32_t ids[8] = {0};
    bool done = false;
    for (long at_call = 1; !done; at_call++) {
        cache c;
        open_cache(&c, &(dcm_cache_params){.group = 4, .chunk = 8});
        mem_fail_at(at_call);
        dcm_status status = DCM_OK;
        for (int i = 0; i < 200 && status == DCM_OK; i++) {
            status = i % 50 < 49 ? cache_step_begin(&c, ids, 4) : cache_settle(&c);
            cache_step_done(&c);
        }
        mem_fail_at(0);
        done = status == DCM_OK;
        assert_true(done || status == DCM_ERR_MEMORY);
        cache_close(&c);
        assert_int_equal(ref->memory.total, 0);
        assert_true(at_call < 10000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dcm_token_by_token), cmocka_unit_test(dcm_in_chunks),
        cmocka_unit_test(full_and_window),    cmocka_unit_test(params_are_checked),
        cmocka_unit_test(allocations_fail),   cmocka_unit_test(blocks_fit_the_device),
        cmocka_unit_test(short_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
