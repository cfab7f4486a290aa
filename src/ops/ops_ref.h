/* Inside the reference back end: what its op files share. */
#ifndef OPS_OPS_REF_H
#define OPS_OPS_REF_H

#include "ops/ops.h"
#include "ref/ref.h"
#include "ref/score.h"

typedef struct backend_ref {
    backend base;
    int threads;
    const struct ref_sums *sums; /* how sums are done */
} backend_ref;

typedef struct matrix_ref {
    matrix base;
    unsigned char *data; /* as in the file */
} matrix_ref;

static inline int threads_of(const backend *b) { return ((const backend_ref *)b)->threads; }
static inline const void *data_of(const matrix *m) { return ((const matrix_ref *)m)->data; }
static inline float *floats_of(const buffer *b) { return b ? b->handle : NULL; }
static inline const void *words_at(const step *step, size_t offset)
{
    return (const uint32_t *)step->data->handle + offset;
}

/* A pool as the reference sees it; `blocks` holds KV_BLOCKS addresses. */
static inline ref_pool pool_of(const kv_pool *p, rope_kind rope, void **blocks)
{
    for (uint32_t i = 0; i < p->n_blocks; i++)
        blocks[i] = p->block[i]->handle;
    return (ref_pool){
        .layers = p->layers,
        .kv_heads = p->kv_heads,
        .head_dim = p->head_dim,
        .half = p->type == KV_F16,
        .half_split = rope == ROPE_HALF,
        .block = blocks,
        .block_units = p->block_units,
    };
}

/* What the step's token t sees in a layer: `ranges` holds VIEW_RANGES; returns how many there are. */
uint32_t ranges_of(const kv_pool *pool, const step *step, uint32_t layer, uint32_t t, ref_range *ranges);

static inline ref_merges merges_of(const step *s, uint32_t layer, uint32_t layers)
{
    return (ref_merges){.merge = words_at(s, s->merges),
                        .rotations = words_at(s, s->merge_rot),
                        .n = s->n_merges,
                        .layer = layer,
                        .layers = layers};
}

static inline ref_score score_of(score_shape shape, const float *params)
{
    const score_layout l = score_layout_of(shape);
    return (ref_score){.hidden = shape.hidden,
                       .levels = shape.levels,
                       .row = l.row,
                       .mean = params + l.mean,
                       .scale = params + l.scale,
                       .w1 = params + l.w1,
                       .b1 = params + l.b1,
                       .w2 = params + l.w2,
                       .u = params + l.u,
                       .r = params + l.r,
                       .prior = params + l.prior,
                       .bias = params + l.bias,
                       .deviation = params + l.deviation,
                       .sharp_k = params + l.sharp_k,
                       .sharp_v = params + l.sharp_v};
}

/* The ops of training: grad_ref.c. */
extern const struct grad_ops ref_grad_ops;

#endif
