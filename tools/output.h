/* Result files beside standard output: whole or not there. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct output_file {
    FILE *out; /* NULL: not open */
    const char *path;
    char *place; /* the file at `path`, behind any links, whether it is there or not */
    char *part;  /* written beside `place` and renamed at the end; NULL where that is a device or a pipe */
} output_file;

/* 0, or 2 (an empty name) or 3 after a message; close in any case. */
int output_open(output_file *f, const char *path);

/* With `keep` the file gets its name, else nothing is left of it. 0, or 3 after a message. */
int output_close(output_file *f, bool keep);

/* Remove what is written of all open files, for the end of the program: may be called by a signal's handler. */
void output_discard(void);

/* Before long work whose result goes to `path` in the end: 0, or 3 after a message where it is clear that it cannot,
 * since something other than a file is there or the folder cannot be written. */
int output_check(const char *path);

/* An output as the command line has it. */
typedef struct output_name {
    const char *option, *path; /* path NULL: not asked for */
} output_name;

/* 0, or 2 after a message where two are one file, whatever it is called; devices and pipes may take several. */
int output_check_apart(const output_name *names, size_t count);

#endif
