#include "cache/room.h"

#include "base/error.h"

enum {
    SLACK_PART = 50,  /* 1/50 of what is needed may stay unused */
    BLOCKS_SMALL = 48 /* from here on blocks are as large as may be, lest there be too many */
};

/* After n tokens in chunks: those of the last one, the chunks before it in ever fewer units, at last one each. */
static size_t units_in_chunks(const dcm_plan *p, uint64_t n)
{
    const uint64_t sinks = n < p->sinks ? n : p->sinks, rest = n - sinks;
    const uint64_t chunks = rest ? (rest - 1) / p->group : 0; /* behind the last one */
    uint64_t units = sinks + rest - chunks * p->group;
    for (uint64_t j = 1; j <= chunks && j < p->top; j++)
        units += p->group >> j;
    return (size_t)(units + (chunks >= p->top ? chunks - p->top + 1 : 0));
}

static size_t units_after(const cache *c, uint32_t n)
{
    const dcm_plan *p = &c->plan;
    const size_t units = cache_units(c) + n;
    if (c->in_chunks)
        return units_in_chunks(p, p->tokens + n);
    if (c->kind == DCM_CACHE_DCM)
        return (size_t)dcm_units_after(p->group, p->sinks, p->tokens + n);
    return c->kind == DCM_CACHE_WINDOW && units > c->window ? c->window : units;
}

/* Units at the height of a step that leaves `after`: its merges (each makes one and leaves one less) have results of
 * their own, unless it is of one token. */
static size_t units_within(const cache *c, uint32_t n, size_t after)
{
    const size_t units = cache_units(c) + n;
    if (n == 1)
        return after;
    return c->kind == DCM_CACHE_DCM ? 2 * units - after : units;
}

/* No merge before the near queue is full, then at most one a token, which holds two units until the step's end. */
static uint32_t longest_step(const cache *c, size_t most)
{
    const dcm_plan *p = &c->plan;
    uint64_t n = c->chunk;
    if (c->kind == DCM_CACHE_DCM) {
        const uint64_t sinks_left = p->tokens < p->sinks ? p->sinks - p->tokens : 0;
        const uint64_t merging = sinks_left + 2 * (uint64_t)p->group - 1 - dcm_plan_near(p) + c->chunk / 2;
        n = merging < n ? merging : n;
    }
    n = most < n ? most : n;
    return n ? (uint32_t)n : 1;
}

/* The most units that may be allocated while a step that leaves `after` runs. */
static size_t bound(const cache *c, size_t after)
{
    const size_t units = after + c->chunk;
    return units + units / SLACK_PART;
}

static dcm_status grow(cache *c, size_t units, bool reading)
{
    slot_pool *s = &c->slots;
    dcm_status status = DCM_OK;
    while (status == DCM_OK && s->regular < units) {
        const size_t lack = units - s->regular;
        size_t more = slots_growth(s), most = SIZE_MAX;
        if (c->kind == DCM_CACHE_WINDOW)
            most = c->window - s->regular;
        else if (c->kind == DCM_CACHE_DCM && reading && s->pool.n_blocks < BLOCKS_SMALL)
            most = bound(c, units) - s->regular > SLOTS_GROWTH_MIN ? bound(c, units) - s->regular : SLOTS_GROWTH_MIN;
        more = more < most ? more : most;
        status = slots_grow(s, more > lack ? more : lack);
    }
    return status;
}

dcm_status room_for_units(cache *c, size_t units) { return grow(c, units, false); }

static dcm_status make_room(cache *c, uint32_t n)
{
    slot_pool *s = &c->slots;
    const size_t after = units_after(c, n), within = units_within(c, n, after);
    dcm_status status;
    if (after <= s->regular && within <= slots_allocated(s))
        return DCM_OK;
    DCM_TRY(status, fail, cache_settle(c));
    DCM_TRY(status, fail, grow(c, after, n > 1));
    if (within > s->regular) {
        const size_t most = bound(c, after) - s->regular;
        DCM_TRY(status, fail, slots_stage(s, most < c->chunk ? most : c->chunk));
    }
fail:
    return status;
}

dcm_status room_for_step(cache *c, size_t most, uint32_t *n)
{
    for (;;) {
        *n = longest_step(c, most);
        const dcm_status status = make_room(c, *n);
        if (status != DCM_ERR_MEMORY || !c->yields || *n == 1)
            return status;
        c->chunk /= 2;
    }
}
