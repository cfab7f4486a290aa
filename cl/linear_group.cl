/*
 * Weight matrices: products with few vectors on devices of coalesced groups. Built behind cl/weights_group.cl and
 * cl/lanes.cl. A work-group makes 16 rows of one token: its items share the columns, and add their parts in a fixed
 * order, within windows of 16 items first.
 */
#ifndef ITEMS
#define ITEMS 256 /* of a group: a power of two, 16 at least */
#endif
#ifndef AHEAD
#define AHEAD 4 /* loads of an item on their way at a time */
#endif

#define LANES (QUANTIZED ? 4 : 2) /* items that share a column: of 4 rows each, or of 8 */
#define WINDOW 16                 /* items whose parts are added first: as many as rows */
#define WINDOWS (ITEMS / WINDOW)

typedef struct input_vector {
    const __global float *x, *gain;
    uint cols;
} input_vector;

/* What the weights of a column are multiplied with, but for the norm's factor; adds the square of x. */
static inline float input_at(const input_vector *in, uint kind, uint col, float *squares)
{
    const float v = in->x[col];
    if (kind == INPUT_PLAIN)
        return v;
    if (kind == INPUT_SWIGLU)
        return v / (1.0f + exp(-v)) * in->x[in->cols + col];
    *squares = fma(v, v, *squares);
    return v * in->gain[col];
}

#if QUANTIZED

/* Four rows (`quad`) of 4-bit pairs, or of columns, first + 4 i of a block. */
#define WORDS (BITS == 4 ? 4 : BLOCK / 4)
#define BLOCKS_AHEAD (AHEAD * 2 / WORDS > 0 ? AHEAD * 2 / WORDS : 1)

static inline float4 halves4(const __global uchar *p) { return half_float4(*(const __global ushort4 *)p); }

static inline float4 bytes4(const __global uchar *p) { return convert_float4(*(const __global uchar4 *)p); }
static inline float4 signed4(const __global uchar *p) { return convert_float4(*(const __global char4 *)p); }

/* As SCALES and MINIMUMS of cl/weights.cl. */
#if TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
#define SCALES4(Q, P, S) (halves4((S) + 8 * (Q)) * bytes4((P) + 4 * (Q)))
#define MINIMUMS4(Q, P, S, D) (-(halves4((S) + 32 + 8 * (Q)) * bytes4((P) + 16 + 4 * (Q))))
#elif TYPE == TYPE_Q6_K
#define SCALES4(Q, P, S) (halves4((S) + 8 * (Q)) * signed4((P) + 4 * (Q)))
#else
#define SCALES4(Q, P, S) halves4((P) + 8 * (Q))
#if TYPE == TYPE_Q4_1
#define MINIMUMS4(Q, P, S, D) halves4((P) + 32 + 8 * (Q))
#else
#define MINIMUMS4(Q, P, S, D) (-8.0f * (D))
#endif
#endif

static inline float4 block_product(const uint *word, const __global uchar *tile, uint block, const input_vector *in,
                                   uint kind, float *squares)
{
    const uint quad = get_local_id(0) % 4, first = get_local_id(0) / 4 % 4;
    const __global uchar *p = block_at(tile, block);
    float4 part = 0;
    float total = 0;
    UNROLL_GROUP
    for (uint i = 0; i < WORDS; i++) {
        const uint col = block * BLOCK + first + 4 * i;
        const float v = input_at(in, kind, col, squares);
        total += v;
#if BITS == 4
        const float v16 = input_at(in, kind, col + 16, squares);
        total += v16;
        part = fma(convert_float4(as_uchar4(word[i] & 0x0f0f0f0fu)), (float4)(v), part);
        part = fma(convert_float4(as_uchar4(word[i] >> 4 & 0x0f0f0f0fu)), (float4)(v16), part);
#else
        part = fma(convert_float4(as_char4(word[i])), (float4)(v), part);
#endif
    }
    const float4 d = SCALES4(quad, p, super_at(tile, block));
#if HAS_MIN
    return fma(d, part, MINIMUMS4(quad, p, super_at(tile, block), d) * total);
#else
    return d * part;
#endif
}

typedef float4 row_sums;
#define VSTORE_ROWS vstore4

static inline row_sums item_product(const __global uchar *tile, const input_vector *in, uint kind, float *squares)
{
    const uint item = get_local_id(0), blocks = in->cols / BLOCK, stride = ITEMS / 16;
    row_sums sum = 0;
    for (uint b = item / 16; b < blocks; b += BLOCKS_AHEAD * stride) {
        uint word[BLOCKS_AHEAD][WORDS];
        UNROLL_GROUP
        for (uint a = 0; a < BLOCKS_AHEAD; a++) {
            const __global uint *q =
                (const __global uint *)(block_at(tile, min(b + a * stride, blocks - 1)) + BLOCK_HEAD);
            UNROLL_GROUP
            for (uint i = 0; i < WORDS; i++)
                word[a][i] = q[(item / 4 % 4 + 4 * i) * 4 + item % 4];
        }
        UNROLL_GROUP
        for (uint a = 0; a < BLOCKS_AHEAD; a++)
            if (b + a * stride < blocks)
                sum += block_product(word[a], tile, b + a * stride, in, kind, squares);
    }
    return sum;
}

#else

typedef float8 row_sums;
#define VSTORE_ROWS vstore8

static inline row_sums item_product(const __global uchar *tile, const input_vector *in, uint kind, float *squares)
{
    const uint item = get_local_id(0), stride = ITEMS / LANES, cols = in->cols;
    const __global packed8 *w = (const __global packed8 *)tile + item % LANES; /* rows 8 (item % 2) .. + 7 */
    row_sums sum = 0;
    uint k = item / LANES;
    for (; k + (AHEAD - 1) * stride < cols; k += AHEAD * stride) {
        packed8 rows[AHEAD];
        UNROLL_GROUP
        for (uint a = 0; a < AHEAD; a++)
            rows[a] = w[(size_t)(k + a * stride) * LANES];
        UNROLL_GROUP
        for (uint a = 0; a < AHEAD; a++)
            sum = fma(floats8(rows[a]), (float8)(input_at(in, kind, k + a * stride, squares)), sum);
    }
    for (; k < cols; k += stride)
        sum = fma(floats8(w[(size_t)k * LANES]), (float8)(input_at(in, kind, k, squares)), sum);
    return sum;
}

#endif

/*
 * Sums over each window's items: of the 16 rows into sums (windows, 16), of the squares into square_sums (windows). The
 * others are room for ITEMS parts. A barrier has to follow.
 */
#if SUBGROUPS

static inline void window_sums(row_sums part, float squares, __local row_sums *parts, __local float *square_parts,
                               __local float *sums, __local float *square_sums)
{
    const uint item = get_local_id(0), each = TILE / LANES;
    float of_row[TILE / LANES];
    VSTORE_ROWS(part, 0, of_row);
    sums[item / WINDOW * TILE + item % LANES * each + item % WINDOW / LANES] = lane_sums(of_row, each, LANES, WINDOW);
    squares = lane_sums(&squares, 1, LANES, WINDOW);
    if (item % WINDOW == 0)
        square_sums[item / WINDOW] = squares;
}

#else

/* Of every LANES-th of a window's items, `stride` floats apart. */
static inline float window_sum(const __local float *p, uint stride)
{
#if QUANTIZED
    return sum4((float4)(p[0], p[stride], p[2 * stride], p[3 * stride]));
#else
    return sum8((float8)(p[0], p[stride], p[2 * stride], p[3 * stride], p[4 * stride], p[5 * stride], p[6 * stride],
                         p[7 * stride]));
#endif
}

static inline void window_sums(row_sums part, float squares, __local row_sums *parts, __local float *square_parts,
                               __local float *sums, __local float *square_sums)
{
    const uint item = get_local_id(0);
    parts[item] = part;
    square_parts[item] = squares;
    barrier(CLK_LOCAL_MEM_FENCE);
    sums[item] = window_sum((const __local float *)(parts + item / WINDOW * WINDOW) + item % TILE, TILE);
    if (item < WINDOWS)
        square_sums[item] = window_sum(square_parts + item * WINDOW, LANES);
}

#endif

/* Group (i, t): tile i of one part of the matrix (tile0: its first tile), token t. */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) SUBGROUP_KERNEL void
linear_group(__global const uchar *w, ulong tile_bytes, uint tile0, uint cols, uint rows, uint input,
             __global const float *x, ulong x_offset, ulong ldx, __global const float *gain, float eps,
             __global const float *bias, __global float *y, ulong y_offset, ulong ldy, uint flags)
{
    __local row_sums parts[SUBGROUPS ? 1 : ITEMS];
    __local float square_parts[SUBGROUPS ? 1 : ITEMS], sums[ITEMS], square_sums[WINDOWS];
    const size_t tile = get_group_id(0), token = get_group_id(1);
    const uint item = get_local_id(0);
    const input_vector in = {.x = x + x_offset + token * ldx, .gain = gain, .cols = cols};
    float squares = 0;
    row_sums part;
    w += tile * tile_bytes;
    y += y_offset + token * ldy;
    if (input == INPUT_RMSNORM)
        part = item_product(w, &in, INPUT_RMSNORM, &squares);
    else if (input == INPUT_SWIGLU)
        part = item_product(w, &in, INPUT_SWIGLU, &squares);
    else
        part = item_product(w, &in, INPUT_PLAIN, &squares);
    window_sums(part, squares, parts, square_parts, sums, square_sums);
    barrier(CLK_LOCAL_MEM_FENCE);
    const size_t row = (tile0 + tile) * TILE + item;
    if (item < TILE && row < rows) {
        float v = 0, square = 0;
        for (uint t = 0; t < WINDOWS; t++) {
            v += sums[t * TILE + item];
            square += square_sums[t];
        }
        if (input == INPUT_RMSNORM)
            v *= 1.0f / sqrt(square / cols + eps);
        if (flags & FLAG_BIAS)
            v += bias[row];
        if (flags & FLAG_ADD)
            v += y[row];
        y[row] = v;
    }
}

/* out (n, cols) = silu(x[:cols]) * x[cols:]; item (column, token). */
__kernel void linear_swiglu(uint cols, __global const float *x, ulong x_offset, __global float *out)
{
    const size_t col = get_global_id(0), token = get_global_id(1);
    if (col >= cols)
        return;
    x += x_offset + token * 2 * cols;
    out[token * cols + col] = x[col] / (1.0f + exp(-x[col])) * x[cols + col];
}
