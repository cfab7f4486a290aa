/* Inside the reference: reaching one head's vector of one unit, and turning it. */
#ifndef REF_POOL_H
#define REF_POOL_H

#include <string.h>

#include "base/half.h"
#include "ref/ref.h"

enum { REF_KEYS, REF_VALUES };

/* First byte of the vector of unit `slot`. */
static inline void *pool_at(const ref_pool *pool, uint32_t layer, int which, uint32_t head, uint32_t slot)
{
    const uint32_t block = slot >> REF_SLOT_BITS, unit = slot & ((1u << REF_SLOT_BITS) - 1);
    const size_t row = ((size_t)layer * 2 + (size_t)which) * pool->kv_heads + head;
    const size_t element = (row * pool->block_units[block] + unit) * pool->head_dim;
    return (char *)pool->block[block] + element * (pool->half ? 2 : 4);
}

static inline void pool_load(const ref_pool *pool, const void *at, float *dst)
{
    if (pool->half)
        ref_half_to_float(at, dst, pool->head_dim);
    else
        memcpy(dst, at, pool->head_dim * sizeof *dst);
}

static inline void pool_save(const ref_pool *pool, void *at, const double *src)
{
    for (uint32_t c = 0; c < pool->head_dim; c++)
        if (pool->half)
            ((uint16_t *)at)[c] = float_to_half((float)src[c]);
        else
            ((float *)at)[c] = (float)src[c];
}

/* The two channels of RoPE pair i. */
static inline uint32_t pair_first(const ref_pool *pool, uint32_t i) { return pool->half_split ? i : 2 * i; }
static inline uint32_t pair_second(const ref_pool *pool, uint32_t i)
{
    return pool->half_split ? i + pool->head_dim / 2 : 2 * i + 1;
}

/* Turn `x` in place: direction 1 forward, -1 back. */
static inline void pool_rotate(const ref_pool *pool, double *x, const float *rotation, int direction)
{
    for (uint32_t i = 0; i < pool->head_dim / 2; i++) {
        double *first = x + pair_first(pool, i), *second = x + pair_second(pool, i);
        const double c = rotation[2 * i], s = direction * (double)rotation[2 * i + 1], a = *first, b = *second;
        *first = a * c - b * s;
        *second = a * s + b * c;
    }
}

#endif
