/* Files that the program reads again: records of `dcm check` and results of `dcm bench`. What is written is read; what
 * anybody may have put in their place is refused in one line. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/rng.h"
#include "bench.h"
#include "check/record.h"
#include "tool.h"

static char path[64], message[8192];

/* In place of the program's own, which prints. */
int tool_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return code;
}

static void says(const char *part)
{
    if (!strstr(message, path) || !strstr(message, part) || strchr(message, '\n'))
        fail_msg("message \"%s\" should have \"%s\" and \"%s\"", message, path, part);
}

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/dcm-report-XXXXXX");
    const int fd = mkstemp(path);
    return fd < 0 || close(fd) != 0;
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static void put(const void *data, size_t size)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, size, out), size);
    fclose(out);
}

/* ---- Records ---- */

enum { LAYERS = 2, VOCAB = 100, STEPS = 2, UNITS = 3 };

/* The sketch's candidates by sorting: the larger first, the lower id first among equals. */
static void test_sketch(void **state)
{
    (void)state;
    float logits[VOCAB];
    uint64_t rng = 5;
    record_step s;
    for (size_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(rng_next(&rng) % 30) / 8;
    record_sketch(&s, logits, VOCAB);
    bool taken[VOCAB] = {false};
    double sum = 0;
    for (size_t k = 0; k < RECORD_TOP; k++) {
        size_t best = VOCAB;
        for (size_t i = 0; i < VOCAB; i++)
            if (!taken[i] && (best == VOCAB || logits[i] > logits[best]))
                best = i;
        taken[best] = true;
        assert_int_equal(s.id[k], best);
        assert_true(s.value[k] == logits[best]);
    }
    for (size_t i = 0; i < VOCAB; i++)
        sum += exp(logits[i]);
    assert_true(fabs(s.log_sum - log(sum)) < 1e-12);
    assert_int_equal(s.checksum, hash_bytes(HASH_START, logits, sizeof logits));
    record_sketch(&s, logits, 3);
    assert_true(s.id[2] >= 0 && s.id[3] == -1 && s.id[RECORD_TOP - 1] == -1 && s.value[3] == 0);
}

/* A value shows as large as it is, with a sign of its place. */
static void test_digest(void **state)
{
    (void)state;
    float values[130] = {0};
    size_t negative = 0;
    for (size_t i = 0; i < 130; i++) {
        values[i] = 3;
        const float one = record_digest(values, 130);
        assert_true(fabsf(one) == 3);
        negative += one < 0;
        values[i] = 0;
    }
    assert_true(negative > 40 && negative < 90);
}

static void fill(record *r)
{
    static record_step steps[STEPS];
    static record_unit units[UNITS] = {{0, 2, 0}, {4, 1, 0}, {6, 0, 0}};
    static float bounds[2 * LAYERS * UNITS] = {0, 1, 2, 3}, digests[2 * LAYERS * UNITS] = {5, -6, 7};
    float logits[VOCAB] = {[3] = 1};
    for (size_t i = 0; i < STEPS; i++) {
        record_sketch(&steps[i], logits, VOCAB);
        steps[i].token = (int32_t)i;
        steps[i].bound = 0.5f;
    }
    *r = (record){.layers = LAYERS, .vocab = VOCAB, .steps = STEPS, .caches = 1, .step = steps};
    r->header = json_pack("{s:{s:i,s:i}}", "options", "layers", LAYERS, "vocab", VOCAB);
    r->cache[0] = (record_cache){2, UNITS, units, bounds, digests};
}

static void write_record(record *r)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_true(record_write(r, out));
    fclose(out);
    json_decref(r->header);
}

static void test_round_trip(void **state)
{
    (void)state;
    record r, got = {0};
    fill(&r);
    write_record(&r);
    if (record_read(&got, path) != 0)
        fail_msg("%s", message);
    assert_true(got.layers == LAYERS && got.vocab == VOCAB && got.steps == STEPS && got.caches == 1);
    assert_memory_equal(got.step, r.step, STEPS * sizeof *r.step);
    assert_true(got.cache[0].step == 2 && got.cache[0].units == UNITS);
    assert_memory_equal(got.cache[0].unit, r.cache[0].unit, UNITS * sizeof *r.cache[0].unit);
    assert_memory_equal(got.cache[0].bound, r.cache[0].bound, 2 * LAYERS * UNITS * sizeof(float));
    assert_memory_equal(got.cache[0].digest, r.cache[0].digest, 2 * LAYERS * UNITS * sizeof(float));
    record_release(&got);
}

static void refused(const char *part)
{
    record got = {0};
    assert_int_equal(record_read(&got, path), DCM_ERR_FILE);
    says(part);
    record_release(&got);
}

/* A file that cannot be opened, nothing at all, and a folder. */
static void test_no_record(void **state)
{
    (void)state;
    struct rlimit usual, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &usual), 0);
    none = (struct rlimit){0, usual.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    record got = {0};
    const int code = record_read(&got, path);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &usual), 0);
    assert_int_equal(code, DCM_ERR_FILE);
    says("Too many open files");
    assert_int_equal(unlink(path), 0);
    refused("No such file");
    assert_int_equal(mkdir(path, 0700), 0);
    refused("not a regular file");
    assert_int_equal(rmdir(path), 0);
    FILE *again = fopen(path, "wb"); /* for remove_path */
    assert_non_null(again);
    fclose(again);
}

static void test_wrong_contents(void **state)
{
    (void)state;
    static const float bounds[] = {0, -1, NAN, INFINITY};
    record r;
    for (size_t i = 0; i < 4; i++) {
        fill(&r);
        r.step[1].bound = bounds[i];
        write_record(&r);
        refused("an id or a bound is out of range");
        fill(&r);
        r.cache[0].bound[2] = bounds[i];
        write_record(&r);
        if (i > 0)
            refused("an id or a bound is out of range");
        r.cache[0].bound[2] = 2;
    }
    const struct {
        int32_t token, id;
        size_t place;
    } wrong[] = {{-1, 0, 0}, {VOCAB, 0, 0}, {0, -1, 0}, {0, -2, 7}, {0, VOCAB, 7}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fill(&r);
        r.step[0].token = wrong[i].token;
        r.step[0].id[wrong[i].place] = wrong[i].id;
        write_record(&r);
        refused("an id or a bound is out of range");
    }
    /* A header that says more than a record's. */
    static char text[64 << 10];
    memset(text, 'x', sizeof text - 1);
    fill(&r);
    json_object_set_new(r.header, "device", json_string(text));
    FILE *out = fopen(path, "wb");
    assert_false(record_write(&r, out));
    fclose(out);
    json_decref(r.header);
}

/* Header and body with their sizes and checksum right. */
static void put_parts(const char *header, size_t body)
{
    static unsigned char bytes[8192];
    const uint32_t head[] = {RECORD_VERSION, (uint32_t)strlen(header)};
    const uint64_t size = body;
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, "DCMCHECK", 8);
    memcpy(bytes + 8, head, 8);
    memcpy(bytes + 16, &size, 8);
    memcpy(bytes + 32, header, head[1]);
    const uint64_t sum = hash_bytes(HASH_START, bytes + 32, head[1] + body);
    memcpy(bytes + 24, &sum, 8);
    put(bytes, 32 + head[1] + body);
}

static void test_wrong_headers(void **state)
{
    (void)state;
    static const char *const headers[] = {
        "{}",
        "[]",
        "{\"options\":[],\"steps\":1,\"caches\":[]}",
        "{\"options\":{\"vocab\":8},\"steps\":1,\"caches\":[]}",
        "{\"options\":{\"layers\":\"1\",\"vocab\":8},\"steps\":1,\"caches\":[]}",
        "{\"options\":{\"layers\":1},\"steps\":1,\"caches\":[]}",
        "{\"options\":{\"layers\":65536,\"vocab\":8},\"steps\":1,\"caches\":[]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":0,\"caches\":[]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":{}}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[[0,1]]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[[2,1]]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[[1,0]]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[[1,268435457]]}",
        "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[7]}",
    };
    char many[4096] = "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[[1,1]";
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        put_parts(headers[i], sizeof(record_step));
        refused("damaged: its header makes no sense");
    }
    for (size_t n = 1; n < 300; n++) {
        strcat(many, ",[1,1]");
        if (n == RECORD_CACHES || n == 299) { /* more caches than there may be, and more lists than are read */
            strcat(many, "]}");
            put_parts(many, sizeof(record_step));
            refused("damaged: its header makes no sense");
            many[strlen(many) - 2] = '\0';
        }
    }
}

static void test_wrong_records(void **state)
{
    (void)state;
    static const char right[] = "{\"options\":{\"layers\":1,\"vocab\":8},\"steps\":1,\"caches\":[]}";
    unsigned char bytes[1024];
    put_parts(right, sizeof(record_step) - 1);
    refused("damaged: its header makes no sense");
    put_parts(right, sizeof(record_step));
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    const size_t size = fread(bytes, 1, sizeof bytes, in);
    fclose(in);
    static const struct {
        size_t at, size;
        const char *part;
    } spoiled[] = {{0, 0, "not a record"},   {0, 31, "not a record"},          {8, 0, "another version"},
                   {13, 0, "truncated"},     {23, 0, "truncated"},             {0, 100, "truncated"},
                   {31, 0, "its checksum"},  {200, 0, "its checksum"}};
    for (size_t i = 0; i < sizeof spoiled / sizeof *spoiled; i++) {
        bytes[spoiled[i].at] ^= spoiled[i].size ? 0 : 0x40;
        put(bytes, spoiled[i].size ? spoiled[i].size : size);
        refused(spoiled[i].part);
        bytes[spoiled[i].at] ^= spoiled[i].size ? 0 : 0x40;
    }
    unlink(path);
    refused("No such file");
    put("", 0);
}

/* ---- Results ---- */

static void test_results(void **state)
{
    (void)state;
    static const char right[] = "{\"schema\":1,\"rows\":[{\"test\":\"tg8\",\"policy\":\"full\",\"tps\":\"\\\"5\"}]}";
    json_t *old;
    put(right, strlen(right));
    if (bench_read_old(path, &old) != 0)
        fail_msg("%s", message);
    const json_t *row = json_array_get(json_object_get(old, "rows"), 0);
    assert_string_equal(json_string_value(json_object_get(row, "test")), "tg8");
    json_decref(old);
    static const char *const wrong[][2] = {
        {"", "not readable as JSON"},
        {"{\"rows\":[]}", "no \"schema\""},
        {"[]", "no \"schema\""},
        {"{\"schema\":\"1\",\"rows\":[]}", "no \"schema\""},
        {"{\"schema\":2,\"rows\":[]}", "schema 2, this program compares with schema 1"},
        {"{\"schema\":1}", "no \"rows\""},
        {"{\"schema\":1,\"rows\":{}}", "no \"rows\""},
        {"{\"schema\":1,\"rows\":[{\"test\":\"a\"}]}", "row 1 has no"},
        {"{\"schema\":1,\"rows\":[{\"policy\":\"a\"}]}", "row 1 has no"},
        {"{\"schema\":1,\"rows\":[{\"test\":1,\"policy\":\"a\"}]}", "row 1 has no"},
        {"{\"schema\":1,\"rows\":[{\"test\":\"a\",\"policy\":null}]}", "row 1 has no"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put(wrong[i][0], strlen(wrong[i][0]));
        assert_int_equal(bench_read_old(path, &old), DCM_ERR_FILE);
        assert_null(old);
        says(wrong[i][1]);
    }
}

static void *no_memory(size_t size)
{
    (void)size;
    return NULL;
}

/* What would take far more memory than its size, is far too long, or cannot be read at all. */
static void test_hostile_results(void **state)
{
    (void)state;
    enum { COUNT = 200000 };
    json_t *old;
    char *text = malloc(2 * COUNT + 1);
    assert_non_null(text);
    for (size_t i = 0; i < COUNT; i++)
        memcpy(text + 2 * i, "1,", 2);
    text[0] = '[';
    put(text, 2 * COUNT);
    free(text);
    assert_int_equal(bench_read_old(path, &old), DCM_ERR_FILE);
    says("too many values for its size");
    put("{}", 2);
    json_set_alloc_funcs(no_memory, free);
    assert_int_equal(bench_read_old(path, &old), DCM_ERR_MEMORY);
    json_set_alloc_funcs(malloc, free);
    says("no room for its 2 bytes");
    assert_int_equal(truncate(path, (64 << 20) + 1), 0);
    assert_int_equal(bench_read_old(path, &old), DCM_ERR_FILE);
    says("over 67108864 bytes");
    unlink(path);
    assert_int_equal(bench_read_old(path, &old), DCM_ERR_FILE);
    says("No such file");
    put("", 0);
}

/* Neither waits for a pipe's writer, nor reads a device that has no end. */
static void test_no_regular_files(void **state)
{
    static const char *const targets[] = {NULL /* a pipe */, "/dev/zero", "/dev/null", "/tmp"};
    (void)state;
    json_t *old;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(unlink(path), 0);
        assert_int_equal(targets[i] ? symlink(targets[i], path) : mkfifo(path, 0600), 0);
        alarm(30); /* seconds */
        refused("not a regular file");
        message[0] = '\0';
        assert_int_equal(bench_read_old(path, &old), DCM_ERR_FILE);
        says("not a regular file");
        assert_null(old);
        alarm(0);
    }
}

#define IN_PLACE(test) cmocka_unit_test_setup_teardown(test, make_path, remove_path)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sketch),  cmocka_unit_test(test_digest), IN_PLACE(test_round_trip),
        IN_PLACE(test_no_record),
        IN_PLACE(test_wrong_contents),  IN_PLACE(test_wrong_headers),  IN_PLACE(test_wrong_records),
        IN_PLACE(test_results),         IN_PLACE(test_hostile_results), IN_PLACE(test_no_regular_files),
    };
    return cmocka_run_group_tests_name("reports", tests, NULL, NULL);
}
