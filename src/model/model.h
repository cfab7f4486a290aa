/* A model on a device: its shape, its weights, and the forward pass of one step. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <dcm/model.h>
#include <dcm/plan.h>

#include "io/gguf.h"
#include "merge/merge.h"
#include "ops/open.h"
#include "ops/ops.h"

/* Everything about a model but its weights. */
typedef struct model_config {
    dcm_model_info info;
    char arch[32], name[128];
    rope_kind rope;
    float norm_eps;
    double rope_frequency[128]; /* head_dim / 2 radians per place, scaling included */
} model_config;

enum { MODEL_MAX_HEAD_DIM = 256, MODEL_MAX_PARTS = 3 };

/* Read and check the metadata. DCM_ERR_FILE names the field. */
dcm_status model_config_read(model_config *config, const gguf *file);

/* Rows of one linear map that have one type: several where the file quantises q, k and v differently. */
typedef struct linear_part {
    matrix *w;
    buffer *bias;    /* (rows), or NULL */
    size_t y_offset; /* first row in the map */
} linear_part;

typedef struct linear_map {
    linear_part part[MODEL_MAX_PARTS];
    uint32_t parts, rows;
} linear_map;

typedef struct model_layer {
    buffer *attn_norm, *ffn_norm; /* (hidden) */
    linear_map qkv;               /* rows: heads + 2 kv_heads heads */
    linear_map attn_out;          /* (hidden, heads head_dim) */
    linear_map gate_up;           /* rows: gate, then up */
    linear_map down;              /* (hidden, ffn) */
} model_layer;

struct dcm_model {
    dcm_device *device;
    backend *ops;
    model_config config;
    matrix *embedding; /* (vocab, hidden) */
    matrix *output;    /* the same where the file ties them */
    buffer *output_norm;
    model_layer *layer;
};

/* What a merge model must fit. */
merge_facts model_merge_facts(const dcm_model *model);

/* Set weight_bytes, step_bytes and tied; `before`: the device's weight bytes before this model's were put there. */
void model_count_bytes(dcm_model *model, size_t before);

/* Activations of a step, f32, made for at most `tokens` tokens. */
typedef struct activations {
    uint32_t tokens;
    bool reading;    /* of a prompt: its last bits do not depend on how it is cut into steps */
    buffer *x;       /* (n, hidden) */
    buffer *qkv;     /* (n, (heads + 2 kv_heads) head_dim) */
    buffer *attn;    /* (n, heads head_dim) */
    buffer *gate_up; /* (n, 2 ffn) */
    buffer *logits;  /* (rows asked for so far at most, vocab) */
    /* Called when a layer has been issued; NULL: nothing. */
    dcm_status (*seen)(void *context, uint32_t layer);
    void *seen_context;
} activations;

/* Bytes of one token's, logits aside. */
size_t activations_bytes(const dcm_model *model);

dcm_status activations_open(activations *a, const dcm_model *model, uint32_t tokens);
void activations_close(activations *a);

/* Merges of units that the step makes itself, by level: within each layer, when its keys and values are there. */
typedef struct late_merges {
    merge_model *merge;
    uint32_t count;
    step batch[DCM_LEVELS_MAX];
} late_merges;

/* Issue the forward pass of a step whose other merges are done: units are appended and merged, a->x holds the last
 * layer's output. */
dcm_status model_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s, const late_merges *late);

/* One layer of it: a->x goes from the layer's input to its output; a->qkv, a->attn and a->gate_up are left as the layer
 * made them. */
dcm_status model_layer_forward(const dcm_model *model, activations *a, kv_pool *pool, const step *s,
                               const late_merges *late, uint32_t index);

/* All parts of a map: the arguments' w, bias, y_offset and ldy are filled in here. */
dcm_status linear_map_run(backend *ops, const linear_map *map, linear_args args);

/* Issue the vocabulary product for rows first .. first + n - 1 of x, (.., hidden), into y, (n, vocab); `many` as in
 * linear_args. */
dcm_status model_head(const dcm_model *model, buffer *x, uint32_t first, uint32_t n, bool many, buffer *y);

/* The same for tokens of the step into a->logits. */
dcm_status model_logits(const dcm_model *model, activations *a, uint32_t first, uint32_t n, bool many);

#endif
