/*
 * What readers allocate while they read the densest files of each kind: at most eight times the header + 1 MiB,
 * whatever the file claims. All of the process's heap is counted, that of other libraries too, by functions of this
 * program in the place of the C library's.
 */
#include "fuzz/heap.h"

#include "bench.h"
#include "check/record.h"
#include "device/tuning.h"
#include "io/gguf.h"
#include "io/json_members.h"
#include "io/safetensors.h"
#include "support/gguf_writer.h"
#include "token/chat.h"
#include "token/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { MANY = 100000, SPARE = 1 << 20 };

/* The reader is done: what it took for `header` bytes. */
static void assert_room(const char *what, size_t header)
{
    const size_t peak = heap_peak();
    print_message("%-34s header %9zu, peak %9zu: %.2f times%s\n", what, header, peak, (double)peak / (double)header,
                  peak <= SPARE ? " (under 1 MiB)" : "");
    if (peak > 8 * header + SPARE)
        fail_msg("%s: %zu bytes for a header of %zu", what, peak, header);
}

static void open_gguf(const char *what, gguf_writer *w, size_t header, dcm_status expected)
{
    gw_bytes bytes = gw_finish(w);
    gguf *file;
    heap_start();
    const dcm_status status = gguf_open_memory(&file, "memory", bytes.data, bytes.size);
    assert_int_equal(status, expected);
    assert_room(what, header ? header : status == DCM_OK ? gguf_header_bytes(file) : bytes.size);
    gguf_close(&file);
    assert_int_equal(heap_now(), 0);
    gw_free(&bytes);
}

static void test_gguf(void **state)
{
    (void)state;
    gguf_writer w;
    char name[16];
    gw_open(&w);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "%x", i);
        gw_value(&w, name, GW_U8, "", 1);
    }
    open_gguf("gguf: the shortest keys", &w, 0, DCM_OK);
    gw_open(&w);
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "%x", i);
        gw_tensor(&w, name, 0, 1, (const uint64_t[]){1}, "\0\0\0", 4);
    }
    open_gguf("gguf: the shortest tensors", &w, 0, DCM_OK);
    gw_open(&w);
    w.tensor_count = w.entry_count = UINT64_MAX;
    open_gguf("gguf: absurd counts", &w, 24, DCM_ERR_FILE);
    gw_open(&w);
    gw_u32(&w, "a", 1);
    w.entry_count = MANY;
    w.infos = (gw_bytes){calloc(MANY, 14), (size_t)MANY * 14, (size_t)MANY * 14};
    open_gguf("gguf: keys that end early", &w, 0, DCM_ERR_FILE);
}

static void put_strings(gguf_writer *w, const char *key, const char *text, size_t count)
{
    gw_bytes b = {0};
    for (size_t i = 0; i < count; i++)
        gw_put_string(&b, text);
    gw_array(w, key, GW_STRING, count, b.data, b.size);
    gw_free(&b);
}

static void open_tokenizer(const char *what, gguf_writer *w, dcm_status expected)
{
    gw_bytes bytes = gw_finish(w);
    gguf *file;
    dcm_tokenizer *t;
    heap_start();
    assert_int_equal(gguf_open_memory(&file, "memory", bytes.data, bytes.size), DCM_OK);
    assert_int_equal(tokenizer_open_gguf(&t, file), expected);
    assert_room(what, gguf_header_bytes(file));
    gguf_close(&file);
    dcm_tokenizer_close(&t);
    assert_int_equal(heap_now(), 0);
    gw_free(&bytes);
}

/* `count` tokens of `text` and a type, behind three that merges can be made of. */
static void begin_tokens(gguf_writer *w, const char *text, int32_t type, size_t count)
{
    gw_bytes texts = {0}, types = {0};
    static const char *const first[] = {"a", "b", "ab"};
    for (size_t i = 0; i < count + 3; i++) {
        gw_put_string(&texts, i < 3 ? first[i] : text);
        gw_put(&types, i < 3 ? &(int32_t){1} : &type, 4);
    }
    gw_open(w);
    gw_string(w, "tokenizer.ggml.model", "gpt2");
    gw_string(w, "tokenizer.ggml.pre", "gpt-2");
    gw_array(w, "tokenizer.ggml.tokens", GW_STRING, count + 3, texts.data, texts.size);
    gw_array(w, "tokenizer.ggml.token_type", GW_I32, count + 3, types.data, types.size);
    gw_free(&texts);
    gw_free(&types);
}

static void test_tokenizer(void **state)
{
    (void)state;
    gguf_writer w;
    /* A little over a power of two: the most that a table of slots takes. */
    begin_tokens(&w, "", 1, 2 * 65536 + 10);
    put_strings(&w, "tokenizer.ggml.merges", "a b", 87400);
    open_tokenizer("tokenizer: empty tokens, merges", &w, DCM_OK);
    begin_tokens(&w, "", 5, 0);
    put_strings(&w, "tokenizer.ggml.merges", "a b", 3 * 65536);
    open_tokenizer("tokenizer: merges", &w, DCM_OK);
    begin_tokens(&w, "x", 3, 2 * 65536 + 10);
    put_strings(&w, "tokenizer.ggml.merges", "a b", 1);
    open_tokenizer("tokenizer: special tokens", &w, DCM_OK);
    gw_open(&w);
    gw_string(&w, "tokenizer.ggml.model", "llama");
    put_strings(&w, "tokenizer.ggml.tokens", "", 2 * 65536 + 10);
    float *scores = calloc(2 * 65536 + 10, sizeof *scores);
    gw_array(&w, "tokenizer.ggml.scores", GW_F32, 2 * 65536 + 10, scores, (2 * 65536 + 10) * sizeof *scores);
    free(scores);
    open_tokenizer("tokenizer: pieces", &w, DCM_OK);
}

/* `size` bytes: `start`, then `piece` over and over. */
static char *repeat(const char *start, const char *piece, size_t size)
{
    char *text = malloc(size + 1);
    const size_t n = strlen(start), m = strlen(piece);
    for (size_t i = 0; i < size; i++)
        text[i] = i < n ? start[i] : piece[(i - n) % m];
    text[size] = 0;
    return text;
}

static void test_chat(void **state)
{
    (void)state;
    static const char *const pieces[] = {"(", "''", "a ", "{{''}}", "\"\\", "{#", "a['b']"};
    for (size_t i = 0; i < 2 * sizeof pieces / sizeof *pieces; i++) {
        const size_t size = i % 2 ? CHAT_TEMPLATE_MAX : 4 << 20;
        char *text = repeat("{{", pieces[i / 2], size), what[64];
        chat c = {0};
        snprintf(what, sizeof what, "chat template: {{%s%s...", pieces[i / 2], pieces[i / 2]);
        heap_start();
        assert_int_equal(chat_open(&c, (gguf_string){text, size}), DCM_OK);
        assert_null(c.kind);
        assert_room(what, size);
        chat_close(&c);
        assert_int_equal(heap_now(), 0);
        free(text);
    }
}

static void open_safetensors(const char *what, const char *header, size_t size, dcm_status expected)
{
    gw_bytes b = {0};
    safetensors *file;
    gw_put_u64(&b, size);
    gw_put(&b, header, size);
    heap_start();
    assert_int_equal(safetensors_open_memory(&file, "memory", b.data, b.size), expected);
    assert_room(what, size);
    safetensors_close(&file);
    assert_int_equal(heap_now(), 0);
    gw_free(&b);
}

static void test_safetensors(void **state)
{
    (void)state;
    gw_bytes b = {0};
    char entry[96];
    for (unsigned i = 0; i < MANY; i++) {
        const int n = snprintf(entry, sizeof entry, "%c\"%x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                               i ? ',' : '{', i);
        gw_put(&b, entry, (size_t)n);
    }
    gw_put(&b, "}", 1);
    open_safetensors("safetensors: the shortest entries", (const char *)b.data, b.size, DCM_OK);
    gw_free(&b);
    static const struct {
        const char *start, *piece, *end;
    } dense[] = {{"{\"a\":[1", ",1", "]}"},
                 {"{\"a\":[[]", ",[]", "]}"},
                 {"{\"a\":[{}", ",{}", "]}"},
                 {"{\"a\":", "[", "}"},
                 {"{\"__metadata__\":[\"\"", ",\"\"", "]}"},
                 {"{", ",", "}"},
                 {"{", "\"a\":1,", "}"}};
    for (size_t i = 0; i < sizeof dense / sizeof *dense; i++) {
        char what[64];
        for (size_t size = JSON_MEMBER_MAX - 16; size < 8 << 20; size *= 256) { /* the longest that is read; and more */
            const size_t n = strlen(dense[i].start), m = strlen(dense[i].piece), whole = n + (size - n) / m * m;
            char *text = repeat(dense[i].start, dense[i].piece, whole + 2);
            memcpy(text + whole, dense[i].end, strlen(dense[i].end));
            snprintf(what, sizeof what, "safetensors: %s%s...", dense[i].start, dense[i].piece);
            open_safetensors(what, text, whole + strlen(dense[i].end), DCM_ERR_FILE);
            free(text);
        }
    }
}

static void test_bench(void **state)
{
    (void)state;
    static const char row[] =
        ",{\"test\":\"tg64 @ d4096\",\"policy\":\"dcm:L=64\",\"tokens_per_s\":108.37,\"p50_ms\":9.1,"
        "\"p90_ms\":9.7,\"p99_ms\":9.92,\"max_ms\":10.33,\"units\":188,\"status\":\"ok\"}";
    static const struct {
        const char *start, *piece;
        bool refused;
    } dense[] = {{"{\"schema\":1,\"rows\":[{\"test\":\"a\",\"policy\":\"b\"}", row, false},
                 {"{\"schema\":1,\"rows\":[{\"test\":\"a\",\"policy\":\"b\"}", row, true},
                 {"{\"schema\":1,\"rows\":[1", ",1", true},
                 {"{\"schema\":1,\"rows\":[\"\"", ",\"\"", true},
                 {"{\"schema\":1,\"rows\":[[]", ",[]", true},
                 {"{\"schema\":1,\"rows\":[{}", ",{}", true}};
    for (size_t i = 0; i < sizeof dense / sizeof *dense; i++) {
        const size_t n = strlen(dense[i].start), m = strlen(dense[i].piece),
                     most = dense[i].refused ? 4 << 20 : 128 << 10, size = n + most / m * m;
        char *text = repeat(dense[i].start, dense[i].piece, size + 2), what[64];
        json_t *old;
        memcpy(text + size, "]}", 2);
        snprintf(what, sizeof what, "bench: %.30s...", dense[i].piece);
        heap_start();
        assert_int_equal(bench_parse_old("memory", text, size + 2, &old), dense[i].refused ? DCM_ERR_FILE : DCM_OK);
        assert_room(what, size);
        json_decref(old);
        free(text);
    }
}

static void test_tuning(void **state)
{
    (void)state;
    const cldev_limits limits = {.wide_items = true};
    tuning t;
    char *text = repeat("[1", ",1", 64 << 10);
    text[(64 << 10) - 1] = ']';
    tuning_defaults(&limits, &t);
    heap_start();
    assert_non_null(tuning_parse(text, 64 << 10, 1, &t));
    assert_room("tuning: [1,1...", 64 << 10);
    free(text);
}

/* A header of the densest JSON; only what it is itself is read. */
static void test_record(void **state)
{
    (void)state;
    static const char *const pieces[] = {",1", ",[]", ",{}", ",\"\""};
    enum { HEADER = 48000 };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        const size_t m = strlen(pieces[i]), n = 2 + HEADER / m * m + 1;
        char *text = repeat("[0", pieces[i], n), what[64], path[] = "/tmp/dcm-record-XXXXXX";
        text[n - 1] = ']';
        gw_bytes b = {0};
        record r = {0};
        gw_put(&b, "DCMCHECK", 8);
        gw_put_u32(&b, RECORD_VERSION);
        gw_put_u32(&b, (uint32_t)n);
        gw_put_u64(&b, 0);
        gw_put_u64(&b, 0);
        gw_put(&b, text, n);
        const int fd = mkstemp(path);
        assert_int_equal(write(fd, b.data, b.size), b.size);
        close(fd);
        snprintf(what, sizeof what, "record: [%s...", pieces[i]);
        heap_start();
        assert_int_equal(record_read(&r, path), DCM_ERR_FILE);
        assert_room(what, n);
        assert_true((r.header != NULL) == (i == 0 || i == 3)); /* lists within it are too many: not even parsed */
        record_release(&r);
        unlink(path);
        free(text);
        gw_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf),        cmocka_unit_test(test_tokenizer), cmocka_unit_test(test_chat),
        cmocka_unit_test(test_safetensors), cmocka_unit_test(test_bench),     cmocka_unit_test(test_tuning),
        cmocka_unit_test(test_record),
    };
    if (!heap_counts()) {
        fprintf(stderr, "skipped: a sanitiser has the heap\n");
        return 77;
    }
    return cmocka_run_group_tests_name("reader memory", tests, NULL, NULL);
}
