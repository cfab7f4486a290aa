#include "cache/read.h"

#include "base/error.h"
#include "base/half.h"
#include "base/memory.h"
#include "cache/ring.h"

#include <string.h>

/* The rings in the order of places: sinks, then the levels, highest first. */
static uint32_t ring_at(const cache *c, uint32_t i) { return i ? c->plan.top + 1 - i : RING_SINKS; }

void cache_list_units(const cache *c, dcm_unit *units)
{
    for (uint32_t i = 0; i < c->plan.top + 2; i++) {
        const uint32_t g = ring_at(c, i), level = g == RING_SINKS ? 0 : g;
        const uint64_t first = ring_first(c, g), before = g == RING_SINKS ? 0 : c->plan.sinks;
        for (uint64_t u = 0; u < ring_count(c, g); u++)
            *units++ = (dcm_unit){before + ((first + u) << level), (uint64_t)1 << level, level};
    }
}

/* The slots of all units by their places. */
static void list_slots(const cache *c, uint32_t *slots)
{
    for (uint32_t i = 0; i < c->plan.top + 2; i++) {
        const uint32_t g = ring_at(c, i);
        const uint64_t first = ring_first(c, g);
        for (uint64_t u = 0; u < ring_count(c, g); u++)
            *slots++ = ring_get(c, g, first + u);
    }
}

static void to_floats(kv_type type, const unsigned char *from, float *to, size_t n)
{
    if (type == KV_F32)
        memcpy(to, from, n * sizeof *to);
    else
        for (size_t i = 0; i < n; i++)
            to[i] = half_to_float(((const uint16_t *)(const void *)from)[i]);
}

/* The units of one block: a layer's part of it is one run of bytes, (2 kv_heads, units of the block, head_dim). */
static void pick(const kv_pool *p, uint32_t block, const unsigned char *part, const uint32_t *slots, size_t units,
                 float *values)
{
    const size_t rows = 2 * (size_t)p->kv_heads, row_bytes = p->head_dim * (p->type == KV_F32 ? sizeof(float) : 2);
    for (size_t i = 0; i < units; i++) {
        if (slots[i] >> KV_SLOT_BITS != block)
            continue;
        const size_t unit = slots[i] & ((1u << KV_SLOT_BITS) - 1);
        for (size_t r = 0; r < rows; r++)
            to_floats(p->type, part + (r * p->block_units[block] + unit) * row_bytes,
                      values + (i * rows + r) * p->head_dim, p->head_dim);
    }
}

dcm_status cache_read_layer(const cache *c, uint32_t layer, float *values)
{
    const kv_pool *p = &c->slots.pool;
    const size_t units = cache_units(c), each = c->slots.unit_bytes / p->layers;
    uint32_t *slots = NULL;
    unsigned char *part = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&slots, units, sizeof *slots, "slots"));
    list_slots(c, slots);
    for (uint32_t b = 0; b < p->n_blocks; b++) {
        const size_t bytes = each * p->block_units[b];
        DCM_TRY(status, done, mem_resize(&part, bytes, 1, "a layer of the cache"));
        DCM_TRY(status, done, c->ops->ops->read(p->block[b], layer * bytes, part, bytes));
        pick(p, b, part, slots, units, values);
    }
done:
    mem_free(&slots);
    mem_free(&part);
    return status;
}
