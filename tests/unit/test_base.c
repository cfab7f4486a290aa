/* The lowest layer: numbers, sizes, memory, messages, files. */
#include <dcm/folder.h>

#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

/* A half's value from its definition: sign, exponent, fraction. */
static double half_value(uint16_t h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    double value;
    if (exponent == 31)
        value = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexp(fraction, -24);
    else
        value = ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -value : value;
}

static void halves_to_floats(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const double expected = half_value((uint16_t)h);
        const float got = half_to_float((uint16_t)h);
        if (isnan(expected) ? !isnan(got) : (got != expected || !signbit(got) != !signbit(expected)))
            fail_msg("half %04x: %g, not %g", h, (double)got, expected);
        if (!isnan(expected))
            assert_int_equal(float_to_half(got), h);
    }
}

/* The nearest half by search among neighbours: ties to the even one. */
static void check_rounding(float f, uint16_t below)
{
    const uint16_t above = below + 1;
    const double low = half_value(below), high = half_value(above) == INFINITY ? 65536 : half_value(above);
    const double to_low = f - low, to_high = high - f;
    const uint16_t expected = to_low < to_high ? below : to_low > to_high ? above : below & 1 ? above : below;
    if (float_to_half(f) != expected || float_to_half(-f) != (expected | 0x8000))
        fail_msg("%.9g: half %04x, not %04x", (double)f, float_to_half(f), expected);
}

static void floats_to_halves(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (uint16_t below = 0; below < 0x7c00; below++) {
        const double low = half_value(below), high = below == 0x7bff ? 65536 : half_value(below + 1);
        const float middle = (float)((low + high) / 2);
        check_rounding(middle, below);
        check_rounding(nextafterf(middle, 0), below);
        check_rounding(nextafterf(middle, INFINITY), below);
        for (int i = 0; i < 4; i++) {
            const float f = (float)(low + (high - low) * rng_uniform(&seed));
            if (f >= low && f <= high)
                check_rounding(f, below);
        }
    }
    assert_int_equal(float_to_half(65520), 0x7c00);
    assert_int_equal(float_to_half(INFINITY), 0x7c00);
    assert_int_equal(float_to_half(-INFINITY), 0xfc00);
    assert_true(isnan(half_to_float(float_to_half(NAN))));
    assert_int_equal(float_to_half(1e-30f), 0);
    assert_int_equal(float_to_half(-0.0f), 0x8000);
}

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    size_t out;
    assert_true(size_mul(SIZE_MAX / 2, 2, &out) && out == SIZE_MAX - 1);
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &out));
    assert_true(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &out));
}

static void memory_is_zeroed_kept_and_refused(void **state)
{
    (void)state;
    int *items = NULL;
    assert_int_equal(mem_new(&items, 1000, sizeof *items, "items"), DCM_OK);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(items[i], 0);
        items[i] = i;
    }
    assert_int_equal(mem_resize(&items, 100000, sizeof *items, "items"), DCM_OK);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(items[i], i);
    int *const before = items;
    assert_int_equal(mem_resize(&items, SIZE_MAX / 2, sizeof *items, "very many items"), DCM_ERR_MEMORY);
    assert_ptr_equal(items, before);
    assert_non_null(strstr(dcm_error(), "very many items"));
    mem_fail_at(2);
    int *other = NULL, *third = NULL;
    assert_int_equal(mem_new(&other, 1, 1, "first"), DCM_OK);
    assert_int_equal(mem_new(&third, 1, 1, "second"), DCM_ERR_MEMORY);
    assert_null(third);
    mem_fail_at(0);
    mem_free(&items);
    mem_free(&other);
    mem_free(&third);
    assert_null(items);
}

static void counters_keep_the_peak(void **state)
{
    (void)state;
    mem_counter counter = {0};
    mem_count(&counter, MEM_WEIGHTS, 100);
    mem_count(&counter, MEM_CACHE, 50);
    mem_uncount(&counter, MEM_WEIGHTS, 100);
    mem_count(&counter, MEM_SCRATCH, 20);
    assert_int_equal(counter.now[MEM_WEIGHTS], 0);
    assert_int_equal(counter.now[MEM_CACHE], 50);
    assert_int_equal(counter.total, 70);
    assert_int_equal(counter.peak, 150);
}

static void messages_nest_and_never_overrun(void **state)
{
    (void)state;
    assert_int_equal(dcm_fail(DCM_ERR_FILE, "%s at %d", "field", 7), DCM_ERR_FILE);
    assert_string_equal(dcm_error(), "field at 7");
    assert_int_equal(dcm_fail_in(DCM_ERR_DEVICE, "opening %s", "x"), DCM_ERR_DEVICE);
    assert_string_equal(dcm_error(), "opening x: field at 7");
    assert_int_equal(dcm_fail(DCM_ERR_FILE, "again: %s", dcm_error()), DCM_ERR_FILE);
    assert_string_equal(dcm_error(), "again: opening x: field at 7");
    char *wide = malloc(20000);
    assert_non_null(wide);
    memset(wide, 'w', 19999);
    wide[19999] = 0;
    dcm_fail(DCM_ERR_FILE, "%s", wide);
    assert_true(strlen(dcm_error()) > 1000 && strlen(dcm_error()) < 20000);
    dcm_fail_in(DCM_ERR_FILE, "%s", wide);
    dcm_fail_in(DCM_ERR_FILE, "front");
    assert_memory_equal(dcm_error(), "front: www", 10);
    free(wide);
    assert_string_equal(dcm_status_name(DCM_ERR_MEMORY), "memory");
    assert_string_equal(dcm_status_name((dcm_status)99), "unknown");
}

static void hash_is_fnv1a(void **state)
{
    (void)state;
    /* Published test values of FNV-1a, 64 bits. */
    assert_true(hash_bytes(HASH_START, "", 0) == 0xcbf29ce484222325u);
    assert_true(hash_bytes(HASH_START, "a", 1) == 0xaf63dc4c8601ec8cu);
    assert_true(hash_bytes(HASH_START, "foobar", 6) == 0x85944171f73967e8u);
    assert_true(hash_bytes(hash_bytes(HASH_START, "foo", 3), "bar", 3) == 0x85944171f73967e8u);
}

static void numbers_are_splitmix64(void **state)
{
    (void)state;
    /* First outputs for seed 1234567, as published with the generator. */
    static const uint64_t expected[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                        4593380528125082431u, 16408922859458223821u};
    uint64_t seed = 1234567;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        assert_true(rng_next(&seed) == expected[i]);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        const double x = rng_uniform(&seed);
        assert_true(x >= 0 && x < 1);
        sum += x;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
}

static void files_map_and_write(void **state)
{
    (void)state;
    char folder[] = P_tmpdir "/dcm-test-XXXXXX", path[64], link_path[64];
    file_map map;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/file", folder);
    assert_int_equal(file_map_open(&map, path), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), path));
    assert_int_equal(file_map_open(&map, folder), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "not a regular file"));
    assert_int_equal(file_write_atomic(path, "", 0), DCM_OK);
    assert_int_equal(file_map_open(&map, path), DCM_ERR_FILE);
    assert_int_equal(file_write_atomic(path, "old", 3), DCM_OK);
    assert_int_equal(file_map_open(&map, path), DCM_OK);
    assert_int_equal(file_write_atomic(path, "newer", 5), DCM_OK);
    assert_int_equal(map.size, 3); /* a mapping keeps the old file */
    assert_memory_equal(map.data, "old", 3);
    file_map_close(&map);
    assert_null(map.data);
    assert_int_equal(file_map_open(&map, path), DCM_OK);
    assert_int_equal(map.size, 5);
    file_map_close(&map);
    file_map_close(&map);
    snprintf(link_path, sizeof link_path, "%s/none/file", folder);
    assert_int_equal(file_write_atomic(link_path, "x", 1), DCM_ERR_FILE);
    unlink(path);
    rmdir(folder);
}

/* What `path` has, as text. */
static void assert_has(const char *path, const char *text)
{
    file_map map;
    assert_int_equal(file_map_open(&map, path), DCM_OK);
    assert_int_equal(map.size, strlen(text));
    assert_memory_equal(map.data, text, map.size);
    file_map_close(&map);
}

/* Pipes, devices and folders: not waited for when read, not replaced when written. */
static void no_regular_files(void **state)
{
    (void)state;
    char base[] = P_tmpdir "/dcm-test-XXXXXX", path[3][64];
    struct stat before, after;
    file_map map;
    assert_non_null(mkdtemp(base));
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof path[i], "%s/%d", base, i);
    assert_int_equal(mkfifo(path[0], 0600), 0);
    assert_int_equal(mkdir(path[1], 0700), 0);
    /* A device of our own, never one of the system's; only root can make it. */
    const bool made = mknod(path[2], S_IFCHR | 0600, makedev(1, 3)) == 0;
    alarm(30); /* seconds: to open a pipe that nobody writes would last for ever */
    for (int i = 0; i < 2 + made; i++) {
        assert_int_equal(stat(path[i], &before), 0);
        assert_int_equal(file_write_output(path[i], "new", 3), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "not a regular file: it is left as it is"));
        assert_int_equal(stat(path[i], &after), 0);
        assert_true(after.st_ino == before.st_ino && after.st_mode == before.st_mode);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(file_map_open(&map, path[i]), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "not a regular file"));
    }
    alarm(0);
    unlink(path[0]);
    rmdir(path[1]);
    unlink(path[2]);
    rmdir(base); /* fails where a temporary file is left */
    assert_int_equal(access(base, F_OK), -1);
}

/* Links stay, and the files behind them get the bytes, in their own folders. */
static void links_are_followed(void **state)
{
    (void)state;
    char base[] = P_tmpdir "/dcm-test-XXXXXX", via[64], loop[64], folder[64], target[80], is[128];
    struct stat st;
    assert_non_null(mkdtemp(base));
    snprintf(via, sizeof via, "%s/via", base);
    snprintf(loop, sizeof loop, "%s/loop", base);
    snprintf(folder, sizeof folder, "%s/folder", base);
    snprintf(target, sizeof target, "%s/target", folder);
    assert_int_equal(mkdir(folder, 0700), 0);
    const char *const kinds[] = {"folder/target", target, "folder/second"}; /* the last one is a link again */
    snprintf(is, sizeof is, "%s/second", folder);
    assert_int_equal(symlink("target", is), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(symlink(kinds[i], via), 0);
        assert_int_equal(file_write_output(via, "first", 5), DCM_OK); /* the target is not there yet */
        assert_has(target, "first");
        assert_int_equal(file_write_output(via, "new", 3), DCM_OK);
        assert_has(target, "new");
        assert_true(lstat(via, &st) == 0 && S_ISLNK(st.st_mode));
        assert_true(lstat(target, &st) == 0 && S_ISREG(st.st_mode));
        assert_int_equal(unlink(target) | unlink(via), 0);
    }
    assert_int_equal(symlink("loop", loop), 0);
    assert_int_equal(file_write_output(loop, "new", 3), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "a link that cannot be followed: Too many levels of symbolic links"));
    file_fail_at(1);
    assert_int_equal(file_write_output(loop, "new", 3), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "a link that cannot be followed: Input/output error"));
    file_fail_at(0);
    /* The cache's own files: what has the name is replaced, a link too. */
    assert_int_equal(file_write_atomic(loop, "new", 3), DCM_OK);
    assert_true(lstat(loop, &st) == 0 && S_ISREG(st.st_mode));
    assert_int_equal(unlink(loop) | unlink(is) | rmdir(folder) | rmdir(base), 0);
}

/* A folder that others can write is neither written nor read, one of a group both. */
static void cache_folder_of_others(void **state)
{
    (void)state;
    char base[] = P_tmpdir "/dcm-test-XXXXXX", path[256];
    file_map map;
    assert_non_null(mkdtemp(base));
    setenv("DCM_CACHE", base, 1);
    for (int others = 0; others < 2; others++) {
        assert_int_equal(chmod(base, 0700), 0);
        assert_int_equal(file_cache_path(path, sizeof path, "name", 1), DCM_OK);
        assert_int_equal(file_write_atomic(path, "x", 1), DCM_OK);
        assert_int_equal(chmod(base, others ? 0777 : 0770), 0);
        const dcm_status wanted = others ? DCM_ERR_FILE : DCM_OK;
        assert_int_equal(file_cache_path(path, sizeof path, "name", 1), wanted);
        assert_int_equal(file_map_own(&map, path), wanted);
        file_map_close(&map);
    }
    assert_non_null(strstr(dcm_error(), "the folder belongs to another user, or others can write it"));
    unsetenv("DCM_CACHE");
    assert_int_equal(unlink(path) | rmdir(base), 0);
}

static void cache_folder(void **state)
{
    (void)state;
    char folder[] = P_tmpdir "/dcm-test-XXXXXX", inside[64], path[256], expected[128];
    struct stat st;
    assert_non_null(mkdtemp(folder));
    snprintf(inside, sizeof inside, "%s/cache", folder);
    setenv("DCM_CACHE", inside, 1);
    assert_int_equal(file_cache_path(path, sizeof path, "name", 0), DCM_OK);
    assert_int_equal(stat(inside, &st), -1);
    assert_int_equal(file_cache_path(path, sizeof path, "name", 1), DCM_OK);
    snprintf(expected, sizeof expected, "%s/name", inside);
    assert_string_equal(path, expected);
    path[0] = '\0';
    assert_int_equal(dcm_cache_path("name", path, sizeof path), DCM_OK);
    assert_string_equal(path, expected);
    assert_int_equal(stat(inside, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(file_cache_path(path, 8, "name", 0), DCM_ERR_FILE);
    rmdir(inside);
    unsetenv("DCM_CACHE");
    setenv("XDG_CACHE_HOME", folder, 1);
    assert_int_equal(file_cache_path(path, sizeof path, "name", 0), DCM_OK);
    snprintf(expected, sizeof expected, "%s/dcm/name", folder);
    assert_string_equal(path, expected);
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", folder, 1);
    assert_int_equal(file_cache_path(path, sizeof path, "name", 0), DCM_OK);
    snprintf(expected, sizeof expected, "%s/.cache/dcm/name", folder);
    assert_string_equal(path, expected);
    assert_int_equal(file_cache_path(path, sizeof path, "name", 1), DCM_OK); /* a home without .cache */
    for (int i = 0; i < 2; i++) {
        *strrchr(path, '/') = '\0';
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 0777, 0700);
        assert_int_equal(rmdir(path), 0);
    }
    unsetenv("HOME");
    assert_int_equal(file_cache_path(path, sizeof path, "name", 0), DCM_ERR_FILE);
    rmdir(folder);
}

/* Folders that cannot be made, or whose name would be cut into that of another. */
static void cache_folder_wrong(void **state)
{
    (void)state;
    static const char *const variables[] = {"DCM_CACHE", "XDG_CACHE_HOME", "HOME"};
    char folder[] = P_tmpdir "/dcm-test-XXXXXX", path[8192], lengthy[3000];
    assert_non_null(mkdtemp(folder));
    snprintf(lengthy, sizeof lengthy, "%s", folder);
    for (size_t i = strlen(folder); i < sizeof lengthy - 1; i++)
        lengthy[i] = i % 100 ? 'x' : '/';
    lengthy[sizeof lengthy - 1] = '\0';
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        setenv(variables[i], lengthy, 1);
        assert_int_equal(file_cache_path(path, sizeof path, "name", 0), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "the cache folder's path is too long"));
        snprintf(path, sizeof path, "%s/not there/cache", folder);
        setenv(variables[i], path, 1);
        assert_int_equal(file_cache_path(path, sizeof path, "name", 1), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "cannot make the folder: No such file or directory"));
        unsetenv(variables[i]);
    }
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_to_floats),       cmocka_unit_test(floats_to_halves),
        cmocka_unit_test(sizes_do_not_wrap),      cmocka_unit_test(memory_is_zeroed_kept_and_refused),
        cmocka_unit_test(counters_keep_the_peak), cmocka_unit_test(messages_nest_and_never_overrun),
        cmocka_unit_test(hash_is_fnv1a),          cmocka_unit_test(numbers_are_splitmix64),
        cmocka_unit_test(files_map_and_write),    cmocka_unit_test(no_regular_files),
        cmocka_unit_test(links_are_followed),     cmocka_unit_test(cache_folder),
        cmocka_unit_test(cache_folder_wrong),     cmocka_unit_test(cache_folder_of_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
