/* One line on a terminal that says how far a long reading is. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    bool on;
    uint64_t total; /* tokens; 0: not known */
    double start, shown;
} progress;

/* Begin; nothing is shown where `quiet`, or where standard error is no terminal. */
void progress_begin(progress *p, bool quiet, uint64_t total);

/* `done` tokens so far: tokens read, tokens per second and, where the total is known, the time left. */
void progress_at(progress *p, uint64_t done);

/* Take the line away. */
void progress_end(progress *p);

#endif
