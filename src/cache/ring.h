/* The rings of slot indices, one a level and one for the sinks, all in one table on the host and on the device. */
#ifndef CACHE_RING_H
#define CACHE_RING_H

#include "cache/cache.h"

enum { RING_SINKS = DCM_LEVELS_MAX, RINGS };

/*
 * Give every ring the room that a step of n tokens needs, the units that it merges or evicts included. A change
 * rebuilds the whole table, whose entries are 4 bytes a unit.
 */
dcm_status rings_reserve(cache *c, uint32_t n);

/* Node `node` of ring g is in `slot`; nodes are put in rising order between two uploads. */
void ring_put(cache *c, uint32_t g, uint64_t node, uint32_t slot);
uint32_t ring_get(const cache *c, uint32_t g, uint64_t node);

/* The units of ring g now: nodes ring_first .. ring_first + ring_count - 1. */
uint64_t ring_first(const cache *c, uint32_t g);
uint64_t ring_count(const cache *c, uint32_t g);

/* Send the entries that changed to the device. */
dcm_status rings_upload(cache *c);

#endif
