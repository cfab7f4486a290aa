/* Inside the reference: telling what a scorer decided. */
#ifndef REF_CHOICE_H
#define REF_CHOICE_H

#include <dcm/merge.h>

#include <math.h>

#include "ref/pool.h"

/* `apart`: (2 head_dim), unit a less unit b, their keys without rotation. */
static inline dcm_merge_choice choice_of(const ref_pool *pool, const ref_merge *merge, double gap, float sharp_k,
                                         float sharp_v, const double *apart)
{
    double keys = 0, values = 0;
    for (uint32_t i = 0; i < pool->head_dim / 2; i++) /* no rotation makes more of a pair than its length */
        keys = fmax(keys, hypot(apart[pair_first(pool, i)], apart[pair_second(pool, i)]));
    for (uint32_t c = 0; c < pool->head_dim; c++)
        values = fmax(values, fabs(apart[pool->head_dim + c]));
    return (dcm_merge_choice){merge->level, (float)gap, {sharp_k, sharp_v}, {(float)keys, (float)values}};
}

#endif
