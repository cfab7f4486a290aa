/*
 * Allocations of the program itself that fail. Linked into a second dcm with -Wl,--wrap, which brings those calls of
 * its own objects here, and of no library.
 *
 *     ALLOC_FAIL_AT=K   the K-th allocation (from 1) fails, of all processes of the run together
 *     ALLOC_FAIL_ALL=1  the K-th and all later ones
 *     ALLOC_COUNT=P     at the end of the first process, their number is written to the file P
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t size);
ssize_t __real_getline(char **line, size_t *room, FILE *in);
FILE *__real_open_memstream(char **text, size_t *size);

static atomic_long *calls; /* shared with the processes that the program forks */
static long fail_at;
static bool fail_all;
static pid_t first;

__attribute__((constructor)) static void read_settings(void)
{
    const char *at = getenv("ALLOC_FAIL_AT");
    fail_at = at ? atol(at) : 0;
    fail_all = getenv("ALLOC_FAIL_ALL") != NULL;
    first = getpid();
    calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (calls == MAP_FAILED)
        abort();
}

__attribute__((destructor)) static void write_count(void)
{
    const char *path = getenv("ALLOC_COUNT");
    FILE *out = path && getpid() == first ? fopen(path, "w") : NULL;
    if (out) {
        fprintf(out, "%ld\n", *calls);
        fclose(out);
    }
}

static bool fails(void)
{
    const long call = atomic_fetch_add(calls, 1) + 1;
    const bool fault = fail_at > 0 && (call == fail_at || (fail_all && call > fail_at));
    if (fault)
        errno = ENOMEM;
    return fault;
}

void *__wrap_malloc(size_t size) { return fails() ? NULL : __real_malloc(size); }

void *__wrap_calloc(size_t count, size_t size) { return fails() ? NULL : __real_calloc(count, size); }

void *__wrap_realloc(void *old, size_t size) { return fails() ? NULL : __real_realloc(old, size); }

char *__wrap_strdup(const char *text) { return fails() ? NULL : __real_strdup(text); }

char *__wrap_strndup(const char *text, size_t size) { return fails() ? NULL : __real_strndup(text, size); }

ssize_t __wrap_getline(char **line, size_t *room, FILE *in) { return fails() ? -1 : __real_getline(line, room, in); }

FILE *__wrap_open_memstream(char **text, size_t *size) { return fails() ? NULL : __real_open_memstream(text, size); }

int __wrap_asprintf(char **text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int size = fails() ? -1 : vasprintf(text, format, args);
    va_end(args);
    return size;
}
