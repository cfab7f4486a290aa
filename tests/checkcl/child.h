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
    int jobs;       /* children at a time */
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

/* A child to be run. */
typedef struct ck_job {
    char device[32]; /* "P.D" */
    const ck_family *family;
    bool expect_death; /* it passes where it does not end well */
} ck_job;

/*
 * The parent's side: spawn the jobs, options->jobs at a time and in order, print each one's report as a whole when it
 * has ended, and add it to the totals.
 */
void ck_run_jobs(const ck_options *options, const ck_job *jobs, size_t count, ck_totals *totals);

#endif
