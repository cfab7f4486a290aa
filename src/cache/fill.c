#include "cache/fill.h"

#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "cache/ring.h"
#include "cache/room.h"

enum { TILE_BYTES = 1 << 18 }; /* of random numbers, repeated */

/* ---- Which unit is where ---- */

/* The rings while the schedule runs; a slot is a number below the units of the end: nothing is free between tokens. */
typedef struct fill_ring {
    uint32_t *slot;
    uint64_t capacity;
} fill_ring;

typedef struct filling {
    dcm_plan plan;
    fill_ring ring[RINGS];
    uint32_t slots;
    uint64_t merges;
} filling;

static uint32_t *slot_of(filling *f, uint32_t g, uint64_t node) { return &f->ring[g].slot[node % f->ring[g].capacity]; }

/* What is done before a token: the slot that it leaves for the token's unit, or a new one. */
static uint32_t act(filling *f, const cache *c)
{
    dcm_plan *p = &f->plan;
    if (c->kind == DCM_CACHE_WINDOW && dcm_plan_units(p) == c->window) {
        p->count[0]--;
        return *slot_of(f, 0, p->first[0]++);
    }
    const dcm_action action = c->kind == DCM_CACHE_DCM ? dcm_plan_peek(p) : (dcm_action){DCM_ACTION_APPEND, -1};
    if (action.kind != DCM_ACTION_MERGE)
        return f->slots++;
    const uint32_t g = (uint32_t)action.level;
    const uint64_t node = p->first[g];
    *slot_of(f, g + 1, node / 2) = *slot_of(f, g, node);
    f->merges++;
    return *slot_of(f, g, node + 1);
}

static void append(filling *f, const cache *c)
{
    dcm_plan *p = &f->plan;
    const uint32_t slot = act(f, c);
    const bool sink = p->tokens < p->sinks;
    *slot_of(f, sink ? RING_SINKS : 0, sink ? p->tokens : p->tokens - p->sinks) = slot;
    if (c->kind == DCM_CACHE_DCM) {
        dcm_plan_step(p);
    } else {
        p->count[0] += !sink;
        p->tokens++;
    }
}

/* Most units of a ring at any time; the top level's are most at the end. */
static uint64_t ring_most(const cache *c, const dcm_plan *end, uint32_t g)
{
    if (g == RING_SINKS)
        return c->plan.sinks;
    if (g > c->plan.top)
        return 0;
    return c->kind == DCM_CACHE_DCM && g < c->plan.top ? 2 * (uint64_t)c->plan.group >> g : end->count[g] + 1;
}

/* The plan after `tokens` tokens. */
static dcm_plan plan_after(const cache *c, uint64_t tokens)
{
    dcm_plan p = c->plan;
    if (c->kind == DCM_CACHE_DCM) {
        dcm_plan_skip(&p, tokens);
        return p;
    }
    const uint64_t rest = tokens - (tokens < p.sinks ? tokens : p.sinks), room = c->window - p.sinks;
    p.tokens = tokens;
    p.count[0] = c->kind == DCM_CACHE_WINDOW && rest > room ? room : rest;
    p.first[0] = rest - p.count[0];
    return p;
}

/* ---- What the units hold ---- */

static dcm_status fill_blocks(cache *c, uint64_t seed)
{
    const kv_pool *pool = &c->slots.pool;
    uint16_t *tile = NULL;
    const size_t step = pool->type == KV_F32 ? 2 : 1;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&tile, TILE_BYTES, 1, "random numbers"));
    for (size_t i = 0; i < TILE_BYTES / sizeof *tile; i += step) {
        const float x = (float)(2 * rng_uniform(&seed) - 1);
        if (pool->type == KV_F32)
            memcpy(tile + i, &x, sizeof x);
        else
            tile[i] = float_to_half(x);
    }
    for (uint32_t b = 0; b < pool->n_blocks; b++)
        for (size_t at = 0, bytes = pool->block[b]->bytes; at < bytes; at += TILE_BYTES)
            DCM_TRY(status, done,
                    c->ops->ops->write(pool->block[b], at, tile, bytes - at < TILE_BYTES ? bytes - at : TILE_BYTES));
done:
    mem_free(&tile);
    return status;
}

/* ---- Both ---- */

/* Units' slots by number: those that decoding would have taken, in the order of taking. */
static dcm_status take_slots(cache *c, uint32_t **slots, size_t count)
{
    dcm_status status;
    DCM_TRY(status, fail, mem_new(slots, count, sizeof **slots, "slots"));
    for (size_t i = 0; i < count; i++) {
        DCM_TRY(status, fail, room_for_units(c, i + 1));
        (*slots)[i] = slots_take(&c->slots);
    }
fail:
    return status;
}

dcm_status cache_fill(cache *c, uint64_t tokens, uint64_t seed)
{
    filling f = {.plan = c->plan};
    uint32_t *slots = NULL;
    const dcm_plan end = plan_after(c, tokens);
    dcm_status status = DCM_OK;
    if (!tokens)
        return DCM_OK;
    DCM_TRY(status, done, take_slots(c, &slots, (size_t)dcm_plan_units(&end)));
    for (uint32_t g = 0; g < RINGS; g++) {
        f.ring[g].capacity = ring_most(c, &end, g);
        DCM_TRY(status, done, mem_new(&f.ring[g].slot, f.ring[g].capacity, sizeof *f.ring[g].slot, "rings"));
    }
    while (f.plan.tokens < tokens)
        append(&f, c);
    DCM_TRY(status, done, rings_reserve(c, 1)); /* a table, for the next line to make one of the right size of */
    c->plan = end;
    DCM_TRY(status, done, rings_reserve(c, 1));
    for (uint32_t g = 0; g < RINGS; g++)
        for (uint64_t i = 0, first = ring_first(c, g); i < ring_count(c, g); i++)
            ring_put(c, g, first + i, slots[*slot_of(&f, g, first + i)]);
    c->merges = f.merges;
    c->bytes_written = (tokens + f.merges) * c->slots.unit_bytes;
    status = fill_blocks(c, seed);
done:
    for (uint32_t g = 0; g < RINGS; g++)
        mem_free(&f.ring[g].slot);
    mem_free(&slots);
    return status;
}
