/* Inside of a trainer: its parameters on the host and on the device, and its files. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include <dcm/train.h>

#include "train/adamw.h"
#include "train/sequence.h"

struct dcm_trainer {
    dcm_model *model;
    dcm_train_params params; /* defaults filled in */
    sequence sequence;
    merge_model merge;
    score_shape shape;
    size_t count;    /* floats of all parameters, rows of score_layout one after another */
    uint8_t *kind;   /* (count) adamw_kind */
    float *gradient; /* (count), read from the device */
    float *param;    /* (count) */
    adamw adamw;      /* its average is what is tested and saved */
    bool averaged;    /* the device has the average, not the parameters */
    buffer *dparams;
    uint32_t learnt;             /* sequences since the last update */
    float mean_kl[DCM_LEVELS_MAX]; /* running, by log2 of the group length */
    float next_kl[DCM_LEVELS_MAX]; /* the same after the next update */
    channel_sums sums;
    int32_t *tokens; /* of the sequence read last */
    uint32_t n;
};

/* Floats of the parameters' rows that are not trained, or decay. */
void trainer_set_kinds(dcm_trainer *t);

/* mean and scale of all rows from the sums. */
void trainer_set_channels(dcm_trainer *t);

/* The average becomes the parameters themselves, on the device too. */
dcm_status trainer_begin(dcm_trainer *t);

/* What training begins with; mean and scale aside. */
void trainer_set_first(dcm_trainer *t);

#endif
