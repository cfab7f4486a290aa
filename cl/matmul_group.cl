/*
 * Weight matrices: products with many vectors on devices of coalesced groups. Built behind cl/weights_group.cl, a
 * program for each TOKENS.
 *
 * A group of 256 items makes ROWS x TOKENS outputs. For DEPTH columns at a time, the rows of 8 tiles are unpacked into
 * local memory as floats, the tokens' values put beside them, while the next ones are on their way in registers. The
 * columns are summed in one order whatever TOKENS and the number of tokens; with several shares of the columns
 * (get_num_groups(2)) each group's sums go to `partial`, and matmul_sum adds them in their order.
 *
 * MMA 1: NVIDIA's matrix units, by inline PTX. Both factors are cut into two parts of 11 bits, so that products lose no
 * more than 2^-21 of their value; float sums.
 */
#ifndef TOKENS
#define TOKENS 64 /* or 128 */
#endif
#ifndef MMA
#define MMA 0
#endif
#define SIDE 16
#define ITEMS (SIDE * SIDE)
#define ROWS 128
#define TILES (ROWS / TILE)
#define DEPTH 32
#define W_PITCH (ROWS + 8)  /* floats of a column in local memory: no two of 4 columns x 8 quads share a bank */
#define X_PITCH (DEPTH + 4) /* floats of a token */
#define X_LOADS (TOKENS * DEPTH / 4 / ITEMS)

/* ---- Weights: an item has 8 rows (`half`) of columns k and k + 16 of the 32 ---- */

/* The bytes of an item's weights, as they are stored. */
typedef struct packed_pair {
#if !QUANTIZED
    packed8 a, b;
#elif BITS == 8
    char8 a, b;
#else
    uchar8 a;
#endif
} packed_pair;

static inline packed_pair pair_fetch(const __global uchar *tile, uint cols, uint first, uint k, uint half_tile)
{
    packed_pair p;
#if QUANTIZED
    const uint col = min(first, cols - DEPTH); /* columns come in whole blocks of 32 */
    const __global uchar *q = block_at(tile, col / BLOCK) + BLOCK_HEAD + k * TILE + 8 * half_tile;
#if BITS == 4
    p.a = *(const __global uchar8 *)q;
#else
    p.a = *(const __global char8 *)q;
#if BLOCK == 32
    p.b = *(const __global char8 *)(q + 16 * TILE);
#else
    q = block_at(tile, col / BLOCK + 1) + BLOCK_HEAD + k * TILE + 8 * half_tile;
    p.b = *(const __global char8 *)q;
#endif
#endif
#else
    const uint a = min(first + k, cols - 1), b = min(first + k + 16, cols - 1);
    p.a = ((const __global packed8 *)tile)[(size_t)a * 2 + half_tile];
    p.b = ((const __global packed8 *)tile)[(size_t)b * 2 + half_tile];
#endif
    return p;
}

static inline void put8(__local float *to, float8 v)
{
    ((__local float4 *)to)[0] = v.lo;
    ((__local float4 *)to)[1] = v.hi;
}

/* Unpack into columns k and k + 16 of local memory. */
static inline void pair_store(packed_pair p, const __global uchar *tile, uint first, uint k, uint half_tile,
                              __local float *to)
{
#if QUANTIZED
    const __global uchar *block = block_at(tile, first / BLOCK), *super = super_at(tile, first / BLOCK);
    const float8 d = SCALES8(half_tile, block, super);
#if HAS_MIN
    const float8 m = MINIMUMS8(half_tile, block, super, d);
#else
    const float8 m = 0;
#endif
#if BITS == 4
    put8(to + k * W_PITCH, fma(convert_float8(p.a & (uchar8)(15)), d, m));
    put8(to + (k + 16) * W_PITCH, fma(convert_float8(p.a >> (uchar8)(4)), d, m));
#else
#if BLOCK == 32
    const float8 e = d;
#else
    block = block_at(tile, first / BLOCK + 1);
    const float8 e = SCALES8(half_tile, block, super_at(tile, first / BLOCK + 1));
#endif
    put8(to + k * W_PITCH, fma(convert_float8(p.a), d, m));
    put8(to + (k + 16) * W_PITCH, fma(convert_float8(p.b), e, m));
#endif
#else
    put8(to + k * W_PITCH, floats8(p.a));
    put8(to + (k + 16) * W_PITCH, floats8(p.b));
#endif
}

/* ---- Inputs: item's `load`-th 4 columns of a token ---- */

#define X_TOKEN(LOAD) (((LOAD) * ITEMS + item) / (DEPTH / 4))
#define X_COLUMN (item % (DEPTH / 4) * 4)

/* Columns past the last are zero. `aligned`: rows begin at multiples of 16 bytes. */
static inline float4 input_fetch(const __global float *row, uint cols, uint col, bool aligned)
{
    if (aligned && col + 4 <= cols)
        return *(const __global float4 *)(row + col);
    return (float4)(col < cols ? row[col] : 0.0f, col + 1 < cols ? row[col + 1] : 0.0f,
                    col + 2 < cols ? row[col + 2] : 0.0f, col + 3 < cols ? row[col + 3] : 0.0f);
}

/* ---- Outputs ---- */

typedef struct outputs {
    __global float *y;          /* of this group's share of the columns */
    const __global float *bias; /* of all rows */
    ulong ldy;
    uint rows, limit, n, flags; /* rows of the matrix; end of those of this part */
} outputs;

/* Rows row .. row + 3 of a token. */
static inline void put4(const outputs *to, float4 v, uint row, uint token)
{
    const float part[4] = {v.x, v.y, v.z, v.w};
    if (token >= to->n)
        return;
    __global float *y = to->y + token * to->ldy;
    UNROLL_GROUP
    for (uint r = 0; r < 4; r++)
        if (row + r < to->limit) {
            float f = part[r];
            if (to->flags & FLAG_BIAS)
                f += to->bias[row + r];
            if (to->flags & FLAG_ADD)
                f += y[row + r];
            y[row + r] = f;
        }
}

/* ---- Products of DEPTH columns in local memory ---- */

#if MMA
#define WARP_ROWS 32
#define WARPS_ROWS (ROWS / WARP_ROWS)
#define WARP_TOKENS (TOKENS / (ITEMS / 32 / WARPS_ROWS))
#define WARP_PARTS (WARP_TOKENS / 8)
#define EXACT (TYPE == TYPE_F16 || TYPE == TYPE_BF16) /* weights of no more than 11 bits */

/* Item's sums: of tokens 8 p + 2 (lane % 4) (x, z) and the next (y, w), rows 4 (lane / 4) .. + 3 in two pairs. */
typedef struct group_sums {
    float4 low[WARP_PARTS], high[WARP_PARTS];
} group_sums;

static inline uint tf32(float x) { return (as_uint(x) + 0x1000u) & 0xffffe000u; }

static inline void mma(float4 *c, const uint *a, const uint *b)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c->x), "+f"(c->y), "+f"(c->z), "+f"(c->w)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The part of x that tf32 holds, and that of what is left. */
static inline void cut(float x, uint *head, uint *tail)
{
    *head = tf32(x);
    *tail = tf32(x - as_float(*head));
}

/* The same of four weights. Those of 11 bits have no tails; rounding them, for nothing, makes the kernel a fifth
 * faster on an H100. */
static inline void cut4(float a, float b, float c, float d, uint *head, uint *tail)
{
    cut(a, &head[0], &tail[0]);
    cut(b, &head[1], &tail[1]);
    cut(c, &head[2], &tail[2]);
    cut(d, &head[3], &tail[3]);
}

static inline void multiply(const __local float *ws, const __local float *xs, group_sums *s)
{
    const uint item = get_local_id(1) * SIDE + get_local_id(0), lane = item % 32, quad = lane / 4, k = lane % 4;
    const uint rows = item / 32 % WARPS_ROWS * WARP_ROWS, tokens = item / 32 / WARPS_ROWS * WARP_TOKENS;
    UNROLL_GROUP
    for (uint k0 = 0; k0 < DEPTH; k0 += 8) {
        const float4 a = *(const __local float4 *)(ws + (k0 + k) * W_PITCH + rows + 4 * quad);
        const float4 b = *(const __local float4 *)(ws + (k0 + k + 4) * W_PITCH + rows + 4 * quad);
        uint low[4], high[4], low_tail[4], high_tail[4];
        cut4(a.x, a.y, b.x, b.y, low, low_tail);
        cut4(a.z, a.w, b.z, b.w, high, high_tail);
        UNROLL_GROUP
        for (uint p = 0; p < WARP_PARTS; p++) {
            const __local float *x = xs + (tokens + 8 * p + quad) * X_PITCH + k0 + k;
            uint head[2], tail[2];
            cut(x[0], &head[0], &tail[0]);
            cut(x[4], &head[1], &tail[1]);
            mma(&s->low[p], low, tail);
            mma(&s->high[p], high, tail);
#if !EXACT
            mma(&s->low[p], low_tail, head);
            mma(&s->high[p], high_tail, head);
#endif
            mma(&s->low[p], low, head);
            mma(&s->high[p], high, head);
        }
    }
}

static inline void finish(const group_sums *s, const outputs *to, uint first_row, uint first_token)
{
    const uint item = get_local_id(1) * SIDE + get_local_id(0), lane = item % 32;
    const uint row = first_row + item / 32 % WARPS_ROWS * WARP_ROWS + lane / 4 * 4;
    const uint token = first_token + item / 32 / WARPS_ROWS * WARP_TOKENS + lane % 4 * 2;
    UNROLL_GROUP
    for (uint p = 0; p < WARP_PARTS; p++) {
        const float4 a = s->low[p], b = s->high[p];
        put4(to, (float4)(a.x, a.z, b.x, b.z), row, token + 8 * p);
        put4(to, (float4)(a.y, a.w, b.y, b.w), row, token + 8 * p + 1);
    }
}

#define SUMS WARP_PARTS
#else
#define SUMS (TOKENS / SIDE)

/* Item (i, j): tokens SUMS j .. , rows 4 i .. 4 i + 3 and those 64 further on. */
typedef struct group_sums {
    float4 low[SUMS], high[SUMS];
} group_sums;

#define COLUMN(C, K)                                                                   \
    {                                                                                  \
        const float4 a = *(const __local float4 *)(ws + (k0 + K) * W_PITCH + 4 * i);    \
        const float4 b = *(const __local float4 *)(ws + (k0 + K) * W_PITCH + 64 + 4 * i); \
        UNROLL_GROUP                                                                   \
        for (uint t = 0; t < SUMS; t++) {                                              \
            s->low[t] = fma(a, (float4)(x[t].C), s->low[t]);                           \
            s->high[t] = fma(b, (float4)(x[t].C), s->high[t]);                         \
        }                                                                              \
    }

static inline void multiply(const __local float *ws, const __local float *xs, group_sums *s)
{
    const uint i = get_local_id(0), j = get_local_id(1);
    UNROLL_GROUP
    for (uint k0 = 0; k0 < DEPTH; k0 += 4) {
        float4 x[SUMS];
        UNROLL_GROUP
        for (uint t = 0; t < SUMS; t++)
            x[t] = *(const __local float4 *)(xs + (SUMS * j + t) * X_PITCH + k0);
        COLUMN(x, 0)
        COLUMN(y, 1)
        COLUMN(z, 2)
        COLUMN(w, 3)
    }
}

static inline void finish(const group_sums *s, const outputs *to, uint first_row, uint first_token)
{
    const uint row = first_row + 4 * get_local_id(0), token = first_token + SUMS * get_local_id(1);
    UNROLL_GROUP
    for (uint t = 0; t < SUMS; t++) {
        put4(to, s->low[t], row, token + t);
        put4(to, s->high[t], row + 64, token + t);
    }
}
#endif

/*
 * Group (j, i, s): tokens TOKENS j .. of x (n, cols), which is prepared; rows ROWS i .. of one part of the matrix
 * (tile0: its first tile); the s-th share of the columns. With several shares y is partial (shares, n, rows).
 */
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
matmul_group(__global const uchar *w, ulong tile_bytes, uint tile0, uint tiles, uint cols, uint rows, uint n,
             __global const float *x, ulong x_offset, __global const float *bias, __global float *y, ulong y_offset,
             ulong ldy, uint flags)
{
    __local float4 ws4[DEPTH * W_PITCH / 4], xs4[TOKENS * X_PITCH / 4];
    __local float *ws = (__local float *)ws4, *xs = (__local float *)xs4;
    const uint item = get_local_id(1) * SIDE + get_local_id(0), k = item % 32 / 2, half_tile = item % 2;
    const uint first_token = get_group_id(0) * TOKENS, first_tile = get_group_id(1) * TILES;
    const uint share = get_group_id(2), shares = get_num_groups(2), steps = (cols + DEPTH - 1) / DEPTH;
    const uint end = (share + 1) * steps / shares * DEPTH;
    const __global uchar *tile = w + (size_t)min(first_tile + item / 32, tiles - 1) * tile_bytes;
    __local float *to_w = ws + item / 32 * TILE + half_tile * 8;
    const bool aligned = ((x_offset | cols) & 3) == 0;
    uint at = share * steps / shares * DEPTH;
    group_sums sums;
    float4 input[X_LOADS];

    UNROLL_GROUP
    for (uint t = 0; t < SUMS; t++)
        sums.low[t] = sums.high[t] = 0;
    x += x_offset;
    packed_pair weights = pair_fetch(tile, cols, at, k, half_tile);
    UNROLL_GROUP
    for (uint l = 0; l < X_LOADS; l++) /* tokens past the last: the last */
        input[l] = input_fetch(x + (size_t)min(first_token + X_TOKEN(l), n - 1) * cols, cols, at + X_COLUMN, aligned);
    for (; at < end; at += DEPTH) {
        pair_store(weights, tile, at, k, half_tile, to_w);
        UNROLL_GROUP
        for (uint l = 0; l < X_LOADS; l++)
            *(__local float4 *)(xs + X_TOKEN(l) * X_PITCH + X_COLUMN) = input[l];
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint next = min(at + DEPTH, end - DEPTH);
        weights = pair_fetch(tile, cols, next, k, half_tile);
        UNROLL_GROUP
        for (uint l = 0; l < X_LOADS; l++)
            input[l] = input_fetch(x + (size_t)min(first_token + X_TOKEN(l), n - 1) * cols, cols, next + X_COLUMN,
                                   aligned);
        multiply(ws, xs, &sums);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const uint first_row = (tile0 + first_tile) * TILE;
    const outputs to = {.y = y + (shares > 1 ? (size_t)share * n * rows : y_offset),
                        .bias = bias,
                        .ldy = shares > 1 ? rows : ldy,
                        .rows = rows,
                        .limit = min(rows, (tile0 + tiles) * TILE),
                        .n = n,
                        .flags = shares > 1 ? 0 : flags};
    finish(&sums, &to, first_row, first_token);
}

/* Item (row, token): the sum of its `shares` partial sums (shares, n, rows) into y; without shares its bias alone. */
__kernel void matmul_sum(uint shares, uint rows, __global const float *partial, __global const float *bias,
                         __global float *y, ulong y_offset, ulong ldy, uint flags)
{
    const size_t row = get_global_id(0), token = get_global_id(1), n = get_global_size(1);
    if (row >= rows)
        return;
    __global float *to = y + y_offset + token * ldy + row;
    float sum = 0;
    for (uint s = 0; s < shares; s++)
        sum += partial[(s * n + token) * rows + row];
    if (flags & FLAG_BIAS)
        sum += bias[row];
    if (flags & FLAG_ADD)
        sum += *to;
    *to = sum;
}

/* Tiles first .. first + count - 1 of a part as floats: (cols, 16 count). Group (c, t): 32 columns of 8 tiles. */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
matmul_unpack(__global const uchar *w, ulong tile_bytes, uint first, uint count, uint cols, __global float *out)
{
    const uint item = get_local_id(0), k = item % 32 / 2, half_tile = item % 2;
    const uint at = get_group_id(0) * DEPTH, t = get_group_id(1) * TILES + item / 32;
    __local float4 ws4[DEPTH * W_PITCH / 4];
    __local float *ws = (__local float *)ws4;
    const __global uchar *tile = w + (size_t)(first + min(t, count - 1)) * tile_bytes;
    pair_store(pair_fetch(tile, cols, at, k, half_tile), tile, at, k, half_tile,
               ws + item / 32 * TILE + half_tile * 8);
    barrier(CLK_LOCAL_MEM_FENCE);
    const size_t row = get_group_id(1) * ROWS + item % ROWS;
    for (uint c = item / ROWS; c < DEPTH; c += ITEMS / ROWS)
        if (row < count * TILE && at + c < cols)
            out[(size_t)(at + c) * count * TILE + row] = ws[c * W_PITCH + item % ROWS];
}

/* Group t: token t's x / sqrt(mean(x^2) + eps) * gain into out (n, cols). */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
matmul_normalise(uint cols, __global const float *x, ulong x_offset, __global const float *gain, float eps,
                 __global float *out)
{
    __local float squares[ITEMS];
    const uint item = get_local_id(0);
    const size_t token = get_group_id(0);
    float sum = 0;
    x += x_offset + token * cols;
    for (uint k = item; k < cols; k += ITEMS)
        sum = fma(x[k], x[k], sum);
    squares[item] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint half_size = ITEMS / 2; half_size > 0; half_size /= 2) {
        if (item < half_size)
            squares[item] += squares[item + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float scale = 1.0f / sqrt(squares[0] / cols + eps);
    for (uint k = item; k < cols; k += ITEMS)
        out[token * cols + k] = x[k] * scale * gain[k];
}
