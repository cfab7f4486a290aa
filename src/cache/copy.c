#include "cache/copy.h"

#include "base/error.h"
#include "base/half.h"
#include "cache/ring.h"

#include <string.h>

enum { PIECE = 1 << 20 }; /* elements copied at a time */

static bool same_blocks(const slot_pool *a, const slot_pool *b)
{
    bool same = a->pool.n_blocks == b->pool.n_blocks;
    for (uint32_t i = 0; same && i < a->pool.n_blocks; i++)
        same = a->pool.block_units[i] == b->pool.block_units[i];
    return same;
}

/* Blocks of the same sizes, and the same slots free. */
static dcm_status copy_slots(slot_pool *to, const slot_pool *from)
{
    dcm_status status = DCM_OK;
    if (!same_blocks(to, from)) {
        const kv_pool p = to->pool;
        backend *ops = to->ops;
        slots_close(to);
        slots_init(to, ops, p.layers, p.kv_heads, p.head_dim, p.type);
        for (uint32_t i = 0; i < from->pool.n_blocks; i++) {
            DCM_TRY(status, fail, slots_grow(to, from->pool.block_units[i]));
            if (to->pool.block_units[i] != from->pool.block_units[i])
                return dcm_fail(DCM_ERR_MEMORY, "a block of %u units is more than the device's largest buffer",
                                from->pool.block_units[i]);
        }
    }
    to->free.count = from->free.count;
    if (from->free.count)
        memcpy(to->free.slot, from->free.slot, from->free.count * sizeof *from->free.slot);
fail:
    return status;
}

/* `n` halves at the front of `data` to as many floats, from the last on. */
static void widen(unsigned char *data, size_t n)
{
    while (n-- > 0) {
        uint16_t half;
        memcpy(&half, data + n * sizeof half, sizeof half);
        const float x = half_to_float(half);
        memcpy(data + n * sizeof x, &x, sizeof x);
    }
}

static dcm_status copy_block(const cache *to, const cache *from, uint32_t index, unsigned char *data)
{
    buffer *source = from->slots.pool.block[index], *target = to->slots.pool.block[index];
    const bool wider = to->slots.pool.type != from->slots.pool.type;
    const size_t size = from->slots.pool.type == KV_F32 ? 4 : 2, count = source->bytes / size;
    dcm_status status = DCM_OK;
    for (size_t at = 0, n; at < count; at += n) {
        n = count - at < PIECE ? count - at : PIECE;
        DCM_TRY(status, fail, from->ops->ops->read(source, at * size, data, n * size));
        if (wider)
            widen(data, n);
        const size_t written = wider ? sizeof(float) : size;
        DCM_TRY(status, fail, to->ops->ops->write(target, at * written, data, n * written));
    }
fail:
    return status;
}

/* The table of all rings, on the host and on the device. */
static dcm_status copy_table(cache *to, const cache *from)
{
    const size_t bytes = from->table ? from->slots.pool.table->bytes : 0;
    dcm_status status = DCM_OK;
    memcpy(to->ring, from->ring, sizeof to->ring);
    if (!bytes) {
        buffer_free(&to->slots.pool.table);
        mem_free(&to->table);
        return DCM_OK;
    }
    if (!to->slots.pool.table || to->slots.pool.table->bytes != bytes) {
        buffer_free(&to->slots.pool.table);
        mem_free(&to->table);
        DCM_TRY(status, fail, to->ops->ops->buffer_new(to->ops, bytes, MEM_TABLES, &to->slots.pool.table));
        DCM_TRY(status, fail, mem_new(&to->table, bytes, 1, "slot table"));
    }
    memcpy(to->table, from->table, bytes);
    status = to->ops->ops->write(to->slots.pool.table, 0, to->table, bytes);
fail:
    return status;
}

dcm_status cache_copy(cache *to, const cache *from)
{
    unsigned char *data = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&data, PIECE, sizeof(float), "a piece of a cache"));
    DCM_TRY(status, done, copy_slots(&to->slots, &from->slots));
    DCM_TRY(status, done, copy_table(to, from));
    to->plan = from->plan;
    to->merges = from->merges;
    to->bytes_written = from->bytes_written;
    for (uint32_t i = 0; i < from->slots.pool.n_blocks; i++)
        DCM_TRY(status, done, copy_block(to, from, i, data));
done:
    mem_free(&data);
    return status;
}
