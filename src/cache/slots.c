#include "cache/slots.h"

#include "base/error.h"

#include <string.h>

enum { FIRST_UNITS = 64, GROWTH_PART = 8 };

size_t unit_bytes(uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type)
{
    return (size_t)layers * 2 * kv_heads * head_dim * (type == KV_F32 ? 4 : 2);
}

void slots_init(slot_pool *s, backend *ops, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type)
{
    memset(s, 0, sizeof *s);
    s->ops = ops;
    s->pool = (kv_pool){.layers = layers, .kv_heads = kv_heads, .head_dim = head_dim, .type = type};
    s->unit_bytes = unit_bytes(layers, kv_heads, head_dim, type);
}

void slots_close(slot_pool *s)
{
    for (uint32_t i = 0; i < s->pool.n_blocks; i++)
        buffer_free(&s->pool.block[i]);
    buffer_free(&s->pool.table);
    mem_free(&s->free);
    memset(s, 0, sizeof *s);
}

/* At most what the device allows in one buffer. */
size_t slots_growth(const slot_pool *s)
{
    const size_t part = s->allocated / GROWTH_PART, most = s->ops->max_alloc / s->unit_bytes;
    size_t units = part > FIRST_UNITS ? part : FIRST_UNITS;
    if (units > most)
        units = most;
    return units < (size_t)1 << KV_SLOT_BITS ? units : (size_t)1 << KV_SLOT_BITS;
}

dcm_status slots_grow(slot_pool *s, size_t units)
{
    const uint32_t block = s->pool.n_blocks;
    if (!units)
        return dcm_fail(DCM_ERR_MEMORY, "one cache unit takes %zu bytes, more than the device's largest buffer of %zu",
                        s->unit_bytes, s->ops->max_alloc);
    if (block == KV_BLOCKS)
        return dcm_fail(DCM_ERR_MEMORY,
                        "the cache has %zu units in %d blocks, the most it can have; the dcm cache "
                        "with a larger group length has fewer",
                        s->allocated, KV_BLOCKS);
    dcm_status status = mem_resize(&s->free, s->allocated + units, sizeof *s->free, "free slots");
    if (status != DCM_OK)
        return status;
    status = s->ops->ops->buffer_new(s->ops, units * s->unit_bytes, MEM_CACHE, &s->pool.block[block]);
    if (status != DCM_OK)
        return dcm_fail_in(status,
                           "growing the cache from %zu to %zu units of %zu bytes (what it has fits; the dcm cache "
                           "takes fewer units for a text)",
                           s->allocated, s->allocated + units, s->unit_bytes);
    s->pool.block_units[block] = (uint32_t)units;
    s->pool.n_blocks++;
    s->allocated += units;
    /* Lowest slot on top, so that a growing cache lies in memory in the order of its places. */
    for (size_t u = units; u-- > 0;)
        s->free[s->free_count++] = kv_slot(block, (uint32_t)u);
    return DCM_OK;
}

dcm_status slots_take(slot_pool *s, uint32_t *slot)
{
    if (!s->free_count) {
        const dcm_status status = slots_grow(s, slots_growth(s));
        if (status != DCM_OK)
            return status;
    }
    *slot = s->free[--s->free_count];
    return DCM_OK;
}

void slots_give(slot_pool *s, uint32_t slot) { s->free[s->free_count++] = slot; }
