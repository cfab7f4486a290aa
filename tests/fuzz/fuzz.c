#define _GNU_SOURCE
#include "fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void fuzz_check(bool held, const char *what)
{
    if (held)
        return;
    fprintf(stderr, "fuzz: %s; last message: %s\n", what, dcm_error());
    abort();
}

void fuzz_check_status(dcm_status status)
{
    if (status == DCM_OK)
        return;
    fuzz_check(status == DCM_ERR_FILE || status == DCM_ERR_MEMORY, "a status that is neither file nor memory");
    const char *text = dcm_error();
    fuzz_check(*text != 0, "an error without a message");
    for (; *text; text++)
        fuzz_check((unsigned char)*text >= ' ' && *text != 0x7f, "a message with control characters");
}

/* One file for all executions: making one takes longer than reading it. */
const char *fuzz_file(const void *data, size_t size)
{
    static char path[64];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    fuzz_check(fd >= 0 && pwrite(fd, data, size, 0) == (ssize_t)size && ftruncate(fd, (off_t)size) == 0,
               "no file in memory could be made");
    return path;
}
