#include "cache/slots.h"

#include "base/error.h"

#include <string.h>

enum { GROWTH_PART = 8 };

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
    mem_free(&s->free.slot);
    mem_free(&s->spare.slot);
    memset(s, 0, sizeof *s);
}

size_t slots_allocated(const slot_pool *s) { return s->regular + s->staged; }

size_t slots_growth(const slot_pool *s)
{
    const size_t part = s->regular / GROWTH_PART;
    return part > SLOTS_GROWTH_MIN ? part : SLOTS_GROWTH_MIN;
}

/* The next block, of `units`, whose slots go onto `stack`, which has room for `room` in all then. */
static dcm_status new_block(slot_pool *s, size_t units, slot_stack *stack, size_t room)
{
    const uint32_t index = s->pool.n_blocks;
    dcm_status status = mem_resize(&stack->slot, room, sizeof *stack->slot, "free slots");
    if (status == DCM_OK)
        status = s->ops->ops->buffer_new(s->ops, units * s->unit_bytes, MEM_CACHE, &s->pool.block[index]);
    if (status != DCM_OK)
        return status;
    s->pool.block_units[index] = (uint32_t)units;
    s->pool.n_blocks++;
    /* Lowest slot on top, so that a growing cache lies in memory in the order of its places. */
    for (size_t u = units; u-- > 0;)
        stack->slot[stack->count++] = kv_slot(index, (uint32_t)u);
    return DCM_OK;
}

dcm_status slots_grow(slot_pool *s, size_t units)
{
    const size_t fit = s->ops->max_alloc / s->unit_bytes, slots = (size_t)1 << KV_SLOT_BITS;
    const size_t most = fit < slots ? fit : slots;
    if (!most)
        return dcm_fail(DCM_ERR_MEMORY, "one cache unit takes %zu bytes, more than the device's largest buffer of %zu",
                        s->unit_bytes, s->ops->max_alloc);
    if (s->pool.n_blocks == SLOTS_BLOCKS)
        return dcm_fail(DCM_ERR_MEMORY,
                        "the cache has %zu units in %d blocks, the most it can have; the dcm cache "
                        "with a larger group length has fewer",
                        s->regular, SLOTS_BLOCKS);
    units = units < most ? units : most;
    const dcm_status status = new_block(s, units, &s->free, s->regular + units);
    if (status != DCM_OK)
        return dcm_fail_in(status,
                           "growing the cache from %zu to %zu units of %zu bytes (what it has fits; the dcm cache "
                           "takes fewer units for a text)",
                           s->regular, s->regular + units, s->unit_bytes);
    s->regular += units;
    return DCM_OK;
}

dcm_status slots_stage(slot_pool *s, size_t units)
{
    const dcm_status status = new_block(s, units, &s->spare, units);
    if (status != DCM_OK)
        return dcm_fail_in(status,
                           "%zu units of %zu bytes beside the cache's %zu while a prompt is read (a smaller chunk "
                           "takes fewer)",
                           units, s->unit_bytes, s->regular);
    s->staged = units;
    return DCM_OK;
}

void slots_unstage(slot_pool *s)
{
    buffer_free(&s->pool.block[--s->pool.n_blocks]);
    s->staged = s->spare.count = 0;
}

uint32_t slots_take(slot_pool *s)
{
    slot_stack *from = s->free.count ? &s->free : &s->spare;
    return from->slot[--from->count];
}

void slots_give(slot_pool *s, uint32_t slot)
{
    slot_stack *to = slots_staged(s, slot) ? &s->spare : &s->free;
    to->slot[to->count++] = slot;
}
