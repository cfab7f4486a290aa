/*
 * The scorer's parameters, as src/ops/score.h lays them out in the row of one (layer, KV head), and its functions.
 */
#ifndef HIDDEN
#define HIDDEN 32 /* a multiple of 16 */
#endif
#ifndef LEVELS
#define LEVELS 9
#endif

#define SCORE_X (2 * HEAD_DIM) /* channels of a unit: keys, then values */
#define SCORE_MEAN 0
#define SCORE_SCALE SCORE_X
#define SCORE_W1 (2 * SCORE_X)
#define SCORE_B1 (SCORE_W1 + HIDDEN * SCORE_X)
#define SCORE_W2 (SCORE_B1 + LEVELS * HIDDEN)
#define SCORE_U (SCORE_W2 + HIDDEN)
#define SCORE_R (SCORE_U + HIDDEN * SCORE_X)
#define SCORE_PRIOR (SCORE_R + LEVELS * SCORE_X)
#define SCORE_BIAS (SCORE_PRIOR + LEVELS)
#define SCORE_DEVIATION (SCORE_BIAS + LEVELS)
#define SCORE_SHARP_K (SCORE_DEVIATION + 1)
#define SCORE_SHARP_V (SCORE_SHARP_K + 1)
#define SCORE_ROW ((SCORE_SHARP_V + 1 + 15) / 16 * 16)

static inline float score_sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static inline float score_elu(float x) { return x > 0 ? x : exp(x) - 1.0f; }

/* One (layer, KV head) of one merge: neighbouring items are merges of the same parameters. */
typedef struct score_item {
    uint m, level;
    const __global float *p;    /* its row of parameters */
    const __global uint *rot;   /* rotations of a, of b and of the result */
    __global kv_t *a[2], *b[2]; /* rows of keys and values */
    __global kv_t *out[2];
} score_item;

static inline score_item score_find(const __local kv_table *kv, const __global uint *data, ulong merges,
                                    ulong merge_rot, uint n_merges, uint layer, uint kv_heads, size_t item,
                                    const __global float *params)
{
    score_item it;
    it.m = item % n_merges;
    const uint row = layer * kv_heads + (uint)(item / n_merges);
    const __global uint *pair = data + merges + (size_t)it.m * MERGE_WORDS;
    it.level = min(pair[3], LEVELS - 1u);
    it.p = params + (size_t)row * SCORE_ROW;
    it.rot = data + merge_rot + (size_t)it.m * 3 * HEAD_DIM;
    for (uint w = 0; w < 2; w++) {
        const uint plane = (row / kv_heads * 2 + w) * kv_heads + row % kv_heads;
        it.a[w] = kv_row(kv, plane, pair[0]);
        it.b[w] = kv_row(kv, plane, pair[1]);
        it.out[w] = kv_row(kv, plane, pair[2]);
    }
    return it;
}

/* ---- One work-item's vectors of 16 channels ---- */

#define LANES (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define CHUNKS ((SCORE_X + 15) / 16)
#define SUM_CHUNKS 8 /* vectors of a sum of rows, in registers at a time */

static inline float16 first_lanes(float16 x, int count) { return select((float16)(0.0f), x, LANES < count); }

static inline float16 elu16(float16 x) { return select(exp(x) - 1.0f, x, x > 0.0f); }

/* Turn the key by the rotation `rot`, forward (direction 1) or back (-1). */
static inline void key_turn(float *k, const __global uint *rot, float direction)
{
#if ROPE_HALF && HEAD_DIM % 32 == 0
    UNROLL
    for (uint c = 0; c < HEAD_DIM / 32; c++) {
        const float16 r = as_float16(vload16(2 * c, rot)), q = as_float16(vload16(2 * c + 1, rot));
        const float16 cosine = (float16)(r.even, q.even), sine = direction * (float16)(r.odd, q.odd);
        const float16 x = vload16(c, k), y = vload16(c, k + HEAD_DIM / 2);
        vstore16(x * cosine - y * sine, c, k);
        vstore16(x * sine + y * cosine, c, k + HEAD_DIM / 2);
    }
#elif !ROPE_HALF && HEAD_DIM % 16 == 0
    const float8 signs = (float8)(-1, 1, -1, 1, -1, 1, -1, 1);
    const float16 sign = direction * (float16)(signs, signs);
    UNROLL
    for (uint c = 0; c < HEAD_DIM / 16; c++) {
        const float16 r = as_float16(vload16(c, rot)), x = vload16(c, k);
        vstore16(x * r.s0022446688aaccee + x.s1032547698badcfe * (sign * r.s1133557799bbddff), c, k);
    }
#else
    for (uint i = 0; i < HEAD_DIM / 2; i++) {
        float2 r = as_float2(vload2(i, rot));
        r.y *= direction;
        const float2 x = rope_turn((float2)(k[ROPE_FIRST(i)], k[ROPE_SECOND(i)]), r);
        k[ROPE_FIRST(i)] = x.x;
        k[ROPE_SECOND(i)] = x.y;
    }
#endif
}

static inline void half_load(float *x, const __global kv_t *row)
{
    UNROLL
    for (uint c = 0; c < HEAD_DIM / 16; c++)
        vstore16(KV_LOAD(16, row + 16 * c), c, x);
    for (uint c = HEAD_DIM / 16 * 16; c < HEAD_DIM; c++)
        x[c] = kv_load(row + c);
}

/* x: [k ; v] with the key turned back; z of it, zeros behind. */
static inline void unit_load(float *x, float *z, __global kv_t *const *rows, const __global uint *rot,
                             const __global float *p)
{
    half_load(x, rows[0]);
    half_load(x + HEAD_DIM, rows[1]);
    key_turn(x, rot, -1);
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 v = (vload16(c, x) - vload16(c, p + SCORE_MEAN)) * vload16(c, p + SCORE_SCALE);
        vstore16(first_lanes(v, SCORE_X - 16 * (int)c), c, z);
    }
}

/* The sum of the squares of the key's channels. */
static inline float key_squares(const float *x)
{
    float16 sum = 0;
    UNROLL
    for (uint c = 0; c < (HEAD_DIM + 15) / 16; c++) {
        const float16 v = first_lanes(vload16(c, x), HEAD_DIM - 16 * (int)c);
        sum = fma(v, v, sum);
    }
    return sum16(sum);
}

/* sqrt(mean z^2) of the keys. */
static inline float key_norm(const float *z) { return sqrt(key_squares(z) / HEAD_DIM); }

/* Products of four rows of w with both units, as four groups of four partial sums each. A row's last vector may reach
 * into what follows it, which z has zeros for. */
static inline void four_rows(const __global float *w, const float *za, const float *zb, float16 *a, float16 *b)
{
    float16 a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 x = vload16(c, za), y = vload16(c, zb);
        const float16 w0 = vload16(c, w), w1 = vload16(c, w + SCORE_X);
        const float16 w2 = vload16(c, w + 2 * SCORE_X), w3 = vload16(c, w + 3 * SCORE_X);
        a0 = fma(w0, x, a0), b0 = fma(w0, y, b0);
        a1 = fma(w1, x, a1), b1 = fma(w1, y, b1);
        a2 = fma(w2, x, a2), b2 = fma(w2, y, b2);
        a3 = fma(w3, x, a3), b3 = fma(w3, y, b3);
    }
    *a = fold4(fold8(a0, a1), fold8(a2, a3));
    *b = fold4(fold8(b0, b1), fold8(b2, b3));
}

/* h of both units. */
static inline void network(const __global float *p, uint level, const float *za, const float *zb, float *ha, float *hb)
{
    for (uint j = 0; j < HIDDEN; j += 16) {
        const __global float *w = p + SCORE_W1 + j * SCORE_X;
        const float16 bias = vload16(0, p + SCORE_B1 + level * HIDDEN + j);
        float16 a[4], b[4];
        UNROLL
        for (uint i = 0; i < 4; i++)
            four_rows(w + 4 * i * SCORE_X, za, zb, a + i, b + i);
        vstore16(elu16(fold1(fold2(a[0], a[1]), fold2(a[2], a[3])) + bias), 0, ha + j);
        vstore16(elu16(fold1(fold2(b[0], b[1]), fold2(b[2], b[3])) + bias), 0, hb + j);
    }
}

/* D, given the difference of the keys' norms. */
static inline float score_gap(const __global float *p, uint level, float norms, const float *ha, const float *hb)
{
    float16 gap = 0;
    UNROLL
    for (uint j = 0; j < HIDDEN / 16; j++)
        gap = fma(vload16(j, p + SCORE_W2), vload16(j, ha) - vload16(j, hb), gap);
    return sum16(gap) + p[SCORE_DEVIATION] * norms + p[SCORE_PRIOR + level];
}

/* y = w^T x, w (HIDDEN, SCORE_X); y's last vector may hold more. */
static inline void transposed(const __global float *w, const float *x, float *y)
{
    for (uint first = 0; first < CHUNKS; first += SUM_CHUNKS) {
        float16 sum[SUM_CHUNKS];
        UNROLL
        for (uint c = 0; c < SUM_CHUNKS; c++)
            sum[c] = 0;
        for (uint j = 0; j < HIDDEN; j++) {
            UNROLL
            for (uint c = 0; c < SUM_CHUNKS; c++)
                if (first + c < CHUNKS)
                    sum[c] = fma(vload16(first + c, w + j * SCORE_X), (float16)(x[j]), sum[c]);
        }
        UNROLL
        for (uint c = 0; c < SUM_CHUNKS; c++)
            if (first + c < CHUNKS)
                vstore16(sum[c], first + c, y);
    }
}

/* The older unit's weight in the channels of vector c. */
static inline float16 weights16(uint c, float keys, float values)
{
    return select((float16)(values), (float16)(keys), LANES + 16 * (int)c < HEAD_DIM);
}
