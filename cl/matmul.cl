/*
 * Weight matrices: products with many vectors, as when a prompt is read. Built behind cl/weights.cl, whose tiles of 16
 * rows are unpacked to floats once for all tokens of an item.
 *
 * The inputs are brought into panels of PANEL tokens by matmul_prepare: value k of token t of a panel is at k * PANEL
 * + t; tokens past the last are zero.
 */
#ifndef PANEL
#define PANEL 12 /* tokens of a panel; the wide shape keeps 2 * PANEL vectors of 16 rows in registers */
#endif

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

/* A tile as floats: column k's 16 rows at out + k * 32. */
void unpack_tile(__global const uchar *tile, uint cols, __global float *out)
{
#if QUANTIZED
    for (uint b = 0; b < cols / BLOCK; b++, out += BLOCK * 32) {
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
                vstore16(fma(convert_float16(low >> 28), d, m), 0, out + (4 * j + i) * 32);
                vstore16(fma(convert_float16(high >> 28), d, m), 0, out + (4 * j + i + 16) * 32);
#else
                const int16 q = as_int16(four << 24 - 8 * i) >> 24;
                vstore16(fma(convert_float16(q), d, m), 0, out + (4 * j + i) * 32);
#endif
            }
        }
#elif BITS == 4
        for (uint k = 0; k < 16; k++) {
            const int16 pair = convert_int16(vload16(k, p + BLOCK_HEAD));
            vstore16(fma(convert_float16(pair & 15), d, m), 0, out + k * 32);
            vstore16(fma(convert_float16(pair >> 4), d, m), 0, out + (k + 16) * 32);
        }
#else
        for (uint k = 0; k < BLOCK; k++) {
            const char16 q = vload16(k, (__global const char *)(p + BLOCK_HEAD));
            vstore16(fma(convert_float16(convert_int16(q)), d, m), 0, out + k * 32);
        }
#endif
    }
#else
    for (uint k = 0; k < cols; k++)
        vstore16(column16(tile, k), 0, out + k * 32);
#endif
}

/* A pair of unpacked tiles times a panel: the rows' products with token t in low[t] and high[t]. */
void panel_product(__global const float *w, __global const float *panel, uint cols, float16 *low, float16 *high)
{
    float16 a[PANEL], b[PANEL];
#pragma unroll
    for (int t = 0; t < PANEL; t++)
        a[t] = b[t] = 0;
    for (uint k = 0; k < cols; k++) {
        const float16 wa = vload16(0, w + (size_t)k * 32), wb = vload16(1, w + (size_t)k * 32);
#pragma unroll
        for (int t = 0; t < PANEL; t++) {
            const float16 x = (float16)(panel[(size_t)k * PANEL + t]);
            a[t] = fma(wa, x, a[t]);
            b[t] = fma(wb, x, b[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < PANEL; t++) {
        low[t] = a[t];
        high[t] = b[t];
    }
}

/*
 * Item (i, j): the i-th share of the pairs of tiles of one part of the matrix (tile0: its first tile), the j-th share
 * of the panels. `work`: room for an unpacked pair of tiles, 32 cols floats, for each item.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
matmul_wide(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols, uint rows, uint n,
            __global const float *panels, __global float *work, __global const float *bias, __global float *y,
            ulong y_offset, ulong ldy, uint flags)
{
    const size_t item = get_global_id(0), items = get_global_size(0);
    const size_t share = get_global_id(1), shares = get_global_size(1);
    const size_t pairs = (tiles + 1) / 2, all = (n + PANEL - 1) / PANEL;
    work += (share * items + item) * 32 * cols;
    y += y_offset;
    for (size_t pair = item * pairs / items; pair < (item + 1) * pairs / items; pair++) {
        const uint tile = 2 * (uint)pair, other = min(tile + 1, tiles - 1);
        unpack_tile(w + tile * tile_bytes, cols, work);
        unpack_tile(w + other * tile_bytes, cols, work + 16);
        for (size_t p = share * all / shares; p < (share + 1) * all / shares; p++) {
            float16 low[PANEL], high[PANEL];
            panel_product(work, panels + p * PANEL * cols, cols, low, high);
            for (uint t = 0; t < PANEL && p * PANEL + t < n; t++) {
                __global float *to = y + (p * PANEL + t) * ldy;
                store16(low[t], (tile0 + tile) * TILE, rows, bias, to, flags);
                if (other != tile)
                    store16(high[t], (tile0 + other) * TILE, rows, bias, to, flags);
            }
        }
    }
}

/* ---- Group: a work-group of SIDE x SIDE for BLOCK_ROWS rows and as many tokens, 4 x 4 outputs an item ---- */

#define SIDE 16
#define BLOCK_ROWS (4 * SIDE)
#define DEPTH 32               /* columns in local memory at a time */
#define PITCH (BLOCK_ROWS + 4) /* of its rows, so that float4 stay aligned */

/* Group t: token t's x / sqrt(mean(x^2) + eps) * gain into out (n, cols). */
__kernel __attribute__((reqd_work_group_size(SIDE * SIDE, 1, 1))) void
matmul_normalise(uint cols, __global const float *x, ulong x_offset, __global const float *gain, float eps,
                 __global float *out)
{
    __local float squares[SIDE * SIDE];
    const uint item = get_local_id(0);
    const size_t token = get_group_id(0);
    float sum = 0;
    x += x_offset + token * cols;
    for (uint k = item; k < cols; k += SIDE * SIDE)
        sum = fma(x[k], x[k], sum);
    squares[item] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = SIDE * SIDE / 2; half_size > 0; half_size /= 2) {
        if (item < half_size)
            squares[item] += squares[item + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float scale = 1.0f / sqrt(squares[0] / cols + eps);
    for (uint k = item; k < cols; k += SIDE * SIDE)
        out[token * cols + k] = x[k] * scale * gain[k];
}

/*
 * Group (i, j): rows BLOCK_ROWS i .. of one part of the matrix (tile0: its first tile), tokens BLOCK_ROWS j .. of x
 * (n, cols), which is prepared. Value (column k, row or token r) of the two factors stands at k * PITCH + r in local
 * memory.
 */
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
matmul_group(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols, uint rows, uint n,
             __global const float *x, ulong x_offset, __global const float *bias, __global float *y, ulong y_offset,
             ulong ldy, uint flags)
{
    __local float ws[DEPTH * PITCH], xs[DEPTH * PITCH];
    const uint i = get_local_id(0), j = get_local_id(1), item = j * SIDE + i;
    const uint first_tile = get_group_id(0) * (BLOCK_ROWS / TILE), first_token = get_group_id(1) * BLOCK_ROWS;
    const uint w_row = item % BLOCK_ROWS, w_tile = first_tile + w_row / TILE, x_col = item % DEPTH;
    __global const uchar *tile = w + (size_t)min(w_tile, tiles - 1) * tile_bytes;
    float4 sum[4] = {0, 0, 0, 0}; /* of token 4 j + t: 4 rows */
    for (uint k0 = 0; k0 < cols; k0 += DEPTH) {
        for (uint k = item / BLOCK_ROWS; k < DEPTH; k += SIDE * SIDE / BLOCK_ROWS)
            ws[k * PITCH + w_row] = k0 + k < cols && w_tile < tiles ? element(tile, w_row % TILE, k0 + k) : 0.0f;
        for (uint t = item / DEPTH; t < BLOCK_ROWS; t += SIDE * SIDE / DEPTH) {
            const size_t at = (size_t)(first_token + t) * cols + k0 + x_col;
            xs[x_col * PITCH + t] = k0 + x_col < cols && first_token + t < n ? x[x_offset + at] : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint k = 0; k < DEPTH; k++) {
            const float4 a = vload4(i, ws + k * PITCH), b = vload4(j, xs + k * PITCH);
            sum[0] = fma(a, (float4)(b.x), sum[0]);
            sum[1] = fma(a, (float4)(b.y), sum[1]);
            sum[2] = fma(a, (float4)(b.z), sum[2]);
            sum[3] = fma(a, (float4)(b.w), sum[3]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (uint t = 0; t < 4; t++) {
        const uint token = first_token + 4 * j + t;
        const float part[4] = {sum[t].x, sum[t].y, sum[t].z, sum[t].w};
        for (uint r = 0; r < 4; r++) {
            const size_t row = (size_t)(tile0 + first_tile) * TILE + 4 * i + r;
            if (token >= n || row >= rows || first_tile + (4 * i + r) / TILE >= tiles)
                continue;
            __global float *to = y + y_offset + token * ldy + row;
            float v = part[r];
            if (flags & FLAG_BIAS)
                v += bias[row];
            if (flags & FLAG_ADD)
                v += *to;
            *to = v;
        }
    }
}
