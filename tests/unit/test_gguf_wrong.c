/* Wrong GGUF files are refused in one clear line, whatever they claim. */
#include "base/rng.h"
#include "io/gguf.h"
#include "support/gguf_writer.h"
#include "support/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gguf_small.h"

/* Opens exact copies, so that a sanitiser sees every read outside. */
static dcm_status open_copy(const void *data, size_t size)
{
    gguf *file;
    void *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    const dcm_status status = gguf_open_memory(&file, "t.gguf", copy, size);
    assert_true((status == DCM_OK) == (file != NULL));
    gguf_close(&file);
    free(copy);
    return status;
}

/* The writer's file is refused; the message has the path and both parts. */
static void refuse(gguf_writer *w, const char *part, const char *other)
{
    gw_bytes bytes = gw_finish(w);
    assert_int_equal(open_copy(bytes.data, bytes.size), DCM_ERR_FILE);
    assert_message("t.gguf: offset ");
    assert_message(part);
    assert_message(other);
    gw_free(&bytes);
}

/* Every proper prefix is refused, in the header and in the data. */
static void test_truncated(void **state)
{
    (void)state;
    gguf_writer w;
    put_small(&w);
    gw_bytes bytes = gw_finish(&w);
    assert_int_equal(open_copy(bytes.data, bytes.size), DCM_OK);
    for (size_t size = 0; size < bytes.size; size++) {
        assert_int_equal(open_copy(bytes.data, size), DCM_ERR_FILE);
        assert_message("t.gguf: offset ");
        assert_message("truncated?");
    }
    gw_free(&bytes);
}

static void test_truncated_file(void **state)
{
    (void)state;
    char path[] = "/tmp/dcm-gguf-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(tiny_model_save(&(tiny_params){.type = QUANT_Q4_1, .chatml = true}, path));
    gguf *file;
    assert_int_equal(gguf_open(&file, path), DCM_OK);
    const gguf_tensor *last = gguf_tensor_at(file, gguf_tensor_count(file) - 1);
    const size_t size = gguf_tensor_offset(file, last) + last->bytes;
    gguf_close(&file);
    for (size_t i = 20; i-- > 0;) {
        assert_int_equal(truncate(path, (off_t)(size * i / 20)), 0);
        assert_int_equal(gguf_open(&file, path), DCM_ERR_FILE);
        assert_null(file);
        assert_message(path);
        assert_message(i ? "truncated?" : "empty");
    }
    unlink(path);
    assert_int_equal(gguf_open(&file, path), DCM_ERR_FILE);
    assert_message(path);
    assert_null(file);
}

/* Every bit of every header byte flipped, and random bytes: an answer, never a crash (a sanitiser watches by hand and
 * in CI). */
static void test_flipped(void **state)
{
    (void)state;
    gguf_writer w;
    put_small(&w);
    gw_bytes bytes = gw_finish(&w);
    size_t refused = 0;
    for (size_t at = 0; at < bytes.size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            bytes.data[at] ^= (unsigned char)(1 << bit);
            refused += open_copy(bytes.data, bytes.size) == DCM_ERR_FILE;
            bytes.data[at] ^= (unsigned char)(1 << bit);
        }
    }
    assert_true(refused > 1000);
    uint64_t rng = 11;
    for (int trial = 0; trial < 20000; trial++) {
        unsigned char *copy = malloc(bytes.size);
        memcpy(copy, bytes.data, bytes.size);
        for (int n = 0; n < 4; n++)
            copy[4 + rng_next(&rng) % (bytes.size - 4)] = (unsigned char)(rng_next(&rng) & rng_next(&rng));
        const dcm_status status = open_copy(copy, bytes.size);
        assert_true(status == DCM_OK || status == DCM_ERR_FILE);
        free(copy);
    }
    gw_free(&bytes);
}

static void test_version(void **state)
{
    (void)state;
    static const struct {
        uint32_t version;
        const char *part;
    } cases[] = {{0, "version: 0 "},
                 {1, "version: 1 "},
                 {4, "version: 4 "},
                 {0x03000000, "big-endian"},
                 {0x02000000, "big-endian"}};
    gguf_writer w;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_small(&w);
        w.version = cases[i].version;
        refuse(&w, "offset 4: version: ", cases[i].part);
    }
    put_small(&w);
    memcpy(w.magic, "GGML", 4);
    refuse(&w, "offset 0: magic number", "not a GGUF file");
}

/* Counts and lengths far beyond the file: 2^63 and others whose product with an item's size wraps around. */
static void test_absurd_counts(void **state)
{
    (void)state;
    static const uint64_t counts[] = {UINT64_C(1) << 63,   UINT64_MAX,          UINT64_C(1) << 61,
                                      UINT64_MAX / 14 + 1, UINT64_MAX / 33 + 1, 1000};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        gguf_writer w;
        put_small(&w);
        w.tensor_count = counts[i];
        refuse(&w, "offset 8: header", "tensors do not fit");
        put_small(&w);
        w.entry_count = counts[i];
        refuse(&w, "offset 16: header", "metadata entries do not fit");
        for (uint32_t item = GW_U8; item <= GW_F64; item++) {
            if (item == GW_ARRAY)
                continue;
            gw_open(&w);
            gw_array(&w, "long", item, counts[i], NULL, 0);
            refuse(&w, "key \"long\"", "the end of the file");
        }
        gw_open(&w);
        gw_value(&w, "text", GW_STRING, &counts[i], 8);
        refuse(&w, "key \"text\"", "truncated?");
        gw_open(&w);
        gw_put_u64(&w.entries, counts[i]);
        gw_put(&w.entries, "key and some more bytes", 23);
        w.entry_count = 1;
        refuse(&w, "offset 24: key: the length of the name", "truncated?");
        gw_open(&w);
        gw_array(&w, "strings", GW_STRING, 1, &counts[i], 8);
        refuse(&w, "key \"strings\": the length of a string", "truncated?");
    }
}

static void test_wrong_metadata(void **state)
{
    (void)state;
    gguf_writer w;
    put_small(&w);
    gw_value(&w, "odd", 13, "....", 4);
    refuse(&w, "key \"odd\": the value's type has the unknown number 13", "offset");
    put_small(&w);
    gw_value(&w, "odd", UINT32_MAX, "....", 4);
    refuse(&w, "unknown number 4294967295", "odd");
    put_small(&w);
    gw_array(&w, "odd", 99, 1, "....", 4);
    refuse(&w, "key \"odd\": the array's item type has the unknown number 99", "offset");
    put_small(&w);
    gw_array(&w, "nested", GW_ARRAY, 1, "\0\0\0\0\0\0\0\0\0\0\0\0", 12);
    refuse(&w, "key \"nested\"", "arrays of arrays");
    put_small(&w);
    gw_value(&w, "odd", GW_BOOL, "\2", 1);
    refuse(&w, "key \"odd\"", "bool of value 2");
    put_small(&w);
    gw_array(&w, "odd", GW_BOOL, 3, "\1\0\xff", 3);
    refuse(&w, "key \"odd\"", "bool of value 255");
    put_small(&w);
    gw_u32(&w, "list", 1);
    refuse(&w, "key \"list\"", "twice");
    put_small(&w);
    gw_u32(&w, "", 1);
    refuse(&w, "key", "name of 0 bytes");
    static char name[UINT16_MAX + 2];
    memset(name, 'n', sizeof name - 1);
    put_small(&w);
    gw_u32(&w, name, 1);
    refuse(&w, "key", "name of 65536 bytes (1 to 65535 are allowed)");
    put_small(&w);
    gw_value(&w, "bad\n\33[31mname", 77, "", 0);
    refuse(&w, "key \"bad??[31mname\"", "77");
}

static void test_alignment(void **state)
{
    (void)state;
    static const uint32_t good[] = {8, 16, 32, 64, 4096};
    static const uint32_t bad[] = {0, 1, 4, 24, 33, UINT32_MAX};
    gguf_writer w;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        gw_open(&w);
        w.alignment = good[i];
        gw_u32(&w, "general.alignment", good[i]);
        gw_tensor(&w, "a", QUANT_F32, 1, dims_4_3, twelve, 16);
        gw_tensor(&w, "b", QUANT_F32, 1, dims_4_3, twelve + 4, 16);
        gw_bytes bytes = gw_finish(&w);
        gguf *file;
        assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes.data, bytes.size), DCM_OK);
        assert_memory_equal(gguf_find_tensor(file, "b")->data, twelve + 4, 16);
        gguf_close(&file);
        gw_free(&bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_small(&w);
        gw_u32(&w, "general.alignment", bad[i]);
        refuse(&w, "key \"general.alignment\"", "is not a power of two");
    }
    put_small(&w);
    gw_value(&w, "general.alignment", GW_U64, "\x20\0\0\0\0\0\0\0", 8);
    refuse(&w, "key \"general.alignment\"", "type is uint64");
    put_small(&w);
    gw_u32(&w, "general.alignment", UINT32_C(1) << 31);
    refuse(&w, "tensor \"first\"", "past the end of the file");
}

static void test_wrong_tensors(void **state)
{
    (void)state;
    const uint64_t zero[] = {4, 0}, wide[] = {4, 1, 1, 1, 1}, odd[] = {33, 2};
    gguf_writer w;
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 2, zero, 128);
    refuse(&w, "tensor \"x\"", "dimension 1 is 0");
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 0, zero, 128);
    refuse(&w, "tensor \"x\"", "0 dimensions");
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 5, wide, 128);
    refuse(&w, "tensor \"x\"", "5 dimensions");
    put_small(&w);
    gw_info(&w, "x", QUANT_Q4_0, 2, odd, 128);
    refuse(&w, "tensor \"x\"", "rows of 33 items are no multiple of the block of Q4_0 (32 items)");
    put_small(&w);
    gw_info(&w, "x", 16, 2, dims_4_3, 128);
    refuse(&w, "tensor \"x\"", "type IQ2_XXS is not supported");
    put_small(&w);
    gw_info(&w, "x", 1000, 2, dims_4_3, 128);
    refuse(&w, "tensor \"x\"", "unknown type number 1000");
    put_small(&w);
    gw_info(&w, "first", QUANT_F32, 1, dims_4_3, 128);
    gw_put(&w.data, twelve, 48);
    gw_put(&w.data, twelve, 48);
    refuse(&w, "tensor \"first\"", "the same name twice");
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 1, dims_4_3, 32);
    refuse(&w, "tensor \"x\": its data overlaps that of \"first\"", "offset");
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 1, dims_4_3, 64);
    refuse(&w, "its data overlaps that of", "second");
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 1, dims_4_3, 72);
    refuse(&w, "tensor \"x\"", "data offset 72 is no multiple of the alignment 32");
}

static void test_wrong_places(void **state)
{
    (void)state;
    static const uint64_t huge[][4] = {{UINT64_C(1) << 62, 1, 1, 1},
                                       {UINT64_C(1) << 32, UINT64_C(1) << 32, 1, 1},
                                       {UINT64_C(1) << 16, UINT64_C(1) << 16, UINT64_C(1) << 16, UINT64_C(1) << 16},
                                       {UINT64_C(1) << 63, 2, 1, 1},
                                       {4, UINT64_MAX, 1, 1}};
    static const uint64_t far[] = {128, 1 << 20, UINT64_C(1) << 63, UINT64_MAX - 31, UINT64_MAX - 127};
    gguf_writer w;
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        put_small(&w);
        gw_info(&w, "x", QUANT_F32, 4, huge[i], 128);
        refuse(&w, "tensor \"x\"", "overflows");
    }
    for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
        put_small(&w);
        gw_info(&w, "x", QUANT_F32, 2, dims_4_3, far[i]);
        refuse(&w, "tensor \"x\": data ", i < 3 ? "bytes past the end of the file (truncated?)" : "overflows");
    }
    static const uint64_t vast[] = {UINT64_C(1) << 60, 1};
    put_small(&w);
    gw_info(&w, "x", QUANT_F32, 2, vast, UINT64_MAX - (1 << 20) + 1); /* begins within 2^64 */
    refuse(&w, "tensor \"x\": data ", "overflows");
    put_small(&w); /* there are 80 bytes of data */
    gw_info(&w, "x", QUANT_F32, 2, dims_4_3, 96);
    refuse(&w, "data ends at 64 bytes past the end of the file", "tensor \"x\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated), cmocka_unit_test(test_truncated_file), cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_version),   cmocka_unit_test(test_absurd_counts),  cmocka_unit_test(test_wrong_metadata),
        cmocka_unit_test(test_alignment), cmocka_unit_test(test_wrong_tensors),  cmocka_unit_test(test_wrong_places),
    };
    return cmocka_run_group_tests_name("gguf_wrong", tests, NULL, NULL);
}
