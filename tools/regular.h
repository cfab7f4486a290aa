/* Opening what has to be a file: reports, records, journals. Texts may be streams: see reader.h and input.h. */
#ifndef REGULAR_H
#define REGULAR_H

#include <stdint.h>
#include <stdio.h>

/*
 * The regular file at `path` (links are followed) for reading, its *size in bytes; closed with fclose. NULL after a
 * message that goes with exit code 3; at once for a pipe, which would wait for its writer, a device, which may never
 * end, and a folder.
 */
FILE *regular_open(const char *path, uint64_t *size);

#endif
