/* Seeds of safetensors files, merge weights, results of dcm bench, tuning files and program-cache entries. */
#include "fuzz/corpus.h"

#include "base/hash.h"
#include "device/build.h"

#include <stdio.h>
#include <string.h>

#define T(dtype, shape, place) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" place "}"
#define ONE(dtype, shape, place) "{\"a\":" T(dtype, shape, place) "}"

/* A header of its own length and `data` zeros. */
static gw_bytes make(const char *header, size_t data)
{
    gw_bytes b = {0};
    gw_put_string(&b, header);
    while (data--)
        gw_put(&b, "", 1);
    return b;
}

/* A header of another length than it says. */
static void put_length(const char *target, const char *name, uint64_t length)
{
    gw_bytes b = make("{}", 0);
    memcpy(b.data, &length, sizeof length);
    corpus_put(target, name, b);
}

static void arrays(void)
{
    static const struct {
        const char *name, *header;
        size_t data;
    } list[] = {
        {"right",
         "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" T("F32", "[2]", "[0,8]") ",\"b\\u00e4\":" T(
             "BF16", "[1,2]", "[8,12]") ",\"c\":" T("F16", "[]", "[12,14]") "}  ",
         14},
        {"nothing", "{}", 0},
        {"no-object", "[]", 0},
        {"no-text", "", 0},
        {"dimension-negative", ONE("F32", "[-1]", "[0,4]"), 4},
        {"dimension-real", ONE("F32", "[1.0]", "[0,4]"), 4},
        {"dimension-too-large", ONE("F32", "[99999999999999999999]", "[0,4]"), 4},
        {"size-product-overflows", ONE("F32", "[4611686018427387904,4]", "[0,0]"), 0},
        {"bits-overflow", ONE("F32", "[1152921504606846976]", "[0,0]"), 0},
        {"dimensions-absurd", ONE("F32", "[1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4},
        {"place-backwards", ONE("F32", "[1]", "[4,0]"), 4},
        {"place-negative", ONE("F32", "[1]", "[-4,0]"), 4},
        {"place-past-end", ONE("F32", "[1]", "[9223372036854775803,9223372036854775807]"), 4},
        {"half-a-byte", ONE("F4", "[3]", "[0,1]"), 1},
        {"overlap", "{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[1]", "[4,8]") "}", 8},
        {"misaligned", "{\"a\":" T("U8", "[1]", "[0,1]") ",\"b\":" T("F32", "[1]", "[1,5]") "}", 5},
        {"gap", ONE("F32", "[1]", "[4,8]"), 8},
        {"duplicate", "{\"a\":" T("F32", "[1]", "[0,4]") ",\"\\u0061\":" T("F32", "[1]", "[4,8]") "}", 8},
        {"duplicate-metadata", "{\"__metadata__\":{},\"__metadata__\":{}}", 0},
        {"metadata-of-numbers", "{\"__metadata__\":{\"a\":1}}", 0},
        {"name-of-control-characters", "{\"\\u001b[31m\\n\":1}", 0},
        {"name-with-nul", "{\"a\\u0000b\":1}", 0},
        {"string-without-end", "{\"a", 0},
        {"escape-at-end", "{\"a\\", 0},
        {"member-missing", "{,}", 0},
        {"comma-at-end", "{\"a\":" T("F32", "[1]", "[0,4]") ",}", 4},
        {"braces-crossed", "{\"a\":[}]}", 0},
        {"nested", "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 0},
        {"entry-a-number", "{\"a\":1}", 0},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        corpus_put("safetensors", list[i].name, make(list[i].header, list[i].data));
    put_length("safetensors", "length-absurd", UINT64_MAX);
    put_length("safetensors", "length-wraps", UINT64_MAX - 7);
}

/* Weights for a head size of 8. */
static gw_bytes weights(const char *head, const char *extra)
{
    static const char *const names[] = {"layers.0.lin1", "layers.0.lin2", "layers.0.lin3"};
    char header[4096];
    size_t at = 0, n = 0;
    n += (size_t)snprintf(header, sizeof header, "{");
    for (size_t i = 0; i < 4; i++) {
        const size_t rows = i < 3 ? 16 : !strcmp(head, "merge") ? 8 : 1, end = at + rows * 16 * 4;
        n += (size_t)snprintf(header + n, sizeof header - n,
                              "%s\"%s.weight\":{\"dtype\":\"F32\",\"shape\":[%zu,16],\"data_offsets\":[%zu,%zu]},"
                              "\"%s.bias\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                              i ? "," : "", i < 3 ? names[i] : head, rows, at, end, i < 3 ? names[i] : head, rows, end,
                              end + rows * 4);
        at = end + rows * 4;
    }
    snprintf(header + n, sizeof header - n, "%s}", extra);
    return make(header, at);
}

/* A scorer's file for 1 layer and KV head of size 8; `digest`, and dimensions of its widest array. */
static gw_bytes scorer(const char *digest, const char *version, size_t hidden, size_t levels)
{
    static const struct {
        const char *name;
        int rows, cols; /* 0: hidden, -1: levels, -2: no such dimension */
    } arrays[] = {{"mean", -2, 16},      {"scale", -2, 16},   {"w1", 0, 16},      {"b1", -1, 0},
                  {"w2", -2, 0},         {"u", 0, 16},        {"r", -1, 16},      {"prior", -2, -1},
                  {"deviation", -2, -2}, {"sharp_k", -2, -2}, {"sharp_v", -2, -2}};
    char header[4096];
    size_t at = 0;
    int n = snprintf(header, sizeof header,
                     "{\"__metadata__\":{\"format\":\"dcm-merge\",\"arch\":\"score\",\"version\":\"%s\","
                     "\"model_digest\":\"%s\"}",
                     version, digest);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const int dims[2] = {arrays[i].rows, arrays[i].cols};
        size_t items = 1;
        n += snprintf(header + n, sizeof header - (size_t)n, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[1,1",
                      arrays[i].name);
        for (int k = 0; k < 2; k++) {
            const size_t dim = dims[k] > 0 ? (size_t)dims[k] : dims[k] == 0 ? hidden : levels;
            if (dims[k] == -2)
                continue;
            items *= dim;
            n += snprintf(header + n, sizeof header - (size_t)n, ",%zu", dim);
        }
        n += snprintf(header + n, sizeof header - (size_t)n, "],\"data_offsets\":[%zu,%zu]}", at, at + 4 * items);
        at += 4 * items;
    }
    snprintf(header + n, sizeof header - (size_t)n, "}");
    gw_bytes b = make(header, at);
    for (size_t i = 0; i < at; i += 4) /* all are 1: scales must be positive */
        memcpy(b.data + b.size - at + i, &(float){1}, 4);
    return b;
}

/* Files that lie in their header: the reader of safetensors refuses them, and the merge model stays closed. */
static void merge_headers(void)
{
    char blocks[8192] = "{";
    for (size_t i = 0, n = 1; i < 65; i++)
        n += (size_t)snprintf(blocks + n, sizeof blocks - n, "%s\"layers.%zu.lin1.weight\":" T("F32", "[0,0]", "[0,0]"),
                              i ? "," : "", i);
    strcat(blocks, "}");
    corpus_put("merge", "blocks-absurd", make(blocks, 0));
    put_length("merge", "length-wraps", UINT64_MAX - 7);
    corpus_put("merge", "string-without-end", make("{\"layers.0.lin1.weight", 0));
    corpus_put("merge", "size-product-overflows",
               make("{\"layers.0.lin1.weight\":" T("F32", "[4611686018427387904,4]", "[0,0]") "}", 0));
    corpus_put("merge", "overlap",
               make("{\"lin1.weight\":" T("F32", "[2]", "[0,8]") ",\"lin1.bias\":" T("F32", "[1]", "[4,8]") "}", 8));
    corpus_put(
        "merge", "duplicate",
        make("{\"lin1.bias\":" T("F32", "[1]", "[0,4]") ",\"lin\\u0031.bias\":" T("F32", "[1]", "[4,8]") "}", 8));
    corpus_put("merge", "version-a-number", make("{\"__metadata__\":{\"format\":\"dcm-merge\",\"version\":1}}", 0));
}

static void merges(void)
{
    merge_headers();
    corpus_put("merge", "scorer", scorer("0123456789abcdef", "2", 16, 2));
    corpus_put("merge", "scorer-of-other-model", scorer("fedcba9876543210", "2", 16, 2));
    corpus_put("merge", "scorer-of-other-version", scorer("0123456789abcdef", "-1", 16, 2));
    corpus_put("merge", "scorer-hidden-odd", scorer("0123456789abcdef", "2", 15, 1));
    corpus_put("merge", "scorer-without-levels", scorer("0123456789abcdef", "2", 16, 0));
    corpus_put("merge", "gate", weights("lin1", ""));
    corpus_put("merge", "direct", weights("merge", ""));
    corpus_put("merge", "no-head", weights("other", ""));
    corpus_put("merge", "tensor-unknown", weights("lin1", ",\"layers.0.lin9.weight\":" T("F32", "[0]", "[0,0]")));
    corpus_put("merge", "layer-number-overflows",
               weights("lin1", ",\"layers.4294967296.lin1.weight\":" T("F32", "[0]", "[0,0]")));
    corpus_put("merge", "layer-number-negative",
               weights("lin1", ",\"layers.-1.lin1.weight\":" T("F32", "[0]", "[0,0]")));
    corpus_put("merge", "layer-number-of-two-digits",
               weights("lin1", ",\"layers.00.lin1.weight\":" T("F32", "[0]", "[0,0]")));
    corpus_put("merge", "misaligned", weights("lin1", " "));
    gw_bytes b = weights("lin1", "");
    memset(b.data + b.size - 4, 0xff, 4);
    corpus_put("merge", "not-a-number", b);
    corpus_put("merge", "first-block-missing",
               make("{\"layers.1.lin1.weight\":" T("F32", "[16,16]", "[0,1024]") "}", 1024));
    corpus_put("merge", "type-of-no-floats",
               make("{\"layers.0.lin1.weight\":" T("I32", "[16,16]", "[0,1024]") "}", 1024));
    corpus_put("merge", "scalar", make("{\"layers.0.lin1.weight\":" T("F32", "[]", "[0,4]") "}", 4));
}

static void results(void)
{
    corpus_text("bench_old", "right",
                "{\"schema\":1,\"device\":\"a\",\"rows\":[{\"test\":\"tg64\",\"policy\":\"dcm:L=64\","
                "\"tokens_per_s\":1.5e2,\"p50_ms\":6.5}]}\n");
    corpus_text("bench_old", "schema-text", "{\"schema\":\"1\",\"rows\":[]}");
    corpus_text("bench_old", "schema-negative", "{\"schema\":-1,\"rows\":[]}");
    corpus_text("bench_old", "schema-too-large", "{\"schema\":18446744073709551616,\"rows\":[]}");
    corpus_text("bench_old", "rows-object", "{\"schema\":1,\"rows\":{}}");
    corpus_text("bench_old", "row-number", "{\"schema\":1,\"rows\":[1]}");
    corpus_text("bench_old", "list", "[]");
    corpus_text("bench_old", "nested", "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[");
    corpus_text("bench_old", "string-without-end", "{\"schema\":1,\"rows\":[{\"test\":\"tg\\u00");
    corpus_text("bench_old", "duplicate", "{\"schema\":1,\"schema\":2,\"rows\":[]}");
    corpus_text("bench_old", "empty", "");
}

static void tunings(void)
{
    corpus_text("tuning", "right",
                "{\"schema\":1,\"key\":\"0123456789abcdef\",\"choices\":{\"many\":\"wide\",\"panel\":\"8\"}}");
    corpus_text("tuning", "choice-unknown",
                "{\"schema\":1,\"key\":\"0123456789abcdef\",\"choices\":{\"panel\":\"-8\"}}");
    corpus_text("tuning", "choices-list", "{\"schema\":1,\"key\":\"0123456789abcdef\",\"choices\":[]}");
    corpus_text("tuning", "other-key", "{\"schema\":1,\"key\":\"0123456789abcdee\",\"choices\":{\"many\":\"wide\"}}");
    corpus_text("tuning", "schema-negative", "{\"schema\":-1,\"key\":\"\",\"choices\":{}}");
    corpus_text("tuning", "key-number", "{\"schema\":1,\"key\":5,\"choices\":{}}");
    corpus_text("tuning", "duplicate", "{\"schema\":1,\"schema\":1}");
    corpus_text("tuning", "string-without-end", "{\"schema\":1,\"key\":\"\\ud800");
    corpus_text("tuning", "list", "[1,2,3]");
    corpus_text("tuning", "empty", "");
}

static void binary(const char *name, binary_header header, size_t cut)
{
    static const char program[] = "a program's bytes";
    gw_bytes b = {0};
    header.magic = header.magic ? header.magic : 0x424d4344;
    header.version = header.version ? header.version : 1;
    header.key = header.key ? header.key : 0x0123456789abcdef;
    header.size = header.size ? header.size : sizeof program;
    header.checksum = hash_bytes(HASH_START, program, sizeof program);
    gw_put(&b, &header, sizeof header);
    gw_put(&b, program, sizeof program);
    b.size -= cut;
    corpus_put("binary", name, b);
}

/* A record of dcm check: `steps` and `caches` in its options' words, and steps of a vocabulary of 8 in the body. */
static void put_record(const char *name, const char *header, size_t steps, int32_t id, size_t more)
{
    enum { TOP = 64 };
    gw_bytes b = {0};
    gw_put(&b, "DCMCHECK", 8);
    gw_put_u32(&b, 4);
    gw_put_u32(&b, (uint32_t)strlen(header));
    gw_put_u64(&b, steps * (24 + 8 * TOP) + more);
    gw_put_u64(&b, 0); /* the target puts the checksum there */
    gw_put(&b, header, strlen(header));
    for (size_t i = 0; i < steps; i++) {
        gw_put_u32(&b, 1);
        gw_put(&b, &(float){0.5f}, 4);
        gw_put(&b, &(double){1}, 8);
        gw_put_u64(&b, 0);
        for (int32_t k = 0; k < TOP; k++)
            gw_put(&b, &(int32_t){k ? -1 : id}, 4);
        for (int k = 0; k < TOP; k++)
            gw_put_u32(&b, 0);
    }
    while (more--)
        gw_put(&b, "", 1);
    corpus_put("record", name, b);
}

static void records(void)
{
    static const char right[] = "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":2,\"caches\":[[1,2]]}";
    put_record("right", right, 2, 7, 2 * 16 + 16 + 16);
    put_record("id-outside-vocabulary", right, 2, 8, 2 * 16 + 16 + 16);
    put_record("id-negative", right, 2, INT32_MIN, 2 * 16 + 16 + 16);
    put_record("body-too-short", right, 2, 0, 0);
    put_record("steps-absurd", "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":16777216,\"caches\":[]}", 1, 0, 0);
    put_record("steps-negative", "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":-1,\"caches\":[]}", 1, 0, 0);
    put_record("units-absurd",
               "{\"options\":{\"layers\":65535,\"vocab\":8},\"steps\":1,\"caches\":[[1,268435456],[1,268435456]]}", 1,
               0, 0);
    put_record("vocab-too-large", "{\"options\":{\"layers\":1,\"vocab\":2147483648},\"steps\":1,\"caches\":[]}", 1, 0,
               0);
    put_record("caches-of-text", "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[\"ab\"]}", 1, 0, 0);
    put_record("options-a-list", "{\"options\":[],\"steps\":1,\"caches\":[]}", 1, 0, 0);
    put_record("string-without-end", "{\"options\":{\"layers", 1, 0, 0);
    put_record("duplicate", "{\"steps\":1,\"steps\":1,\"options\":{\"layers\":1,\"vocab\":8},\"caches\":[]}", 1, 0, 0);
}

void corpus_others(void)
{
    records();
    arrays();
    merges();
    results();
    tunings();
    binary("right", (binary_header){0}, 0);
    binary("other-magic", (binary_header){.magic = 1}, 0);
    binary("other-version", (binary_header){.version = 99}, 0);
    binary("other-key", (binary_header){.key = 1}, 0);
    binary("size-absurd", (binary_header){.size = UINT64_MAX}, 0);
    binary("size-wraps", (binary_header){.size = UINT64_MAX - 31}, 0);
    binary("header-alone", (binary_header){0}, 18);
    binary("header-cut", (binary_header){0}, 30);
}
