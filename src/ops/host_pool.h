/* Units of a pool in host memory, for what is only looked at. */
#ifndef OPS_HOST_POOL_H
#define OPS_HOST_POOL_H

#include "ops/ops.h"
#include "ref/pool.h"

/*
 * `layers` layers of the pool from layer `first` on, which is layer 0 of *out. blocks[KV_BLOCKS] are NULL at first, or
 * those of a call before for as many layers; host_pool_free in any case.
 */
dcm_status host_pool_read(const kv_pool *pool, rope_kind rope, uint32_t first, uint32_t layers, void **blocks,
                          ref_pool *out);
void host_pool_free(void **blocks);

#endif
