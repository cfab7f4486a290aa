/* The tuning file: round trip, and whatever else may lie in its place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dcm/log.h>

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "device/tuning.h"

static char folder[64];

static cldev_limits limits_of(const char *name, bool wide)
{
    cldev_limits l = {.wide_items = wide, .vector_floats = 8};
    snprintf(l.name, sizeof l.name, "%s", name);
    snprintf(l.platform, sizeof l.platform, "a platform");
    snprintf(l.driver, sizeof l.driver, "1.0 \xff \x7f \"quoted\"");
    return l;
}

static int begin(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dcm-test-tuning-XXXXXX");
    dcm_log_set_level(DCM_LOG_QUIET);
    return !mkdtemp(folder) || setenv("DCM_CACHE", folder, 1);
}

static int end(void **state)
{
    char command[96];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void same(const tuning *a, const tuning *b) { assert_memory_equal(a, b, sizeof *a); }

static void families(void **state)
{
    (void)state;
    cldev_limits l = limits_of("a device", true);
    tuning t;
    tuning_defaults(&l, &t);
    assert_string_equal(tuning_text(&t, TUNE_MANY), "wide");
    assert_int_equal(tuning_number(&t, TUNE_PANEL), 6);
    l.vector_floats = 16;
    tuning_defaults(&l, &t);
    assert_int_equal(tuning_number(&t, TUNE_PANEL), 12);
    l.wide_items = false;
    tuning_defaults(&l, &t);
    assert_string_equal(tuning_text(&t, TUNE_MANY), "group");
    snprintf(l.platform, sizeof l.platform, "NVIDIA CUDA");
    tuning_defaults(&l, &t);
    assert_string_equal(tuning_text(&t, TUNE_MANY), "mma");
    for (int what = 0; what < TUNE_CHOICES; what++)
        assert_int_equal(t.choice[what].origin, TUNING_DEFAULT);
}

static void round_trip(void **state)
{
    (void)state;
    const cldev_limits l = limits_of("a device", true), other = limits_of("another", true);
    tuning t, read, standard;
    tuning_defaults(&l, &standard);
    t = standard;
    assert_true(tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED));
    assert_true(tuning_set(&t, TUNE_MANY, "clblast", TUNING_MEASURED));
    assert_false(tuning_set(&t, TUNE_PANEL, "9", TUNING_MEASURED));
    assert_false(tuning_set(&t, TUNE_PANEL, "", TUNING_MEASURED));
    assert_false(tuning_set(&t, TUNE_MANY, "4", TUNING_MEASURED));
    tuning_store(&l, &t);
    read = standard;
    tuning_load(&l, &read);
    assert_string_equal(tuning_text(&read, TUNE_MANY), "clblast");
    assert_int_equal(tuning_number(&read, TUNE_PANEL), 8);
    assert_int_equal(read.choice[TUNE_PANEL].origin, TUNING_FILE);
    assert_int_equal(read.choice[TUNE_SHARES].origin, TUNING_DEFAULT); /* what is not measured is not kept */
    read = standard;
    tuning_load(&other, &read);
    same(&read, &standard);
}

/* `text` in the place of the device's file is refused and changes nothing. */
static void refused(const char *text, size_t size)
{
    char path[4096];
    const cldev_limits l = limits_of("a device", true);
    tuning t, standard;
    tuning_defaults(&l, &standard);
    assert_int_equal(tuning_path(&l, path, sizeof path, true), DCM_OK);
    assert_int_equal(file_write_atomic(path, text, size), DCM_OK);
    t = standard;
    tuning_load(&l, &t);
    same(&t, &standard);
}

/* The text of a good file, with `from` replaced. */
static void refused_with(const char *from, const char *to)
{
    static char text[4096], changed[8192];
    char path[4096];
    const cldev_limits l = limits_of("a device", true);
    tuning t;
    tuning_defaults(&l, &t);
    tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED);
    tuning_store(&l, &t);
    assert_int_equal(tuning_path(&l, path, sizeof path, false), DCM_OK);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    text[fread(text, 1, sizeof text - 1, in)] = '\0';
    fclose(in);
    char *at = strstr(text, from);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    refused(changed, strlen(changed));
}

static void hostile(void **state)
{
    static char large[100 << 10];
    (void)state;
    memset(large, ' ', sizeof large);
    refused("", 0);
    refused("x", 1);
    refused("{}", 2);
    refused("[]", 2);
    refused("null", 4);
    refused("\0\0\0\0", 4);
    refused(large, sizeof large);
    memset(large, '[', sizeof large);
    refused(large, 60 << 10);
    refused_with("\"schema\": 1", "\"schema\": 2");
    refused_with("\"schema\": 1", "\"schema\": \"1\"");
    refused_with("\"schema\": 1", "\"schema\": 1, \"schema\": 1");
    refused_with("\"key\": \"", "\"key\": \"0");
    refused_with("\"key\": \"", "\"kez\": \"");
    refused_with("\"8\"", "\"9\"");
    refused_with("\"8\"", "\"-8\"");
    refused_with("\"8\"", "8");
    refused_with("\"8\"", "null");
    refused_with("\"8\"", "{\"panel\": \"8\"}");
    refused_with("\"panel\": \"8\"", "\"panel\": \"8\", \"wings\": \"2\"");
    refused_with("\"panel\": \"8\"", "\"panel\": \"8\", \"many\": \"8\"");
    refused_with("\"panel\": \"8\"", "\"panel\": \"8\", \"shares\": \"999999999999999999999\"");
    refused_with("}\n}", "}");
}

/* A file that others can write, a link, and a folder in its place. */
static void not_own(void **state)
{
    char path[4096], away[4200];
    (void)state;
    const cldev_limits l = limits_of("a device", true);
    tuning t, standard;
    tuning_defaults(&l, &standard);
    t = standard;
    tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED);
    tuning_store(&l, &t);
    assert_int_equal(tuning_path(&l, path, sizeof path, false), DCM_OK);
    assert_int_equal(chmod(path, 0666), 0);
    t = standard;
    tuning_load(&l, &t);
    same(&t, &standard);
    assert_int_equal(chmod(path, 0644), 0);
    tuning_load(&l, &t);
    assert_int_equal(tuning_number(&t, TUNE_PANEL), 8);
    snprintf(away, sizeof away, "%s.away", path);
    assert_int_equal(rename(path, away), 0);
    assert_int_equal(symlink(away, path), 0);
    t = standard;
    tuning_load(&l, &t);
    same(&t, &standard);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    tuning_load(&l, &t);
    same(&t, &standard);
    tuning_store(&l, &t); /* cannot be written: said, no more */
}

static void *no_memory(size_t size)
{
    (void)size;
    return NULL;
}

/* Without a place for the file, or memory to write it: said, and what was there stays. */
static void not_stored(void **state)
{
    (void)state;
    const cldev_limits l = limits_of("a device", true);
    tuning t, read;
    tuning_defaults(&l, &t);
    read = t;
    tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED);
    tuning_store(&l, &t);
    tuning_set(&t, TUNE_PANEL, "4", TUNING_MEASURED);
    json_set_alloc_funcs(no_memory, free);
    tuning_store(&l, &t);
    json_set_alloc_funcs(malloc, free);
    assert_non_null(strstr(dcm_error(), "no memory"));
    tuning_load(&l, &read);
    assert_int_equal(tuning_number(&read, TUNE_PANEL), 8);

    unsetenv("DCM_CACHE");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    tuning_store(&l, &t);
    assert_non_null(strstr(dcm_error(), "no cache folder"));
    read = t;
    tuning_load(&l, &read);
    same(&read, &t);
}

/* Ten processes that write and read at once: every read finds a whole file, and no temporary one is left. */
static void ten_at_once(void **state)
{
    static const char *const values[] = {"4", "8", "12"};
    const cldev_limits l = limits_of("a device", true);
    tuning t, standard;
    char command[128];
    int failed = 0;
    (void)state;
    tuning_defaults(&l, &standard);
    t = standard;
    tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED);
    tuning_store(&l, &t);
    pid_t child[10];
    for (int i = 0; i < 10; i++)
        if ((child[i] = fork()) == 0) {
            bool whole = true;
            for (int k = 0; k < 20; k++) {
                tuning_set(&t, TUNE_PANEL, values[(i + k) % 3], TUNING_MEASURED);
                tuning_store(&l, &t);
                tuning read = standard;
                tuning_load(&l, &read);
                whole = whole && read.choice[TUNE_PANEL].origin == TUNING_FILE;
            }
            _exit(!whole);
        }
    for (int i = 0; i < 10; i++) {
        int code = -1;
        waitpid(child[i], &code, 0);
        failed += code != 0;
    }
    assert_int_equal(failed, 0);
    snprintf(command, sizeof command, "test $(ls -A %s | wc -l) = 1", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(families, begin, end),
                                       cmocka_unit_test_setup_teardown(round_trip, begin, end),
                                       cmocka_unit_test_setup_teardown(hostile, begin, end),
                                       cmocka_unit_test_setup_teardown(not_own, begin, end),
                                       cmocka_unit_test_setup_teardown(ten_at_once, begin, end),
                                       cmocka_unit_test_setup_teardown(not_stored, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
