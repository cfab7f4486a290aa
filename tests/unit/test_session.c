/* Sessions on tiny models, through the public interface: policies and chunks that must agree bit for bit on the
 * reference, errors, counters. */
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

#include "base/rng.h"
#include "support/tiny_model.h"

enum { TOKENS = 100 };

static dcm_device *device;
static dcm_model *model;
static dcm_model_info info;
static int32_t tokens[TOKENS];

static int setup(void **state)
{
    (void)state;
    char path[] = "/tmp/dcm-session-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(tiny_model_save(NULL, path));
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = 1}), DCM_OK);
    assert_int_equal(dcm_model_open(&model, device, path), DCM_OK);
    unlink(path);
    dcm_model_get_info(model, &info);
    uint64_t seed = 7;
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(rng_next(&seed) % info.vocab);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dcm_model_close(&model);
    dcm_device_close(&device);
    assert_null(model);
    assert_null(device);
    return 0;
}

static dcm_session *open_session(const dcm_cache_params *params)
{
    dcm_session *s = NULL;
    if (dcm_session_open(&s, model, params) != DCM_OK)
        fail_msg("%s", dcm_error());
    return s;
}

/* Logits after n tokens fed as `params` say. */
static float *logits_after(const dcm_cache_params *params, size_t n)
{
    float *logits = malloc(info.vocab * sizeof *logits);
    dcm_session *s = open_session(params);
    assert_int_equal(dcm_session_feed(s, tokens, n, logits), DCM_OK);
    dcm_session_close(&s);
    return logits;
}

static void same(const dcm_cache_params *a, const dcm_cache_params *b, size_t n, bool expected)
{
    float *x = logits_after(a, n), *y = logits_after(b, n);
    assert_int_equal(memcmp(x, y, info.vocab * sizeof *x) == 0, expected);
    free(x);
    free(y);
}

static void unmerged_is_full(void **state)
{
    (void)state;
    const dcm_cache_params full = {.kind = DCM_CACHE_FULL};
    for (uint32_t group = 2; group <= 16; group *= 2)
        for (int sinks = -1; sinks <= 3; sinks += 2) {
            const dcm_cache_params dcm = {.group = group, .sinks = sinks, .merge = "newer"};
            const size_t unmerged = 2 * group - 1 + (sinks < 0 ? 0 : (size_t)sinks);
            same(&dcm, &full, unmerged, true);
            same(&dcm, &full, unmerged + 1, false);
        }
    same(&(dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = 20}, &full, 20, true);
    same(&(dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = 20}, &full, 21, false);
}

static void chunks_change_nothing(void **state)
{
    (void)state;
    const dcm_cache_params policies[] = {
        {.group = 4, .merge = "mean"},
        {.group = 8, .sinks = 1, .merge = "newer", .kv = DCM_KV_F32},
        {.group = 64, .merge = "newer"},
        {.kind = DCM_CACHE_FULL},
        {.group = 16, .sinks = -1, .merge = "mean", .log_r = 1},
        {.kind = DCM_CACHE_WINDOW, .window = 24},
    };
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
        for (uint32_t chunk = 2; chunk <= 70; chunk += 1 + chunk / 3) {
            dcm_cache_params chunked = policies[p];
            chunked.chunk = chunk;
            same(&chunked, &policies[p], TOKENS - chunk % 5, true);
        }
}

/* One feed of n tokens equals n feeds of one. */
static void feeds_compose(void **state)
{
    (void)state;
    const dcm_cache_params params = {.group = 8, .merge = "newer", .chunk = 3};
    float *want = logits_after(&params, TOKENS), *got = malloc(info.vocab * sizeof *got);
    dcm_session *s = open_session(&params);
    for (size_t at = 0, n; at < TOKENS; at += n) {
        n = at % 7 + 1 < TOKENS - at ? at % 7 + 1 : TOKENS - at;
        assert_int_equal(dcm_session_feed(s, tokens + at, n, at + n == TOKENS ? got : NULL), DCM_OK);
    }
    assert_memory_equal(got, want, info.vocab * sizeof *got);
    dcm_session_stats stats;
    dcm_session_get_stats(s, &stats);
    assert_int_equal(stats.tokens, TOKENS);
    assert_int_equal(stats.units, dcm_units_after(8, 4, TOKENS));
    assert_int_equal(stats.unit_bytes, 2 * info.layers * info.kv_heads * info.head_dim * 2);
    assert_int_equal(stats.cache_written, (TOKENS + stats.merges) * stats.unit_bytes);
    assert_string_equal(stats.merge, "newer");
    size_t units, bytes;
    assert_int_equal(dcm_cache_bytes(&info, &params, TOKENS, &units, &bytes), DCM_OK);
    assert_int_equal(units, stats.units);
    assert_int_equal(bytes, units * stats.unit_bytes);
    dcm_session_close(&s);
    free(want);
    free(got);
}

static void errors_are_said(void **state)
{
    (void)state;
    dcm_session *s = NULL;
    assert_int_equal(dcm_session_open(&s, model, &(dcm_cache_params){.group = 5}), DCM_ERR_USAGE);
    assert_null(s);
    assert_non_null(strstr(dcm_error(), "power of two"));
    assert_int_equal(dcm_session_open(&s, model, &(dcm_cache_params){.merge = "/nowhere/merge.safetensors"}),
                     DCM_ERR_FILE);
    assert_null(s);
    s = open_session(&(dcm_cache_params){.merge = "mean"});
    const int32_t outside[] = {0, (int32_t)info.vocab}, negative = -1;
    float *logits = malloc(info.vocab * sizeof *logits);
    assert_int_equal(dcm_session_feed(s, outside, 2, logits), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_feed(s, &negative, 1, logits), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_feed(s, tokens, 0, logits), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_feed(s, tokens, 0, NULL), DCM_OK);
    dcm_session_stats stats;
    dcm_session_get_stats(s, &stats);
    assert_int_equal(stats.tokens, 0); /* nothing was fed */
    assert_int_equal(dcm_session_feed(s, tokens, 1, logits), DCM_OK);
    free(logits);
    dcm_session_close(&s);
    dcm_session_close(&s);
}

/* One layer read back; the caller frees both. */
static size_t read_layer(dcm_session *s, uint32_t layer, dcm_unit **units, float **values)
{
    dcm_session_stats stats;
    dcm_session_get_stats(s, &stats);
    *units = malloc(stats.units * sizeof **units);
    *values = malloc(stats.units * 2 * info.kv_heads * info.head_dim * sizeof **values);
    assert_int_equal(dcm_session_read_layer(s, layer, *units, *values), DCM_OK);
    return stats.units;
}

/*
 * Values of the first layer do not depend on what was seen before: those of a merged unit are the mean, or the newest,
 * of those that the full cache keeps of its tokens. Blocks of several sizes, and the staging block, are read.
 */
static void layers_are_read_back(void **state)
{
    (void)state;
    const size_t n = (size_t)info.kv_heads * info.head_dim;
    for (int mean = 0; mean < 2; mean++)
        for (int32_t sinks = -1; sinks < 4; sinks += 4) {
            const dcm_cache_params dcm = {
                .group = 8, .sinks = sinks, .merge = mean ? "mean" : "newer", .kv = DCM_KV_F32, .chunk = 16};
            const dcm_cache_params full = {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32};
            dcm_session *a = open_session(&dcm), *b = open_session(&full);
            dcm_unit *units, *tokens_of;
            float *values, *each;
            assert_int_equal(dcm_session_feed(a, tokens, TOKENS, NULL), DCM_OK);
            assert_int_equal(dcm_session_feed(b, tokens, TOKENS, NULL), DCM_OK);
            const size_t count = read_layer(a, 0, &units, &values);
            assert_int_equal(read_layer(b, 0, &tokens_of, &each), TOKENS);
            uint64_t next = 0;
            for (size_t u = 0; u < count; u++) {
                assert_int_equal(units[u].first, next);
                assert_int_equal(units[u].tokens, (uint64_t)1 << units[u].level);
                next += units[u].tokens;
                for (size_t c = 0; c < n; c++) {
                    double want = 0;
                    for (uint64_t t = units[u].first; t < next; t++)
                        want = mean ? want + (double)each[(2 * t + 1) * n + c] / (double)units[u].tokens
                                    : (double)each[(2 * t + 1) * n + c];
                    const double got = values[(2 * u + 1) * n + c];
                    assert_true(fabs(got - want) <= 1e-6 * (1 + fabs(want)));
                }
            }
            assert_int_equal(next, TOKENS);
            for (size_t t = 0; t < TOKENS; t++)
                assert_true(tokens_of[t].first == t && tokens_of[t].tokens == 1 && !tokens_of[t].level);
            assert_int_equal(dcm_session_read_layer(a, info.layers, units, NULL), DCM_ERR_USAGE);
            free(units), free(values), free(tokens_of), free(each);
            dcm_session_close(&a);
            dcm_session_close(&b);
        }
}

/* A copy goes on with the same bits, whatever it held before; halves may become floats. */
static void sessions_are_copied(void **state)
{
    (void)state;
    const dcm_cache_params policies[] = {
        {.group = 4, .merge = "mean", .chunk = 9},
        {.group = 8, .sinks = 1, .merge = "newer", .kv = DCM_KV_F32},
        {.kind = DCM_CACHE_FULL},
        {.kind = DCM_CACHE_WINDOW, .window = 24},
    };
    float *want = malloc(info.vocab * sizeof *want), *got = malloc(info.vocab * sizeof *got);
    for (size_t p = 0; p < sizeof policies / sizeof *policies; p++)
        for (size_t n = 0; n < 80; n += 19) {
            dcm_session *a = open_session(&policies[p]), *b = open_session(&policies[p]);
            assert_int_equal(dcm_session_feed(a, tokens, n, NULL), DCM_OK);
            assert_int_equal(dcm_session_feed(b, tokens + 3, 90 - n, NULL), DCM_OK);
            assert_int_equal(dcm_session_copy(b, a), DCM_OK);
            for (size_t i = n; i < n + 20; i++) {
                assert_int_equal(dcm_session_feed(a, tokens + i, 1, want), DCM_OK);
                assert_int_equal(dcm_session_feed(b, tokens + i, 1, got), DCM_OK);
                assert_memory_equal(got, want, info.vocab * sizeof *got);
            }
            dcm_session_stats x, y;
            dcm_session_get_stats(a, &x);
            dcm_session_get_stats(b, &y);
            assert_int_equal(x.tokens, y.tokens);
            assert_int_equal(x.units, y.units);
            assert_int_equal(x.cache_bytes, y.cache_bytes);
            dcm_session_close(&a);
            dcm_session_close(&b);
        }
    free(want);
    free(got);
}

/* Halves into floats: the same values; what cannot be copied is refused. */
static void copies_of_halves(void **state)
{
    (void)state;
    const dcm_cache_params half = {.group = 4, .merge = "mean"}, other = {.group = 8, .merge = "mean"};
    const dcm_cache_params newer = {.group = 4, .merge = "newer"};
    dcm_cache_params single = half;
    single.kv = DCM_KV_F32;
    dcm_session *a = open_session(&half), *b = open_session(&single), *c = open_session(&other),
                *d = open_session(&newer);
    dcm_unit *units[2];
    float *values[2];
    assert_int_equal(dcm_session_feed(a, tokens, 60, NULL), DCM_OK);
    assert_int_equal(dcm_session_copy(b, a), DCM_OK);
    const size_t n = (size_t)2 * info.kv_heads * info.head_dim;
    for (uint32_t layer = 0; layer < info.layers; layer++) {
        const size_t count = read_layer(a, layer, &units[0], &values[0]);
        assert_int_equal(read_layer(b, layer, &units[1], &values[1]), count);
        for (size_t u = 0; u < count; u++)
            assert_true(units[0][u].first == units[1][u].first && units[0][u].level == units[1][u].level);
        assert_memory_equal(values[0], values[1], count * n * sizeof **values);
        free(units[0]), free(units[1]), free(values[0]), free(values[1]);
    }
    assert_int_equal(dcm_session_copy(a, b), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_copy(c, a), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_copy(d, a), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_copy(a, a), DCM_ERR_USAGE);
    assert_int_equal(dcm_session_feed(a, tokens, 1, NULL), DCM_OK);
    dcm_session_close(&a), dcm_session_close(&b), dcm_session_close(&c), dcm_session_close(&d);
}

/* Logits of many tokens and a large vocabulary: a step's come some rows at a time, and take no more room than those. */
static void logits_in_pieces(void **state)
{
    (void)state;
    enum { VOCAB = 200000, N = 90, PIECE = 32 << 20 };
    const dcm_model_info shape = {
        .layers = 1, .hidden = 32, .heads = 2, .kv_heads = 1, .ffn = 32, .vocab = VOCAB, .tied = true};
    dcm_model *wide = NULL;
    dcm_session *s = NULL;
    dcm_session_stats stats;
    float *together = calloc((size_t)N * VOCAB, sizeof *together), *alone = calloc(VOCAB, sizeof *alone);
    assert_true(together && alone);
    assert_int_equal(dcm_model_synthetic(&wide, device, &shape, DCM_WEIGHTS_Q8_0), DCM_OK);
    assert_int_equal(dcm_session_open(&s, wide, &(dcm_cache_params){.kind = DCM_CACHE_FULL, .chunk = N}), DCM_OK);
    assert_int_equal(dcm_session_feed_each(s, tokens, N, together), DCM_OK);
    dcm_session_get_stats(s, &stats);
    assert_in_range(stats.scratch_bytes, PIECE / 2, PIECE + (4 << 20));
    dcm_session_close(&s);
    assert_int_equal(dcm_session_open(&s, wide, &(dcm_cache_params){.kind = DCM_CACHE_FULL}), DCM_OK);
    for (int i = 0; i < N; i++) {
        assert_int_equal(dcm_session_feed(s, tokens + i, 1, alone), DCM_OK);
        assert_memory_equal(alone, together + (size_t)i * VOCAB, VOCAB * sizeof *alone);
    }
    dcm_session_close(&s);
    dcm_model_close(&wide);
    free(together);
    free(alone);
}

/* Logits that are no numbers, or mask everything. */
static void sampling_no_numbers(void **state)
{
    (void)state;
    const struct {
        float logits[4];
        int32_t least, most; /* of the choices that are right */
    } cases[] = {{{NAN, 1, NAN, 1}, 1, 3},
                 {{NAN, NAN, NAN, NAN}, 0, 3},
                 {{0, INFINITY, 1, NAN}, 1, 1},
                 {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}, 0, 3},
                 {{-INFINITY, NAN, 2, -INFINITY}, 2, 2}};
    const dcm_sample_params params[] = {{0},
                                        {.temperature = 1},
                                        {.temperature = 1, .top_k = 2},
                                        {.temperature = 1, .top_p = 0.5f},
                                        {.temperature = 1, .top_k = 3, .top_p = 0.9f}};
    uint64_t rng = 1;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t p = 0; p < sizeof params / sizeof *params; p++)
            for (int draw = 0; draw < 20; draw++) {
                const int32_t id = dcm_sample(cases[i].logits, 4, &params[p], &rng);
                assert_in_range(id, cases[i].least, cases[i].most);
                assert_false(isnan(cases[i].logits[id]) && !isnan(cases[i].logits[cases[i].least]));
            }
}

static void sampling(void **state)
{
    (void)state;
    const float logits[] = {0.0f, 2.0f, 2.0f, -1.0f, 1.0f};
    uint64_t rng = 1;
    assert_int_equal(dcm_sample(logits, 5, NULL, &rng), 1);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(dcm_sample(logits, 5, &(dcm_sample_params){.temperature = 1, .top_k = 1}, &rng), 1);
        assert_in_range(dcm_sample(logits, 5, &(dcm_sample_params){.temperature = 1, .top_p = 0.6f}, &rng), 1, 2);
    }
    /* Frequencies against the softmax, within four standard deviations. */
    enum { DRAWS = 200000 };
    const double weight[] = {1, 7.38905609893065, 7.38905609893065, 0.36787944117144233, 2.718281828459045};
    const double total = 1 + 2 * weight[1] + weight[3] + weight[4];
    int count[5] = {0};
    for (int i = 0; i < DRAWS; i++)
        count[dcm_sample(logits, 5, &(dcm_sample_params){.temperature = 1}, &rng)]++;
    for (int i = 0; i < 5; i++) {
        const double p = weight[i] / total, deviation = count[i] - DRAWS * p;
        assert_true(deviation * deviation < 16 * DRAWS * p * (1 - p));
    }
    /* What top-k and top-p keep of many candidates, against a full sort. */
    enum { MANY = 1000 };
    float many[MANY];
    int rank[MANY];
    for (int i = 0; i < MANY; i++)
        many[i] = (float)(rng_uniform(&rng) * 8);
    double mass = 0, all = 0;
    for (int i = 0; i < MANY; i++) {
        all += exp(many[i]);
        rank[i] = 0;
        for (int j = 0; j < MANY; j++)
            rank[i] += many[j] > many[i] || (many[j] == many[i] && j < i);
    }
    int nucleus = 0;
    for (; mass < 0.5 * all; nucleus++)
        for (int i = 0; i < MANY; i++)
            if (rank[i] == nucleus)
                mass += exp(many[i]);
    bool seen_k[MANY] = {false}, seen_p[MANY] = {false};
    for (int i = 0; i < 20000; i++) {
        seen_k[rank[dcm_sample(many, MANY, &(dcm_sample_params){.temperature = 1, .top_k = 17}, &rng)]] = true;
        seen_p[rank[dcm_sample(many, MANY, &(dcm_sample_params){.temperature = 1, .top_p = 0.5f}, &rng)]] = true;
    }
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(seen_k[i], i < 17);
        assert_int_equal(seen_p[i], i < nucleus);
    }
    uint64_t a = 42, b = 42;
    for (int i = 0; i < 100; i++)
        assert_int_equal(dcm_sample(logits, 5, &(dcm_sample_params){.temperature = 2}, &a),
                         dcm_sample(logits, 5, &(dcm_sample_params){.temperature = 2}, &b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unmerged_is_full),    cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(feeds_compose),       cmocka_unit_test(layers_are_read_back),
        cmocka_unit_test(errors_are_said),     cmocka_unit_test(sampling),
        cmocka_unit_test(sampling_no_numbers),
        cmocka_unit_test(logits_in_pieces),
        cmocka_unit_test(sessions_are_copied), cmocka_unit_test(copies_of_halves),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
