/* Training of merge models: the frozen model's predictions with the full cache are taught to the compressed one. */
#ifndef DCM_TRAIN_H
#define DCM_TRAIN_H

#include <dcm/session.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What is trained. */
typedef enum dcm_train_arch {
    DCM_TRAIN_SCORE, /* one network per layer and KV head that scores each of two units: src/ops/score.h */
    DCM_TRAIN_GATE,  /* the paper's: one MLP of both units for all layers, heads, keys and values, whose head is one
                        weight */
    DCM_TRAIN_DIRECT /* the same MLP with a head that is the merged unit */
} dcm_train_arch;

/* The schedule of merges while training. Tests, and what is saved, are for that of inference in any case. */
typedef enum dcm_train_mode {
    DCM_TRAIN_AS_INFERENCE, /* the exact one: what a token sees is what it sees at inference */
    DCM_TRAIN_CHUNKED       /* the paper's approximation: tokens come in chunks of the group length, and once between
                               two chunks all neighbours of one ratio in the near queue become one */
} dcm_train_mode;

/*
 * A merge model in training. The model itself is frozen. Used by one thread at a time; closed before its model.
 *
 * A step of training is: dcm_trainer_read, then dcm_trainer_learn for one group length or several, repeated for as many
 * sequences as are to be averaged, then dcm_trainer_update. The same calls on the same device give the same bits,
 * whether or not a checkpoint was saved and opened in between.
 */
typedef struct dcm_trainer dcm_trainer;

/* Zero-initialise for the defaults. */
typedef struct dcm_train_params {
    uint32_t tokens;  /* longest sequence; 0: 2048 */
    int32_t sinks;    /* as in dcm_cache_params */
    dcm_train_arch arch;
    dcm_train_mode mode;
    uint32_t hidden;  /* of each of a scorer's networks, a multiple of 16; 0: 32 */
    uint32_t levels;  /* of a scorer with parameters of their own; 0: 8 */
    uint32_t depth;   /* linear maps of an MLP before its head, a multiple of 3; 0: 9 */
    uint64_t seed;    /* of the first parameters */
    const char *from; /* a merge file of this arch to begin with instead, whose shape counts; NULL: none */
    float beta1, beta2, eps, decay; /* of AdamW; 0: 0.9, 0.99, 1e-8, 0.01 */
    float clip;                     /* the gradient's norm is cut to it; 0: 1 */
    float kl;        /* weight of KL(full || compressed), in units of its running mean; 0: 1; negative: none */
    float il;        /* weight of L_IL, the squared distance of attention's outputs */
    float magnitude; /* weight of (|k| / the sources' mean |k| - 1)^2; a scorer's alone */
    float boundary;  /* weight of BSD, the jump of attention's weights between levels */
    uint32_t positions; /* whose predictions are compared in a sequence; 0: 512 */
    bool again; /* run each layer's forward pass a second time on the way back instead of keeping its activations */
    const char *options; /* what else the caller's steps depend on, "NAME=VALUE ..." (at most 1 KiB), the caller's until
                            the trainer is closed: resuming wants the same; NULL: nothing */
} dcm_train_params;

/* Terms of the loss without their weights: KL always, the others 0 where their weight is. */
typedef struct dcm_train_losses {
    double kl;        /* nats, mean over the positions compared */
    double il;        /* mean over queries, heads and layers */
    double magnitude; /* mean over merges, heads and layers */
    double boundary;  /* BSD: over layers, heads and the boundaries that 64 queries of the sequence see */
} dcm_train_losses;

/*
 * How a merge model decides: over the merges of the sequence learnt or tested last, at most 512 of them. A direct head
 * gives no shares: of it the first three are NAN.
 */
typedef struct dcm_train_gate {
    double mean;    /* of the older unit's share of the key */
    double spread;  /* its standard deviation, the mean over layers and heads: 0 where the gate is constant */
    double sure;    /* part of the shares under 0.1 or over 0.9 */
    double variety; /* standard deviation of the results' keys over that of the newer units', the mean over layers and
                       heads: 0 where all pairs become the same unit */
} dcm_train_gate;

/*
 * Room for training: transposed weights as f32, activations of a sequence, caches. Errors: DCM_ERR_USAGE (a parameter
 * out of range), DCM_ERR_MEMORY (with the bytes and what would fit), DCM_ERR_FILE (`from`), DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_trainer_open(dcm_trainer **trainer, dcm_model *model, const dcm_train_params *params);

/* Close and set *trainer to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_trainer_close(dcm_trainer **trainer);

/*
 * Before the first step of a trainer opened without `from`: read a sequence for the mean and the scale of each channel
 * of keys and values, which a scorer needs and others ignore. Several calls add up. Here and below: ids must be in the
 * vocabulary (DCM_ERR_USAGE), and the model's own predictions behind them numbers (DCM_ERR_FILE: its weights are not).
 */
DCM_API dcm_status dcm_trainer_measure(dcm_trainer *trainer, const int32_t *tokens, size_t count);

/* Read a sequence with the full cache; `count` at most params.tokens. */
DCM_API dcm_status dcm_trainer_read(dcm_trainer *trainer, const int32_t *tokens, size_t count);

/*
 * Of the sequence read last: losses with group length `group`, their gradient added to that of the step. `seed` draws
 * the positions. DCM_ERR_USAGE where the sequence is too short for `group`; DCM_ERR_DEVICE where a loss is no finite
 * number: what was learnt since the last update is dropped, the parameters are as they were.
 */
DCM_API dcm_status dcm_trainer_learn(dcm_trainer *trainer, uint32_t group, uint64_t seed, dcm_train_losses *losses);

/*
 * The KL alone, at all positions that see merged units, without learning. What is tested, and saved, is the running
 * mean of the parameters over some 50 updates.
 */
DCM_API dcm_status dcm_trainer_test(dcm_trainer *trainer, uint32_t group, double *kl);

/* The same for a sink and window cache of as many units as the compressed one has at the end. */
DCM_API dcm_status dcm_trainer_test_window(dcm_trainer *trainer, uint32_t group, double *kl);

/* Of what was learnt or tested last. */
DCM_API dcm_status dcm_trainer_gate(dcm_trainer *trainer, dcm_train_gate *gate);

/*
 * AdamW with the mean gradient since the last update, at learning rate `rate`; `norm` (or NULL) gets the gradient's
 * norm before it was cut. DCM_ERR_USAGE where nothing was learnt since, or `rate` is not finite; DCM_ERR_DEVICE where
 * the gradient is not finite, as above.
 */
DCM_API dcm_status dcm_trainer_update(dcm_trainer *trainer, double rate, double *norm);

/* Updates so far, those before a resumed checkpoint included. */
DCM_API uint64_t dcm_trainer_steps(const dcm_trainer *trainer);

/* Linear warm-up to `peak`, then a cosine down to a twentieth of it at `steps`. */
DCM_API double dcm_train_rate(double peak, uint64_t step, uint64_t warmup, uint64_t steps);

/* A line of a merge file's card: name and text. */
typedef struct dcm_train_note {
    const char *name, *text;
} dcm_train_note;

/*
 * Write the merge model as f16 with `notes` into `path`, for --merge; whole or not at all: a file that is there stays
 * as it was where the new one cannot be written (DCM_ERR_FILE). Links are followed; a pipe or a device is refused.
 */
DCM_API dcm_status dcm_trainer_save(const dcm_trainer *trainer, const char *path, const dcm_train_note *notes,
                                    size_t n_notes);

/*
 * The state of training in f32 after the last update, written like a merge file, with a text of the caller's, and back
 * into a trainer that has learnt nothing yet: `state` gets as much of the text as fits into `size` bytes. Resuming
 * refuses a file of another model or of other parameters (the first that differs is told; seed, from and again may
 * differ), one cut short, and values that are not finite (DCM_ERR_FILE: nothing was changed).
 */
DCM_API dcm_status dcm_trainer_checkpoint(const dcm_trainer *trainer, const char *path, const char *state);
DCM_API dcm_status dcm_trainer_resume(dcm_trainer *trainer, const char *path, char *state, size_t size);

#ifdef __cplusplus
}
#endif

#endif
