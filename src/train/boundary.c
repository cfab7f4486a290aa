#include "train/sequence_parts.h"

#include "base/error.h"
#include "ops/host_pool.h"

#include <math.h>
#include <string.h>

enum { QUERIES = 64 /* looked at, spread over the sequence */ };

static const double RATIO_MOST = 1e3; /* as in attention_back_args */

/* One layer's queries and units in host memory. */
typedef struct looking {
    const sequence *s;
    uint32_t layer;
    const float *qkv; /* (n, columns) */
    ref_pool pool;
} looking;

/* Score of query head h of token t for unit `at` of range r of its view. */
static double score(const looking *l, const view *v, uint32_t t, uint32_t h, uint32_t r, uint32_t at)
{
    const cache *c = &l->s->packed;
    const dcm_model_info *m = &l->s->model->config.info;
    const uint32_t d = m->head_dim, kv = h / (m->heads / m->kv_heads);
    const view_range *range = &v->range[r];
    const uint32_t slot = c->table[range->ring + ((range->begin + at) & range->mask)];
    const float *q = l->qkv + t * qkv_columns(m) + (size_t)h * d;
    double turned[REF_HEAD_MAX];
    float key[REF_HEAD_MAX];
    for (uint32_t i = 0; i < d; i++)
        turned[i] = q[i];
    pool_rotate(&l->pool, turned, (const float *)(c->words + c->step.query_rot) + ((size_t)t * VIEW_RANGES + r) * d, 1);
    pool_load(&l->pool, pool_at(&l->pool, 0, REF_KEYS, kv, slot), key);
    return ref_dot(key, turned, d) / sqrt(d) + ((const float *)c->words)[range->bias + l->layer * m->kv_heads + kv];
}

/* The boundaries of one token's view, in all heads. */
static void add_query(const looking *l, uint32_t t, double *sum, size_t *count)
{
    const cache *c = &l->s->packed;
    view v;
    memcpy(&v, c->words + c->step.views + t * (size_t)VIEW_WORDS, sizeof v);
    for (uint32_t r = c->plan.sinks > 0; r + 1 < v.n_ranges; r++)
        for (uint32_t h = 0; h < l->s->model->config.info.heads; h++) {
            const double older = score(l, &v, t, h, r, v.range[r].count - 1), newer = score(l, &v, t, h, r + 1, 0);
            const double ratio = exp(older - newer);
            if (!(ratio > RATIO_MOST || ratio < 1 / RATIO_MOST)) /* NAN is told */
                *sum += fabs(ratio - 1);
            ++*count;
        }
}

dcm_status sequence_measure_boundaries(sequence *s, uint32_t layer, const activations *a, loss_terms *terms)
{
    const dcm_model_info *m = &s->model->config.info;
    const uint32_t queries = s->n < QUERIES ? s->n : QUERIES;
    void *blocks[KV_BLOCKS] = {0};
    float *qkv = NULL;
    looking l = {.s = s, .layer = layer};
    double sum = 0;
    size_t count = 0;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&qkv, s->n * qkv_columns(m), sizeof *qkv, "queries"));
    DCM_TRY(status, done, s->ops->ops->read(a->qkv, 0, qkv, s->n * qkv_columns(m) * sizeof *qkv));
    DCM_TRY(status, done, host_pool_read(&s->packed.slots.pool, s->model->config.rope, layer, 1, blocks, &l.pool));
    l.qkv = qkv;
    for (uint32_t i = 0; i < queries; i++)
        add_query(&l, (uint32_t)((uint64_t)s->n * (i + 1) / queries - 1), &sum, &count);
    terms->boundary += count ? sum / (double)count / m->layers : 0;
done:
    host_pool_free(blocks);
    mem_free(&qkv);
    return status;
}
