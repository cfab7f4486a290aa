/* Files of pair MLPs: what is saved is read again, published files are read without dcm's metadata, and wrong ones are
 * refused in one line that says what is wrong. */
#define _GNU_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/half.h"
#include "base/memory.h"
#include "base/rng.h"
#include "merge/pair_file.h"

enum { D = 2, PARAMS_MAX = 1000, ARRAYS_MAX = 512 };

static char path[64];
static const merge_facts facts = {2, 3, D, ROPE_INTERLEAVED, 0x00c0ffee12345678};
static const pair_shape gate = {D, 1, false}, direct = {D, 2, true};
static float zeros[256];

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/pair.XXXXXX");
    const int fd = mkstemp(path);
    return fd < 0 || close(fd) != 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static dcm_status load(const merge_facts *of, pair_shape *shape, float **params)
{
    safetensors *file;
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    const dcm_status status = pair_file_load(file, of, shape, params);
    assert_true((status == DCM_OK) == (*params != NULL));
    safetensors_close(&file);
    return status;
}

static void refuse(const char *part)
{
    pair_shape shape;
    float *params;
    assert_int_equal(load(&facts, &shape, &params), DCM_ERR_FILE);
    if (!strstr(dcm_error(), part) || strchr(dcm_error(), '\n'))
        fail_msg("message \"%s\" should have \"%s\"", dcm_error(), part);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const st_type types[] = {ST_F32, ST_F16, ST_BF16};
    const st_note note = {"card", "by hand"};
    float params[PARAMS_MAX], *got;
    uint64_t rng = 3;
    for (size_t i = 0; i < 6; i++) {
        const pair_shape shape = i % 2 ? direct : gate;
        const size_t count = pair_count(shape);
        const st_type type = types[i / 2];
        pair_shape found;
        safetensors *file;
        assert_int_equal(count, i % 2 ? 2 * 3 * (4 * 4 + 4) + 2 * 4 + 2 : 3 * (4 * 4 + 4) + 4 + 1);
        for (size_t k = 0; k < count; k++)
            params[k] = (float)((double)(rng_next(&rng) >> 11) * 0x1p-52 - 1);
        assert_int_equal(pair_file_save(path, &facts, shape, params, &note, 1, type), DCM_OK);
        assert_int_equal(load(&facts, &found, &got), DCM_OK);
        assert_true(found.head_dim == D && found.blocks == shape.blocks && found.direct == shape.direct);
        for (size_t k = 0; k < count; k++) {
            const float want = type == ST_F16 ? half_to_float(float_to_half(params[k])) : params[k];
            assert_true(fabsf(got[k] - want) <= (type == ST_BF16 ? fabsf(want) * 0x1p-8f : 0));
        }
        mem_free(&got);
        assert_int_equal(safetensors_open(&file, path), DCM_OK);
        assert_true(pair_is_ours(file));
        assert_string_equal(safetensors_metadata(file, "arch"), i % 2 ? "direct" : "gate");
        assert_string_equal(safetensors_metadata(file, "model_digest"), "00c0ffee12345678");
        assert_string_equal(safetensors_metadata(file, "card"), "by hand");
        safetensors_close(&file);
        merge_facts other = facts;
        other.digest++;
        assert_int_equal(load(&other, &found, &got), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "00c0ffee12345678; this model's is 00c0ffee12345679"));
        other.head_dim = 16; /* told before a digest, which says little */
        assert_int_equal(load(&other, &found, &got), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "lin1.weight is (4, 4), but a head size of 16 needs (32, 32)"));
    }
}

/* The arrays of a file of zeros, to be spoiled. */
typedef struct parts {
    char name[ARRAYS_MAX][40];
    st_array array[ARRAYS_MAX];
    size_t count;
} parts;

static st_array *add(parts *p, const char *name, uint32_t n_dims, uint64_t rows, uint64_t cols)
{
    st_array *a = &p->array[p->count];
    assert_true(p->count < ARRAYS_MAX);
    snprintf(p->name[p->count++], sizeof *p->name, "%s", name);
    *a = (st_array){p->name[p->count - 1], ST_F32, n_dims, {rows, cols}, zeros};
    return a;
}

static void make(parts *p, uint32_t blocks, bool with_gate, bool with_direct)
{
    char name[40];
    p->count = 0;
    for (uint32_t b = 0; b < blocks; b++)
        for (int lin = 1; lin <= 3; lin++) {
            snprintf(name, sizeof name, "layers.%u.lin%d.weight", b, lin);
            add(p, name, 2, 2 * D, 2 * D);
            snprintf(name, sizeof name, "layers.%u.lin%d.bias", b, lin);
            add(p, name, 1, 2 * D, 0);
        }
    if (with_gate) {
        add(p, "lin1.weight", 2, 1, 2 * D);
        add(p, "lin1.bias", 1, 1, 0);
    }
    if (with_direct) {
        add(p, "merge.weight", 2, D, 2 * D);
        add(p, "merge.bias", 1, D, 0);
    }
}

static void put(const parts *p, const st_note *notes, size_t n)
{
    assert_int_equal(safetensors_write(path, p->array, p->count, notes, n), DCM_OK);
}

static void test_published(void **state)
{
    (void)state;
    static parts p;
    pair_shape found;
    float *params;
    make(&p, 1, true, false);
    add(&p, "layers.0.layer_norm.weight", 1, 4, 0);
    put(&p, NULL, 0);
    assert_int_equal(load(&facts, &found, &params), DCM_OK);
    mem_free(&params);
    make(&p, MERGE_MAX_BLOCKS, false, true);
    put(&p, NULL, 0);
    assert_int_equal(load(&facts, &found, &params), DCM_OK);
    assert_int_equal(found.blocks, MERGE_MAX_BLOCKS);
    mem_free(&params);
    make(&p, MERGE_MAX_BLOCKS + 1, false, true);
    put(&p, NULL, 0);
    refuse("layers.64.lin1.weight is not part");
}

/* A file that names its model is dcm's own, of this version. */
static void test_versions(void **state)
{
    (void)state;
    static parts p;
    static const st_note notes[][2] = {{{"model_digest", "00c0ffee12345678"}, {"version", "1"}},
                                       {{"model_digest", "00c0ffee12345678"}, {"model", "x"}},
                                       {{"model_digest", "00c0ffee12345679"}, {"version", "2"}},
                                       {{"model_digest", "00c0ffee12345678"}, {"version", "2"}}};
    static const char *const said[] = {"version \"1\" of its format; this dcm knows \"2\"", "version \"\" of its",
                                       "made for the model with digest 00c0ffee12345679"};
    pair_shape found;
    float *params;
    make(&p, 1, true, false);
    for (size_t i = 0; i < 3; i++) {
        put(&p, notes[i], 2);
        refuse(said[i]);
    }
    put(&p, notes[3], 2);
    assert_int_equal(load(&facts, &found, &params), DCM_OK);
    mem_free(&params);
}

static void test_is_ours(void **state)
{
    (void)state;
    static parts p;
    static const st_note notes[][2] = {
        {{"format", "other"}, {"arch", "gate"}},       {{"format", "dcm-merge"}, {"model", "x"}},
        {{"format", "dcm-merge"}, {"arch", "score"}},  {{"format", "dcm-merge"}, {"arch", "gate"}},
        {{"format", "dcm-merge"}, {"arch", "direct"}},
    };
    make(&p, 1, true, false);
    for (size_t i = 0; i < 5; i++) {
        safetensors *file;
        put(&p, notes[i], 2);
        assert_int_equal(safetensors_open(&file, path), DCM_OK);
        assert_true(pair_is_ours(file) == (i >= 3));
        safetensors_close(&file);
    }
}

/* One array of a good gate file is renamed, or has other dimensions. */
static void spoil(size_t array, const char *name, uint32_t n_dims, uint64_t rows, uint64_t cols, const char *part)
{
    static parts p;
    make(&p, 1, true, false);
    if (name)
        p.array[array].name = name;
    p.array[array].n_dims = n_dims;
    p.array[array].dims[0] = rows;
    p.array[array].dims[1] = cols;
    put(&p, NULL, 0);
    refuse(part);
}

static void test_wrong_files(void **state)
{
    (void)state;
    static parts p;
    make(&p, 0, true, false);
    put(&p, NULL, 0);
    refuse("no tensor layers.0.lin1.weight: not a merge model");
    make(&p, 1, true, true);
    put(&p, NULL, 0);
    refuse("this has both");
    make(&p, 1, false, false);
    put(&p, NULL, 0);
    refuse("this has none");
    spoil(2, "layers.0.layer_norm.x", 2, 4, 4, "no tensor layers.0.lin2.weight");
    spoil(2, NULL, 1, 4, 0, "layers.0.lin2.weight is (4, 1), but a head size of 2 needs (4, 4)");
    spoil(2, NULL, 2, 3, 4, "is (3, 4)");
    spoil(2, NULL, 2, 4, 5, "is (4, 5)");
    spoil(6, NULL, 2, 2, 4, "lin1.weight is (2, 4), but a head size of 2 needs (1, 4)");
    make(&p, 1, false, true);
    p.array[6].dims[0] = 1;
    put(&p, NULL, 0);
    refuse("merge.weight is (1, 4), but a head size of 2 needs (2, 4)");
    spoil(3, "layers.0.layer_norm.x", 1, 4, 0, "layers.0.lin2.bias is missing or does not have 4 items");
    spoil(3, NULL, 2, 4, 1, "layers.0.lin2.bias is missing");
    spoil(3, NULL, 1, 5, 0, "layers.0.lin2.bias is missing");
    static const char *const names[] = {"other",
                                        "",
                                        "lin2.weight",
                                        "layers.1.layer_norm.weight",
                                        "layers.4294967296.layer_norm.bias",
                                        "layers.0.layer_norm",
                                        "layers.00.layer_norm.weight",
                                        "layers.x.lin1.weight",
                                        "layers.-1.lin1.weight",
                                        "layers.00.lin1.weight",
                                        "layers.+0.lin1.weight",
                                        "layers. 0.lin1.weight",
                                        "layers.4294967296.lin1.weight",
                                        "layers.0.lin1",
                                        "layers.1.lin1.bias",
                                        "layers.1.lin2.weight",
                                        "layers.0.lin0.bias",
                                        "layers.0.lin01.bias",
                                        "layers.0.lin4294967297.bias",
                                        "layers.0.lin4.weight",
                                        "layers.0.lin1.scale",
                                        "layers.0.lin1.weights"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char part[80];
        make(&p, 1, true, false);
        add(&p, names[i], 1, 4, 0);
        put(&p, NULL, 0);
        snprintf(part, sizeof part, "tensor %s is not part of a merge model", names[i]);
        refuse(part);
    }
}

/* Items that are no numbers, and items of a type that is not read. */
static void test_wrong_items(void **state)
{
    (void)state;
    static parts p;
    const float bad[16] = {[5] = NAN};
    make(&p, 1, true, false);
    p.array[4].data = bad;
    put(&p, NULL, 0);
    refuse("layers.0.lin3.weight: item 5 is not finite");
    for (int bias = 0; bias < 2; bias++) {
        char text[4096];
        make(&p, 1, true, false);
        put(&p, NULL, 0);
        FILE *file = fopen(path, "r+b");
        assert_non_null(file);
        const size_t size = fread(text, 1, sizeof text, file);
        char *at = memmem(text, size, bias ? "lin2.bias" : "lin2.weight", bias ? 9 : 11);
        assert_non_null(at);
        at = memmem(at, (size_t)(text + size - at), "F32", 3);
        assert_non_null(at);
        assert_int_equal(fseek(file, at - text, SEEK_SET), 0);
        fputc('I', file);
        fclose(file);
        refuse("its dtype is none of F32, F16, BF16");
    }
}

static void test_save_fails(void **state)
{
    (void)state;
    float params[PARAMS_MAX] = {0}, *got;
    pair_shape found;
    assert_int_equal(pair_file_save(path, &facts, gate, params, NULL, 0, ST_F32), DCM_OK);
    params[7] = 7e4f;
    assert_int_equal(pair_file_save(path, &facts, gate, params, NULL, 0, ST_F16), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "not written: parameter 7 is 70000"));
    params[7] = INFINITY;
    assert_int_equal(pair_file_save(path, &facts, gate, params, NULL, 0, ST_F32), DCM_ERR_FILE);
    params[7] = 1;
    dcm_status status = DCM_ERR_MEMORY;
    for (long n = 1; status != DCM_OK; n++) {
        assert_int_equal(load(&facts, &found, &got), DCM_OK);
        assert_true(got[7] == 0); /* what was there stays until all is written */
        mem_free(&got);
        mem_fail_at(n);
        status = pair_file_save(path, &facts, gate, params, NULL, 0, ST_F32);
        mem_fail_at(0);
        assert_true(status == DCM_OK || status == DCM_ERR_MEMORY);
    }
    safetensors *file;
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    mem_fail_at(1);
    assert_int_equal(pair_file_load(file, &facts, &found, &got), DCM_ERR_MEMORY);
    assert_null(got);
    mem_fail_at(0);
    safetensors_close(&file);
}

#define IN_PLACE(test) cmocka_unit_test_setup_teardown(test, make_path, remove_path)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_PLACE(test_round_trip),  IN_PLACE(test_published),  IN_PLACE(test_is_ours),  IN_PLACE(test_wrong_files),
        IN_PLACE(test_wrong_items), IN_PLACE(test_save_fails), IN_PLACE(test_versions),
    };
    return cmocka_run_group_tests_name("pair_file", tests, NULL, NULL);
}
