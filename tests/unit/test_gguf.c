/* GGUF files that are right: everything in them is read, within a bound of memory. */
#include "base/memory.h"
#include "io/gguf.h"
#include "support/gguf_writer.h"
#include "support/tiny_model.h"

#include <malloc.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gguf_small.h"

static void test_small(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        gguf_writer w;
        gguf *file;
        put_small(&w);
        w.version = version;
        gw_bytes bytes = gw_finish(&w);
        assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes.data, bytes.size), DCM_OK);
        assert_int_equal(gguf_version(file), version);
        assert_string_equal(gguf_path(file), "t.gguf");
        assert_int_equal(gguf_tensor_count(file), 2);
        const gguf_tensor *first = gguf_find_tensor(file, "first"), *second = gguf_find_tensor(file, "second");
        assert_ptr_equal(first, gguf_tensor_at(file, 0));
        assert_ptr_equal(second, gguf_tensor_at(file, 1));
        assert_null(gguf_find_tensor(file, "firs"));
        assert_null(gguf_find_tensor(file, "first "));
        assert_null(gguf_find_tensor(file, ""));
        assert_int_equal(first->type, QUANT_F32);
        assert_int_equal(first->n_dims, 2);
        assert_int_equal(first->dims[0], 4);
        assert_int_equal(first->dims[1], 3);
        assert_int_equal(first->dims[2] * first->dims[3], 1);
        assert_int_equal(first->bytes, F32_BYTES);
        assert_memory_equal(first->data, twelve, F32_BYTES);
        assert_int_equal(gguf_header_bytes(file), bytes.size - 64 - 16);
        assert_int_equal(gguf_tensor_offset(file, first), bytes.size - 64 - 16);
        assert_int_equal(gguf_tensor_offset(file, second), bytes.size - 16);
        gguf_close(&file);
        assert_null(file);
        gguf_close(&file);
        gw_free(&bytes);
    }
    gguf_close(NULL);
}

/* One key of every value type, and arrays of those that are read as arrays. */
static gguf *open_all_types(gw_bytes *bytes)
{
    gguf_writer w;
    gguf *file;
    gw_open(&w);
    gw_value(&w, "u8", GW_U8, "\xff", 1);
    gw_value(&w, "i8", GW_I8, "\x7f", 1);
    gw_value(&w, "i8-", GW_I8, "\xff", 1);
    gw_value(&w, "u16", GW_U16, "\xfe\xff", 2);
    gw_value(&w, "i16", GW_I16, "\xff\x7f", 2);
    gw_value(&w, "i16-", GW_I16, "\x00\x80", 2);
    gw_u32(&w, "u32", UINT32_MAX);
    gw_value(&w, "i32", GW_I32, "\xff\xff\xff\x7f", 4);
    gw_value(&w, "i32-", GW_I32, "\xfe\xff\xff\xff", 4);
    gw_value(&w, "u64", GW_U64, "\xff\xff\xff\xff\0\0\0\0", 8);
    gw_value(&w, "u64+", GW_U64, "\0\0\0\0\1\0\0\0", 8);
    gw_value(&w, "i64", GW_I64, "\7\0\0\0\0\0\0\0", 8);
    gw_value(&w, "i64-", GW_I64, "\0\0\0\0\0\0\0\x80", 8);
    gw_f32(&w, "f32", 1.5f);
    gw_value(&w, "f64", GW_F64, (const double[]){0.1}, 8);
    gw_value(&w, "f64+", GW_F64, (const double[]){1e300}, 8);
    gw_value(&w, "f64-", GW_F64, (const double[]){-INFINITY}, 8);
    gw_bool(&w, "yes", true);
    gw_bool(&w, "no", false);
    gw_string(&w, "string", "a text");
    gw_array(&w, "array u8", GW_U8, 3, "abc", 3);
    gw_array(&w, "array bool", GW_BOOL, 2, "\0\1", 2);
    gw_array(&w, "array i32", GW_I32, 2, (const int32_t[]){-5, 6}, 8);
    gw_array(&w, "array u32", GW_U32, 1, (const uint32_t[]){7}, 4);
    gw_array(&w, "array f32", GW_F32, 3, twelve, 12);
    gw_array(&w, "array f64", GW_F64, 1, (const double[]){2}, 8);
    gw_array(&w, "array none", GW_F32, 0, NULL, 0);
    gw_strings(&w, "array string", (const char *const[]){"x", "", "yz"}, 3);
    *bytes = gw_finish(&w);
    assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes->data, bytes->size), DCM_OK);
    return file;
}

static void test_scalars(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
    } good[] = {{"u8", 255},         {"i8", 127},        {"u16", 65534},      {"i16", 32767},
                {"u32", UINT32_MAX}, {"i32", INT32_MAX}, {"u64", UINT32_MAX}, {"i64", 7}};
    static const struct {
        const char *key, *found;
    } bad[] = {{"i8-", "-1 is outside"},
               {"i16-", "-32768 is outside"},
               {"i32-", "-2 is outside"},
               {"u64+", "4294967296 is outside"},
               {"i64-", "-9223372036854775808 is outside"},
               {"f32", "float32 was found"},
               {"yes", "bool was found"},
               {"string", "string was found"},
               {"array u32", "an array of uint32 was found"},
               {"nothing", "is missing"}};
    gw_bytes bytes;
    gguf *file = open_all_types(&bytes);
    uint32_t u;
    float f;
    bool b;
    gguf_string s;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        u = 1;
        assert_int_equal(gguf_get_u32(file, good[i].key, &u), DCM_OK);
        assert_int_equal(u, good[i].value);
        assert_true(gguf_has(file, good[i].key));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(gguf_get_u32(file, bad[i].key, &u), DCM_ERR_FILE);
        assert_message("t.gguf: ");
        assert_message(bad[i].key);
        assert_message(bad[i].found);
    }
    assert_int_equal(gguf_get_f32(file, "f32", &f), DCM_OK);
    assert_true(f == 1.5f);
    assert_int_equal(gguf_get_f32(file, "f64", &f), DCM_OK);
    assert_true(f == 0.1f);
    assert_int_equal(gguf_get_f32(file, "f64+", &f), DCM_ERR_FILE);
    assert_int_equal(gguf_get_f32(file, "u32", &f), DCM_ERR_FILE);
    assert_int_equal(gguf_get_f32(file, "nothing", &f), DCM_ERR_FILE);
    assert_int_equal(gguf_get_f32(file, "f64-", &f), DCM_OK);
    assert_true(f == -INFINITY);
    assert_int_equal(gguf_get_bool(file, "yes", &b), DCM_OK);
    assert_true(b);
    assert_int_equal(gguf_get_bool(file, "no", &b), DCM_OK);
    assert_false(b);
    assert_int_equal(gguf_get_bool(file, "u8", &b), DCM_ERR_FILE);
    assert_int_equal(gguf_get_string(file, "string", &s), DCM_OK);
    assert_int_equal(s.size, 6);
    assert_memory_equal(s.data, "a text", 6);
    assert_int_equal(gguf_get_string(file, "array string", &s), DCM_ERR_FILE);
    assert_int_equal(gguf_tensor_count(file), 0);
    assert_false(gguf_has(file, "nothing"));
    gguf_close(&file);
    gw_free(&bytes);
}

static void test_arrays(void **state)
{
    (void)state;
    gw_bytes bytes;
    gguf *file = open_all_types(&bytes);
    const void *data;
    size_t count;
    int32_t ints[2];
    float floats[3];
    gguf_string strings[3];
    assert_int_equal(gguf_get_i32_array(file, "array i32", &data, &count), DCM_OK);
    assert_int_equal(count, 2);
    memcpy(ints, data, sizeof ints);
    assert_true(ints[0] == -5 && ints[1] == 6);
    assert_int_equal(gguf_get_i32_array(file, "array u32", &data, &count), DCM_OK);
    assert_int_equal(count, 1);
    memcpy(ints, data, sizeof *ints);
    assert_int_equal(ints[0], 7);
    assert_int_equal(gguf_get_i32_array(file, "array f32", &data, &count), DCM_ERR_FILE);
    assert_int_equal(gguf_get_i32_array(file, "nothing", &data, &count), DCM_ERR_FILE);
    assert_int_equal(gguf_get_i32_array(file, "i32", &data, &count), DCM_ERR_FILE);
    assert_int_equal(gguf_get_f32_array(file, "array f32", &data, &count), DCM_OK);
    assert_int_equal(count, 3);
    memcpy(floats, data, sizeof floats);
    assert_memory_equal(floats, twelve, sizeof floats);
    assert_int_equal(gguf_get_f32_array(file, "array none", &data, &count), DCM_OK);
    assert_int_equal(count, 0);
    assert_int_equal(gguf_get_f32_array(file, "array f64", &data, &count), DCM_ERR_FILE);
    assert_int_equal(gguf_get_array_size(file, "array string", &count), DCM_OK);
    assert_int_equal(count, 3);
    assert_int_equal(gguf_get_string_array(file, "array string", strings, 3), DCM_OK);
    assert_true(strings[0].size == 1 && strings[0].data[0] == 'x' && strings[1].size == 0 && strings[2].size == 2);
    assert_memory_equal(strings[2].data, "yz", 2);
    assert_int_equal(gguf_get_string_array(file, "array string", strings, 2), DCM_ERR_FILE);
    assert_int_equal(gguf_get_string_array(file, "array u8", strings, 3), DCM_ERR_FILE);
    assert_int_equal(gguf_get_array_size(file, "string", &count), DCM_ERR_FILE);
    assert_int_equal(gguf_get_array_size(file, "array bool", &count), DCM_OK);
    assert_int_equal(count, 2);
    gguf_close(&file);
    gw_free(&bytes);
}

/* A sanitiser has its own malloc. */
#ifdef __has_feature
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !HAS_FEATURE(address_sanitizer)
#define COUNTS_HEAP 1
#else
#define COUNTS_HEAP 0
#endif

/* Heap in use, and the most there ever was. */
#if COUNTS_HEAP
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_malloc(size_t size);
extern void __libc_free(void *block);
static size_t heap_now, heap_peak;

static void *counted(void *block)
{
    heap_now += block ? malloc_usable_size(block) : 0;
    heap_peak = heap_now > heap_peak ? heap_now : heap_peak;
    return block;
}

void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void *malloc(size_t size) { return counted(__libc_malloc(size)); }

void *realloc(void *block, size_t size)
{
    /* A moving realloc holds both blocks for a while. */
    const size_t old = block ? malloc_usable_size(block) : 0;
    void *moved = counted(__libc_realloc(block, size));
    if (moved)
        heap_now -= old;
    return moved;
}

void free(void *block)
{
    heap_now -= block ? malloc_usable_size(block) : 0;
    __libc_free(block);
}

/* Opens a file and gives the most heap that this took. */
static size_t heap_of(const gw_bytes *bytes, dcm_status wanted)
{
    gguf *file;
    const size_t before = heap_now;
    heap_peak = heap_now;
    assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes->data, bytes->size), wanted);
    gguf_close(&file);
    assert_int_equal(heap_now, before);
    return heap_peak - before;
}

/* Files of the cheapest entries and tensors there are: at most 8 times the header + 1 MiB. */
static void check_memory(int count)
{
    char name[16];
    gguf_writer w;
    gw_open(&w);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%x", i);
        gw_value(&w, name, GW_U8, "", 1);
    }
    gw_bytes bytes = gw_finish(&w);
    const size_t entries = heap_of(&bytes, DCM_OK);
    assert_true(entries <= 8 * bytes.size + (1 << 20));
    assert_true(entries > 1 << 20); /* the measurement measures */
    gw_free(&bytes);
    gw_open(&w);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%x", i);
        gw_info(&w, name, QUANT_F32, 1, (const uint64_t[]){1}, (uint64_t)i * 32);
    }
    const size_t header = w.infos.size, data = (size_t)count * 32;
    w.data = (gw_bytes){calloc(1, data), data, data};
    bytes = gw_finish(&w);
    assert_true(heap_of(&bytes, DCM_OK) <= 8 * header + (1 << 20));
    gw_free(&bytes);
}

static void test_memory(void **state)
{
    (void)state;
    check_memory(70000);
    check_memory(200000);
    /* As many tensors as the file's size allows, but the zeros that follow are none. */
    const size_t data = 64 << 20;
    gguf_writer w;
    gw_open(&w);
    w.data = (gw_bytes){calloc(1, data), data, data};
    w.tensor_count = data / 33;
    gw_bytes bytes = gw_finish(&w);
    assert_true(heap_of(&bytes, DCM_ERR_FILE) <= 1 << 20);
    gw_free(&bytes);
}
#endif

/* Every allocation fails once: the error is said and nothing leaks (a sanitiser watches). */
static void test_no_memory(void **state)
{
    (void)state;
    gguf_writer w;
    put_small(&w);
    gw_bytes bytes = gw_finish(&w);
    gguf *file;
    for (long n = 1; n <= 5; n++) {
        mem_fail_at(n);
        assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes.data, bytes.size), DCM_ERR_MEMORY);
        assert_null(file);
    }
    mem_fail_at(0);
    assert_int_equal(gguf_open_memory(&file, "t.gguf", bytes.data, bytes.size), DCM_OK);
    gguf_close(&file);
    gw_free(&bytes);
}

/* The tiny models of tests/support are files that open, in every variant. */
static void test_tiny_models(void **state)
{
    (void)state;
    static const quant_type types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const tiny_params p = {.arch = i % 2 ? "qwen2" : "llama",
                               .type = types[i],
                               .untied = i % 2,
                               .rope = (tiny_rope)(i % 3),
                               .vocab = 300};
        assert_null(tiny_model_check(&p));
        gw_bytes bytes = tiny_model_make(&p), again = tiny_model_make(&p);
        assert_int_equal(bytes.size, again.size);
        assert_memory_equal(bytes.data, again.data, bytes.size);
        gguf *file;
        size_t count;
        assert_int_equal(gguf_open_memory(&file, "tiny", bytes.data, bytes.size), DCM_OK);
        assert_int_equal(gguf_find_tensor(file, "token_embd.weight")->type, types[i]);
        assert_int_equal(gguf_find_tensor(file, "token_embd.weight")->dims[1], 300);
        assert_int_equal(gguf_get_array_size(file, "tokenizer.ggml.tokens", &count), DCM_OK);
        assert_int_equal(count, 300);
        assert_true((gguf_find_tensor(file, "output.weight") != NULL) == p.untied);
        assert_true((gguf_find_tensor(file, "blk.1.attn_k.bias") != NULL) == (i % 2 == 1));
        assert_true((gguf_find_tensor(file, "rope_freqs.weight") != NULL) == (p.rope == TINY_ROPE_LLAMA3));
        gguf_close(&file);
        gw_free(&bytes);
        gw_free(&again);
    }
    assert_non_null(tiny_model_check(&(tiny_params){.arch = "gpt2"}));
    assert_non_null(tiny_model_check(&(tiny_params){.type = QUANT_Q4_K}));
    assert_non_null(tiny_model_check(&(tiny_params){.hidden = 72, .type = QUANT_Q8_0}));
    assert_non_null(tiny_model_check(&(tiny_params){.kv_heads = 3}));
    assert_non_null(tiny_model_check(&(tiny_params){.vocab = 200}));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_scalars),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_tiny_models),
#if COUNTS_HEAP
        cmocka_unit_test(test_memory),
#endif
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
