/* Training from the command line: what its parts share. */
#ifndef TRAIN_RUN_H
#define TRAIN_RUN_H

#include "corpus.h"
#include "journal.h"
#include "runtime.h"

typedef struct train_options {
    const char *model, *out, *checkpoint, *resume, *from, *csv, *plot;
    arg_texts texts, held;
    arg_ints groups;
    int64_t tokens, steps, sequences, warmup, hidden, sinks, positions, seed, save_every, test_every,
        depth;
    int arch, mode;
    double rate, kl, il, magnitude, boundary;
    bool again;
    device_options device;
    verbosity_options words;
} train_options;

typedef struct train_run {
    const train_options *o;
    runtime r;
    corpus texts, held;
    dcm_trainer *trainer;
    journal journal;
    char checkpoint[4096];
    char options[1024];     /* what a checkpoint depends on beside dcm_train_params */
    int32_t *ids;           /* of one sequence */
    double *window;         /* (sequences that are tested, groups): KL of the window */
    uint64_t read;          /* number of the text that the trainer has read, from 1; 0: another one */
    double best;            /* of the tests' ratios to the window; 0: none yet */
    int rises;              /* tests in a row far above it */
    int flat;               /* tests in a row that found a constant merge */
    journal_row untested;   /* the last step's, where its test did not end; else of step 0 */
    double began;
    uint64_t began_at;
} train_run;

/* Group lengths as -L has them. */
void train_groups(const train_options *o, char *text, size_t size);

/* run->options, once the texts are open. */
void train_tell_options(train_run *run);

/* Go on with run->o->resume, once texts and trainer are open. 0, or the exit code after a message. */
int train_resume(train_run *run);

/*
 * All steps that are left, tests and files included. 0, or the exit code after a message: 1 where training cannot go on
 * (a gate that has collapsed, losses that rise), that of a signal after a checkpoint was written.
 */
int train_loop(train_run *run);

#endif
