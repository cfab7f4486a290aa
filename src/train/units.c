#include "train/units.h"

#include "base/error.h"
#include "cache/ring.h"

#include <string.h>

/* The nodes of a ring that the query before saw, counted from its first ever. */
typedef struct ring_seen {
    uint64_t first, end;
} ring_seen;

typedef struct listing {
    const cache *c;
    grad_unit *unit;
    uint32_t *number; /* of the unit in each slot: block by block */
    size_t base[KV_BLOCKS];
    ring_seen seen[RINGS];
} listing;

static uint32_t *number_of(listing *l, uint32_t slot)
{
    return &l->number[l->base[slot >> KV_SLOT_BITS] + (slot & ((1u << KV_SLOT_BITS) - 1))];
}

/* All units, seen by no query yet. */
static void list_units(listing *l)
{
    const cache *c = l->c;
    const step *s = &c->step;
    const uint32_t turn = 2 * c->rope.pairs;
    for (uint32_t t = 0; t < s->n; t++) {
        const uint32_t slot = c->words[s->slots + t], g = t < c->plan.sinks ? RING_SINKS : 0;
        l->unit[t] = (grad_unit){.slot = slot,
                                 .ring = (uint32_t)c->ring[g].offset,
                                 .rotation = (uint32_t)s->key_rot + t * turn,
                                 .a = UINT32_MAX,
                                 .b = UINT32_MAX};
        *number_of(l, slot) = t;
    }
    const merge_pair *merges = (const merge_pair *)(c->words + s->merges);
    for (uint32_t m = 0; m < s->n_merges; m++)
        *number_of(l, merges[m].out) = s->n + m;
    for (uint32_t m = 0; m < s->n_merges; m++)
        l->unit[s->n + m] = (grad_unit){.slot = merges[m].out,
                                        .ring = (uint32_t)c->ring[merges[m].level + 1].offset,
                                        .rotation = (uint32_t)s->merge_rot + (3 * m + 2) * turn,
                                        .level = merges[m].level + 1,
                                        .a = *number_of(l, merges[m].a),
                                        .b = *number_of(l, merges[m].b)};
}

/* Query t sees nodes first .. end - 1 of ring g: the ones that the query before did not see begin, others end. */
static void move_ring(listing *l, uint32_t g, uint64_t first, uint64_t end, uint32_t t)
{
    ring_seen *seen = &l->seen[g];
    for (; seen->first < first && seen->first < seen->end; seen->first++)
        l->unit[*number_of(l, ring_get(l->c, g, seen->first))].end = t;
    seen->first = first;
    for (uint64_t node = seen->end > first ? seen->end : first; node < end; node++)
        l->unit[*number_of(l, ring_get(l->c, g, node))].first = t;
    seen->end = end;
}

static uint32_t ring_at(const cache *c, uint32_t offset)
{
    if (c->plan.sinks && offset == c->ring[RING_SINKS].offset)
        return RING_SINKS;
    uint32_t g = 0;
    while (c->ring[g].offset != offset)
        g++;
    return g;
}

/* Within each ring what queries see moves forward only. */
static void list_queries(listing *l)
{
    const cache *c = l->c;
    const view *views = (const view *)(c->words + c->step.views);
    for (uint32_t t = 0; t < c->step.n; t++) {
        bool there[RINGS] = {false};
        for (uint32_t r = 0; r < views[t].n_ranges; r++) {
            const view_range *range = &views[t].range[r];
            const uint32_t g = ring_at(c, range->ring);
            const uint64_t before = l->seen[g].first, first = before + ((range->begin - before) & range->mask);
            move_ring(l, g, first, first + range->count, t);
            there[g] = true;
        }
        for (uint32_t g = 0; g < RINGS; g++)
            if (!there[g])
                move_ring(l, g, l->seen[g].end, l->seen[g].end, t);
    }
    for (uint32_t g = 0; g < RINGS; g++)
        move_ring(l, g, l->seen[g].end, l->seen[g].end, c->step.n);
}

dcm_status grad_units_open(grad_units *units, const cache *c)
{
    listing l = {.c = c};
    const uint32_t count = c->step.n + c->step.n_merges;
    const size_t bytes = count * sizeof *l.unit;
    size_t slots = 0;
    dcm_status status;
    for (uint32_t b = 0; b < c->slots.pool.n_blocks; b++) {
        l.base[b] = slots;
        slots += c->slots.pool.block_units[b];
    }
    DCM_TRY(status, done, mem_new(&l.unit, count, sizeof *l.unit, "units of a sequence"));
    DCM_TRY(status, done, mem_new(&l.number, slots, sizeof *l.number, "numbers of units"));
    list_units(&l);
    list_queries(&l);
    if (!units->list || units->list->bytes < bytes) {
        buffer_free(&units->list);
        DCM_TRY(status, done, c->ops->ops->buffer_new(c->ops, bytes, MEM_TABLES, &units->list));
    }
    units->count = count;
    status = c->ops->ops->write(units->list, 0, l.unit, bytes);
done:
    mem_free(&l.unit);
    mem_free(&l.number);
    return status;
}

void grad_units_close(grad_units *units)
{
    buffer_free(&units->list);
    units->count = 0;
}
