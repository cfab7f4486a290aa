/*
 * What dcm keeps in the cache folder, and what it removes there. Some calls of the system pass through the test (the
 * linker's --wrap) and fail when told to.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dcm/log.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "device/build.h"
#include "device/kept.h"
#include "device/tuning.h"

enum { HOUR = 3600, DAY = 24 * HOUR };

#define PROGRAM "program-linear+strict-0123456789abcdef.bin"
#define TUNING "tuning-0123456789abcdef.json"

static char folder[64];
static const char *failing;  /* the call that fails */
static const char *vanishes; /* removed by another process as soon as it was found to be there */

/* The linker gives these names. */
int __real_unlinkat(int dir, const char *name, int flags);
int __wrap_unlinkat(int dir, const char *name, int flags);
int __real_utimensat(int dir, const char *name, const struct timespec *times, int flags);
int __wrap_utimensat(int dir, const char *name, const struct timespec *times, int flags);
DIR *__real_opendir(const char *path);
DIR *__wrap_opendir(const char *path);
int __real_access(const char *path, int mode);
int __wrap_access(const char *path, int mode);

static bool fails(const char *call)
{
    errno = EIO;
    return failing && !strcmp(failing, call);
}

int __wrap_unlinkat(int dir, const char *name, int flags)
{
    return fails("unlinkat") ? -1 : __real_unlinkat(dir, name, flags);
}

int __wrap_utimensat(int dir, const char *name, const struct timespec *times, int flags)
{
    return fails("utimensat") ? -1 : __real_utimensat(dir, name, times, flags);
}

DIR *__wrap_opendir(const char *path) { return fails("opendir") ? NULL : __real_opendir(path); }

int __wrap_access(const char *path, int mode)
{
    const int found = __real_access(path, mode);
    if (vanishes && !strcmp(path, vanishes))
        unlink(path);
    return found;
}

static int begin(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dcm-test-kept-XXXXXX");
    return !mkdtemp(folder) || setenv("DCM_CACHE", folder, 1);
}

static int end(void **state)
{
    char command[96];
    (void)state;
    failing = vanishes = NULL;
    dcm_log_set_level(DCM_LOG_WARN);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static bool is_there(const char *name)
{
    struct stat st;
    return lstat(path_of(name), &st) == 0;
}

/* False where the file is not there. */
static bool make_old(const char *path, time_t seconds)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - seconds}};
    return __real_utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW) == 0;
}

static void set_age(const char *path, time_t seconds) { assert_true(make_old(path, seconds)); }

static time_t age_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return time(NULL) - st.st_mtime;
}

static void put(const char *name, time_t age)
{
    assert_int_equal(file_write_atomic(path_of(name), "x", 1), DCM_OK);
    set_age(path_of(name), age);
}

/* Write something new, which is what makes the folder be swept. */
static void write_new(void)
{
    assert_int_equal(kept_write(path_of("program-new-0000000000000000.bin"), "new", 3), DCM_OK);
    assert_true(is_there("program-new-0000000000000000.bin"));
}

static void only_unused_ones_go(void **state)
{
    static const struct {
        const char *name;
        time_t age;
        bool stays;
    } files[] = {
        {PROGRAM, 90 * DAY + HOUR, false},
        {"program-merge-fedcba9876543210.bin", 90 * DAY - HOUR, true},
        {TUNING, 90 * DAY + HOUR, false},
        {"tuning-fedcba9876543210.json", 90 * DAY - HOUR, true},
        {PROGRAM ".aB3xY9", DAY + HOUR, false},
        {PROGRAM ".aB3xY8", DAY - HOUR, true},
        {TUNING ".aB3xY9", DAY + HOUR, false},
        {TUNING ".aB3xY8", DAY - HOUR, true},
        /* Models, their downloads, and whatever else is no name of dcm's. */
        {"smollm2-135m.gguf", 4000 * DAY, true},
        {"smollm2-135m.gguf.aB3xY9", 4000 * DAY, true},
        {"merge.safetensors", 4000 * DAY, true},
        {"program-0123456789abcdef.bin", 4000 * DAY, true},
        {"program-linear-0123456789abcde.bin", 4000 * DAY, true},
        {"program-linear-0123456789ABCDEF.bin", 4000 * DAY, true},
        {"program-linear-0123456789abcdef.txt", 4000 * DAY, true},
        {"my-" PROGRAM, 4000 * DAY, true},
        {PROGRAM ".backup1", 4000 * DAY, true},
        {PROGRAM ".old", 4000 * DAY, true},
        {"tuning-0123456789abcdef0.json", 4000 * DAY, true},
        {"tuning-mine.json", 4000 * DAY, true},
        {"tuning.json", 4000 * DAY, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        put(files[i].name, files[i].age);
    write_new();
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (is_there(files[i].name) != files[i].stays)
            fail_msg("%s of %ld hours is %s", files[i].name, (long)(files[i].age / HOUR),
                     files[i].stays ? "removed" : "still there");
}

/* The names that are swept are those that dcm gives. */
static void names_are_dcms(void **state)
{
    const program_source source = {.family = "attention_many"};
    const cldev_limits limits = {.name = "a device"};
    char path[2][4096];
    (void)state;
    assert_int_equal(binary_path(path[0], sizeof *path, &source, 0xfedcba9876543210u, true), DCM_OK);
    assert_int_equal(tuning_path(&limits, path[1], sizeof *path, true), DCM_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(kept_write(path[i], "x", 1), DCM_OK);
        assert_int_equal(access(path[i], F_OK), 0);
        set_age(path[i], 91 * DAY);
    }
    write_new();
    assert_true(access(path[0], F_OK) != 0 && access(path[1], F_OK) != 0);
}

/* Old, of the right name, and no regular file of the user's: a link (and its target), a folder, another's file. */
static void others_stay(void **state)
{
    static const char others[] = "program-o-0123456789abcdef.bin", kept_folder[] = "program-f-0123456789abcdef.bin";
    char target[96];
    (void)state;
    snprintf(target, sizeof target, "%s/target", folder);
    put("target", 4000 * DAY);
    assert_int_equal(symlink(target, path_of(PROGRAM)), 0);
    set_age(path_of(PROGRAM), 4000 * DAY);
    assert_int_equal(mkdir(path_of(kept_folder), 0700), 0);
    set_age(path_of(kept_folder), 4000 * DAY);
    put(others, 4000 * DAY);
    const bool given = chown(path_of(others), geteuid() + 1, (gid_t)-1) == 0; /* only root can */
    write_new();
    assert_true(is_there(PROGRAM) && is_there("target") && is_there(kept_folder));
    assert_int_equal(is_there(others), given);
}

/* A folder that others can write is left as it is: what lies there may be theirs. */
static void not_trusted(void **state)
{
    (void)state;
    put(PROGRAM, 4000 * DAY);
    assert_int_equal(chmod(folder, 0777), 0);
    write_new();
    assert_true(is_there(PROGRAM));
    assert_int_equal(chmod(folder, 0700), 0);
    write_new();
    assert_false(is_there(PROGRAM));
}

/* Reading renews a file's time, at most once a day; one that is read stays. */
static void used(void **state)
{
    static const time_t ages[] = {DAY - HOUR, DAY + HOUR, 4000 * DAY};
    char path[256];
    file_map map;
    (void)state;
    snprintf(path, sizeof path, "%s", path_of(PROGRAM));
    for (size_t i = 0; i < sizeof ages / sizeof *ages; i++) {
        put(PROGRAM, ages[i]);
        assert_int_equal(kept_map(&map, path), DCM_OK);
        assert_int_equal(map.size, 1);
        file_map_close(&map);
        if (i == 0)
            assert_true(age_of(path) >= ages[0]);
        else
            assert_true(age_of(path) < DAY - 2 * HOUR);
    }
    write_new();
    assert_true(is_there(PROGRAM));
    /* What is not to be read is not in use. */
    set_age(path, 4000 * DAY);
    assert_int_equal(chmod(path, 0666), 0);
    assert_int_equal(kept_map(&map, path), DCM_ERR_FILE);
    assert_true(age_of(path) >= 4000 * DAY);
}

/* The tuning's own reader counts as use. */
static void tuning_is_used(void **state)
{
    const cldev_limits limits = {.name = "a device"};
    char path[4096];
    tuning t;
    (void)state;
    tuning_defaults(&limits, &t);
    tuning_set(&t, TUNE_PANEL, "8", TUNING_MEASURED);
    put(PROGRAM, 91 * DAY);
    tuning_store(&limits, &t);
    assert_false(is_there(PROGRAM));
    assert_int_equal(tuning_path(&limits, path, sizeof path, false), DCM_OK);
    set_age(path, 91 * DAY);
    tuning_load(&limits, &t);
    write_new();
    assert_int_equal(access(path, F_OK), 0);
}

/* What was written to stderr by `run`. */
static const char *said_by(void (*run)(void))
{
    static char text[4096];
    FILE *file = tmpfile();
    const int saved = dup(STDERR_FILENO);
    assert_non_null(file);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    run();
    fflush(stderr);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    dup2(saved, STDERR_FILENO);
    close(saved);
    fclose(file);
    return text;
}

static void read_one(void)
{
    file_map map;
    assert_int_equal(kept_map(&map, path_of(PROGRAM)), DCM_OK);
    assert_int_equal(map.size, 1);
    file_map_close(&map);
}

/* What fails while sweeping or reading is no failure, and nothing is said of it or of what goes but for debugging. */
static void failures_are_quiet(void **state)
{
    static const struct {
        const char *failing;
        void (*run)(void);
        const char *said;
    } cases[] = {
        {"opendir", write_new, "unused files are not looked for"},
        {"unlinkat", write_new, PROGRAM ": not used for 90 days: Input/output error"},
        {"utimensat", read_one, PROGRAM ": its use is not noted: Input/output error"},
        {NULL, write_new, PROGRAM ": not used for 90 days: removed"},
    };
    (void)state;
    for (dcm_log_level level = DCM_LOG_INFO; level <= DCM_LOG_DEBUG; level++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            dcm_log_set_level(level);
            put(PROGRAM, 4000 * DAY);
            failing = cases[i].failing;
            const char *said = said_by(cases[i].run);
            if (level == DCM_LOG_INFO ? *said != '\0' : !strstr(said, cases[i].said))
                fail_msg("%s: said at level %d: \"%s\"", cases[i].said, (int)level, said);
            assert_int_equal(is_there(PROGRAM), failing != NULL);
        }
}

/* What another process removes while it is looked at was not there. */
static void removed_meanwhile(void **state)
{
    char path[256];
    file_map map;
    (void)state;
    put(PROGRAM, 0);
    snprintf(path, sizeof path, "%s", path_of(PROGRAM));
    vanishes = path;
    assert_int_equal(kept_map(&map, path), DCM_OK);
    assert_null(map.data);
    assert_false(is_there(PROGRAM));
}

/* The work of one of ten: what it writes is there, whatever the others sweep, and what it reads is whole. */
static bool write_and_read(int number)
{
    char name[64];
    bool good = true;
    for (int k = 0; k < 20; k++) {
        file_map map;
        for (int i = 0; i < 20; i++) {
            snprintf(name, sizeof name, "program-old-%016x.bin", 20 * number + i);
            good = file_write_atomic(path_of(name), "x", 1) == DCM_OK && good;
            make_old(path_of(name), 91 * DAY); /* or another sweep has it already */
        }
        snprintf(name, sizeof name, "program-mine-%016x.bin", number);
        good = kept_write(path_of(name), name, strlen(name)) == DCM_OK && good;
        good = kept_map(&map, path_of(name)) == DCM_OK && map.size == strlen(name) && good;
        file_map_close(&map);
    }
    return good;
}

static void ten_at_once(void **state)
{
    pid_t child[10];
    int failed = 0, files = 0;
    (void)state;
    for (int i = 0; i < 10; i++)
        if ((child[i] = fork()) == 0)
            _exit(!write_and_read(i));
    for (int i = 0; i < 10; i++) {
        int code = -1;
        waitpid(child[i], &code, 0);
        failed += code != 0;
    }
    assert_int_equal(failed, 0);
    write_new();
    DIR *dir = __real_opendir(folder);
    assert_non_null(dir);
    for (const struct dirent *entry; (entry = readdir(dir));)
        files += entry->d_name[0] != '.';
    closedir(dir);
    assert_int_equal(files, 10 + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(only_unused_ones_go, begin, end),
                                       cmocka_unit_test_setup_teardown(names_are_dcms, begin, end),
                                       cmocka_unit_test_setup_teardown(others_stay, begin, end),
                                       cmocka_unit_test_setup_teardown(not_trusted, begin, end),
                                       cmocka_unit_test_setup_teardown(used, begin, end),
                                       cmocka_unit_test_setup_teardown(tuning_is_used, begin, end),
                                       cmocka_unit_test_setup_teardown(failures_are_quiet, begin, end),
                                       cmocka_unit_test_setup_teardown(removed_meanwhile, begin, end),
                                       cmocka_unit_test_setup_teardown(ten_at_once, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
