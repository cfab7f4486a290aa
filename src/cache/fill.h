/* The state that a cache has after many tokens, without the tokens: for measuring steps at a depth. */
#ifndef CACHE_FILL_H
#define CACHE_FILL_H

#include "cache/cache.h"

/*
 * Fill an empty cache as after `tokens` tokens fed one by one: the plan, every unit in the slot that it would have, the
 * counts of merges and of bytes written. What the units hold is random, between -1 and 1, from `seed`.
 * DCM_ERR_MEMORY: the cache can only be closed.
 */
dcm_status cache_fill(cache *c, uint64_t tokens, uint64_t seed);

#endif
