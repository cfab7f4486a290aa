#include "ops/host_pool.h"

#include "base/memory.h"

dcm_status host_pool_read(const kv_pool *p, rope_kind rope, uint32_t first, uint32_t layers, void **blocks,
                          ref_pool *out)
{
    const size_t unit = 2 * (size_t)p->kv_heads * p->head_dim * (p->type == KV_F16 ? 2 : 4);
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < p->n_blocks && status == DCM_OK; i++) {
        const size_t layer = unit * p->block_units[i];
        if (!blocks[i])
            status = mem_new(&blocks[i], layers, layer, "units");
        if (status == DCM_OK)
            status = p->block[i]->owner->ops->read(p->block[i], first * layer, blocks[i], layers * layer);
    }
    *out = (ref_pool){.layers = layers,
                      .kv_heads = p->kv_heads,
                      .head_dim = p->head_dim,
                      .half = p->type == KV_F16,
                      .half_split = rope == ROPE_HALF,
                      .block = blocks,
                      .block_units = p->block_units};
    return status;
}

void host_pool_free(void **blocks)
{
    for (uint32_t i = 0; i < KV_BLOCKS; i++)
        mem_free(&blocks[i]);
}
