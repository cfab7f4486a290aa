#define _GNU_SOURCE
#include "output.h"

#include "tool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int output_open(output_file *f, const char *path)
{
    struct stat st;
    *f = (output_file){.path = path};
    if (lstat(path, &st) != 0 || S_ISREG(st.st_mode)) {
        if (asprintf(&f->part, "%s.part", path) < 0) {
            f->part = NULL;
            return tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
        }
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
    free(f->part);
    const char *path = f->path;
    *f = (output_file){0};
    return failed && keep ? tool_fail(DCM_ERR_FILE, "%s: cannot write all of it", path) : 0;
}
