/* What the two halves of a sequence share: sequence.c (forward, loss) and sequence_back.c. */
#ifndef TRAIN_SEQUENCE_PARTS_H
#define TRAIN_SEQUENCE_PARTS_H

#include "train/sequence.h"

static inline size_t qkv_columns(const dcm_model_info *m) { return ((size_t)m->heads + 2 * m->kv_heads) * m->head_dim; }

static inline size_t attn_columns(const dcm_model_info *m) { return (size_t)m->heads * m->head_dim; }

static inline size_t unit_columns(const dcm_model_info *m) { return 2 * (size_t)m->kv_heads * m->head_dim; }

static inline activations activations_of(sequence *s, uint32_t layer, buffer *x)
{
    const sequence_layer *l = &s->layer[layer < s->kept ? layer : 0];
    return (activations){
        .tokens = s->n, .reading = true, .x = x, .qkv = l->qkv, .attn = l->attn, .gate_up = l->gate_up};
}

static inline size_t input_at(const sequence *s, uint32_t layer)
{
    return (size_t)layer * s->n * s->model->config.info.hidden * sizeof(float);
}

static inline size_t hidden_bytes(const sequence *s)
{
    return (size_t)s->n * s->model->config.info.hidden * sizeof(float);
}

/* Mean of `count` floats of s->loss. */
dcm_status sequence_read_mean(sequence *s, size_t count, double *mean);

/* The layer's part of BSD added to *terms: `a` has its queries, s->packed its units. */
dcm_status sequence_measure_boundaries(sequence *s, uint32_t layer, const activations *a, loss_terms *terms);

/* s->dx goes from the layer's output to its input, the merges' parameters' gradients are added to l's and the layer's
 * terms of the loss to *terms. */
dcm_status sequence_layer_back(sequence *s, uint32_t layer, learner *l, const loss_weights *w, loss_terms *terms);

#endif
