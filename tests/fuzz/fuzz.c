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

void fuzz_file_open(fuzz_file *file, const void *data, size_t size)
{
    file->fd = memfd_create("fuzz", MFD_CLOEXEC);
    fuzz_check(file->fd >= 0 && write(file->fd, data, size) == (ssize_t)size, "no file in memory could be made");
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->fd);
}

void fuzz_file_close(fuzz_file *file) { close(file->fd); }
