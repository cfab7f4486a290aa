/* The arguments of kernels that take the pool: KV_PARAMS of cl/common.cl. */
#ifndef OPS_POOL_CL_H
#define OPS_POOL_CL_H

#include "ops/ops_cl.h"

#include <string.h>

/* As kv_sizes in cl/common.cl. */
typedef struct pool_sizes {
    cl_uint units[KV_BLOCKS];
} pool_sizes;

enum { POOL_ARGS = KV_BLOCKS + 1 };

/*
 * Fill args[0 .. POOL_ARGS - 1]; the pool has its first block, and *sizes lives until the launch. Blocks that are not
 * there are the first again.
 */
static inline void pool_args(const kv_pool *pool, pool_sizes *sizes, clop_arg *args)
{
    for (uint32_t i = 0; i < KV_BLOCKS; i++) {
        const uint32_t block = pool->block[i] ? i : 0;
        args[i] = (clop_arg)CLOP_MEM(pool->block[block]);
        sizes->units[i] = pool->block_units[block];
    }
    args[KV_BLOCKS] = (clop_arg){sizeof *sizes, sizes};
}

/* Launch `items` work-items in one dimension, rounded up to whole groups of 64; the kernel knows how many there are. */
static inline dcm_status pool_launch(backend *b, cl_kernel kernel, const clop_arg *args, size_t count, size_t items)
{
    const size_t local = 64, global = (items + local - 1) / local * local;
    return clop_launch(b, kernel, args, count, 1, &global, &local);
}

#endif
