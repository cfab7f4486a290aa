/*
 * Weight matrices: products with many vectors, as when a prompt is read. Built behind cl/weights.cl, whose tiles of 16
 * rows are unpacked to floats once for all tokens of an item.
 *
 * The inputs are brought into panels of PANEL tokens by matmul_prepare: value k of token t of a panel is at k * PANEL
 * + t; tokens past the last are zero.
 */
#ifndef PANEL
#define PANEL 12 /* tokens of a panel; the wide shape keeps PANEL * TILES vectors of 16 rows in registers */
#endif
#ifndef TILES
#define TILES 2 /* that are multiplied with a panel together: 1 where a vector of 16 takes two registers */
#endif
#define TILES_ROWS (TILES * TILE)

/* ---- Wide: one work-item ---- */

/* Item p: the tokens of panel p into `panels`; `rows` has room for one prepared row of each panel. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
matmul_prepare(uint n, uint cols, uint input, __global const float *x, ulong x_offset, ulong ldx,
               __global const float *gain, float eps, __global float *rows, __global float *panels)
{
    const uint first = (uint)get_global_id(0) * PANEL;
    rows += get_global_id(0) * cols;
    panels += (size_t)first * cols;
    x += x_offset;
    for (uint t = 0; t < PANEL; t++) {
        __global const float *row = x + (first + t) * ldx;
        const bool inside = first + t < n;
        if (inside && input == INPUT_RMSNORM)
            normalise(row, gain, eps, cols, rows);
        else if (inside && input == INPUT_SWIGLU)
            swiglu(row, cols, rows);
        if (input != INPUT_PLAIN)
            row = rows;
        for (uint k = 0; k < cols; k++)
            panels[(size_t)k * PANEL + t] = inside ? row[k] : 0.0f;
    }
}

/* A tile as floats: column k's 16 rows at out + k * TILES_ROWS. */
void unpack_tile(__global const uchar *tile, uint cols, __global float *out)
{
#if QUANTIZED
    for (uint b = 0; b < cols / BLOCK; b++, out += BLOCK * TILES_ROWS) {
        __global const uchar *p = block_at(tile, b);
        const float16 d = SCALES(16, 0, p, super_at(tile, b));
#if HAS_MIN
        const float16 m = MINIMUMS(16, 0, p, super_at(tile, b), d);
#else
        const float16 m = 0;
#endif
#if QUADS
        for (uint j = 0; j < BLOCK * BITS / 32; j++) {
            const uint16 four = vload16(j, (__global const uint *)(p + BLOCK_HEAD));
            UNROLL
            for (uint i = 0; i < 4; i++) {
#if BITS == 4
                const uint16 low = four << 28 - 8 * i, high = four << 24 - 8 * i;
                vstore16(fma(convert_float16(low >> 28), d, m), 0, out + (4 * j + i) * TILES_ROWS);
                vstore16(fma(convert_float16(high >> 28), d, m), 0, out + (4 * j + i + 16) * TILES_ROWS);
#else
                const int16 q = as_int16(four << 24 - 8 * i) >> 24;
                vstore16(fma(convert_float16(q), d, m), 0, out + (4 * j + i) * TILES_ROWS);
#endif
            }
        }
#elif BITS == 4
        for (uint k = 0; k < 16; k++) {
            const int16 pair = convert_int16(vload16(k, p + BLOCK_HEAD));
            vstore16(fma(convert_float16(pair & 15), d, m), 0, out + k * TILES_ROWS);
            vstore16(fma(convert_float16(pair >> 4), d, m), 0, out + (k + 16) * TILES_ROWS);
        }
#else
        for (uint k = 0; k < BLOCK; k++) {
            const char16 q = vload16(k, (__global const char *)(p + BLOCK_HEAD));
            vstore16(fma(convert_float16(convert_int16(q)), d, m), 0, out + k * TILES_ROWS);
        }
#endif
    }
#else
    for (uint k = 0; k < cols; k++)
        vstore16(column16(tile, k), 0, out + k * TILES_ROWS);
#endif
}

/* TILES unpacked tiles times a panel: tile i's products with token t in sum[t][i]. */
void panel_product(__global const float *w, __global const float *panel, uint cols, float16 sum[PANEL][TILES])
{
    float16 a[PANEL][TILES];
    UNROLL
    for (int i = 0; i < PANEL * TILES; i++)
        a[i / TILES][i % TILES] = 0;
    for (uint k = 0; k < cols; k++) {
        float16 row[TILES];
        UNROLL
        for (int i = 0; i < TILES; i++)
            row[i] = vload16(i, w + (size_t)k * TILES_ROWS);
        UNROLL
        for (int t = 0; t < PANEL; t++) {
            const float16 x = (float16)(panel[(size_t)k * PANEL + t]);
            UNROLL
            for (int i = 0; i < TILES; i++)
                a[t][i] = fma(row[i], x, a[t][i]);
        }
    }
    UNROLL
    for (int i = 0; i < PANEL * TILES; i++)
        sum[i / TILES][i % TILES] = a[i / TILES][i % TILES];
}

/*
 * Item (i, j): the i-th share of the tiles of one part of the matrix, TILES by TILES (tile0: its first tile), the j-th
 * share of the panels. `work`: room for TILES unpacked tiles, TILES_ROWS * cols floats, for each item.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
matmul_wide(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols, uint rows, uint n,
            __global const float *panels, __global float *work, __global const float *bias, __global float *y,
            ulong y_offset, ulong ldy, uint flags)
{
    const size_t item = get_global_id(0), items = get_global_size(0);
    const size_t share = get_global_id(1), shares = get_global_size(1);
    const size_t groups = (tiles + TILES - 1) / TILES, all = (n + PANEL - 1) / PANEL;
    work += (share * items + item) * TILES_ROWS * cols;
    y += y_offset;
    for (size_t group = item * groups / items; group < (item + 1) * groups / items; group++) {
        const uint first = TILES * (uint)group, count = min((uint)TILES, tiles - first);
        for (uint i = 0; i < TILES; i++)
            unpack_tile(w + (first + min(i, count - 1)) * tile_bytes, cols, work + i * TILE);
        for (size_t p = share * all / shares; p < (share + 1) * all / shares; p++) {
            float16 sum[PANEL][TILES];
            panel_product(work, panels + p * PANEL * cols, cols, sum);
            for (uint t = 0; t < PANEL && p * PANEL + t < n; t++)
                for (uint i = 0; i < count; i++)
                    store16(sum[t][i], (tile0 + first + i) * TILE, rows, bias, y + (p * PANEL + t) * ldy, flags);
        }
    }
}
