#include "ops/matrix_cl.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

enum { TILE = MATRIX_TILE, UPLOAD_BYTES = 256 << 10, GROUP_MAX = 256 };

/* The layout of a type; what cl/linear.cl is built with. */
typedef struct layout {
    uint32_t bits, block, block_head, block_bytes, super, super_head;
} layout;

static layout layout_of(quant_type type)
{
    switch (type) {
    case QUANT_F32: return (layout){32, 1, 0, 64, 1, 0};
    case QUANT_F16:
    case QUANT_BF16: return (layout){16, 1, 0, 32, 1, 0};
    case QUANT_Q4_0: return (layout){4, 32, 32, 32 + 256, 1, 0};
    case QUANT_Q4_1: return (layout){4, 32, 64, 64 + 256, 1, 0};
    case QUANT_Q8_0: return (layout){8, 32, 32, 32 + 512, 1, 0};
    case QUANT_Q4_K: return (layout){4, 32, 32, 32 + 256, 8, 64};
    case QUANT_Q5_K: return (layout){8, 32, 32, 32 + 512, 8, 64};
    case QUANT_Q6_K: return (layout){8, 16, 16, 16 + 256, 16, 32};
    }
    return (layout){0};
}

static bool matrix_has_min(quant_type type)
{
    return type == QUANT_Q4_0 || type == QUANT_Q4_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
}

/* 4-byte words of a block of x in fixed point: DOT_WORDS in cl/linear_fixed.cl. */
static uint32_t dot_words(const layout *l) { return 3 * l->block / 4 + 8; }

size_t matrix_work_floats(const matrix *m)
{
    const layout l = layout_of(m->type);
    const size_t blocks = m->cols / l.block;
    if (matrix_cl_of(m)->quads)
        return m->cols + blocks * dot_words(&l);
    return m->cols + (matrix_has_min(m->type) ? blocks : 0);
}

bool matrix_needs_work(const matrix *m) { return matrix_cl_of(m)->quads || matrix_has_min(m->type); }

size_t matrix_group_size(const backend *b)
{
    const size_t max = clop_device((backend *)b)->limits.max_work_group;
    size_t size = GROUP_MAX;
    while (size > TILE && size > max)
        size /= 2;
    return size;
}

/* ---- Repacking: one row of the file into row r of a zeroed tile ---- */

/* `count` items of `size` bytes, one into each 16 items of `dst`. */
static void spread(uint8_t *dst, const uint8_t *src, size_t size, size_t count, uint32_t r)
{
    for (size_t i = 0; i < count; i++)
        memcpy(dst + (i * TILE + r) * size, src + i * size, size);
}

/* Where item k of row r of a block's quants stands. */
static uint32_t item_at(bool quads, uint32_t k, uint32_t r)
{
    return quads ? k / 4 * 4 * TILE + r * 4 + k % 4 : k * TILE + r;
}

/* Q4_0, Q4_1, Q8_0: `heads` halves and the quants' bytes, in the order that tiles have. */
static void pack_simple(uint8_t *tile, const uint8_t *src, const layout *l, bool quads, size_t blocks, uint32_t r)
{
    const uint32_t heads = l->block_head / (2 * TILE), items = (l->block_bytes - l->block_head) / TILE;
    for (size_t b = 0; b < blocks; b++, tile += l->block_bytes, src += 2 * heads + items) {
        spread(tile, src, 2, heads, r);
        for (uint32_t k = 0; k < items; k++)
            tile[l->block_head + item_at(quads, k, r)] = src[2 * heads + k];
    }
}

/* Scale and minimum of group g of a Q4_K or Q5_K block's 12 bytes: 6 bits each, the upper two of groups 4 .. 7 apart.
 */
static void group_scale(const uint8_t *s, uint32_t g, uint8_t *scale, uint8_t *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (uint8_t)((s[g + 4] & 15) | s[g - 4] >> 6 << 4);
        *min = (uint8_t)(s[g + 4] >> 4 | s[g] >> 6 << 4);
    }
}

/* One Q4_K or Q5_K block (`high`: its fifth bits, else NULL) into a super-block. */
static void pack_45_k(uint8_t *super, const uint8_t *src, const uint8_t *high, const uint8_t *nibbles, const layout *l,
                      bool quads, uint32_t r)
{
    spread(super, src, 2, 2, r);
    for (uint32_t g = 0; g < 8; g++) {
        uint8_t *block = super + l->super_head + g * l->block_bytes, *quants = block + l->block_head;
        const uint8_t *low = nibbles + g / 2 * 32;
        const uint32_t shift = g % 2 * 4;
        group_scale(src + 4, g, block + r, block + TILE + r);
        if (high)
            for (uint32_t k = 0; k < 32; k++)
                quants[item_at(quads, k, r)] = (uint8_t)((low[k] >> shift & 15) | (high[k] >> g & 1) << 4);
        else
            for (uint32_t k = 0; k < 16; k++)
                quants[item_at(quads, k, r)] = (uint8_t)((low[k] >> shift & 15) | (low[k + 16] >> shift & 15) << 4);
    }
}

/* One Q6_K block: 128 bytes of low nibbles, 64 of upper bit pairs, 16 scales, f16 d; see quant.c. */
static void pack_6_k(uint8_t *super, const uint8_t *src, const layout *l, bool quads, uint32_t r)
{
    spread(super, src + 208, 2, 1, r);
    for (uint32_t g = 0; g < 16; g++) {
        uint8_t *block = super + l->super_head + g * l->block_bytes, *quants = block + l->block_head;
        const uint32_t half = g / 8, part = g / 2 % 4, from = g % 2 * 16;
        const uint8_t *low = src + 64 * half + 32 * (part % 2) + from, *high = src + 128 + 32 * half + from;
        block[r] = src[192 + g];
        for (uint32_t k = 0; k < 16; k++)
            quants[item_at(quads, k, r)] =
                (uint8_t)(((low[k] >> part / 2 * 4 & 15) | (high[k] >> 2 * part & 3) << 4) - 32);
    }
}

static void pack_row(const matrix_cl *m, uint8_t *tile, const uint8_t *src, uint32_t r)
{
    const quant_type type = m->base.type;
    const size_t cols = m->base.cols;
    const layout l = layout_of(type);
    const quant_info *info = quant_get(type);
    const size_t super_bytes = l.super_head + (size_t)l.super * l.block_bytes;
    if (l.block == 1) {
        spread(tile, src, l.bits / 8, cols, r);
    } else if (l.super == 1) {
        pack_simple(tile, src, &l, m->quads, cols / l.block, r);
    } else {
        for (size_t i = 0; i < cols / info->items; i++, tile += super_bytes, src += info->bytes) {
            if (type == QUANT_Q4_K)
                pack_45_k(tile, src, NULL, src + 16, &l, m->quads, r);
            else if (type == QUANT_Q5_K)
                pack_45_k(tile, src, src + 16, src + 48, &l, m->quads, r);
            else
                pack_6_k(tile, src, &l, m->quads, r);
        }
    }
}

/* Repack and write a part's tiles, a few at a time. */
static dcm_status upload(const matrix_cl *m, const matrix_part *part, const uint8_t *data, uint8_t *staging,
                         uint32_t batch)
{
    const size_t row_bytes = quant_row_bytes(m->base.type, m->base.cols);
    dcm_status status = DCM_OK;
    for (uint32_t done = 0; done < part->tiles && status == DCM_OK; done += batch) {
        const uint32_t count = part->tiles - done < batch ? part->tiles - done : batch;
        memset(staging, 0, count * m->tile_bytes);
        for (uint32_t i = 0; i < count * TILE; i++) {
            const size_t row = (size_t)(part->tile0 + done) * TILE + i;
            if (row < m->base.rows)
                pack_row(m, staging + i / TILE * m->tile_bytes, data + row * row_bytes, i % TILE);
        }
        status = clop_write(part->data, done * m->tile_bytes, staging, count * m->tile_bytes);
    }
    return status;
}

static void set_options(backend *b, matrix_cl *m)
{
    const layout l = layout_of(m->base.type);
    const bool cpu = clop_device(b)->limits.type & CL_DEVICE_TYPE_CPU;
    snprintf(m->options, sizeof m->options,
             "-DTYPE=%u -DBITS=%u -DBLOCK=%u -DBLOCK_HEAD=%u -DBLOCK_BYTES=%u -DSUPER=%u -DSUPER_HEAD=%u "
             "-DPREFETCH=%d -DQUADS=%d -DDOT2=%d -DX86=%d -DFP16=%d",
             (unsigned)m->base.type, l.bits, l.block, l.block_head, l.block_bytes, l.super, l.super_head, cpu, m->quads,
             m->quads && !clop_tier(b, CLDEV_DOT4), clop_tier(b, CLDEV_HALF16), clop_tier(b, CLDEV_FP16));
}

dcm_status cl_matrix_new(backend *b, quant_type type, uint32_t rows, uint32_t cols, const void *data, matrix **out)
{
    const layout l = layout_of(type);
    const uint32_t tiles = (uint32_t)(((uint64_t)rows + TILE - 1) / TILE);
    matrix_cl *m = NULL;
    uint8_t *staging = NULL;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, fail, mem_new(&m, 1, sizeof *m, "a matrix's record"));
    m->base = (matrix){.owner = b, .type = type, .rows = rows, .cols = cols};
    m->tile_bytes = (size_t)(cols / (l.block * l.super)) * (l.super_head + (size_t)l.super * l.block_bytes);
    m->quads = l.block > 1 && (clop_tier(b, CLDEV_DOT4) || (l.bits == 4 && clop_tier(b, CLDEV_DOT2)));
    m->family = m->quads ? "weights+linear_fixed+linear" : "weights+linear";
    set_options(b, m);
    if (m->tile_bytes > b->max_alloc) {
        status =
            dcm_fail(DCM_ERR_MEMORY, "16 rows of a matrix (%zu bytes) are more than the device's largest buffer (%zu)",
                     m->tile_bytes, b->max_alloc);
        goto fail;
    }
    const uint32_t batch = m->tile_bytes < UPLOAD_BYTES ? (uint32_t)(UPLOAD_BYTES / m->tile_bytes) : 1;
    const size_t fit = b->max_alloc / m->tile_bytes;
    const uint32_t part_tiles = fit < tiles ? (uint32_t)fit : tiles, n = (tiles + part_tiles - 1) / part_tiles;
    DCM_TRY(status, fail, mem_new(&m->part, n, sizeof *m->part, "a matrix's parts"));
    DCM_TRY(status, fail, mem_new(&staging, batch, m->tile_bytes, "repacking a matrix"));
    for (uint32_t i = 0; i < n; i++) {
        matrix_part *part = &m->part[i];
        part->tile0 = i * part_tiles;
        part->tiles = tiles - part->tile0 < part_tiles ? tiles - part->tile0 : part_tiles;
        DCM_TRY(status, fail, clop_buffer_new(b, part->tiles * m->tile_bytes, MEM_WEIGHTS, &part->data));
        m->n_parts = i + 1;
        m->base.bytes += part->data->bytes;
        DCM_TRY(status, fail, upload(m, part, data, staging, batch));
    }
    mem_free(&staging);
    *out = &m->base;
    return DCM_OK;
fail:
    mem_free(&staging);
    if (m) {
        *out = &m->base;
        cl_matrix_free(out);
    }
    return status;
}

void cl_matrix_free(matrix **out)
{
    if (!out || !*out)
        return;
    matrix_cl *m = (matrix_cl *)*out;
    for (uint32_t i = 0; i < m->n_parts; i++)
        clop_buffer_free(&m->part[i].data);
    mem_free(&m->part);
    mem_free(&m);
    *out = NULL;
}
