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

/* Twice: sums in double are the truth, those in float show what the rounding of sums alone does. */
#define REAL double
#define OF(NAME) NAME
#include "ref/attention_sums.h"
#undef REAL
#undef OF
#define REAL float
#define OF(NAME) NAME##_float
#include "ref/attention_sums.h"
