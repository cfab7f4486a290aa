/* Weight matrices: products with few vectors, and single rows. Built behind cl/weights.cl. */
#ifndef PREFETCH
#define PREFETCH 0 /* 1: ask for weights before their turn: CPUs */
#endif
#define FAR 16384 /* bytes ahead of use: into the second cache */
#define NEAR 1024 /* into the first */

#define INPUT_PREPARED 3 /* x and its sums are in `work` */

/* ---- Wide: one work-item, 16 rows in a vector ---- */

/* Where weights like the FETCHED bytes at p come later. */
#define FETCHED (QUANTIZED ? BLOCK_BYTES : 4 * BLOCK_BYTES)
void fetch_ahead(__global const uchar *p)
{
#if PREFETCH
    UNROLL
    for (int i = 0; i < FETCHED; i += 64)
        FETCH_FAR(p + FAR + i);
    UNROLL
    for (int i = 0; i < FETCHED; i += 64)
        FETCH_LINE(p + NEAR + i);
#endif
}

#if !QUADS /* else as in cl/linear_fixed.cl */
#if BITS == 4
float16 block_dot(__global const uchar *q, __global const float *x)
{
    float16 low = 0, high = 0;
#pragma unroll
    for (int k = 0; k < 16; k++) {
        const int16 pair = convert_int16(vload16(k, q));
        low = fma(convert_float16(pair & 15), (float16)(x[k]), low);
        high = fma(convert_float16(pair >> 4), (float16)(x[k + 16]), high);
    }
    return low + high;
}
#elif BITS == 8
float16 block_dot(__global const uchar *q, __global const float *x)
{
    float16 even = 0, odd = 0;
#pragma unroll
    for (int k = 0; k < BLOCK; k += 2) {
        even = fma(convert_float16(convert_int16(vload16(k, (__global const char *)q))), (float16)(x[k]), even);
        odd = fma(convert_float16(convert_int16(vload16(k + 1, (__global const char *)q))), (float16)(x[k + 1]), odd);
    }
    return even + odd;
}
#endif

#if QUANTIZED
/* The 16 rows' products with x; sums: of x over each block. */
float16 tile_dot(__global const uchar *tile, uint cols, __global const float *x, __global const float *sums)
{
    float16 sum = 0;
    for (uint b = 0; b < cols / BLOCK; b++) {
        __global const uchar *p = block_at(tile, b);
        fetch_ahead(p);
        const float16 d = SCALES(16, 0, p, super_at(tile, b));
        sum = fma(d, block_dot(p + BLOCK_HEAD, x + (size_t)b * BLOCK), sum);
#if HAS_MIN
        sum = fma(MINIMUMS(16, 0, p, super_at(tile, b), d), (float16)(sums[b]), sum);
#endif
    }
    return sum;
}
#else
float16 tile_dot(__global const uchar *tile, uint cols, __global const float *x, __global const float *sums)
{
    float16 a = 0, b = 0, c = 0, d = 0;
    uint k = 0;
    for (; k + 4 <= cols; k += 4) {
        fetch_ahead(tile + (size_t)k * BLOCK_BYTES);
        a = fma(column16(tile, k), (float16)(x[k]), a);
        b = fma(column16(tile, k + 1), (float16)(x[k + 1]), b);
        c = fma(column16(tile, k + 2), (float16)(x[k + 2]), c);
        d = fma(column16(tile, k + 3), (float16)(x[k + 3]), d);
    }
    for (; k < cols; k++)
        a = fma(column16(tile, k), (float16)(x[k]), a);
    return (a + b) + (c + d);
}
#endif
#endif

/*
 * The vector to multiply with: x itself or its transform in `work`; into work + cols the blocks' sums where the type
 * has minimums, or their fixed-point records.
 */
__global const float *prepare(uint input, __global const float *x, __global const float *gain, float eps, uint cols,
                              __global float *work)
{
    if (input == INPUT_RMSNORM)
        normalise(x, gain, eps, cols, work);
    else if (input == INPUT_SWIGLU)
        swiglu(x, cols, work);
    if (input != INPUT_PLAIN)
        x = work;
#if QUADS
    fix_blocks(x, cols, (__global int *)(work + cols));
#elif HAS_MIN
    for (uint b = 0; b < cols / BLOCK; b++)
        work[cols + b] = sum16(vload16(0, x + b * BLOCK) + vload16(0, x + b * BLOCK + 16));
#endif
    return x;
}

/* Tiles `begin` to `end` - 1 behind w, the first of which is tile0 of the matrix, with x and `work` as prepared. */
void linear_tiles(__global const uchar *w, ulong tile_bytes, uint tile0, uint begin, uint end, uint cols, uint rows,
                  __global const float *x, __global const float *work, __global const float *bias, __global float *y,
                  uint flags)
{
    for (uint t = begin; t < end; t++) {
#if QUADS
        const float16 v = tile_dot(w + t * tile_bytes, cols, (__global const int *)(work + cols));
#else
        const float16 v = tile_dot(w + t * tile_bytes, cols, x, work + cols);
#endif
        store16(v, (tile0 + t) * TILE, rows, bias, y, flags);
    }
}

#if !CHAIN
/*
 * Item (i, t): the i-th share of the tiles of one part of the matrix (tile0: its first tile), token t. `work`: room
 * for the prepared x, work_stride floats for each token (INPUT_PREPARED, written by linear_prepare) or each item.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
linear_wide(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols, uint rows, uint input,
            __global const float *x, ulong x_offset, ulong ldx, __global const float *gain, float eps,
            __global float *work, ulong work_stride, __global const float *bias, __global float *y, ulong y_offset,
            ulong ldy, uint flags)
{
    const size_t item = get_global_id(0), items = get_global_size(0), token = get_global_id(1);
    if (input == INPUT_PREPARED) {
        work += token * work_stride;
        x = work;
    } else {
        work += (token * items + item) * work_stride;
        x = prepare(input, x + x_offset + token * ldx, gain, eps, cols, work);
    }
    linear_tiles(w, tile_bytes, tile0, (uint)(item * tiles / items), (uint)((item + 1) * tiles / items), cols, rows, x,
                 work, bias, y + y_offset + token * ldy, flags);
}

/* Item t: token t's x into its slice of `work`. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
linear_prepare(uint cols, uint input, __global const float *x, ulong x_offset, ulong ldx, __global const float *gain,
               float eps, __global float *work, ulong work_stride)
{
    const size_t token = get_global_id(0);
    x += x_offset + token * ldx;
    work += token * work_stride;
    if (input == INPUT_PLAIN)
        for (uint k = 0; k < cols; k++)
            work[k] = x[k];
    prepare(input == INPUT_PLAIN ? INPUT_PREPARED : input, x, gain, eps, cols, work);
}

/* ---- Rows ---- */

/*
 * x (n, cols): item (column, token) writes its token's element if the row is in this part: tiles tile0 .. tile0 +
 * tiles - 1.
 */
__kernel void embed(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols,
                    __global const int *ids, ulong ids_offset, __global float *x)
{
    const size_t col = get_global_id(0), token = get_global_id(1);
    const uint row = (uint)ids[ids_offset + token], tile = row / TILE - tile0;
    if (col < cols && tile < tiles)
        x[token * cols + col] = element(w + tile * tile_bytes, row % TILE, (uint)col);
}
#endif
