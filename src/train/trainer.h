/* Inside of a trainer. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include <dcm/train.h>

#include "train/adamw.h"
#include "train/sequence.h"

struct dcm_trainer {
    dcm_model *model;
    dcm_train_params params; /* defaults filled in */
    sequence sequence;
    learner learner;
    float *gradient;               /* of its parameters, read from the device */
    adamw adamw;                   /* its average is what is tested and saved */
    uint32_t learnt;               /* sequences since the last update */
    float mean_kl[DCM_LEVELS_MAX]; /* running, by log2 of the group length */
    float next_kl[DCM_LEVELS_MAX]; /* the same after the next update */
    channel_sums sums;
    int32_t *tokens; /* of the sequence read last */
    uint32_t n;
};

/* The average becomes the parameters themselves, on the device too. */
dcm_status trainer_begin(dcm_trainer *t);

#endif
