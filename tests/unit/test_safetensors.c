/* safetensors files: one written by the python package read right, and wrong ones refused in one clear line. */
#include "base/error.h"
#include "base/memory.h"
#include "base/rng.h"
#include "io/json_members.h"
#include "io/safetensors_write.h"
#include "support/gguf_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char golden[] = TEST_GOLDEN "/safetensors/small.safetensors";
static const float values[6] = {1.5f, -2.0f, 0.0078125f, 3.140625f, -0.0f, 128.0f};

/* A file of the given header and `data` bytes of 0, 1, 2 ... */
static gw_bytes make_file(const char *header, size_t data)
{
    gw_bytes bytes = {0};
    gw_put_string(&bytes, header);
    for (size_t i = 0; i < data; i++)
        gw_put(&bytes, &(unsigned char){(unsigned char)i}, 1);
    return bytes;
}

/* Opens an exact copy, so that a sanitiser sees every read outside. */
static dcm_status open_copy(const void *data, size_t size)
{
    safetensors *file;
    void *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    const dcm_status status = safetensors_open_memory(&file, "t.safetensors", copy, size);
    assert_true((status == DCM_OK) == (file != NULL));
    safetensors_close(&file);
    free(copy);
    return status;
}

static void refuse(const char *header, size_t data, const char *part)
{
    gw_bytes bytes = make_file(header, data);
    assert_int_equal(open_copy(bytes.data, bytes.size), DCM_ERR_FILE);
    if (strncmp(dcm_error(), "t.safetensors: offset ", 22) != 0 || !strstr(dcm_error(), part) ||
        strchr(dcm_error(), '\n'))
        fail_msg("header %s: message \"%s\" should have \"%s\"", header, dcm_error(), part);
    gw_free(&bytes);
}

static void assert_values(const safetensors *file, const char *name, st_type type, const float *wanted, size_t count)
{
    float out[8] = {0};
    const st_tensor *t = safetensors_find(file, name);
    assert_non_null(t);
    assert_string_equal(t->name, name);
    assert_int_equal(t->type, type);
    assert_int_equal(t->items, count);
    out[count] = 99;
    assert_int_equal(safetensors_to_float(file, t, out), DCM_OK);
    assert_memory_equal(out, wanted, count * sizeof *out);
    assert_true(out[count] == 99);
}

static void test_golden(void **state)
{
    (void)state;
    safetensors *file;
    float out[8];
    assert_int_equal(safetensors_open(&file, golden), DCM_OK);
    assert_int_equal(safetensors_count(file), 8);
    assert_values(file, "f32", ST_F32, values, 6);
    assert_values(file, "f16", ST_F16, values, 6);
    assert_values(file, "layers.0.lin1.weight", ST_BF16, values, 6);
    assert_values(file, "scalar", ST_F32, (const float[]){0.5f}, 1);
    assert_values(file, "empty", ST_F32, NULL, 0);
    assert_values(file, "na\xc3\xafve \"name\"", ST_F32, (const float[]){1}, 1);
    const st_tensor *t = safetensors_find(file, "f16");
    assert_true(t->n_dims == 2 && t->dims[0] == 3 && t->dims[1] == 2 && t->bytes == 12);
    assert_int_equal(safetensors_find(file, "scalar")->n_dims, 0);
    assert_int_equal(safetensors_find(file, "f64")->type, ST_OTHER);
    assert_int_equal(safetensors_to_float(file, safetensors_find(file, "f64"), out), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "tensor \"f64\""));
    assert_int_equal(safetensors_find(file, "ids")->type, ST_OTHER);
    assert_null(safetensors_find(file, "f3"));
    assert_null(safetensors_find(file, "__metadata__"));
    assert_string_equal(safetensors_metadata(file, "base"), "smollm2");
    assert_string_equal(safetensors_metadata(file, "note"), "two\nlines, \xc3\xbcnicode");
    assert_null(safetensors_metadata(file, "other"));
    for (size_t i = 0; i < 8; i++)
        assert_ptr_equal(safetensors_find(file, safetensors_at(file, i)->name), safetensors_at(file, i));
    safetensors_close(&file);
    assert_null(file);
    safetensors_close(&file);
    safetensors_close(NULL);
}

static void test_no_metadata(void **state)
{
    (void)state;
    safetensors *file;
    gw_bytes bytes = make_file("{}  ", 0);
    assert_int_equal(safetensors_open_memory(&file, "t", bytes.data, bytes.size), DCM_OK);
    assert_int_equal(safetensors_count(file), 0);
    assert_null(safetensors_find(file, "a"));
    assert_null(safetensors_metadata(file, "a"));
    safetensors_close(&file);
    gw_free(&bytes);
}

#define TENSOR(dtype, shape, offsets) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A(dtype, shape, offsets) "{\"a\":" TENSOR(dtype, shape, offsets) "}"

static void test_wrong_headers(void **state)
{
    (void)state;
    refuse("", 0, "header: ");
    refuse("[]", 0, "no JSON object");
    refuse("{\"a\":", 0, "header: ");
    refuse("{\"a\nb\":1}", 0, "header: ");
    refuse("{} x", 0, "header: ");
    refuse("{\"a\":1}", 0, "tensor \"a\": its entry is no object");
    refuse("{\"a\\n\":1}", 0, "tensor \"a?\": its entry is no object");
    refuse("{\"a\":{\"dtype\":3}}", 0, "\"dtype\" is missing or no string");
    refuse(A("F33", "[1]", "[0,4]"), 4, "unknown \"dtype\" F33");
    refuse("{\"a\":{\"dtype\":\"F32\"}}", 0, "\"shape\" is missing");
    refuse(A("F32", "3", "[0,4]"), 4, "\"shape\" is missing or no array");
    refuse(A("F32", "[-1]", "[0,4]"), 4, "dimension 0");
    refuse(A("F32", "[1,1.0]", "[0,4]"), 4, "dimension 1");
    refuse(A("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "9 dimensions");
    refuse(A("F32", "[4611686018427387904,4611686018427387904]", "[0,4]"), 4, "overflows");
    refuse(A("F32", "[4611686018427387904]", "[0,0]"), 0, "data_offsets");
    refuse(A("F32", "[99999999999999999999]", "[0,4]"), 4, "header: ");
    refuse(A("F32", "[1]", "[0]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "[0,4,8]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "[4,0]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "[-4,0]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "[0,\"4\"]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "[null,4]"), 4, "no pair of places");
    refuse(A("F32", "[1]", "{}"), 4, "no pair of places");
    refuse(A("F32", "[2]", "[0,4]"), 4, "hold 4 bytes");
    refuse(A("F16", "[2]", "[0,8]"), 8, "hold 8 bytes");
    refuse(A("F4", "[3]", "[0,1]"), 1, "hold 1 bytes");
    refuse(A("F32", "[2]", "[0,8]"), 5, "data ends at 3 bytes past the end of the file");
    refuse(A("F32", "[2]", "[0,9223372036854775807]"), 5, "past the end of the file");
    refuse(A("F32", "[1]", "[0,4]"), 6, "2 bytes at the end of the file belong to no tensor");
    refuse(A("F32", "[1]", "[2,6]"), 6, "2 bytes before its data belong to no tensor");
    refuse("{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"a\":" TENSOR("F32", "[1]", "[4,8]") "}", 8, "duplicate");
    refuse("{\"a\":" TENSOR("F32", "[2]", "[0,8]") ",\"b\":" TENSOR("F32", "[1]", "[4,8]") "}", 8, "overlaps that of");
    refuse("{\"a\":" TENSOR("F32", "[1]", "[0,4]") ",\"b\":" TENSOR("F32", "[1]", "[0,4]") "}", 4, "overlaps that of");
    refuse("{\"__metadata__\":[]}", 0, "\"__metadata__\" is no object");
    refuse("{\"__metadata__\":{\"k\":1}}", 0, "the value of \"k\" is no string");
}

static void test_wrong_lengths(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {1, 100, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 7};
    gw_bytes bytes = make_file(A("F32", "[1]", "[0,4]"), 4);
    assert_int_equal(open_copy(bytes.data, bytes.size), DCM_OK);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        memcpy(bytes.data, &lengths[i], 8);
        assert_int_equal(open_copy(bytes.data, bytes.size), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), i == 0 ? "header: " : "offset 0: the header's length is "));
    }
    gw_free(&bytes);
    /* A header longer than the format allows, in a file that has so many bytes: none of them are read. */
    char path[] = "/tmp/dcm-safetensors-XXXXXX";
    const uint64_t length = 100000001;
    safetensors *file;
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, &length, 8) == 8 && ftruncate(fd, (off_t)length + 8) == 0);
    close(fd);
    assert_int_equal(safetensors_open(&file, path), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "100000001, more than 100000000"));
    unlink(path);
}

/* A member of over 32 KiB, or of over 64 lists and objects, is none of an array. */
static void test_long_members(void **state)
{
    (void)state;
    static char header[40000];
    snprintf(header, sizeof header, "{\"%0*d\":1}", JSON_MEMBER_MAX, 0);
    refuse(header, 0, "a member of 32772 bytes and 0 parts (32768 and 64 are allowed)");
    char *at = header + sprintf(header, "{\"a\":");
    for (size_t i = 0; i < 2 * (JSON_MEMBER_PARTS + 1); i++)
        *at++ = "[]"[i / (JSON_MEMBER_PARTS + 1)];
    strcpy(at, "}");
    refuse(header, 0, "and 65 parts (32768 and 64 are allowed)");
}

/* The python package's file. */
static gw_bytes read_golden(void)
{
    gw_bytes bytes = {0};
    unsigned char buffer[4096];
    FILE *in = fopen(golden, "rb");
    assert_non_null(in);
    gw_put(&bytes, buffer, fread(buffer, 1, sizeof buffer, in));
    fclose(in);
    return bytes;
}

static void test_truncated(void **state)
{
    (void)state;
    gw_bytes bytes = read_golden();
    for (size_t size = 0; size < bytes.size; size++)
        assert_int_equal(open_copy(bytes.data, size), DCM_ERR_FILE);
    gw_free(&bytes);
    safetensors *file;
    assert_int_equal(safetensors_open(&file, golden), DCM_OK);
    safetensors_close(&file);
    assert_int_equal(safetensors_open(&file, TEST_GOLDEN "/safetensors/none"), DCM_ERR_FILE);
    assert_null(file);
}

/* Every bit flipped, and random bytes: an answer, never a crash (a sanitiser watches by hand and in CI). */
static void test_flipped(void **state)
{
    (void)state;
    gw_bytes bytes = read_golden();
    size_t refused = 0;
    for (size_t at = 0; at < bytes.size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes.data[at] ^= (unsigned char)(1 << bit);
            refused += open_copy(bytes.data, bytes.size) == DCM_ERR_FILE;
            bytes.data[at] ^= (unsigned char)(1 << bit);
        }
    }
    assert_true(refused > bytes.size);
    uint64_t rng = 3;
    for (int trial = 0; trial < 5000; trial++) {
        const size_t at = 8 + rng_next(&rng) % (bytes.size - 8);
        const unsigned char old = bytes.data[at];
        bytes.data[at] = "0123456789,:[]{}\""[rng_next(&rng) % 17];
        const dcm_status status = open_copy(bytes.data, bytes.size);
        assert_true(status == DCM_OK || status == DCM_ERR_FILE);
        bytes.data[at] = old;
    }
    gw_free(&bytes);
}

static void test_no_memory(void **state)
{
    (void)state;
    safetensors *file;
    dcm_status status = DCM_ERR_MEMORY;
    long n = 1;
    for (; status != DCM_OK; n++) {
        mem_fail_at(n);
        status = safetensors_open(&file, golden);
        assert_true(status == DCM_OK ? mem_fail_at(0) == 1 : status == DCM_ERR_MEMORY && !file);
    }
    assert_true(n > 8); /* an array's name each, and more */
    safetensors_close(&file);
}

static long allocations;

static void *fail_in_turn(size_t size) { return --allocations ? malloc(size) : NULL; }

/* Where jansson has no memory it cannot say so in every case: an error all the same. */
static void test_no_memory_for_json(void **state)
{
    (void)state;
    safetensors *file;
    dcm_status status = DCM_ERR_MEMORY;
    size_t said = 0;
    json_set_alloc_funcs(fail_in_turn, free);
    for (long n = 1; status != DCM_OK; n++) {
        allocations = n;
        status = safetensors_open(&file, golden);
        assert_true((status == DCM_OK) == (file != NULL));
        said += status == DCM_ERR_MEMORY && strstr(dcm_error(), "no room for a JSON member");
    }
    json_set_alloc_funcs(malloc, free);
    safetensors_close(&file);
    assert_true(said > 0);
}

/* ---- Writing ---- */

static char path[] = "/tmp/dcm-safetensors-XXXXXX";

static dcm_status write_arrays(const st_array *arrays, size_t n)
{
    return safetensors_write(path, arrays, n, NULL, 0);
}

/* What is rounded to nearest, ties to even; NaN stays NaN, with its sign. */
static void test_bf16(void **state)
{
    (void)state;
    static const uint32_t from[] = {0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x7f800000, 0x7f7fffff,
                                    0x7f800001, 0xffc00000, 0x00000001};
    static const uint16_t to[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x7f80, 0x7fc0, 0xffc0, 0};
    float in[9];
    uint16_t out[9];
    memcpy(in, from, sizeof in);
    st_from_float(ST_BF16, in, 9, out);
    assert_memory_equal(out, to, sizeof to);
}

/* Sizes whose product or sum wraps around, and names that JSON cannot hold: refused, and nothing is written. */
static void test_wrong_arrays(void **state)
{
    (void)state;
    static const uint64_t half = UINT64_C(1) << 63;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(write_arrays(&(st_array){"a", ST_F32, 2, {half, 2}, NULL}, 1), DCM_ERR_MEMORY);
    assert_non_null(strstr(dcm_error(), "array a: the product"));
    const st_array two[] = {{"a", ST_F16, 1, {half / 2}, NULL}, {"b", ST_F16, 1, {half / 2}, NULL}};
    assert_int_equal(write_arrays(two, 2), DCM_ERR_MEMORY);
    assert_non_null(strstr(dcm_error(), "array b: the arrays' sizes overflow"));
    assert_int_equal(write_arrays(&(st_array){"a", ST_F16, 1, {half - 1}, NULL}, 1), DCM_ERR_MEMORY);
    assert_non_null(strstr(dcm_error(), "the arrays' sizes overflow"));
    assert_int_equal(write_arrays(&(st_array){"\xff", ST_F32, 1, {1}, values}, 1), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "not UTF-8"));
    mem_fail_at(1);
    assert_int_equal(write_arrays(&(st_array){"a", ST_F32, 1, {1}, values}, 1), DCM_ERR_MEMORY);
    mem_fail_at(0);
    safetensors *file;
    assert_int_equal(safetensors_open(&file, path), DCM_ERR_FILE); /* empty, as it was */
    dcm_status status = DCM_ERR_MEMORY;
    json_set_alloc_funcs(fail_in_turn, free);
    for (long n = 1; status != DCM_OK; n++) {
        allocations = n;
        status = write_arrays(&(st_array){"a", ST_F32, 1, {6}, values}, 1);
    }
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(safetensors_open(&file, path), DCM_OK);
    assert_values(file, "a", ST_F32, values, 6);
    assert_null(safetensors_metadata(file, "format"));
    safetensors_close(&file);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_no_metadata), cmocka_unit_test(test_wrong_headers),
        cmocka_unit_test(test_wrong_lengths), cmocka_unit_test(test_truncated),   cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_no_memory),     cmocka_unit_test(test_long_members), cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_wrong_arrays),  cmocka_unit_test(test_no_memory_for_json),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
