#define _GNU_SOURCE
#include "output.h"

#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PARTS_MAX = 8, LINKS_MAX = 40 };

static _Atomic(char *) parts[PARTS_MAX]; /* of open files; whoever takes one out may use it */
static pid_t owner;                      /* a forked process does not remove its parent's */

static void keep_part(char *part)
{
    char *none = NULL;
    owner = getpid();
    for (int i = 0; i < PARTS_MAX && !atomic_compare_exchange_strong(&parts[i], &none, part); i++)
        none = NULL;
}

/* False where output_discard has it: the program ends. */
static bool take_part(char *part)
{
    bool taken = false;
    for (int i = 0; i < PARTS_MAX && !taken; i++) {
        char *wanted = part;
        taken = atomic_compare_exchange_strong(&parts[i], &wanted, NULL);
    }
    return taken;
}

void output_discard(void)
{
    for (int i = 0; i < PARTS_MAX && owner == getpid(); i++) {
        const char *part = atomic_exchange(&parts[i], NULL);
        if (part)
            unlink(part);
    }
}

/* Where the system lists what a process has open: it is gone on with as it is. */
static bool is_of_system(const char *path)
{
    static const char *const begin[] = {"/dev/fd/", "/dev/std", "/proc/"};
    size_t i = 0;
    while (i < sizeof begin / sizeof *begin && strncmp(path, begin[i], strlen(begin[i])) != 0)
        i++;
    return i < sizeof begin / sizeof *begin;
}

/*
 * Where the links that `path` names lead, whether there is a file or not; `path` itself where it is no link. One that
 * cannot be followed, and those of the system, are the end. Freed by the caller; NULL without memory.
 */
static char *end_of_links(const char *path)
{
    char *name = strdup(path);
    for (int links = 0; name && links < LINKS_MAX && !is_of_system(name); links++) {
        char to[PATH_MAX], *next = NULL;
        const ssize_t n = readlink(name, to, sizeof to - 1);
        if (n < 0) /* no link, most often */
            break;
        to[n] = '\0';
        const char *slash = strrchr(name, '/');
        const int folder = *to == '/' || !slash ? 0 : (int)(slash - name) + 1;
        next = asprintf(&next, "%.*s%s", folder, name, to) < 0 ? NULL : next;
        free(name);
        name = next;
    }
    return name;
}

/* A name beside `place` that no other file has: known, and so removed by a signal, before the file is there. */
static char *new_part(const char *place)
{
    struct timespec now;
    char *part = NULL;
    timespec_get(&now, TIME_UTC);
    const uint64_t moment = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return asprintf(&part, "%s.%" PRIx64 "-%lx.part", place, moment, (long)getpid()) < 0 ? NULL : part;
}

int output_open(output_file *f, const char *path)
{
    struct stat st;
    *f = (output_file){.path = path};
    if (!*path)
        return tool_fail(DCM_ERR_USAGE, "the name of an output is empty");
    f->place = end_of_links(path);
    const bool stream = f->place && (is_of_system(f->place) || (stat(path, &st) == 0 && !S_ISREG(st.st_mode)));
    f->part = f->place && !stream ? new_part(f->place) : NULL;
    if (!f->place || (!f->part && !stream))
        return tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
    if (f->part)
        keep_part(f->part);
    f->out = f->part ? fopen(f->part, "wx") : fopen(path, "w");
    return f->out ? 0 : tool_fail(DCM_ERR_FILE, "%s: cannot write: %s", path, strerror(errno));
}

int output_close(output_file *f, bool keep)
{
    const bool opened = f->out;
    bool failed = false;
    errno = 0;
    if (opened) {
        failed = ferror(f->out);
        failed = fclose(f->out) != 0 || failed;
        if (f->part && keep && !failed)
            failed = rename(f->part, f->place) != 0;
    }
    const int cause = errno;
    if (f->part && take_part(f->part)) {
        if (opened && (!keep || failed))
            unlink(f->part);
        free(f->part);
    }
    free(f->place);
    const char *path = f->path;
    *f = (output_file){0};
    if (!failed || !keep)
        return 0;
    return tool_fail(DCM_ERR_FILE, "%s: cannot write all of it%s%s", path, cause ? ": " : "",
                     cause ? strerror(cause) : "");
}

int output_check(const char *path)
{
    struct stat st;
    int code = 0;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return tool_fail(DCM_ERR_FILE, "%s: not a regular file: it is left as it is", path);
    char *folder = end_of_links(path);
    if (!folder)
        return tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
    if (access(dirname(folder), W_OK | X_OK) != 0)
        code = tool_fail(DCM_ERR_FILE, "%s: cannot write beside it: %s", path, strerror(errno));
    free(folder);
    return code;
}

/* Where the file is or will be, freed by the caller; NULL where that is a device or a pipe, or cannot be found out. */
static char *place_of(const char *path)
{
    struct stat st;
    char *end = end_of_links(path), *place = end ? realpath(end, NULL) : NULL, *folder = NULL;
    char *copies[2] = {end ? strdup(end) : NULL, end ? strdup(end) : NULL};
    if (!place && copies[0] && copies[1]) {
        folder = realpath(dirname(copies[0]), NULL);
        if (!folder || asprintf(&place, "%s/%s", folder, basename(copies[1])) < 0)
            place = NULL;
    }
    free(folder);
    free(end);
    free(copies[0]);
    free(copies[1]);
    if (place && stat(place, &st) == 0 && !S_ISREG(st.st_mode)) {
        free(place);
        place = NULL;
    }
    return place;
}

int output_check_apart(const output_name *names, size_t count)
{
    int code = 0;
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i && code == 0; j++) {
            char *a = names[i].path ? place_of(names[i].path) : NULL;
            char *b = names[j].path ? place_of(names[j].path) : NULL;
            if (a && b && !strcmp(a, b))
                code = tool_fail(DCM_ERR_USAGE, "%s and %s name the same file %s", names[j].option, names[i].option,
                                 names[j].path);
            free(a);
            free(b);
        }
    return code;
}
