/* The contents of one cache into another, on another device perhaps. */
#ifndef CACHE_COPY_H
#define CACHE_COPY_H

#include "cache/cache.h"

/*
 * Let `to` hold what `from` holds, of the same shape and policy: the schedule, every unit in the same slot of blocks of
 * the same sizes. Units of halves may go into floats. Both have been settled. On failure `to` can only be closed.
 */
dcm_status cache_copy(cache *to, const cache *from);

#endif
