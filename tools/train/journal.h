/* The record of a training: one CSV row a step, beside the checkpoint. */
#ifndef TRAIN_JOURNAL_H
#define TRAIN_JOURNAL_H

#include <dcm/train.h>

#include <stdbool.h>
#include <stdio.h>

enum { JOURNAL_LINE = 1024 /* most bytes of a row */ };

/* One step; what was not measured is NAN. */
typedef struct journal_row {
    uint64_t step;           /* from 1 */
    char group[384];         /* group lengths of its passes: "64", "64/128" */
    double rate, norm;
    dcm_train_losses losses; /* means over the step's passes */
    double held_kl;          /* held-out: mean over texts and group lengths */
    double held_ratio;       /* the same, of KL over that of a window of as many units */
    double gate_mean, gate_spread;
    double seconds; /* of the step */
} journal_row;

typedef struct journal {
    const char *path;
    FILE *out;
} journal;

/*
 * Begin; after `steps` steps that a checkpoint has behind it, the rows up to there are kept; a pipe or a device has
 * none. 0 or 3 after a message: also where they have other columns, as those that an older dcm wrote.
 */
int journal_open(journal *j, const char *path, uint64_t steps);

/* Add a row, if the journal was opened; it is there when the call returns. 0 or 3 after a message. */
int journal_add(journal *j, const journal_row *row);

void journal_close(journal *j);

/* Draw a journal's losses and tests over its steps as SVG. 0, or the exit code after a message. */
int journal_plot(const char *csv, const char *path);

#endif
