/* Seeds of the GGUF reader: a small right file and one lie each. */
#include "fuzz/corpus.h"

#include "io/quant.h"

#include <string.h>

static const uint64_t dims[] = {4, 3};
static const float twelve[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

static void put(const char *name, gguf_writer *w) { corpus_put("gguf", name, gw_finish(w)); }

static void begin(gguf_writer *w)
{
    gw_open(w);
    gw_string(w, "general.architecture", "llama");
    gw_u32(w, "llama.block_count", 3);
    gw_strings(w, "list", (const char *const[]){"a", "", "ccc"}, 3);
    gw_bool(w, "flag", true);
    gw_f32(w, "real", 0.5f);
    gw_value(w, "double", GW_F64, &(double){2.5}, 8);
    gw_value(w, "negative", GW_I32, &(int32_t){-1}, 4);
    gw_array(w, "floats", GW_F32, 3, twelve, 12);
    gw_array(w, "numbers", GW_I32, 3, (const int32_t[]){1, -2, 3}, 12);
}

static void tensors(gguf_writer *w)
{
    gw_tensor(w, "first", QUANT_F32, 2, dims, twelve, 48);
    gw_tensor(w, "second", QUANT_F32, 1, dims, twelve, 16);
}

static void headers(void)
{
    gguf_writer w;
    begin(&w);
    tensors(&w);
    put("right", &w);
    begin(&w);
    tensors(&w);
    w.version = 2;
    put("version-2", &w);
    begin(&w);
    w.version = 0x03000000;
    put("big-endian", &w);
    gw_open(&w);
    w.magic[3] = 'X';
    put("wrong-magic", &w);
    begin(&w);
    tensors(&w);
    w.tensor_count = UINT64_MAX / 2;
    put("absurd-tensor-count", &w);
    begin(&w);
    w.tensor_count = 1;
    put("tensor-count-too-large", &w);
    begin(&w);
    w.entry_count = UINT64_MAX;
    put("absurd-key-count", &w);
    begin(&w);
    w.entry_count += 1;
    tensors(&w);
    put("key-count-too-large", &w);
    begin(&w);
    gw_u32(&w, "general.alignment", 0);
    put("alignment-zero", &w);
    begin(&w);
    gw_u32(&w, "general.alignment", 48);
    put("alignment-no-power", &w);
    begin(&w);
    gw_u32(&w, "general.alignment", UINT32_C(1) << 31);
    tensors(&w);
    put("alignment-huge", &w);
    begin(&w);
    gw_string(&w, "general.alignment", "32");
    put("alignment-text", &w);
}

/* A key with raw bytes as its type and value. */
static void raw(const char *name, uint32_t type, const void *value, size_t bytes)
{
    gguf_writer w;
    begin(&w);
    gw_value(&w, "last", type, value, bytes);
    put(name, &w);
}

static void keys(void)
{
    gguf_writer w;
    const uint64_t huge = UINT64_MAX, long_string[2] = {UINT64_C(1) << 32, 0};
    uint32_t array[4] = {GW_ARRAY, 0, 0, 0};
    raw("string-without-end", GW_STRING, &huge, 8);
    raw("string-past-end", GW_STRING, long_string, 16);
    raw("bool-of-two", GW_BOOL, "\2", 1);
    raw("type-unknown", 13, "", 1);
    raw("value-truncated", GW_U64, "abc", 3);
    raw("array-of-arrays", GW_ARRAY, array, 12);
    array[0] = 99;
    raw("array-item-unknown", GW_ARRAY, array, 12);
    array[0] = GW_U64;
    array[1] = array[2] = UINT32_MAX;
    raw("array-size-overflows", GW_ARRAY, array, 12);
    array[0] = GW_STRING;
    array[1] = 2;
    array[2] = 0;
    raw("array-string-without-end", GW_ARRAY, array, 16);
    raw("double-outside-float", GW_F64, &(double){1e300}, 8);
    begin(&w);
    gw_u32(&w, "flag", 1);
    put("duplicate-key", &w);
    begin(&w);
    gw_u32(&w, "", 1);
    put("empty-key", &w);
    begin(&w);
    gw_u32(&w, "line\nend \x1b[31m", 1);
    put("key-of-control-characters", &w);
}

/* One tensor's info, with any offset; one item of data follows. */
static void info(const char *name, uint32_t type, uint32_t n_dims, const uint64_t *shape, uint64_t offset)
{
    gguf_writer w;
    begin(&w);
    gw_info(&w, "t", type, n_dims, shape, offset);
    gw_put(&w.data, twelve, 48);
    put(name, &w);
}

static void shapes(void)
{
    gguf_writer w;
    const uint64_t half = UINT64_C(1) << 63, quarter = UINT64_C(1) << 62;
    info("dims-zero", QUANT_F32, 1, (const uint64_t[]){0}, 0);
    info("dims-none", QUANT_F32, 0, dims, 0);
    info("dims-five", QUANT_F32, 5, (const uint64_t[]){1, 1, 1, 1, 1}, 0);
    info("size-product-overflows", QUANT_F32, 2, (const uint64_t[]){half, 2}, 0);
    info("size-product-overflows-to-small", QUANT_F32, 2, (const uint64_t[]){quarter, 4}, 0);
    info("size-of-items-overflows", QUANT_F32, 1, (const uint64_t[]){quarter}, 0);
    info("size-of-four-overflows", QUANT_Q4_0, 4, (const uint64_t[]){32, half, half, half}, 0);
    info("padding-overflows", QUANT_F32, 1, dims, UINT64_MAX - 31);
    info("offset-misaligned", QUANT_F32, 1, dims, 4);
    info("offset-past-end", QUANT_F32, 1, dims, 1 << 20);
    info("data-past-end", QUANT_F32, 1, (const uint64_t[]){1000}, 0);
    info("type-of-unknown-number", 999, 1, dims, 0);
    info("type-not-supported", 16, 1, (const uint64_t[]){256}, 0);
    info("row-no-block", QUANT_Q4_0, 1, dims, 0);
    begin(&w);
    tensors(&w);
    gw_info(&w, "third", QUANT_F32, 1, dims, 32);
    put("tensors-overlap", &w);
    begin(&w);
    tensors(&w);
    gw_tensor(&w, "first", QUANT_F32, 1, dims, twelve, 16);
    put("duplicate-tensor", &w);
    begin(&w);
    gw_tensor(&w, "", QUANT_F32, 1, dims, twelve, 16);
    put("tensor-without-name", &w);
}

void corpus_gguf(void)
{
    corpus_put("gguf", "empty", (gw_bytes){0});
    headers();
    keys();
    shapes();
}
