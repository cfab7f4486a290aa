/*
 * Weight matrices: their tiles, and what all products with them share. A matrix is a row of tiles of 16 rows; a tile
 * is its blocks of columns one after another, each block with its scales before its quants, so that both are read as
 * one stream (src/ops/matrix_cl.h). Families that multiply or read weights are built behind this file, one program for
 * each type.
 *
 * A block: d (and m) of the 16 rows, then per column (4 bits: per pair of columns k, k + 16) one item of each of the
 * 16 rows. w = d q + m; d and m are halves or, for the K types, a half of the super-block times the block's byte.
 */
#pragma OPENCL FP_CONTRACT OFF

#define TYPE_F32 0
#define TYPE_F16 1
#define TYPE_Q4_0 2
#define TYPE_Q4_1 3
#define TYPE_Q8_0 8
#define TYPE_Q4_K 12
#define TYPE_Q5_K 13
#define TYPE_Q6_K 14
#define TYPE_BF16 30

#ifndef TYPE /* the host sets all of these */
#define TYPE TYPE_Q4_1
#define BITS 4         /* of an item */
#define BLOCK 32       /* columns of a block */
#define BLOCK_HEAD 64  /* bytes before its quants */
#define BLOCK_BYTES 320
#define SUPER 1        /* blocks of a super-block */
#define SUPER_HEAD 0   /* bytes before its blocks */
#define QUADS 0        /* 1: four columns of a row side by side, for integer products */
#endif
#define TILE 16
#define SUPER_BYTES (SUPER_HEAD + SUPER * BLOCK_BYTES)
#define QUANTIZED (BLOCK > 1)
#define HAS_MIN (TYPE == TYPE_Q4_0 || TYPE == TYPE_Q4_1 || TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K)

/* Where the item of a column (4 bits: of a pair of columns) stands among a block's quants. */
#if QUADS
#define ITEM_AT(K, ROW) ((K) / 4 * 4 * TILE + (ROW) * 4 + (K) % 4)
#else
#define ITEM_AT(K, ROW) ((K) * TILE + (ROW))
#endif

#define INPUT_PLAIN 0
#define INPUT_RMSNORM 1
#define INPUT_SWIGLU 2

#define FLAG_ADD 1
#define FLAG_BIAS 2

#define CAT_(A, B) A##B
#define CAT(A, B) CAT_(A, B)
#define HALVES(N, I, P) CAT(vload_half, N)(I, (__global const half *)(P))
#define BYTES(N, I, P) CAT(convert_float, N)(CAT(vload, N)(I, P))
#define SIGNED_BYTES(N, I, P) CAT(convert_float, N)(CAT(vload, N)(I, (__global const char *)(P)))

/* Rows N I .. N I + N - 1 of a block: scales and minimums; S is the super-block. */
#if TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
#define SCALES(N, I, P, S) (HALVES(N, I, S) * BYTES(N, I, P))
#define MINIMUMS(N, I, P, S, D) (-(HALVES(N, (I) + TILE / N, S) * BYTES(N, (I) + TILE / N, P)))
#elif TYPE == TYPE_Q6_K
#define SCALES(N, I, P, S) (HALVES(N, I, S) * SIGNED_BYTES(N, I, P))
#else
#define SCALES(N, I, P, S) HALVES(N, I, P)
#if TYPE == TYPE_Q4_1
#define MINIMUMS(N, I, P, S, D) HALVES(N, (I) + TILE / N, P)
#else
#define MINIMUMS(N, I, P, S, D) (-8.0f * (D)) /* Q4_0: d (q - 8); exact, for d has 11 bits */
#endif
#endif

__global const uchar *super_at(__global const uchar *tile, uint block)
{
    return tile + (size_t)(block / SUPER) * SUPER_BYTES;
}

__global const uchar *block_at(__global const uchar *tile, uint block)
{
    return super_at(tile, block) + SUPER_HEAD + (size_t)(block % SUPER) * BLOCK_BYTES;
}

#if !QUANTIZED
/* The 16 rows of a column. */
float16 column16(__global const uchar *tile, size_t col)
{
#if TYPE == TYPE_F32
    return vload16(col, (__global const float *)tile);
#elif TYPE == TYPE_F16
    return load_half16((__global const half *)tile + col * TILE);
#else
    return as_float16(convert_uint16(vload16(col, (__global const ushort *)tile)) << 16);
#endif
}
#endif

/* One element, in the arithmetic of the file format's definition. */
float element(__global const uchar *tile, uint row, uint col)
{
#if TYPE == TYPE_F32
    return ((__global const float *)tile)[(size_t)col * TILE + row];
#elif TYPE == TYPE_F16
    return vload_half((size_t)col * TILE + row, (__global const half *)tile);
#elif TYPE == TYPE_BF16
    return as_float((uint)((__global const ushort *)tile)[(size_t)col * TILE + row] << 16);
#else
    __global const uchar *p = block_at(tile, col / BLOCK);
    const uint k = col % BLOCK;
#if BITS == 4
    const int q = p[BLOCK_HEAD + ITEM_AT(k % 16, row)] >> (k / 16 * 4) & 15;
#else
    const int q = ((__global const char *)p)[BLOCK_HEAD + ITEM_AT(k, row)];
#endif
#if TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
    __global const half *s = (__global const half *)super_at(tile, col / BLOCK);
    return vload_half(row, s) * p[row] * q - vload_half(TILE + row, s) * p[TILE + row];
#elif TYPE == TYPE_Q6_K
    return vload_half(row, (__global const half *)super_at(tile, col / BLOCK)) * ((__global const char *)p)[row] * q;
#elif TYPE == TYPE_Q4_1
    return vload_half(row, (__global const half *)p) * q + vload_half(TILE + row, (__global const half *)p);
#elif TYPE == TYPE_Q4_0
    return vload_half(row, (__global const half *)p) * (q - 8);
#else
    return vload_half(row, (__global const half *)p) * q;
#endif
#endif
}

/* ---- Inputs and outputs ---- */

void normalise(__global const float *x, __global const float *gain, float eps, uint cols, __global float *out)
{
    float16 squares = 0;
    float tail = 0;
    uint k = 0;
    for (; k + 16 <= cols; k += 16) {
        const float16 v = vload16(0, x + k);
        squares = fma(v, v, squares);
    }
    for (uint i = k; i < cols; i++)
        tail = fma(x[i], x[i], tail);
    const float scale = 1.0f / sqrt((sum16(squares) + tail) / cols + eps);
    for (k = 0; k + 16 <= cols; k += 16)
        vstore16(vload16(0, x + k) * scale * vload16(0, gain + k), 0, out + k);
    for (; k < cols; k++)
        out[k] = x[k] * scale * gain[k];
}

void swiglu(__global const float *x, uint cols, __global float *out)
{
    uint k = 0;
    for (; k + 16 <= cols; k += 16) {
        const float16 v = vload16(0, x + k);
        vstore16(v / (1.0f + exp(-v)) * vload16(0, x + cols + k), 0, out + k);
    }
    for (; k < cols; k++)
        out[k] = x[k] / (1.0f + exp(-x[k])) * x[cols + k];
}

void store16(float16 v, uint row, uint rows, __global const float *bias, __global float *y, uint flags)
{
    if (row + TILE <= rows) {
        if (flags & FLAG_BIAS)
            v += vload16(0, bias + row);
        if (flags & FLAG_ADD)
            v += vload16(0, y + row);
        vstore16(v, 0, y + row);
        return;
    }
    float part[TILE];
    vstore16(v, 0, part);
    for (uint r = row; r < rows; r++) {
        float f = part[r - row];
        if (flags & FLAG_BIAS)
            f += bias[r];
        if (flags & FLAG_ADD)
            f += y[r];
        y[r] = f;
    }
}
