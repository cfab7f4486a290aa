/* Slots for units in device blocks that grow by an eighth; no block is ever copied or moved. */
#ifndef CACHE_SLOTS_H
#define CACHE_SLOTS_H

#include "ops/ops.h"

typedef struct slot_pool {
    backend *ops;
    kv_pool pool;
    size_t unit_bytes;
    size_t allocated; /* units in all blocks */
    uint32_t *free;   /* stack of free slots */
    size_t free_count;
} slot_pool;

/* Bytes of one unit: keys and values of all layers. */
size_t unit_bytes(uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type);

void slots_init(slot_pool *s, backend *ops, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type);
void slots_close(slot_pool *s);

/*
 * Take a free slot, adding a block when there is none: the larger of 64 units and an eighth of what is allocated.
 * DCM_ERR_MEMORY says what was asked for and how many units there are.
 */
dcm_status slots_take(slot_pool *s, uint32_t *slot);

/* Units that the next block has by the rule above. */
size_t slots_growth(const slot_pool *s);

/* Add a block of `units` now. Errors as slots_take. */
dcm_status slots_grow(slot_pool *s, size_t units);

/* Give a slot back. */
void slots_give(slot_pool *s, uint32_t slot);

#endif
