/*
 * Attention of many queries: a query's result has the same bits whichever queries share its step, and whatever ranges
 * its units are cut into. On every device, in both shapes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dcm/plan.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "ops/ops_cl.h"
#include "support/fixture.h"
#include "each_device.h"

enum { TOKENS = 70 };

/* A step with its queries, on a device. */
typedef struct subject {
    backend *b;
    fx_cache cache;
    kv_pool pool;
    step step;
    float *qkv; /* (TOKENS, row) */
    size_t row, out_row;
} subject;

static void subject_open(subject *s, backend *b, const fx_spec *spec, const fx_prompt *prompt, uint64_t *rng)
{
    fx_spec full = *spec;
    fx_seen *seen;
    full.n_ranges = fx_prompt_seen(prompt, spec->n, &seen);
    full.seen = seen;
    *s = (subject){.b = b,
                   .row = (size_t)(spec->heads + 2 * spec->kv_heads) * spec->head_dim,
                   .out_row = (size_t)spec->heads * spec->head_dim};
    fx_cache_new(&s->cache, &full, rng);
    for (uint32_t layer = 0; layer < spec->layers; layer++)
        fx_cache_fill_views(&s->cache, layer, FX_NORMAL, rng);
    s->qkv = fx_alloc(spec->n * s->row * sizeof(float));
    fx_fill(s->qkv, spec->n, s->row, FX_NORMAL, rng);
    free(seen);
}

static void subject_close(subject *s)
{
    fx_cache_free(&s->cache);
    free(s->qkv);
}

/* The results of `count` queries from `first` on, as a step of their own; the caller frees them. */
static float *attend(subject *s, uint32_t first, uint32_t count)
{
    const fx_spec *spec = &s->cache.spec;
    float *out = fx_alloc(count * s->out_row * sizeof *out);
    fx_upload(&s->cache, fx_make_plain, s->b, &s->pool, &s->step);
    s->step.n = count;
    s->step.views += (size_t)first * VIEW_WORDS;
    s->step.query_rot += (size_t)first * VIEW_RANGES * spec->head_dim;
    buffer *qkv = fx_make_plain(s->b, "qkv", s->qkv + first * s->row, count * s->row * sizeof *s->qkv, 4);
    buffer *result = fx_make_plain(s->b, "out", out, count * s->out_row * sizeof *out, 4);
    const attention_args args = {&s->pool, &s->step, spec->layers - 1, spec->rope, qkv, spec->heads, result, true};
    assert_int_equal(s->b->ops->attention(s->b, &args), DCM_OK);
    assert_int_equal(s->b->ops->read(result, 0, out, count * s->out_row * sizeof *out), DCM_OK);
    buffer_free(&qkv);
    buffer_free(&result);
    fx_free_uploaded(&s->pool, &s->step);
    return out;
}

static void check_parts(subject *s)
{
    static const uint32_t parts[][2] = {{0, 1}, {0, 7}, {1, 16}, {3, 33}, {15, 2}, {16, 17}, {40, 30}, {69, 1}};
    float *all = attend(s, 0, TOKENS);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        float *part = attend(s, parts[i][0], parts[i][1]);
        assert_memory_equal(part, all + parts[i][0] * s->out_row, parts[i][1] * s->out_row * sizeof *part);
        free(part);
    }
    free(all);
}

static void check_queries_alone(backend *b)
{
    static const fx_prompt prompts[] = {{.before = 300, .group = 32, .sinks = 4},
                                        {.before = 0, .group = 4},
                                        {.before = 500, .sinks = 4, .window = 90},
                                        {.before = 130}};
    uint64_t rng = 1;
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        const fx_spec spec = {1, 1, 3, 64, i % 2 ? KV_F32 : KV_F16, ROPE_HALF, .n = TOKENS, .bias = 0.3f};
        subject s;
        subject_open(&s, b, &spec, prompts + i, &rng);
        check_parts(&s);
        subject_close(&s);
    }
}

static void queries_alone(void **state)
{
    (void)state;
    in_every_shape(check_queries_alone);
}

/* A value of infinity that only the last queries see. */
static void check_unseen(backend *b)
{
    const fx_spec spec = {1, 1, 2, 32, KV_F16, ROPE_INTERLEAVED, .n = 20};
    uint64_t rng = 2;
    subject s;
    subject_open(&s, b, &spec, &(fx_prompt){.before = 30}, &rng);
    float *before = attend(&s, 0, spec.n);
    const view *last = fx_view(&s.cache, spec.n - 1);
    for (uint32_t c = 0; c < spec.head_dim; c++) {
        fx_put(&s.cache, 0, 0, 0, fx_slot(&s.cache, last->range, last->range[0].count - 1), c, NAN);
        fx_put(&s.cache, 0, 1, 0, fx_slot(&s.cache, last->range, last->range[0].count - 1), c, INFINITY);
    }
    float *after = attend(&s, 0, spec.n);
    assert_memory_equal(before, after, (spec.n - 1) * s.out_row * sizeof *before);
    assert_memory_not_equal(before, after, spec.n * s.out_row * sizeof *before);
    free(before);
    free(after);
    subject_close(&s);
}

static void unseen_units(void **state)
{
    (void)state;
    in_every_shape(check_unseen);
}

/* The same units in two ranges and in one: dcm with sinks before its first merge, and the full cache. */
static void check_ranges(backend *b)
{
    const fx_spec spec = {1, 1, 3, 64, KV_F16, ROPE_HALF, .n = TOKENS};
    subject s;
    float *out[2];
    for (int i = 0; i < 2; i++) {
        uint64_t rng = 3;
        subject_open(&s, b, &spec, &(fx_prompt){.before = 50, .group = i ? 256 : 0, .sinks = i ? 4 : 0}, &rng);
        const view *last = fx_view(&s.cache, TOKENS - 1);
        uint64_t values = 4;
        for (uint32_t r = 0; r < last->n_ranges; r++)
            for (uint32_t j = 0; j < last->range[r].count; j++)
                fx_cache_fill(&s.cache, 0, fx_slot(&s.cache, last->range + r, j), FX_NORMAL, &values);
        for (uint32_t t = 0; t < TOKENS; t++) {
            fx_fill(s.qkv + t * s.row, 1, s.row, FX_NORMAL, &values);
            for (uint32_t r = 0; r < fx_view(&s.cache, t)->n_ranges; r++)
                fx_rotation((float *)s.cache.words + s.cache.step.query_rot + (t * VIEW_RANGES + r) * 64, 64, t);
        }
        out[i] = attend(&s, 0, TOKENS);
        subject_close(&s);
    }
    assert_memory_equal(out[0], out[1], TOKENS * s.out_row * sizeof(float));
    free(out[0]);
    free(out[1]);
}

static void ranges(void **state)
{
    (void)state;
    in_every_shape(check_ranges);
}

/* The views that these tests are made of are the schedule's. */
static void schedule(void **state)
{
    (void)state;
    for (uint32_t group = 2; group <= 64; group *= 2)
        for (uint32_t sinks = 0; sinks < 3; sinks++) {
            enum { N = 500 };
            fx_seen *seen;
            dcm_plan plan;
            const uint32_t rings = fx_prompt_seen(&(fx_prompt){.group = group, .sinks = sinks}, N, &seen);
            assert_int_equal(dcm_plan_init(&plan, group, sinks), DCM_OK);
            assert_int_equal(rings, plan.top + 2);
            for (uint32_t t = 0; t < N; t++) {
                dcm_plan_step(&plan);
                for (uint32_t g = 0; g <= plan.top; g++) {
                    assert_int_equal(seen[t].count[1 + plan.top - g], plan.count[g]);
                    assert_int_equal(seen[t].first[1 + plan.top - g], plan.first[g]);
                }
            }
            free(seen);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(schedule), cmocka_unit_test(queries_alone),
                                       cmocka_unit_test(unseen_units), cmocka_unit_test(ranges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
