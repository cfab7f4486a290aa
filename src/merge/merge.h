/*
 * Merge models: how two units become one. `mean` and `newer` have no parameters; a pair MLP is read from a safetensors
 * file with the published names (merge/pair_file.h), a scorer (ops/score.h) from a file of dcm's own
 * (merge/score_file.h), or either comes from memory.
 */
#ifndef MERGE_MERGE_H
#define MERGE_MERGE_H

#include "merge/pair_file.h"

/* One Linear: w is (out, in), f32. */
typedef struct merge_linear {
    buffer *w, *bias;
    uint32_t in, out;
} merge_linear;

typedef struct merge_model {
    backend *ops;
    const char *name; /* "mean", "newer", "gate", "direct" or "score" */
    merge_mode mode;
    float weight; /* MERGE_CONSTANT: of the older unit */
    uint32_t head_dim;
    uint32_t blocks; /* B */
    merge_linear linear[MERGE_MAX_BLOCKS * MERGE_LINEARS];
    merge_linear head;
    buffer *x, *y; /* activations of a batch */
    size_t rows_room;
    score_shape score;
    buffer *params;       /* of a scorer, as in merge_score_args; else NULL */
    dcm_merge_seen *seen; /* of a scorer on the reference; NULL: nobody wants to know */
    void *seen_context;
    float *bias;          /* of a scorer, for cache_add_biases: (layers x kv_heads, score.levels); else NULL */
    size_t rows;          /* of bias */
} merge_model;

/*
 * Open "mean", "newer", "auto" (the trained weights that are shipped for this very model, else "newer") or a file for
 * the model of `facts`, of which only the head size counts for a pair MLP whose file names no model. Errors:
 * DCM_ERR_FILE (missing names, another head size, made for another model, sizes that do not fit each other, weights
 * that are not finite), DCM_ERR_MEMORY. Zero *m first: merge_close accepts what a failed open leaves.
 */
dcm_status merge_open(merge_model *m, backend *ops, const char *what, const merge_facts *facts);
void merge_close(merge_model *m);

/* The same for a scorer whose parameters are in memory, laid out as in merge_score_args; merge_set_score puts others of
 * the same shape in their place, in order with the ops. */
dcm_status merge_open_score(merge_model *m, backend *ops, const merge_facts *facts, score_shape shape,
                            const float *params);
dcm_status merge_set_score(merge_model *m, const float *params);

/* The same for a pair MLP, its parameters as in merge/pair_file.h. */
dcm_status merge_open_pair(merge_model *m, backend *ops, pair_shape shape, const float *params);
dcm_status merge_set_pair(merge_model *m, const float *params);

/* Linear map i of a pair MLP, the head last. */
static inline merge_linear *merge_linear_at(merge_model *m, uint32_t i)
{
    return i < m->blocks * MERGE_LINEARS ? &m->linear[i] : &m->head;
}

/* Bytes of parameters on the device. */
size_t merge_bytes(const merge_model *m);

/*
 * FNV-1a of the parameters as they lie on the device, the same bits on every one: which file they came from, whatever
 * its name. 0 without parameters ("mean", "newer").
 */
dcm_status merge_params_digest(merge_model *m, uint64_t *digest);

/* Do the merges of `s` in `layers` layers from `layer` on, all heads together; none is no work. Activations of an MLP
 * take 16 MiB at most, unless one merge takes more: more merges are done in pieces. */
dcm_status merge_run(merge_model *m, kv_pool *pool, const step *s, uint32_t layer, uint32_t layers, rope_kind rope);

/* The MLP alone: `rows` rows of m->x through trunk and head; *head is owned by the model. For merge_run and tests. */
dcm_status merge_rows(merge_model *m, size_t rows, buffer **head);

/* Give m->x room for `rows` rows of (2 head_dim). */
dcm_status merge_reserve(merge_model *m, size_t rows);

#endif
