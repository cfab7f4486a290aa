/*
 * One sequence of training, "train as inference": the model reads it with the full cache and with the compressed one
 * (the very forward pass of inference, as one step), and the loss between the two goes back through the frozen layers,
 * attention and all levels of merges to the merge model's parameters. docs/training.md.
 */
#ifndef TRAIN_SEQUENCE_H
#define TRAIN_SEQUENCE_H

#include "cache/cache.h"
#include "model/model.h"
#include "train/learner.h"
#include "train/transposed.h"

/* A layer's activations that its backward pass reads. */
typedef struct sequence_layer {
    buffer *qkv, *attn, *gate_up; /* as in activations */
} sequence_layer;

typedef struct sequence {
    const dcm_model *model;
    backend *ops;
    transposed turned;
    uint32_t most; /* tokens */
    uint32_t sinks;
    bool in_chunks; /* learn by the schedule of cache.in_chunks; tests are always those of inference */
    uint32_t n;     /* tokens of the sequence at hand */
    cache full, packed;
    late_merges late;
    grad_units units;
    sequence_layer *layer; /* one a layer where they are kept, else one for all, made again on the way back */
    uint32_t kept;         /* layers + or 1 */
    float *zeros;          /* (most, hidden) */
    buffer *inputs;        /* (layers, n, hidden): of each layer */
    buffer *x;             /* (n, hidden): the compressed cache's last output */
    buffer *target_x;      /* the full cache's */
    buffer *logits, *target;
    buffer *loss; /* (most), and (kv_heads) at least, floats */
    buffer *dx, *dnorm, *dattn, *attn_full, *dffn, *dqkv, *lse, *dunits, *dscores;
} sequence;

/* Weights of the loss's terms. */
typedef struct loss_weights {
    float kl;        /* mean over positions of KL(full || compressed), in nats */
    float il;        /* L_IL: mean over queries, heads and layers of the squared distance of attention's outputs */
    float magnitude; /* mean over merges, heads and layers of (|k| / the sources' mean |k| - 1)^2 */
    float boundary;  /* BSD: mean of |ratio - 1| over neighbouring units of different levels */
} loss_weights;

/* The terms without their weights; but for KL, terms of weight 0 are not computed and are 0. */
typedef struct loss_terms {
    double kl, il, magnitude;
    double boundary; /* over the boundaries of at most 64 queries, spread over the sequence */
} loss_terms;

/* Positions whose predictions are compared: `count` spread over those that see merged units, drawn by `seed`. */
typedef struct loss_positions {
    uint32_t count;
    uint64_t seed;
} loss_positions;

/* Bytes on the device for sequences of `tokens`, `keep` or not, beside those of transposed_bytes. */
size_t sequence_bytes(const dcm_model_info *info, uint32_t tokens, bool keep);

/*
 * Room for sequences of at most `most` tokens. `keep`: activations of all layers are kept for the way back, else one
 * layer's, and the layers are run a second time. Zero *s first. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
dcm_status sequence_open(sequence *s, const dcm_model *model, uint32_t most, uint32_t sinks, bool keep);
void sequence_close(sequence *s);

/* Read n <= most tokens with the full cache, only for the sums. */
dcm_status sequence_measure(sequence *s, const int32_t *tokens, uint32_t n, channel_sums *sums);

/* Read n <= most tokens with the full cache. Ids are in the vocabulary. */
dcm_status sequence_read(sequence *s, const int32_t *tokens, uint32_t n);

/* Whether the full cache's predictions behind the sequence measured or read last are numbers. */
dcm_status sequence_is_finite(sequence *s, bool *finite);

/*
 * Of the sequence read last, with group length `group` and l's merge model: the loss, and the gradients of its
 * parameters added to l's. DCM_ERR_USAGE where n tokens are so few that inference merges nothing.
 */
dcm_status sequence_learn(sequence *s, const int32_t *tokens, learner *l, uint32_t group, loss_weights weights,
                          loss_positions positions, loss_terms *terms);

/* The KL alone, at all positions that see merged units. */
dcm_status sequence_test(sequence *s, const int32_t *tokens, learner *l, uint32_t group, double *kl);

/* The same for a sink and window cache with as many units as the compressed cache has after the last token. */
dcm_status sequence_test_window(sequence *s, const int32_t *tokens, uint32_t group, double *kl);

#endif
