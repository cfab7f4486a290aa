#include "cache/view.h"

#include <math.h>
#include <string.h>

void rotation(const rope *r, uint64_t angle, float *out)
{
    for (uint32_t i = 0; i < r->pairs; i++) {
        const double a = (double)angle * r->frequency[i];
        out[2 * i] = (float)cos(a);
        out[2 * i + 1] = (float)sin(a);
    }
}

/* The row of biases for `count` units of a level: its own, or that for so many of the last level. */
static uint32_t bias_row(const cache *c, uint32_t level, uint64_t count)
{
    const bool crowded = c->far_limit && level == c->levels - 1 && count > c->far_limit;
    return crowded ? c->levels + (uint32_t)(count - c->far_first) : level;
}

static void add_range(const cache *c, view *v, float *query_rot, const cache_ring *ring, uint64_t first, uint64_t count,
                      uint64_t anchor, uint32_t level, uint64_t units)
{
    view_range *range = &v->range[v->n_ranges];
    *range = (view_range){.ring = (uint32_t)ring->offset,
                          .mask = ring->mask,
                          .begin = (uint32_t)(first & ring->mask),
                          .count = (uint32_t)count,
                          .place = v->units,
                          .bias = bias_row(c, level, count) * bias_row_size(c)};
    /* Every key of the range is `anchor - place` turns off its place; the query, at units - 1, makes up for it. */
    rotation(&c->rope, units - 1 - v->units + anchor, query_rot + (size_t)v->n_ranges * 2 * c->rope.pairs);
    v->n_ranges++;
    v->units += (uint32_t)count;
}

void view_fill(const cache *c, view *v, float *query_rot)
{
    const dcm_plan *p = &c->plan;
    const uint64_t units = dcm_plan_units(p), sinks = p->tokens < p->sinks ? p->tokens : p->sinks;
    memset(v, 0, sizeof *v);
    if (sinks)
        add_range(c, v, query_rot, &c->ring[DCM_LEVELS_MAX], 0, sinks, 0, 0, units);
    for (uint32_t g = p->top + 1; g-- > 0;)
        if (p->count[g])
            add_range(c, v, query_rot, &c->ring[g], p->first[g], p->count[g], anchor_of(c, p->first[g]), g, units);
}
