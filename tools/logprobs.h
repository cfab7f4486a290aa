/* The CSV of --logprobs: whole or not there. */
#ifndef LOGPROBS_H
#define LOGPROBS_H

#include <stdbool.h>
#include <stdio.h>

typedef struct logprob_file {
    FILE *out; /* NULL: not open */
    const char *path;
    char *part; /* written beside `path` and renamed at the end; NULL where `path` is no plain file */
} logprob_file;

/* Begin with the line of column names. 0, or 3 after a message; close in any case. */
int logprobs_open(logprob_file *f, const char *path);

/* With `keep` the file gets its name, else nothing is left of it. 0, or 3 after a message. */
int logprobs_close(logprob_file *f, bool keep);

#endif
