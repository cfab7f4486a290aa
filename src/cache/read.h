/* Reading back what a cache holds, in the order of places. */
#ifndef CACHE_READ_H
#define CACHE_READ_H

#include "cache/cache.h"

/* What each unit stands for, oldest first; cache_units(c) of them. */
void cache_list_units(const cache *c, dcm_unit *units);

/* One layer's keys and values, (units, 2, kv_heads, head_dim) floats. Waits for the device. DCM_ERR_MEMORY. */
dcm_status cache_read_layer(const cache *c, uint32_t layer, float *values);

#endif
