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
 * Fill args[0 .. POOL_ARGS - 1]; the pool has at least one block, and *sizes lives until the launch. Blocks that
 * are not there are the first again.
 */
static inline void pool_args(const kv_pool *pool, pool_sizes *sizes, clop_arg *args)
{
    for (uint32_t i = 0; i < KV_BLOCKS; i++) {
        const uint32_t block = i < pool->n_blocks ? i : 0;
        args[i] = (clop_arg)CLOP_MEM(pool->block[block]);
        sizes->units[i] = pool->block_units[block];
    }
    args[KV_BLOCKS] = (clop_arg){sizeof *sizes, sizes};
}

/*
 * Blocks that kernels of this pool take (-DKV_ARGS). Drivers of GPUs spend half a microsecond of a launch on each
 * buffer, and those of CPUs a tenth, which counts where a kernel is launched for each layer of each token (`often`);
 * a program more takes seconds to build.
 */
static inline uint32_t pool_blocks(const backend *b, const kv_pool *pool, bool often)
{
    if (pool->n_blocks > 16 || (clop_wide(b) && !often))
        return KV_BLOCKS;
    return pool->n_blocks <= 4 && !clop_wide(b) ? 4 : 16;
}

/* pool_args for a kernel that takes `blocks` of them: the arguments begin at the one that is returned. */
static inline clop_arg *pool_args_of(const kv_pool *pool, uint32_t blocks, pool_sizes *sizes, clop_arg *args)
{
    pool_args(pool, sizes, args);
    memmove(args + KV_BLOCKS - blocks, args, blocks * sizeof *args);
    return args + KV_BLOCKS - blocks;
}

/* Launch `items` work-items in one dimension, rounded up to whole groups of 64; the kernel knows how many there are. */
static inline dcm_status pool_launch(backend *b, cl_kernel kernel, const clop_arg *args, size_t count, size_t items)
{
    const size_t local = 64, global = (items + local - 1) / local * local;
    return clop_launch(b, kernel, args, count, 1, &global, &local);
}

#endif
