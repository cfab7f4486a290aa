#include "ref/pool.h"

#include "base/error.h"
#include "base/memory.h"

#include <math.h>

void ref_kv_store(const ref_pool *pool, uint32_t layer, const float *qkv, uint32_t heads, uint32_t n,
                  const uint32_t *slots, const float *key_rot, int threads)
{
    const size_t d = pool->head_dim, row = (heads + 2 * (size_t)pool->kv_heads) * d;
#pragma omp parallel for collapse(2) num_threads(threads) if (n * row > REF_SHARED_MIN)
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < 2 * pool->kv_heads; i++) {
            const int which = i < pool->kv_heads ? REF_KEYS : REF_VALUES;
            const float *src = qkv + t * row + (heads + i) * d;
            double x[REF_HEAD_MAX];
            for (size_t c = 0; c < d; c++)
                x[c] = src[c];
            if (which == REF_KEYS)
                pool_rotate(pool, x, key_rot + t * d, 1);
            pool_save(pool, pool_at(pool, layer, which, i % pool->kv_heads, slots[t]), x);
        }
}

/* One query head's problem. */
typedef struct head_args {
    const ref_pool *pool;
    uint32_t layer, kv_head;
    const ref_range *ranges;
    uint32_t n_ranges;
    const float *q;
} head_args;

static inline uint32_t slot_of(const ref_range *range, uint32_t j)
{
    return range->ring[(range->begin + j) & range->mask];
}

/* Scores of all units; returns the largest. */
static double score_head(const head_args *a, double *scores)
{
    const uint32_t d = a->pool->head_dim;
    double most = -INFINITY;
    for (uint32_t r = 0; r < a->n_ranges; r++) {
        const ref_range *range = a->ranges + r;
        double q[REF_HEAD_MAX];
        for (uint32_t c = 0; c < d; c++)
            q[c] = a->q[c];
        pool_rotate(a->pool, q, range->rotation, 1);
        for (uint32_t j = 0; j < range->count; j++) {
            float key[REF_HEAD_MAX];
            pool_load(a->pool, pool_at(a->pool, a->layer, REF_KEYS, a->kv_head, slot_of(range, j)), key);
            const double score = ref_dot(key, q, d) / sqrt(d) + range->bias;
            *scores++ = score;
            if (score > most)
                most = score;
        }
    }
    return most;
}

static void attend_head(const head_args *a, double *scores, float *out)
{
    const uint32_t d = a->pool->head_dim;
    const double most = score_head(a, scores);
    double sum = 0, acc[REF_HEAD_MAX] = {0};
    for (uint32_t r = 0; r < a->n_ranges; r++) {
        const ref_range *range = a->ranges + r;
        for (uint32_t j = 0; j < range->count; j++) {
            float value[REF_HEAD_MAX];
            const double weight = exp(*scores++ - most);
            pool_load(a->pool, pool_at(a->pool, a->layer, REF_VALUES, a->kv_head, slot_of(range, j)), value);
            sum += weight;
            for (uint32_t c = 0; c < d; c++)
                acc[c] += weight * value[c];
        }
    }
    for (uint32_t c = 0; c < d; c++)
        out[c] = (float)(acc[c] / sum);
}

dcm_status ref_attention(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                         const float *q, uint32_t heads, float *out, int threads)
{
    const size_t d = pool->head_dim;
    size_t units = 0;
    for (uint32_t r = 0; r < n_ranges; r++)
        units += ranges[r].count;
    double *scores = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&scores, (size_t)threads, units * sizeof *scores, "attention scores"));
#pragma omp parallel for num_threads(threads) if (heads * units * d > REF_SHARED_MIN)
    for (uint32_t h = 0; h < heads; h++) {
        const head_args head = {pool, layer, h / (heads / pool->kv_heads), ranges, n_ranges, q + h * d};
        attend_head(&head, scores + (size_t)ref_thread() * units, out + h * d);
    }
fail:
    mem_free(&scores);
    return status;
}
