/* How long a step may be, and room for units. */
#ifndef CACHE_ROOM_H
#define CACHE_ROOM_H

#include "cache/cache.h"

/*
 * Choose the tokens of the next step, at most `most` (>= 1) and c->chunk, and make room for its units. Until its end a
 * step holds the sources of its merges and the units that it evicts: at most c->chunk units more than it leaves. The
 * regular blocks get room for what it leaves, the staging block for the rest, both together at most 1.02 x (units after
 * it + chunk), unless a regular block would be of fewer than 64 units. Errors: DCM_ERR_MEMORY; where c->yields, not
 * before a step of one token finds no room.
 */
dcm_status room_for_step(cache *c, size_t most, uint32_t *n);

/* Regular blocks for `units` in all, as single tokens make them grow. */
dcm_status room_for_units(cache *c, size_t units);

#endif
