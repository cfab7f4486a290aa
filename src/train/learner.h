/*
 * A merge model in training: its parameters on the host, the merge model of the forward pass, the way back through its
 * merges, and what differs from one architecture to another.
 */
#ifndef TRAIN_LEARNER_H
#define TRAIN_LEARNER_H

#include <dcm/train.h>

#include "merge/merge.h"
#include "model/model.h"
#include "ops/grad.h"
#include "ref/pool.h"
#include "train/channels.h"

/*
 * Merges of one level in one layer; they made units first .. first + step->n_merges - 1. The magnitude term is as in
 * merge_score_back_args, its sum added to *loss; an architecture without one ignores it.
 */
typedef struct level_merges {
    kv_pool *pool;
    const step *step;
    const grad_units *units;
    uint32_t first;
    uint32_t layer;
    rope_kind rope;
    buffer *dunits;  /* (units, 2, kv_heads, head_dim) */
    buffer *dscores; /* (units, kv_heads) */
    float magnitude;
    buffer *loss; /* (kv_heads) floats */
} level_merges;

/* A merge that was done, and the pool that still holds its sources and its result, in host memory. */
typedef struct done_merge {
    const ref_pool *pool;
    merge_pair pair;
    const float *rotation; /* of a, b and the result: (3, head_dim) */
    uint32_t layer, head;
} done_merge;

typedef struct learner learner;

typedef struct learner_arch {
    const char *name; /* as --merge-arch */
    /* Shape, parameters and their kinds: of `from`, or as params say; the device's part. */
    dcm_status (*open)(learner *l, const dcm_train_params *params, const safetensors *from);
    void (*close)(learner *l);
    /* Means and scales of channels among the parameters; NULL: it has none. */
    void (*set_channels)(learner *l, const channel_sums *sums);
    dcm_status (*upload)(learner *l, const float *params);       /* to the merge model */
    dcm_status (*forget)(learner *l);                            /* the gradient becomes 0 */
    dcm_status (*read)(learner *l, float *gradient);             /* (count) */
    dcm_status (*back)(learner *l, const level_merges *merges);  /* adds to the gradient and to the sources' dunits */
    double (*share)(const learner *l, const done_merge *merge);  /* of the older unit in the key; NULL: it has none */
    void (*describe)(const learner *l, char *text, size_t size); /* its shape: "NAME=VALUE ..." */
    dcm_status (*save)(const learner *l, const char *path, const float *params, const st_note *notes, size_t n_notes);
} learner_arch;

enum { PAIR_LINEARS_MAX = MERGE_MAX_BLOCKS * MERGE_LINEARS + 1 };

/* The way back through a pair MLP: gradients of each linear map, and inputs of each of some rows. */
typedef struct pair_back {
    pair_shape shape;
    buffer *dw[PAIR_LINEARS_MAX], *dbias[PAIR_LINEARS_MAX], *x[PAIR_LINEARS_MAX];
    buffer *y, *dy;  /* of the head */
    buffer *dx[2];   /* of the maps in turn */
    uint32_t merges; /* that there is room for */
} pair_back;

struct learner {
    const learner_arch *arch;
    backend *ops;
    merge_facts facts;
    merge_model merge;
    size_t count;      /* floats of all parameters */
    float *param;      /* (count) */
    uint8_t *kind;     /* (count) adamw_kind */
    const float *used; /* what the merge model has: param, or another array as long */
    score_shape score;
    buffer *dparams; /* of a scorer */
    pair_back pair;
};

extern const learner_arch learner_score, learner_gate, learner_direct;

/*
 * A merge model as params ask for, or that of the file params->from. Zero *l first: learner_close accepts what a failed
 * open leaves. Errors: DCM_ERR_USAGE (a shape out of range), DCM_ERR_FILE (`from`, also one of another architecture),
 * DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
dcm_status learner_open(learner *l, const dcm_model *model, const dcm_train_params *params);
void learner_close(learner *l);

/* `params` (count) become those of the merge model; they stay the caller's, and l->used. */
dcm_status learner_use(learner *l, const float *params);

/* For the architectures: room for the parameters and their kinds, l->count of each; zeros into a buffer. */
dcm_status learner_room(learner *l);
dcm_status learner_zero(learner *l, buffer *b);

#endif
