/*
 * Files of scorers (ops/score.h): safetensors with `__metadata__` {"format": "dcm-merge", "arch": "score", "version":
 * "2", "model_digest": 16 hex digits of dcm_model_info.digest, and texts for people: "model", "card" ...}. Version 1
 * was the same with a digest that did not know a model's weights. Arrays of f32, f16 or bf16, named as in score_layout
 * and all with the leading dimensions (layers, kv_heads): mean and scale (2d), w1 and u (H, 2d), b1 (G, H), w2 (H), r
 * (G, 2d), prior and bias (G), deviation, sharp_k and sharp_v (); bias may be left out and is 0 then. Channels of keys
 * are in half-split order whatever the model's RoPE kind; in memory they are in the cache's.
 */
#ifndef MERGE_SCORE_FILE_H
#define MERGE_SCORE_FILE_H

#include "io/safetensors_write.h"
#include "ops/ops.h"

/* What a merge model must fit. */
typedef struct merge_facts {
    uint32_t layers, kv_heads, head_dim;
    rope_kind rope;
    uint64_t digest;
} merge_facts;

/* The file's metadata claim to be a merge model of dcm; else it is a pair MLP with the published names. */
bool score_is_ours(const safetensors *file);

/* The version of dcm's merge files, and the model's digest as their metadata have it. */
#define MERGE_FILE_VERSION "2"
typedef struct digest_text {
    char text[17];
} digest_text;
digest_text merge_model_digest(const merge_facts *facts);

/* Of such a file's metadata: the version is the one known; the model is this one. DCM_ERR_FILE else, with both. */
dcm_status merge_check_version(const safetensors *file);
dcm_status merge_check_digest(const safetensors *file, const merge_facts *facts);

/*
 * Parameters: rows of score_layout_of(*shape).row floats, by layer, then KV head; freed by mem_free. DCM_ERR_FILE: of
 * another format, version, model or shape (both values are told), an array missing or unknown, a value not finite, a
 * scale not positive. DCM_ERR_MEMORY.
 */
dcm_status score_file_load(const safetensors *file, const merge_facts *facts, score_shape *shape, float **params);

/*
 * Write parameters and `notes` for people to `path`, whole or not at all: mean and scale as f32, the rest as `network`.
 * DCM_ERR_FILE: also where a value is not finite in that type, or a scale not positive.
 */
dcm_status score_file_save(const char *path, const merge_facts *facts, score_shape shape, const float *params,
                           const st_note *notes, size_t n_notes, st_type network);

#endif
