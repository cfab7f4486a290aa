/*
 * The schedule against two other definitions of it, each simulated on its own data: the paper's rule, which scans the
 * near queue's ratios, and the paper's recursion, which lists places to merge. Both are written from the paper and know
 * nothing of levels' FIFOs.
 */
#include <dcm/plan.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Ratios of the near queue from the oldest unit to the newest, and the number of far units. */
typedef struct queue {
    uint32_t group;
    uint32_t *ratio;
    size_t size;
    uint64_t far;
} queue;

static void queue_open(queue *q, uint32_t group)
{
    *q = (queue){.group = group, .ratio = calloc(2 * (size_t)group, sizeof *q->ratio)};
    assert_non_null(q->ratio);
}

static void queue_close(queue *q) { free(q->ratio); }

static void queue_remove(queue *q, size_t at)
{
    memmove(q->ratio + at, q->ratio + at + 1, (q->size - at - 1) * sizeof *q->ratio);
    q->size--;
}

static void queue_append(queue *q) { q->ratio[q->size++] = 1; }

/* Merge the units `at` and `at` + 1 (counted from the oldest); they must have one ratio. Returns its level. */
static int queue_merge(queue *q, size_t at)
{
    assert_true(at + 1 < q->size);
    assert_int_equal(q->ratio[at], q->ratio[at + 1]);
    const int level = __builtin_ctz(q->ratio[at]);
    q->ratio[at] *= 2;
    queue_remove(q, at + 1);
    return level;
}

static void queue_retire(queue *q)
{
    assert_int_equal(q->ratio[0], q->group);
    queue_remove(q, 0);
    q->far++;
}

/* Limit of the place `back` units behind the newest: the first L places 1, the next L/2 2, ..., the last one L. */
static uint32_t place_limit(uint32_t group, size_t back)
{
    uint32_t limit = 1;
    for (size_t run = group; back >= run && limit < group; run /= 2) {
        back -= run;
        limit *= 2;
    }
    return limit;
}

static void check_limits(const queue *q)
{
    for (size_t back = 0; back < q->size; back++)
        if (q->ratio[q->size - 1 - back] > place_limit(q->group, back))
            fail_msg("L = %u: ratio %u, %zu units behind the newest, over the limit %u", q->group,
                     q->ratio[q->size - 1 - back], back, place_limit(q->group, back));
}

/* ---- The rule ---- */

static dcm_action rule_step(queue *q)
{
    dcm_action action = {DCM_ACTION_APPEND, -1};
    if (q->size == 2 * (size_t)q->group - 1) {
        size_t back = 0;
        while (back < q->size && q->ratio[q->size - 1 - back] >= place_limit(q->group, back))
            back++;
        if (back == q->size) {
            queue_retire(q);
            action.kind = DCM_ACTION_RETIRE;
        } else {
            const uint32_t ratio = q->ratio[q->size - 1 - back];
            size_t oldest = 0;
            while (q->ratio[oldest] != ratio)
                oldest++;
            action = (dcm_action){DCM_ACTION_MERGE, queue_merge(q, oldest)};
        }
    }
    queue_append(q);
    return action;
}

/* ---- The recursion ---- */

enum { RETIRE = -1 };

/* Places counted from the far end; RETIRE between segments. */
typedef struct places {
    int32_t *item;
    size_t size, room, next;
} places;

static void places_add(places *p, int32_t place)
{
    if (p->size == p->room) {
        p->room = p->room ? 2 * p->room : 1024;
        p->item = realloc(p->item, p->room * sizeof *p->item);
        assert_non_null(p->item);
    }
    p->item[p->size++] = place;
}

/* f(p) = f(2p), p, f(2p) for p <= L, and nothing beyond; at p = L it records once. "Recorded p" merges the places p - 2
 * and p - 1. */
static void recurse(places *list, uint32_t group, uint32_t p)
{
    if (p > group)
        return;
    recurse(list, group, 2 * p);
    places_add(list, (int32_t)p - 2);
    recurse(list, group, 2 * p);
}

static void first_segment(places *list, uint32_t group)
{
    for (uint32_t i = group; i >= 1; i /= 2)
        for (uint32_t j = 0; j + 1 < i; j++) {
            places_add(list, (int32_t)j);
            recurse(list, group, 2 * i);
        }
}

static dcm_action recursion_step(queue *q, places *list)
{
    dcm_action action = {DCM_ACTION_APPEND, -1};
    if (q->size == 2 * (size_t)q->group - 1) {
        if (!list->room)
            first_segment(list, q->group);
        if (list->next == list->size) {
            list->next = list->size = 0;
            places_add(list, RETIRE);
            recurse(list, q->group, 2);
        }
        const int32_t place = list->item[list->next++];
        if (place == RETIRE) {
            queue_retire(q);
            action.kind = DCM_ACTION_RETIRE;
        } else {
            action = (dcm_action){DCM_ACTION_MERGE, queue_merge(q, (size_t)place)};
        }
    }
    queue_append(q);
    return action;
}

/* ---- Agreement ---- */

/* Ratios that the plan's levels say the near queue holds, oldest first, against the rule's queue. */
static void check_queue(const dcm_plan *plan, const queue *q)
{
    size_t at = 0;
    for (int g = (int)plan->top; g >= 0; g--) {
        const uint64_t near = plan->count[g] - (g == (int)plan->top ? plan->far : 0);
        for (uint64_t i = 0; i < near; i++, at++)
            assert_int_equal(q->ratio[at], 1u << g);
    }
    assert_int_equal(at, q->size);
    assert_int_equal(plan->far, q->far);
    assert_int_equal(dcm_plan_near(plan), q->size);
}

/* Each level's nodes are one contiguous range, and all levels together cover every token behind the sinks once. */
static void check_cover(const dcm_plan *plan)
{
    uint64_t token = 0;
    for (int g = (int)plan->top; g >= 0; g--) {
        if (plan->count[g])
            assert_int_equal(plan->first[g] << g, token);
        token += plan->count[g] << g;
    }
    const uint64_t sinks = plan->tokens < plan->sinks ? plan->tokens : plan->sinks;
    assert_int_equal(token + sinks, plan->tokens);
}

/* The three definitions for `tokens` tokens behind the sinks; the slow checks of the whole queue every `stride` tokens.
 */
static void check_agreement(uint32_t group, uint32_t sinks, uint64_t tokens, uint64_t stride)
{
    dcm_plan plan;
    queue rule, recursion;
    places list = {0};
    assert_int_equal(dcm_plan_init(&plan, group, sinks), DCM_OK);
    queue_open(&rule, group);
    queue_open(&recursion, group);
    for (uint64_t n = 1; n <= sinks; n++) {
        assert_int_equal(dcm_plan_step(&plan).kind, DCM_ACTION_APPEND);
        assert_int_equal(dcm_plan_units(&plan), n);
        assert_int_equal(dcm_plan_near(&plan), 0);
    }
    for (uint64_t n = 1; n <= tokens; n++) {
        const dcm_action next = dcm_plan_peek(&plan), done = dcm_plan_step(&plan);
        const dcm_action by_rule = rule_step(&rule), by_recursion = recursion_step(&recursion, &list);
        if (done.kind != by_rule.kind || done.level != by_rule.level || done.kind != by_recursion.kind ||
            done.level != by_recursion.level || done.kind != next.kind || done.level != next.level)
            fail_msg("L = %u, S = %u, token %llu behind the sinks: plan %d/%d, rule %d/%d, recursion %d/%d", group,
                     sinks, (unsigned long long)n, done.kind, done.level, by_rule.kind, by_rule.level,
                     by_recursion.kind, by_recursion.level);
        if (n % stride == 0 || n == tokens) {
            check_limits(&rule);
            check_queue(&plan, &rule);
            check_queue(&plan, &recursion);
            check_cover(&plan);
        }
    }
    queue_close(&rule);
    queue_close(&recursion);
    free(list.item);
}

static void small_groups_agree(void **state)
{
    (void)state;
    static const uint32_t sinks[] = {0, 1, 4};
    for (uint32_t group = 2; group <= 64; group *= 2)
        for (size_t i = 0; i < sizeof sinks / sizeof *sinks; i++)
            check_agreement(group, sinks[i], 12000, 1);
}

/* Past the first segment (2L - 1 tokens and T(L) - L + 1 actions) and two cycles of L. */
static void large_groups_agree(void **state)
{
    (void)state;
    for (uint32_t group = 128; group <= DCM_GROUP_MAX; group *= 2)
        check_agreement(group, group == 256 ? 4 : 0, dcm_near_coverage(group) + 3 * (uint64_t)group + 1, group / 8 + 1);
}

/* ---- Counts ---- */

static void counts_match_closed_form(void **state)
{
    (void)state;
    static const uint32_t sinks[] = {0, 1, 4};
    for (uint32_t group = DCM_GROUP_MIN; group <= DCM_GROUP_MAX; group *= 2) {
        const uint32_t s = sinks[__builtin_ctz(group) % 3];
        dcm_plan plan;
        assert_int_equal(dcm_plan_init(&plan, group, s), DCM_OK);
        for (uint64_t n = 1; n <= 1000000; n++) {
            dcm_plan_step(&plan);
            if (dcm_plan_units(&plan) != dcm_units_after(group, s, n))
                fail_msg("L = %u, S = %u, n = %llu: %llu units, closed form %llu", group, s, (unsigned long long)n,
                         (unsigned long long)dcm_plan_units(&plan), (unsigned long long)dcm_units_after(group, s, n));
        }
        assert_true(dcm_plan_near(&plan) == 2 * (uint64_t)group - 1);
    }
}

/* Figures of the paper and of its formula. */
static void known_counts(void **state)
{
    (void)state;
    assert_int_equal(dcm_units_after(512, 0, 100000), 1209);
    assert_int_equal(dcm_units_after(256, 0, 100000), 893);
    assert_int_equal(dcm_units_after(256, 4, 100004), 897);
    assert_int_equal(dcm_units_after(16, 4, 3), 3);
    assert_int_equal(dcm_units_after(16, 0, 0), 0);
    assert_int_equal(dcm_near_coverage(16), 80);
    assert_int_equal(dcm_near_coverage(512), 5120);
}

/* 49 merges before the first retirement for L = 16 (the printed Algorithm 1, read literally, has 80). */
static void first_segment_of_16(void **state)
{
    (void)state;
    dcm_plan plan;
    int merges = 0;
    assert_int_equal(dcm_plan_init(&plan, 16, 0), DCM_OK);
    for (dcm_action a = dcm_plan_step(&plan); a.kind != DCM_ACTION_RETIRE; a = dcm_plan_step(&plan))
        merges += a.kind == DCM_ACTION_MERGE;
    assert_int_equal(merges, 49);
}

static void refused_groups(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {0, 1, 3, 6, 100, 4095, 4097, 8192, UINT32_MAX};
    dcm_plan plan;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(dcm_plan_init(&plan, wrong[i], 0), DCM_ERR_USAGE);
        assert_non_null(strstr(dcm_error(), "power of two"));
    }
}

/* Skipping is stepping, from any state, and sums of skips are skips of sums. */
static void skips(void **state)
{
    static const uint32_t groups[] = {2, 4, 16, 64};
    (void)state;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        for (uint32_t sinks = 0; sinks < 7; sinks += 3)
            for (uint64_t from = 0; from < 700; from = 3 * from + 1) {
                dcm_plan stepped, start;
                assert_int_equal(dcm_plan_init(&start, groups[i], sinks), DCM_OK);
                for (uint64_t n = 0; n < from; n++)
                    dcm_plan_step(&start);
                stepped = start;
                for (uint64_t n = 0; n < 1500; n++) {
                    dcm_plan skipped = start;
                    dcm_plan_skip(&skipped, n);
                    assert_memory_equal(&skipped, &stepped, sizeof stepped);
                    dcm_plan_step(&stepped);
                }
            }
    dcm_plan far, twice;
    dcm_plan_init(&far, 4096, 4);
    twice = far;
    dcm_plan_skip(&far, 3000000000u);
    dcm_plan_skip(&twice, 1234567891u);
    dcm_plan_skip(&twice, 3000000000u - 1234567891u);
    assert_memory_equal(&far, &twice, sizeof far);
    assert_int_equal(dcm_plan_units(&far), dcm_units_after(4096, 4, 3000000000u));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(skips),
        cmocka_unit_test(small_groups_agree),
        cmocka_unit_test(large_groups_agree),
        cmocka_unit_test(counts_match_closed_form),
        cmocka_unit_test(known_counts),
        cmocka_unit_test(first_segment_of_16),
        cmocka_unit_test(refused_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
