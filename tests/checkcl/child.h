/* One family on one device in a process of its own, so that a hang or a crash costs no more than that. */
#ifndef CHECKCL_CHILD_H
#define CHECKCL_CHILD_H

#include "harness.h"

/* What is asked for on the command line. */
typedef struct ck_options {
    const char *self;   /* the program, to be spawned */
    const char *device; /* "P.D" or part of a name; NULL: all */
    const char *family; /* NULL: all */
    const char *filter;
    uint64_t seed;
    double timeout; /* seconds a child */
    bool list, bench, small, verbose, child;
} ck_options;

/* Totals of a run. */
typedef struct ck_totals {
    size_t passed, failed;
    char kernels[256][64]; /* that were launched */
    size_t n_kernels;
} ck_totals;

/* The child's side: run options->family on options->device ("P.D") and report on stdout; returns the exit code. */
int ck_child(const ck_options *options);

/* The parent's side: spawn that and add what it reports. `expect_death`: it passes where the child does not end well.
 */
void ck_spawn(const ck_options *options, const char *device, const ck_family *family, bool expect_death,
              ck_totals *totals);

#endif
