/*
 * Merges by the scorer, `layers` layers from `layer` on and all heads in one launch: a work-item, or a group of them,
 * reads both units of one KV head of one layer of one merge whole before it writes the result, which may take the place
 * of either. src/ops/score.h has the formula.
 */

/* ---- Wide: a work-item each, vectors of 16 channels ---- */

#define LANES (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define CHUNKS ((SCORE_X + 15) / 16)
#define RESIDUAL_CHUNKS 8 /* of the residual, in registers at a time */

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

/* sqrt(mean z^2) of the keys. */
static inline float key_norm(const float *z)
{
    float16 sum = 0;
    UNROLL
    for (uint c = 0; c < (HEAD_DIM + 15) / 16; c++) {
        const float16 v = first_lanes(vload16(c, z), HEAD_DIM - 16 * (int)c);
        sum = fma(v, v, sum);
    }
    return sqrt(sum16(sum) / HEAD_DIM);
}

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

/* s_a - s_b, the norms' part left out; h_a + h_b into `both`. */
static inline float network(const __global float *p, uint level, const float *za, const float *zb, float *both)
{
    float16 gap = 0;
    for (uint j = 0; j < HIDDEN; j += 16) {
        const __global float *w = p + SCORE_W1 + j * SCORE_X;
        const float16 bias = vload16(0, p + SCORE_B1 + level * HIDDEN + j);
        float16 a[4], b[4];
        UNROLL
        for (uint i = 0; i < 4; i++)
            four_rows(w + 4 * i * SCORE_X, za, zb, a + i, b + i);
        const float16 ha = elu16(fold1(fold2(a[0], a[1]), fold2(a[2], a[3])) + bias);
        const float16 hb = elu16(fold1(fold2(b[0], b[1]), fold2(b[2], b[3])) + bias);
        gap = fma(vload16(0, p + SCORE_W2 + j), ha - hb, gap);
        vstore16(ha + hb, 0, both + j);
    }
    return sum16(gap);
}

/* y = u^T both + r; its last vector may hold more. */
static inline void residual(const __global float *p, uint level, const float *both, float *y)
{
    const __global float *u = p + SCORE_U, *r = p + SCORE_R + level * SCORE_X;
    for (uint first = 0; first < CHUNKS; first += RESIDUAL_CHUNKS) {
        float16 sum[RESIDUAL_CHUNKS];
        UNROLL
        for (uint c = 0; c < RESIDUAL_CHUNKS; c++)
            sum[c] = 0;
        for (uint j = 0; j < HIDDEN; j++) {
            UNROLL
            for (uint c = 0; c < RESIDUAL_CHUNKS; c++)
                if (first + c < CHUNKS)
                    sum[c] = fma(vload16(first + c, u + j * SCORE_X), (float16)(both[j]), sum[c]);
        }
        UNROLL
        for (uint c = 0; c < RESIDUAL_CHUNKS; c++)
            if (first + c < CHUNKS)
                vstore16(sum[c], first + c, y);
    }
    for (uint c = 0; c < SCORE_X; c++)
        y[c] += r[c];
}

static inline void half_store(const float *x, __global kv_t *row)
{
    for (uint c = 0; c < HEAD_DIM; c++)
        kv_put(row + c, x[c]);
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
merge_score_wide(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint n_merges, uint layer,
                 uint kv_heads, const __global float *params)
{
    KV_TABLE(kv);
    const score_item it =
        score_find(kv, data, merges, merge_rot, n_merges, layer, kv_heads, get_global_id(0), params);
    const __global float *p = it.p;
    float a[16 * CHUNKS], b[16 * CHUNKS], za[16 * CHUNKS], zb[16 * CHUNKS], both[HIDDEN];
    unit_load(a, za, it.a, it.rot, p);
    unit_load(b, zb, it.b, it.rot + HEAD_DIM, p);
    const float norms = p[SCORE_DEVIATION] * (key_norm(za) - key_norm(zb));
    const float gap = network(p, it.level, za, zb, both) + norms + p[SCORE_PRIOR + it.level];
    const float keys = score_sigmoid(p[SCORE_SHARP_K] * gap), values = score_sigmoid(p[SCORE_SHARP_V] * gap);
    float *y = za; /* what follows needs no z */
    residual(p, it.level, both, y);
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 m = select((float16)(values), (float16)(keys), LANES + 16 * (int)c < HEAD_DIM);
        const float16 mixed = fma(m, vload16(c, a), (1.0f - m) * vload16(c, b));
        vstore16(mixed + vload16(c, y) / vload16(c, p + SCORE_SCALE), c, y);
    }
    key_turn(y, it.rot + 2 * HEAD_DIM, 1);
    half_store(y, it.out[0]);
    half_store(y + HEAD_DIM, it.out[1]);
}

/* ---- Group: SCORE_GROUP work-items each ---- */

#define SCORE_GROUP 128
#define SHARE 16 /* work-items of a sum */

/* Of both units, item (t, j) of SHARE x SCORE_GROUP / SHARE: the t-th part of hidden unit j's sum, from all j. */
static inline void group_parts(const __global float *p, const __local float (*z)[SCORE_X],
                               __local float (*parts)[HIDDEN][SHARE], __local float (*norms)[SHARE])
{
    const uint t = get_local_id(0) % SHARE;
    for (uint j = get_local_id(0) / SHARE; j < HIDDEN; j += SCORE_GROUP / SHARE) {
        const __global float *w = p + SCORE_W1 + j * SCORE_X;
        float a = 0, b = 0;
        for (uint c = t; c < SCORE_X; c += SHARE) {
            a = fma(w[c], z[0][c], a);
            b = fma(w[c], z[1][c], b);
        }
        parts[0][j][t] = a;
        parts[1][j][t] = b;
    }
    const uint unit = get_local_id(0) / SHARE;
    if (unit < 2) {
        float sum = 0;
        for (uint c = t; c < HEAD_DIM; c += SHARE)
            sum = fma(z[unit][c], z[unit][c], sum);
        norms[unit][t] = sum;
    }
}

static inline float group_sum(const __local float *parts)
{
    float sum = 0;
    for (uint t = 0; t < SHARE; t++)
        sum += parts[t];
    return sum;
}

/* Both units without rotation, and z of them, by pairs of channels: first those of keys. */
static inline void group_load(const score_item *it, __local float (*x)[SCORE_X], __local float (*z)[SCORE_X])
{
    for (uint i = get_local_id(0); i < SCORE_X; i += SCORE_GROUP) {
        const uint unit = i / HEAD_DIM, pair = i % HEAD_DIM; /* pairs of keys, then of values */
        const bool key = pair < HEAD_DIM / 2;
        const uint n = key ? pair : pair - HEAD_DIM / 2;
        const uint first = key ? ROPE_FIRST(n) : 2 * n, second = key ? ROPE_SECOND(n) : 2 * n + 1;
        const __global kv_t *row = unit ? it->b[!key] : it->a[!key];
        float2 v = (float2)(kv_load(row + first), kv_load(row + second));
        if (key)
            v = rope_unturn(v, as_float2(vload2(n, it->rot + unit * HEAD_DIM)));
        const uint base = key ? 0 : HEAD_DIM;
        const uint places[2] = {base + first, base + second};
        x[unit][places[0]] = v.x;
        x[unit][places[1]] = v.y;
        for (uint k = 0; k < 2; k++)
            z[unit][places[k]] =
                (x[unit][places[k]] - it->p[SCORE_MEAN + places[k]]) * it->p[SCORE_SCALE + places[k]];
    }
}

/* The merged unit into x[0], channel by channel. */
static inline void group_merge(const __global float *p, uint level, float keys, float values,
                               const __local float *both, __local float (*x)[SCORE_X])
{
    for (uint c = get_local_id(0); c < SCORE_X; c += SCORE_GROUP) {
        const float m = c < HEAD_DIM ? keys : values;
        float e = p[SCORE_R + level * SCORE_X + c];
        for (uint j = 0; j < HIDDEN; j++)
            e = fma(p[SCORE_U + j * SCORE_X + c], both[j], e);
        x[0][c] = fma(m, x[0][c], (1.0f - m) * x[1][c]) + e / p[SCORE_SCALE + c];
    }
}

static inline void group_store(const score_item *it, const __local float *x)
{
    for (uint i = get_local_id(0); i < HEAD_DIM; i += SCORE_GROUP) {
        const bool key = i < HEAD_DIM / 2;
        const uint n = key ? i : i - HEAD_DIM / 2;
        const uint first = key ? ROPE_FIRST(n) : 2 * n, second = key ? ROPE_SECOND(n) : 2 * n + 1;
        const __local float *from = key ? x : x + HEAD_DIM;
        float2 v = (float2)(from[first], from[second]);
        if (key)
            v = rope_turn(v, as_float2(vload2(n, it->rot + 2 * HEAD_DIM)));
        kv_put(it->out[!key] + first, v.x);
        kv_put(it->out[!key] + second, v.y);
    }
}

__kernel __attribute__((reqd_work_group_size(SCORE_GROUP, 1, 1))) void
merge_score_group(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint n_merges, uint layer,
                  uint kv_heads, const __global float *params)
{
    __local float x[2][SCORE_X], z[2][SCORE_X];
    __local float parts[2][HIDDEN][SHARE], norms[2][SHARE];
    __local float both[HIDDEN], gaps[HIDDEN];
    KV_TABLE(kv);
    const score_item it =
        score_find(kv, data, merges, merge_rot, n_merges, layer, kv_heads, get_group_id(0), params);
    const __global float *p = it.p;
    group_load(&it, x, z);
    barrier(CLK_LOCAL_MEM_FENCE);
    group_parts(p, z, parts, norms);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint j = get_local_id(0); j < HIDDEN; j += SCORE_GROUP) {
        const float bias = p[SCORE_B1 + it.level * HIDDEN + j];
        const float ha = score_elu(group_sum(parts[0][j]) + bias), hb = score_elu(group_sum(parts[1][j]) + bias);
        both[j] = ha + hb;
        gaps[j] = p[SCORE_W2 + j] * (ha - hb);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    float gap = p[SCORE_DEVIATION] * (sqrt(group_sum(norms[0]) / HEAD_DIM) - sqrt(group_sum(norms[1]) / HEAD_DIM)) +
                p[SCORE_PRIOR + it.level];
    for (uint j = 0; j < HIDDEN; j++)
        gap += gaps[j];
    group_merge(p, it.level, score_sigmoid(p[SCORE_SHARP_K] * gap), score_sigmoid(p[SCORE_SHARP_V] * gap), both, x);
    barrier(CLK_LOCAL_MEM_FENCE);
    group_store(&it, x[0]);
}
