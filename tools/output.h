/* Result files beside standard output: whole or not there. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stdio.h>

typedef struct output_file {
    FILE *out; /* NULL: not open */
    const char *path;
    char *part; /* written beside `path` and renamed at the end; NULL where `path` is no plain file */
} output_file;

/* 0, or 3 after a message; close in any case. */
int output_open(output_file *f, const char *path);

/* With `keep` the file gets its name, else nothing is left of it. 0, or 3 after a message. */
int output_close(output_file *f, bool keep);

#endif
