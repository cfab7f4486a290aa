#define _GNU_SOURCE
#include "output.h"

#include "tool.h"

#include <errno.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PARTS_MAX = 8 };

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

int output_open(output_file *f, const char *path)
{
    struct stat st;
    *f = (output_file){.path = path};
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode)) {
        if (asprintf(&f->part, "%s.part", path) < 0) {
            f->part = NULL;
            return tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
        }
        keep_part(f->part);
    }
    f->out = fopen(f->part ? f->part : path, "w");
    return f->out ? 0 : tool_fail(DCM_ERR_FILE, "%s: cannot write: %s", path, strerror(errno));
}

int output_close(output_file *f, bool keep)
{
    bool failed = false;
    if (f->out) {
        failed = ferror(f->out);
        failed = fclose(f->out) != 0 || failed;
        if (f->part && keep && !failed)
            failed = rename(f->part, f->path) != 0;
        if (f->part && (!keep || failed))
            unlink(f->part);
    }
    if (f->part && take_part(f->part))
        free(f->part);
    const char *path = f->path;
    *f = (output_file){0};
    return failed && keep ? tool_fail(DCM_ERR_FILE, "%s: cannot write all of it", path) : 0;
}

int output_check(const char *path)
{
    struct stat st;
    int code = 0;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return tool_fail(DCM_ERR_FILE, "%s: not a regular file: it is left as it is", path);
    char *folder = realpath(path, NULL); /* of a link, where it leads */
    folder = folder ? folder : strdup(path);
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
    char *place = realpath(path, NULL), *copies[2] = {strdup(path), strdup(path)}, *folder = NULL;
    if (!place && copies[0] && copies[1]) {
        folder = realpath(dirname(copies[0]), NULL);
        if (!folder || asprintf(&place, "%s/%s", folder, basename(copies[1])) < 0)
            place = NULL;
    }
    free(folder);
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
