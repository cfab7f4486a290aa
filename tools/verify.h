/* Watching a device while it reads and generates: one step in so many is computed once more by the reference. */
#ifndef VERIFY_H
#define VERIFY_H

#include "runtime.h"

/*
 * A step is a decoded token, or the last tokens of a piece of a prompt, which are then fed in a step of their own.
 * Before one that is due, the device's cache is copied to the reference, so that only this step is compared, with
 * its merges: the logits after it, and all units. A bound is 8 times what the reference itself differs by in that
 * step between sums in double with the new units as they are, and sums in float with them as they are stored; of a unit
 * by the largest difference in its layer, and of one that a scorer made with what its choice may move (check/check.h).
 * In a prompt, where such choices follow from each other, of a scorer's cache only the tokens' own units are compared.
 */
enum { VERIFY_TOKENS = 32 /* of a prompt */ };

/* What a scorer chose in one step: (layers, kv_heads). */
typedef struct verify_choices {
    uint32_t heads;
    dcm_merge_choice *item;
    bool made; /* in this step */
} verify_choices;

typedef struct verifier {
    int64_t every; /* 0: nothing is verified */
    dcm_device *device;
    dcm_model *model;
    dcm_session *exact, *rough; /* units in f32; as the device stores them */
    verify_choices chosen[2];   /* by exact, by rough */
    dcm_session *watched;       /* the device's */
    dcm_kv_type kv;
    uint32_t layers, kv_heads, head_dim;
    float *logits; /* (2, vocab) */
    dcm_unit *units;
    float *values[3];         /* one layer's, of exact, rough and watched: (units, 2, kv_heads, head_dim) */
    size_t room;              /* of units */
    uint64_t steps, verified; /* steps seen; of them verified */
    double worst;             /* largest difference, as a part of its bound */
    size_t due;               /* tokens of the step to verify */
} verifier;

/* Open the model on the reference; `every` is set. 0, or an exit code after a message; close in any case. */
int verify_open(verifier *v, const runtime *r, const char *path, const device_options *device,
                const dcm_cache_params *params, const dcm_session *session);
void verify_close(verifier *v);

/* Before `count` tokens are fed: of the last how many verify_before and verify_after have to be around the feed. */
size_t verify_due(verifier *v, size_t count);

/* 0; 1 after a message where the device is wrong; another exit code after a message. Nothing where nothing is due. */
int verify_before(verifier *v, dcm_session *session);
int verify_after(verifier *v, const int32_t *ids, const float *logits, size_t vocab);

/* A line of --stats; nothing where nothing is verified. */
void verify_print_stats(const verifier *v);

#endif
