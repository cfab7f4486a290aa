/*
 * Slots for units in device blocks. The regular blocks hold the units that stay; they grow by an eighth and are never
 * copied or freed. The staging block holds units more while a prompt is read: it comes and goes, and is the last one
 * while it is there.
 */
#ifndef CACHE_SLOTS_H
#define CACHE_SLOTS_H

#include "ops/ops.h"

enum {
    SLOTS_BLOCKS = KV_BLOCKS - 1, /* most regular blocks */
    SLOTS_GROWTH_MIN = 64
};

/* A stack of free slots. */
typedef struct slot_stack {
    uint32_t *slot;
    size_t count;
} slot_stack;

typedef struct slot_pool {
    backend *ops;
    kv_pool pool;
    size_t unit_bytes;
    size_t regular;         /* units in all regular blocks */
    size_t staged;          /* units in the staging block; 0: there is none */
    slot_stack free, spare; /* of the regular blocks, of the staging block */
} slot_pool;

/* Bytes of one unit: keys and values of all layers. */
size_t unit_bytes(uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type);

void slots_init(slot_pool *s, backend *ops, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, kv_type type);
void slots_close(slot_pool *s);

/* Units in all blocks. */
size_t slots_allocated(const slot_pool *s);

/* Units of the next regular block by the rule: the larger of 64 and an eighth of the units that there are. */
size_t slots_growth(const slot_pool *s);

/*
 * Add a regular block of `units`, or of as many as the device allows in one buffer. DCM_ERR_MEMORY says what was asked
 * for and how many units there are.
 */
dcm_status slots_grow(slot_pool *s, size_t units);

/* Add the staging block, which is not there, with `units`; slots_grow may not be called then. Errors as slots_grow. */
dcm_status slots_stage(slot_pool *s, size_t units);

/* Free the staging block, in which no unit is any more. */
void slots_unstage(slot_pool *s);

/* A free slot, a regular one where there is one; there must be one. */
uint32_t slots_take(slot_pool *s);
void slots_give(slot_pool *s, uint32_t slot);

/* Whether a slot is of the staging block. */
static inline bool slots_staged(const slot_pool *s, uint32_t slot)
{
    return s->staged && slot >> KV_SLOT_BITS == s->pool.n_blocks - 1;
}

#endif
