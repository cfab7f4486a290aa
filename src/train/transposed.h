/*
 * Products backward through frozen weights: for y = x W^T, dx = dy W, which is the product with the transposed matrix.
 * Transposed matrices hold the very values that the device multiplies with, as f32.
 */
#ifndef TRAIN_TRANSPOSED_H
#define TRAIN_TRANSPOSED_H

#include "model/model.h"

/* One layer's maps, transposed: rows are the map's columns. */
typedef struct transposed_layer {
    matrix *qkv;      /* (hidden, (heads + 2 kv_heads) head_dim) */
    matrix *attn_out; /* (heads head_dim, hidden) */
    matrix *gate_up;  /* (hidden, 2 ffn) */
    matrix *down;     /* (ffn, hidden) */
} transposed_layer;

typedef struct transposed {
    uint32_t layers;
    transposed_layer *layer;
    matrix *output; /* (hidden, vocab) */
} transposed;

/* Bytes that they take on the device. */
size_t transposed_bytes(const dcm_model_info *info);

/* Zero *t first: transposed_close accepts what a failed open leaves. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE. */
dcm_status transposed_open(transposed *t, const dcm_model *model);
void transposed_close(transposed *t);

#endif
