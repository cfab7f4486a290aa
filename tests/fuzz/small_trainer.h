/* A trainer of the smallest MLP on a model of random weights, opened once: what a checkpoint must fit. */
#ifndef FUZZ_SMALL_TRAINER_H
#define FUZZ_SMALL_TRAINER_H

#include "train/trainer.h"

/* NULL where it does not open. Kept for the process's life. */
dcm_trainer *small_trainer(void);

#endif
