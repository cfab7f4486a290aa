/* Files of scorers: what is saved is read again, in the documented order of channels; wrong files are refused, in one
 * line, and a write that fails leaves what was there. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/half.h"
#include "base/memory.h"
#include "merge/merge.h"
#include "ops/profile.h"
#include "support/fixture.h"
#include "support/score.h"

static char path[64];
static const score_shape shape = {18, 16, 3};
static const merge_facts facts = {2, 3, 18, ROPE_INTERLEAVED, 0x00c0ffee12345678};
enum { ROWS = 6, DATA_MAX = ROWS * 17 * 36 /* of the largest array, spoiled */ };

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/score.XXXXXX");
    const int fd = mkstemp(path);
    return fd < 0 || close(fd) != 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static float *make_params(void)
{
    uint64_t rng = 7;
    return fx_score(shape, ROWS, 1, &rng);
}

static dcm_status load(const merge_facts *of, score_shape *got, float **params)
{
    safetensors *file;
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    assert_true(score_is_ours(file));
    const dcm_status status = score_file_load(file, of, got, params);
    safetensors_close(&file);
    return status;
}

/* All arrays of a row but its padding, f32 bit for bit, the network rounded to `type`. */
static void compare(const float *want, const float *got, st_type type)
{
    const score_layout l = score_layout_of(shape);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t i = 0; i < l.sharp_v + 1; i++) {
            const float x = want[row * l.row + i];
            const float rounded = type == ST_F16 && i >= l.w1 ? half_to_float(float_to_half(x)) : x;
            const float bound = type == ST_BF16 && i >= l.w1 ? fabsf(x) * 0x1p-8f : 0;
            if (!(fabsf(got[row * l.row + i] - rounded) <= bound))
                fail_msg("row %zu item %zu: %g, not %g", row, i, (double)got[row * l.row + i], (double)rounded);
        }
}

static void test_round_trip(void **state)
{
    (void)state;
    static const st_type types[] = {ST_F32, ST_F16, ST_BF16};
    const st_note notes[] = {{"model", "tiny"}, {"card", "two\nlines, \xc3\xbcnicode"}};
    float *params = make_params(), *got;
    for (int i = 0; i < 6; i++) {
        merge_facts of = facts;
        score_shape found;
        of.rope = i % 2 ? ROPE_HALF : ROPE_INTERLEAVED;
        assert_int_equal(score_file_save(path, &of, shape, params, notes, 2, types[i / 2]), DCM_OK);
        assert_int_equal(load(&of, &found, &got), DCM_OK);
        assert_memory_equal(&found, &shape, sizeof shape);
        compare(params, got, types[i / 2]);
        mem_free(&got);
    }
    safetensors *file;
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    assert_string_equal(safetensors_metadata(file, "model_digest"), "00c0ffee12345678");
    assert_string_equal(safetensors_metadata(file, "card"), notes[1].value);
    assert_int_equal(safetensors_find(file, "scale")->type, ST_F32);
    assert_int_equal(safetensors_find(file, "u")->type, ST_BF16);
    safetensors_close(&file);
    free(params);
}

/* Keys of interleaved pairs (2i, 2i+1) are (i, i + d/2) in the file; values, and all of half-split models, as they are.
 */
static void test_channels(void **state)
{
    (void)state;
    const uint32_t d = shape.head_dim, x = 2 * d, row = 4, j = 5;
    const score_layout l = score_layout_of(shape);
    float *params = make_params(), values[ROWS * 16 * 36];
    for (int half = 0; half < 2; half++) {
        merge_facts of = facts;
        safetensors *file;
        of.rope = half ? ROPE_HALF : ROPE_INTERLEAVED;
        assert_int_equal(score_file_save(path, &of, shape, params, NULL, 0, ST_F32), DCM_OK);
        assert_int_equal(safetensors_open(&file, path), DCM_OK);
        const st_tensor *t = safetensors_find(file, "w1");
        assert_true(t->n_dims == 4 && t->dims[0] == 2 && t->dims[1] == 3 && t->dims[2] == 16 && t->dims[3] == 36);
        assert_int_equal(safetensors_to_float(file, t, values), DCM_OK);
        for (uint32_t i = 0; i < d / 2; i++) {
            const float *in_file = values + (row * 16 + j) * x, *in_memory = params + row * l.row + l.w1 + j * x;
            assert_true(in_file[i] == in_memory[half ? i : 2 * i]);
            assert_true(in_file[i + d / 2] == in_memory[half ? i + d / 2 : 2 * i + 1]);
            assert_true(in_file[d + i] == in_memory[d + i]);
        }
        safetensors_close(&file);
    }
    free(params);
}

static void refuse(const merge_facts *of, const char *one, const char *other)
{
    merge_model m = {0};
    backend *b;
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    assert_int_equal(merge_open(&m, b, path, of), DCM_ERR_FILE);
    if (!strstr(dcm_error(), one) || !strstr(dcm_error(), other) || !strstr(dcm_error(), path) ||
        strchr(dcm_error(), '\n'))
        fail_msg("message \"%s\" should have \"%s\" and \"%s\"", dcm_error(), one, other);
    merge_close(&m);
    backend_close(&b);
}

static void test_other_models(void **state)
{
    (void)state;
    float *params = make_params();
    assert_int_equal(score_file_save(path, &facts, shape, params, NULL, 0, ST_F16), DCM_OK);
    merge_facts of = facts;
    of.digest++;
    refuse(&of, "00c0ffee12345678", "00c0ffee12345679");
    of.layers = 30; /* what does not fit is told before a digest, which says little */
    refuse(&of, "2 layers", "30");
    of.layers = facts.layers, of.kv_heads = 5;
    refuse(&of, "3 KV heads", "5");
    of.kv_heads = facts.kv_heads, of.head_dim = 64;
    refuse(&of, "head size of 18", "64");
    free(params);
}

/* The arrays of a file and its metadata, to be spoiled. */
typedef struct parts {
    st_array array[12];
    size_t count;
    st_note note[4];
    float data[DATA_MAX];
} parts;

static void make_parts(parts *p)
{
    static const st_array arrays[] = {
        {"mean", ST_F32, 3, {2, 3, 36}},  {"scale", ST_F32, 3, {2, 3, 36}}, {"w1", ST_F32, 4, {2, 3, 16, 36}},
        {"b1", ST_F32, 4, {2, 3, 3, 16}}, {"w2", ST_F32, 3, {2, 3, 16}},    {"u", ST_F32, 4, {2, 3, 16, 36}},
        {"r", ST_F32, 4, {2, 3, 3, 36}},  {"prior", ST_F32, 3, {2, 3, 3}},  {"deviation", ST_F32, 2, {2, 3}},
        {"sharp_k", ST_F32, 2, {2, 3}},   {"sharp_v", ST_F32, 2, {2, 3}},
    };
    const st_note notes[] = {
        {"format", "dcm-merge"}, {"arch", "score"}, {"version", "2"}, {"model_digest", "00c0ffee12345678"}};
    memset(p, 0, sizeof *p);
    memcpy(p->array, arrays, sizeof arrays);
    memcpy(p->note, notes, sizeof notes);
    p->count = sizeof arrays / sizeof *arrays;
    for (size_t i = 0; i < sizeof p->data / sizeof *p->data; i++)
        p->data[i] = 0.5f;
    for (size_t i = 0; i < sizeof p->array / sizeof *p->array; i++)
        p->array[i].data = p->data;
}

static void put(const parts *p) { assert_int_equal(safetensors_write(path, p->array, p->count, p->note, 4), DCM_OK); }

static void spoil_shape(size_t array, uint32_t n_dims, uint32_t dim, uint64_t size, const char *one, const char *other)
{
    parts p;
    make_parts(&p);
    p.array[array].n_dims = n_dims;
    p.array[array].dims[dim] = size;
    put(&p);
    refuse(&facts, one, other);
}

static void spoil_value(size_t array, float value, const char *one, const char *other)
{
    float data[DATA_MAX];
    parts p;
    make_parts(&p);
    memcpy(data, p.data, sizeof data);
    data[5] = value;
    p.array[array].data = data;
    put(&p);
    refuse(&facts, one, other);
}

static void test_wrong_files(void **state)
{
    (void)state;
    parts p;
    score_shape found;
    float *params;
    make_parts(&p);
    put(&p);
    assert_int_equal(load(&facts, &found, &params), DCM_OK); /* what follows fails for its own reason */
    for (size_t row = 0; row < ROWS; row++) /* bias is left out */
        for (size_t g = 0; g < 3; g++)
            assert_true(params[row * score_layout_of(found).row + score_layout_of(found).bias + g] == 0);
    mem_free(&params);
    for (size_t i = 0; i < p.count; i++) {
        const char *name = p.array[i].name;
        p.array[i].name = "other";
        put(&p);
        refuse(&facts, i == 0 || i == 4 || i == 7 ? name : "other",
               i == 0 || i == 4 || i == 7 ? "no array" : "not part");
        p.array[i] = p.array[p.count - 1];
        p.count--;
        put(&p);
        refuse(&facts, "no array", i == p.count ? name : "");
        make_parts(&p);
    }
    p.array[11] = (st_array){"more", ST_F32, 1, {1}, p.data};
    p.count = 12;
    put(&p);
    refuse(&facts, "more", "not part");
    make_parts(&p), p.note[1].value = "other";
    put(&p);
    refuse(&facts, "other", "score");
    make_parts(&p), p.note[2].value = "1";
    put(&p);
    refuse(&facts, "version \"1\"", "\"2\": train it again");
    static const char *const lacking[] = {"arch \"\"", "version \"\"", "digest ?"};
    for (size_t i = 0; i < 3; i++) {
        make_parts(&p), p.note[1 + i].key = "other";
        put(&p);
        refuse(&facts, lacking[i], "");
    }
    spoil_shape(4, 3, 2, 20, "20 hidden", "16");
    spoil_shape(4, 3, 2, 0, "0 hidden", "16");
    spoil_shape(4, 3, 2, 144, "144 hidden", "128");
    spoil_shape(7, 3, 2, 0, "0 levels", "1 to");
    spoil_shape(7, 3, 2, 14, "14 levels", "1 to 13");
    spoil_shape(2, 4, 2, 17, "17", "16");
    spoil_shape(6, 4, 2, 2, "dimension 2 of r", "3");
    spoil_shape(5, 3, 2, 36, "u has 3", "4");
    spoil_shape(9, 3, 2, 1, "sharp_k has 3", "2");
    spoil_value(2, NAN, "w1", "nan");
    spoil_value(10, INFINITY, "sharp_v", "inf");
    spoil_value(1, 0, "scale", "positive");
    spoil_value(1, -1, "scale", "positive");
}

/* Integers in place of floats: "I32" over "F32" in the header. */
static void test_wrong_type(void **state)
{
    (void)state;
    char text[4096];
    parts p;
    make_parts(&p);
    put(&p);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    const size_t size = fread(text, 1, sizeof text, file);
    char *at = memmem(text, size, "\"w1\":{\"dtype\":\"F32", 18);
    assert_non_null(at);
    assert_int_equal(fseek(file, at + 15 - text, SEEK_SET), 0);
    fputc('I', file);
    fclose(file);
    refuse(&facts, "w1", "none of F32");
}

/* Every allocation fails once, of saving, which leaves what was there, and of loading. */
static void test_no_memory(void **state)
{
    (void)state;
    float *params = make_params(), *got;
    score_shape found;
    safetensors *file;
    dcm_status status = DCM_ERR_MEMORY;
    for (long n = 1; status != DCM_OK; n++) {
        parts p;
        make_parts(&p);
        put(&p);
        mem_fail_at(n);
        status = score_file_save(path, &facts, shape, params, NULL, 0, ST_F16);
        mem_fail_at(0);
        assert_true(status == DCM_OK || status == DCM_ERR_MEMORY);
        assert_int_equal(load(&facts, &found, &got), DCM_OK);
        assert_true((got[0] == 0.5f) == (status != DCM_OK));
        mem_free(&got);
    }
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    status = DCM_ERR_MEMORY;
    for (long n = 1; status != DCM_OK; n++) {
        mem_fail_at(n);
        status = score_file_load(file, &facts, &found, &got);
        mem_fail_at(0);
        assert_true(status == DCM_OK || (status == DCM_ERR_MEMORY && !got));
    }
    compare(params, got, ST_F16);
    mem_free(&got);
    safetensors_close(&file);
    free(params);
}

static void test_truncated(void **state)
{
    (void)state;
    parts p;
    make_parts(&p);
    put(&p);
    assert_int_equal(truncate(path, 4000), 0);
    refuse(&facts, "truncated", "");
}

static void assert_untouched(const float *params)
{
    score_shape found;
    float *got;
    assert_int_equal(load(&facts, &found, &got), DCM_OK);
    compare(params, got, ST_F32);
    mem_free(&got);
}

static void test_write_fails(void **state)
{
    (void)state;
    const score_layout l = score_layout_of(shape);
    float *params = make_params(), *other = make_params();
    assert_int_equal(score_file_save(path, &facts, shape, params, NULL, 0, ST_F32), DCM_OK);
    other[l.row + l.prior] = 7e4f; /* more than a half holds */
    assert_int_equal(score_file_save(path, &facts, shape, other, NULL, 0, ST_F16), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "KV head 1: prior holds 70000, more than the file's type can hold"));
    other[l.row + l.prior] = NAN;
    assert_int_equal(score_file_save(path, &facts, shape, other, NULL, 0, ST_F32), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "KV head 1: prior holds nan"));
    other[l.row + l.prior] = 0;
    const st_note twice[] = {{"arch", "mine"}}, no_text[] = {{"card", "\xff"}};
    assert_int_equal(score_file_save(path, &facts, shape, other, twice, 1, ST_F32), DCM_ERR_FILE);
    assert_int_equal(score_file_save(path, &facts, shape, other, no_text, 1, ST_F32), DCM_ERR_FILE);
    assert_int_equal(score_file_save("/nowhere/x", &facts, shape, other, NULL, 0, ST_F32), DCM_ERR_FILE);
    assert_untouched(params);
    /* A disk with no more room. */
    const struct rlimit small = {5000, RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const dcm_status status = score_file_save(path, &facts, shape, other, NULL, 0, ST_F32);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    assert_int_equal(status, DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), path));
    assert_untouched(params);
    free(params);
    free(other);
}

/* merge_run of an opened file is merge_score with its parameters, all layers at once; then of others put in place. */
static void test_run(void **state)
{
    (void)state;
    const fx_spec spec = {2, 3, 3, 18, KV_F32, ROPE_INTERLEAVED, .n_merges = 4};
    uint64_t rng = 5;
    float *params = make_params();
    fx_cache cache;
    backend *b;
    fx_cache_new(&cache, &spec, &rng);
    fx_cache_fill_merges(&cache, FX_NORMAL, &rng);
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    assert_int_equal(score_file_save(path, &facts, shape, params, NULL, 0, ST_F32), DCM_OK);
    for (int other = 0; other < 2; other++) {
        merge_model m = {0};
        kv_pool pool, again;
        step s, t;
        profile counts = {0};
        assert_int_equal(merge_open(&m, b, path, &facts), DCM_OK);
        assert_string_equal(m.name, "score");
        assert_int_equal(merge_bytes(&m), ROWS * score_layout_of(shape).row * sizeof *params);
        for (size_t i = 0; other && i < ROWS * score_layout_of(shape).row; i++)
            params[i] *= 0.5f;
        if (other)
            assert_int_equal(merge_set_score(&m, params), DCM_OK);
        buffer *direct = fx_make_plain(b, "params", params, merge_bytes(&m), 4);
        fx_upload(&cache, fx_make_plain, b, &pool, &s);
        fx_upload(&cache, fx_make_plain, b, &again, &t);
        assert_int_equal(b->ops->profile(b, &counts), DCM_OK);
        assert_int_equal(merge_run(&m, &pool, &s, 0, 2, spec.rope), DCM_OK);
        assert_int_equal(b->ops->profile(b, NULL), DCM_OK);
        assert_int_equal(counts.count, 1);
        assert_int_equal(counts.entry[0].launches, 1);
        const merge_score_args args = {&again, &t, 0, 2, spec.rope, shape, direct};
        assert_int_equal(b->ops->merge_score(b, &args), DCM_OK);
        bool changed = false;
        for (uint32_t i = 0; i < pool.n_blocks; i++) {
            changed = changed || memcmp(pool.block[i]->handle, cache.block[i], cache.block_bytes[i]) != 0;
            assert_memory_equal(pool.block[i]->handle, again.block[i]->handle, cache.block_bytes[i]);
        }
        assert_true(changed);
        fx_free_uploaded(&pool, &s);
        fx_free_uploaded(&again, &t);
        buffer_free(&direct);
        merge_close(&m);
    }
    backend_close(&b);
    fx_cache_free(&cache);
    free(params);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_channels),  cmocka_unit_test(test_other_models),
        cmocka_unit_test(test_wrong_files), cmocka_unit_test(test_truncated), cmocka_unit_test(test_write_fails),
        cmocka_unit_test(test_run),         cmocka_unit_test(test_wrong_type), cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
