/* The units of a sequence that is one step from an empty cache, and which queries see them. */
#ifndef TRAIN_UNITS_H
#define TRAIN_UNITS_H

#include "cache/cache.h"
#include "ops/grad.h"

/*
 * The units of the step that cache_step_begin has planned, the first of the cache, before cache_step_done; into *units,
 * whose list is replaced where it is too small ({0} at first). Takes O(tokens x ranges + units).
 */
dcm_status grad_units_open(grad_units *units, const cache *c);

void grad_units_close(grad_units *units);

#endif
