/*
 * Files of pair MLPs: safetensors with the published names, layers.{i}.lin{1,2,3}.{weight,bias} (i = 0 .. B-1, each
 * (2d, 2d) and (2d)), and a head lin1.{weight,bias} of (1, 2d) (gate) or merge.{weight,bias} of (d, 2d) (direct);
 * layers.{i}.layer_norm.* is not used. Those that dcm wrote have `__metadata__` as scorers have (merge/score_file.h),
 * with arch "gate" or "direct". And how the parameters lie in memory: one linear map after another, the head last, each
 * with its weight (out, in) and then its bias (out).
 */
#ifndef MERGE_PAIR_FILE_H
#define MERGE_PAIR_FILE_H

#include "merge/score_file.h"

enum { MERGE_MAX_BLOCKS = 64, MERGE_LINEARS = 3 };

typedef struct pair_shape {
    uint32_t head_dim; /* d */
    uint32_t blocks;   /* B */
    bool direct;       /* the head; else a gate */
} pair_shape;

/* One linear map: its first float, inputs and outputs. */
typedef struct pair_linear {
    size_t at;
    uint32_t in, out;
} pair_linear;

/* Linear maps, the head among them. */
static inline uint32_t pair_linears(pair_shape s) { return s.blocks * MERGE_LINEARS + 1; }

static inline pair_linear pair_linear_of(pair_shape s, uint32_t i)
{
    const uint32_t x = 2 * s.head_dim;
    return (pair_linear){(size_t)i * x * (x + 1), x, i + 1 < pair_linears(s) ? x : s.direct ? s.head_dim : 1};
}

/* Floats of all parameters. */
static inline size_t pair_count(pair_shape s)
{
    const pair_linear head = pair_linear_of(s, pair_linears(s) - 1);
    return head.at + (size_t)head.out * (head.in + 1);
}

static inline const char *pair_name(pair_shape s) { return s.direct ? "direct" : "gate"; }

/* Blocks of the trunk by the published names; 0: not a pair MLP. */
uint32_t pair_file_blocks(const safetensors *file);

/* The file's metadata claim to be a pair MLP of dcm. */
bool pair_is_ours(const safetensors *file);

/*
 * Parameters, freed by mem_free. Of `facts` the head size counts, and the digest where the file names one (as published
 * files do not).
 * DCM_ERR_FILE: of another model, an array missing, unknown or of another shape (both values are told), a value not
 * finite. DCM_ERR_MEMORY.
 */
dcm_status pair_file_load(const safetensors *file, const merge_facts *facts, pair_shape *shape, float **params);

/* Write parameters as `type` and `notes` to `path`, whole or not at all. DCM_ERR_FILE: also where a value is not finite
 * in that type. */
dcm_status pair_file_save(const char *path, const merge_facts *facts, pair_shape shape, const float *params,
                          const st_note *notes, size_t n_notes, st_type type);

#endif
