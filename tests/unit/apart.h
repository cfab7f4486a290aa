/*
 * Cases that each run in a process of their own, since OpenCL reads its environment once a process: without arguments
 * the program starts itself once a case, with the case's environment; with a case's name it runs that case. Included
 * once, by a test program.
 */
#ifndef APART_H
#define APART_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "device/device.h"

enum { APART_SKIPPED = 77 };

static char folder[256]; /* DCM_CACHE of this case: not there yet, removed afterwards */

typedef struct apart_case {
    const char *name;
    void (*run)(void **);
    const char *variable, *value; /* environment; value NULL: an empty folder */
    bool hidden;                  /* only started by another case */
} apart_case;

/* End this case's process as skipped. */
static _Noreturn void skip_case(void) { _exit(APART_SKIPPED); }

static cldev_entry *all_devices(size_t *count)
{
    cldev_entry *entries = NULL;
    assert_int_equal(cldev_list(&entries, count), DCM_OK);
    if (*count == 0)
        skip_case();
    return entries;
}

/* A device whose binaries are kept, whatever its driver does. */
static cldev *open_with_cache(const cldev_entry *entry)
{
    cldev *device = NULL;
    assert_int_equal(cldev_open(&device, entry, false), DCM_OK);
    device->limits.own_cache = false;
    return device;
}

static int saved_stderr = -1;

__attribute__((unused)) static void capture_begin(void)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fileno(file), STDERR_FILENO);
    fclose(file);
}

/* What was written to stderr since capture_begin. */
__attribute__((unused)) static const char *capture_end(void)
{
    static char text[1 << 16];
    fflush(stderr);
    lseek(STDERR_FILENO, 0, SEEK_SET);
    const ssize_t n = read(STDERR_FILENO, text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    return text;
}

/* Start this program with the case's name, and `variable` set where it is not NULL. */
static pid_t start_case(const char *name, const char *variable, const char *value)
{
    const pid_t child = fork();
    if (child == 0) {
        if (variable)
            setenv(variable, value, 1);
        execl("/proc/self/exe", "test", name, (char *)NULL);
        _exit(127);
    }
    return child;
}

static void run_apart(void **state)
{
    const apart_case *c = *state;
    char base[] = "/tmp/dcm-test-XXXXXX", path[256], command[256];
    int status = -1;
    assert_non_null(mkdtemp(base));
    snprintf(path, sizeof path, "%s/cache", base);
    setenv("DCM_CACHE", path, 1);
    snprintf(path, sizeof path, "%s/empty", base);
    assert_int_equal(mkdir(path, 0700), 0);
    waitpid(start_case(c->name, c->variable, c->value ? c->value : path), &status, 0);
    if (WIFSIGNALED(status)) { /* PoCL 3.1 was seen to die once in some 150 runs with a part of a device: not twice */
        fprintf(stderr, "%s: died of signal %d, and is run once more\n", c->name, WTERMSIG(status));
        waitpid(start_case(c->name, c->variable, c->value ? c->value : path), &status, 0);
    }
    snprintf(command, sizeof command, "rm -rf '%s'", base);
    assert_int_equal(system(command), 0);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == APART_SKIPPED)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int run_case(const apart_case *cases, size_t count, const char *name)
{
    snprintf(folder, sizeof folder, "%s", getenv("DCM_CACHE") ? getenv("DCM_CACHE") : "");
    for (size_t i = 0; i < count; i++)
        if (strcmp(cases[i].name, name) == 0) {
            const struct CMUnitTest test[] = {{cases[i].name, cases[i].run, NULL, NULL, NULL}};
            return cmocka_run_group_tests(test, NULL, NULL);
        }
    return 1;
}

enum { APART_CASES_MAX = 64 };

/* The body of main. */
static int apart_main(const apart_case *cases, size_t count, int argc, char **argv)
{
    struct CMUnitTest tests[APART_CASES_MAX];
    size_t n = 0;
    if (argc > 1)
        return run_case(cases, count, argv[1]);
    for (size_t i = 0; i < count && n < APART_CASES_MAX; i++)
        if (!cases[i].hidden)
            tests[n++] = (struct CMUnitTest){cases[i].name, run_apart, NULL, NULL, (void *)(size_t)&cases[i]};
    return _cmocka_run_group_tests("apart", tests, n, NULL, NULL);
}

#endif
