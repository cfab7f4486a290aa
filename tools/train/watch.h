/*
 * Whether a training is worth going on with. Its tests are of the held-out texts: a sequence of each. Without any they
 * are of the texts of the first two -f, at fixed places, and tell no more than that a training has gone wrong.
 */
#ifndef TRAIN_WATCH_H
#define TRAIN_WATCH_H

#include "run.h"

/* Sequences that are tested, once the texts are open. */
size_t watch_sequences(const train_run *run);

/*
 * Test, into `row` what has a column, and with held-out texts save the best so far whose merge is not constant. 0, or
 * the exit code after a message: 1 for a merge that is constant, or a KL far above the best, in several tests in a row,
 * and for a KL that is no number.
 */
int watch_test(train_run *run, journal_row *row);

/* Write the merge file with its card; `ratio` of the held-out KL to the window's, or NAN. 0 or the exit code. */
int watch_save(train_run *run, double ratio);

#endif
