#include "cache/ring.h"

#include "base/error.h"

enum { FIRST_FAR_RING = 1024 };

static uint64_t power_of_two_at_least(uint64_t x)
{
    uint64_t p = 1;
    while (p < x)
        p *= 2;
    return p;
}

uint64_t ring_first(const cache *c, uint32_t g) { return g == RING_SINKS ? 0 : c->plan.first[g]; }

uint64_t ring_count(const cache *c, uint32_t g)
{
    const dcm_plan *p = &c->plan;
    return g != RING_SINKS ? p->count[g] : p->tokens < p->sinks ? p->tokens : p->sinks;
}

/* Entries the ring of level g must have for a step; the top level of dcm and of full grows as it fills. */
static uint64_t ring_need(const cache *c, uint32_t g, uint32_t n)
{
    const uint64_t step = n > 1 ? (n >> g) + 1 : 0;
    if (g == RING_SINKS)
        return c->plan.sinks;
    if (g == c->plan.top)
        return c->plan.count[g] + (n >> g) + 1;
    return (2 * (uint64_t)c->plan.group >> g) - 1 + step;
}

dcm_status rings_reserve(cache *c, uint32_t n)
{
    bool fits = true;
    size_t total = 0, offset[RINGS];
    uint32_t mask[RINGS];
    for (uint32_t g = 0; g < RINGS; g++) {
        uint64_t capacity = c->ring[g].mask + (uint64_t)(c->table != NULL);
        const bool used = g <= c->plan.top || (g == RING_SINKS && c->plan.sinks);
        const uint64_t need = used ? ring_need(c, g, n) : 0;
        if (need > capacity) {
            fits = false;
            capacity = power_of_two_at_least(need < FIRST_FAR_RING && g == c->plan.top ? FIRST_FAR_RING : need);
        }
        offset[g] = total;
        mask[g] = capacity ? (uint32_t)(capacity - 1) : 0;
        total += capacity;
    }
    if (fits)
        return DCM_OK;
    uint32_t *table = NULL;
    buffer *device = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&table, total, sizeof *table, "slot table"));
    DCM_TRY(status, fail, c->ops->ops->buffer_new(c->ops, total * sizeof *table, MEM_TABLES, &device));
    for (uint32_t g = 0; g < RINGS; g++) {
        cache_ring *r = &c->ring[g];
        const uint64_t first = ring_first(c, g), end = first + ring_count(c, g);
        for (uint64_t i = first; i < end; i++)
            table[offset[g] + (i & mask[g])] = c->table[r->offset + (i & r->mask)];
        *r = (cache_ring){offset[g], mask[g], first, end};
    }
    mem_free(&c->table);
    buffer_free(&c->slots.pool.table);
    c->table = table;
    c->slots.pool.table = device;
    return DCM_OK;
fail:
    mem_free(&table);
    return dcm_fail_in(status, "slot table of %zu entries", total);
}

void ring_put(cache *c, uint32_t g, uint64_t node, uint32_t slot)
{
    cache_ring *r = &c->ring[g];
    c->table[r->offset + (node & r->mask)] = slot;
    if (r->dirty_first == r->dirty_end)
        r->dirty_first = node;
    r->dirty_end = node + 1;
}

uint32_t ring_get(const cache *c, uint32_t g, uint64_t node)
{
    return c->table[c->ring[g].offset + (node & c->ring[g].mask)];
}

/* One run of entries, or two where it wraps. */
static dcm_status upload_ring(cache *c, cache_ring *r)
{
    while (r->dirty_first < r->dirty_end) {
        const size_t at = r->dirty_first & r->mask, room = r->mask + 1 - at, left = r->dirty_end - r->dirty_first;
        const size_t count = left < room ? left : room;
        const dcm_status status = c->ops->ops->write(c->slots.pool.table, (r->offset + at) * sizeof *c->table,
                                                     c->table + r->offset + at, count * sizeof *c->table);
        if (status != DCM_OK)
            return status;
        r->dirty_first += count;
    }
    return DCM_OK;
}

dcm_status rings_upload(cache *c)
{
    dcm_status status = DCM_OK;
    for (uint32_t g = 0; status == DCM_OK && g < RINGS; g++)
        status = upload_ring(c, &c->ring[g]);
    return status;
}
