/*
 * The schedule of chunked training: what each token sees, and what becomes what, against a list of units that is merged
 * pairwise after every chunk.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ref_cache.h"
#include "train/units.h"

enum { TOKENS = 150 };

/* Tokens first .. first + count - 1. */
typedef struct span {
    uint32_t first, count;
} span;

typedef struct history {
    span unit[TOKENS];
    uint32_t units, merges;
} history;

/* From the oldest unit after the sinks to the newest: two neighbours of one ratio below L become one, and the next pair
 * begins behind them. */
static void merge_pairwise(history *h, uint32_t sinks, uint32_t group)
{
    uint32_t to = sinks;
    for (uint32_t from = sinks; from < h->units; from++) {
        span u = h->unit[from];
        if (from + 1 < h->units && u.count < group && h->unit[from + 1].count == u.count) {
            u.count += h->unit[++from].count;
            h->merges++;
        }
        h->unit[to++] = u;
    }
    h->units = to;
}

/* The tokens that unit i of the list stands for. */
static span span_of(const grad_unit *list, uint32_t i)
{
    if (list[i].a == UINT32_MAX)
        return (span){i, 1};
    const span a = span_of(list, list[i].a), b = span_of(list, list[i].b);
    assert_int_equal(a.first + a.count, b.first);
    return (span){a.first, a.count + b.count};
}

static uint32_t number_of(const grad_unit *list, uint32_t count, uint32_t slot)
{
    uint32_t i = 0;
    while (i < count && list[i].slot != slot)
        i++;
    assert_true(i < count);
    return i;
}

/* The units of token t's view, oldest first, are those of the history; the list of who sees whom agrees. */
static void check_view(const cache *c, const grad_unit *list, uint32_t count, uint32_t t, const history *h)
{
    uint32_t place = 0, seen = 0;
    view v;
    memcpy(&v, c->words + c->step.views + (size_t)t * VIEW_WORDS, sizeof v);
    assert_int_equal(v.units, h->units);
    for (uint32_t r = 0; r < v.n_ranges; r++) {
        assert_int_equal(v.range[r].place, place);
        for (uint32_t i = 0; i < v.range[r].count; i++, place++) {
            const uint32_t slot = c->table[v.range[r].ring + ((v.range[r].begin + i) & v.range[r].mask)];
            const uint32_t number = number_of(list, count, slot);
            const span s = span_of(list, number);
            if (s.first != h->unit[place].first || s.count != h->unit[place].count)
                fail_msg("token %u, place %u: tokens %u + %u, not %u + %u", t, place, s.first, s.count,
                         h->unit[place].first, h->unit[place].count);
            assert_true(list[number].first <= t && t < list[number].end);
        }
    }
    for (uint32_t i = 0; i < count; i++)
        seen += list[i].first <= t && t < list[i].end;
    assert_int_equal(seen, h->units);
}

static void check_case(uint32_t group, uint32_t sinks, uint32_t n)
{
    const dcm_cache_params params = {
        .kind = DCM_CACHE_DCM, .group = group, .sinks = sinks ? (int32_t)sinks : -1, .kv = DCM_KV_F32};
    history h = {.units = 0};
    int32_t tokens[TOKENS] = {0};
    grad_unit list[2 * TOKENS];
    grad_units units = {0};
    cache c = {0};
    open_cache(&c, &params);
    c.chunk = 2 * n;
    c.in_chunks = true;
    assert_int_equal(cache_step_begin(&c, tokens, n), DCM_OK);
    assert_int_equal(c.step.n, n);
    assert_int_equal(grad_units_open(&units, &c), DCM_OK);
    assert_true(units.count <= 2 * TOKENS);
    assert_int_equal(ref->ops->read(units.list, 0, list, units.count * sizeof *list), DCM_OK);
    for (uint32_t t = 0; t < n; t++) {
        if (t > sinks && (t - sinks) % group == 0)
            merge_pairwise(&h, sinks, group);
        h.unit[h.units++] = (span){t, 1};
        check_view(&c, list, units.count, t, &h);
    }
    assert_int_equal(c.step.n_merges, h.merges);
    assert_int_equal(cache_units(&c), h.units);
    grad_units_close(&units);
    cache_step_done(&c);
    cache_close(&c);
}

static void chunks(void **state)
{
    (void)state;
    for (uint32_t group = 2; group <= 16; group *= 2)
        for (uint32_t sinks = 0; sinks < 6; sinks += 1 + sinks)
            for (uint32_t n = 1; n <= TOKENS; n += n < 40 ? 1 : 37)
                check_case(group, sinks, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(chunks, setup, teardown)};
    return cmocka_run_group_tests_name("chunks", tests, NULL, NULL);
}
