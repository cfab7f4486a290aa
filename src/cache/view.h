/* The numbers of a step that depend on places and anchors: rotations and views. */
#ifndef CACHE_VIEW_H
#define CACHE_VIEW_H

#include "cache/cache.h"

/* Anchor of node i of a level: the place it would have if nothing had been merged; that of sink i is i. */
static inline uint64_t anchor_of(const cache *c, uint64_t node) { return node + c->plan.sinks; }

/* Biases in a row of them: one for each layer and KV head. */
static inline uint32_t bias_row_size(const cache *c) { return c->slots.pool.layers * c->slots.pool.kv_heads; }

/* `pairs` (cos, sin) of angle * frequency into `out`, from doubles. */
void rotation(const rope *r, uint64_t angle, float *out);

/* What the newest token of the plan sees, and its query's rotation for each range. */
void view_fill(const cache *c, view *v, float *query_rot);

#endif
