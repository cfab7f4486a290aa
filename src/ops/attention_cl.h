/* Attention of single queries: what cl/attention_wide.cl is launched with, by itself and in chains. */
#ifndef OPS_ATTENTION_CL_H
#define OPS_ATTENTION_CL_H

#include "ops/ops_cl.h"

/* Most splits of a view of at most `units` places; fewer units can have more: 4096 have 64, 4097 have 33. */
static inline uint32_t attention_splits(uint32_t units)
{
    const uint32_t splits = (units + 63) / 64;
    return splits < 64 ? splits : 64;
}

/* Of the partial results of one query. */
static inline size_t attention_partial_bytes(const attention_args *a)
{
    return (size_t)a->heads * attention_splits(a->step->max_units) * (a->pool->head_dim + 2) * sizeof(cl_float);
}

/* Append the options of its programs, whose kernels take `blocks` of the pool's. */
void attention_options(char *options, size_t size, backend *b, const attention_args *a, uint32_t blocks);

#endif
