/*
 * Gradients of the units that a scorer merged, wide shape: a work-item for a merge and KV head, vectors of 16 channels.
 * Built behind merge_score_back.cl.
 */

static inline void unit_gradient(const __global float *dunits, uint unit, uint kv_heads, uint head, float *g)
{
    const __global float *k = dunits + ((size_t)unit * 2 * kv_heads + head) * HEAD_DIM, *v = k + kv_heads * HEAD_DIM;
    for (uint c = 0; c < HEAD_DIM; c++)
        g[c] = k[c];
    for (uint c = 0; c < HEAD_DIM; c++)
        g[HEAD_DIM + c] = v[c];
}

static inline void add_gradient(__global float *dunits, uint unit, uint kv_heads, uint head, const float *g)
{
    __global float *k = dunits + ((size_t)unit * 2 * kv_heads + head) * HEAD_DIM, *v = k + kv_heads * HEAD_DIM;
    for (uint c = 0; c < HEAD_DIM; c++)
        k[c] += g[c];
    for (uint c = 0; c < HEAD_DIM; c++)
        v[c] += g[HEAD_DIM + c];
}

/* |k|. */
static inline float key_size(const float *k) { return sqrt(key_squares(k)); }

/* Add the gradient of weight (|k| / t - 1)^2 by the result's key, as it is stored, to g; returns its value. */
static inline float magnitude(const score_item *it, float weight, float t, float *g)
{
    float k[16 * CHUNKS];
    half_load(k, it->out[0]);
    key_turn(k, it->rot + 2 * HEAD_DIM, -1);
    const float size = key_size(k);
    if (!(t > 0))
        return 0;
    const float gap = size / t - 1.0f, slope = size > 0 ? 2.0f * weight * gap / (t * size) : 0.0f;
    for (uint c = 0; c < HEAD_DIM; c++)
        g[c] = fma(slope, k[c], g[c]);
    return weight * gap * gap;
}

/* Sums over the channels of keys (x) and of values (y) of g (a - b). */
static inline float2 mixing(const float *g, const float *a, const float *b)
{
    float16 keys = 0, values = 0;
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 v = vload16(c, g) * (vload16(c, a) - vload16(c, b));
        const int16 of_keys = LANES + 16 * (int)c < HEAD_DIM;
        keys += select((float16)(0.0f), v, of_keys);
        values += first_lanes(select(v, (float16)(0.0f), of_keys), SCORE_X - 16 * (int)c);
    }
    return (float2)(sum16(keys), sum16(values));
}

/* dx = m g + (w1^T p + turn z, of keys alone) scale. */
static inline void unit_back(const __global float *p, const float *g, const float *pre, const float *z, float keys,
                             float values, float turn, float *dx)
{
    transposed(p + SCORE_W1, pre, dx);
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 dz = vload16(c, dx) + weights16(c, turn, 0) * vload16(c, z);
        vstore16(fma(weights16(c, keys, values), vload16(c, g), dz * vload16(c, p + SCORE_SCALE)), c, dx);
    }
}

/* Of the hidden units: gradients before ELU of a and b into pa and pb; all that is kept. `gap`: of D. */
static inline void hidden_back(const __global float *p, const float *q, float gap, const float *ha, const float *hb,
                               float *pa, float *pb, __global float *kept)
{
    for (uint j = 0; j < HIDDEN; j += 16) {
        const __global float *u = p + SCORE_U + j * SCORE_X;
        float16 sums[4], again[4];
        UNROLL
        for (uint i = 0; i < 4; i++)
            four_rows(u + 4 * i * SCORE_X, q, q, sums + i, again + i);
        const float16 both = fold1(fold2(sums[0], sums[1]), fold2(sums[2], sums[3]));
        const float16 own = gap * vload16(0, p + SCORE_W2 + j);
        const float16 a = vload16(0, ha + j), b = vload16(0, hb + j);
        const float16 da = (both + own) * select(a + 1.0f, (float16)(1.0f), a > 0.0f);
        const float16 db = (both - own) * select(b + 1.0f, (float16)(1.0f), b > 0.0f);
        vstore16(da, 0, pa + j);
        vstore16(db, 0, pb + j);
        vstore16(da, 0, kept + KEPT_PA + j);
        vstore16(db, 0, kept + KEPT_PB + j);
        vstore16(a + b, 0, kept + KEPT_BOTH + j);
        vstore16(gap * (a - b), 0, kept + KEPT_W2 + j);
    }
}

/* Item head * n_merges + m. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
merge_score_back_units(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint n_merges, uint layer,
                       uint kv_heads, const __global float *params, const __global uint *units, uint first,
                       float weight, __global float *dunits, __global float *kept)
{
    KV_TABLE(kv);
    const score_item it =
        score_find(kv, data, merges, merge_rot, n_merges, layer, kv_heads, get_global_id(0), params);
    const uint head = get_global_id(0) / n_merges;
    const __global uint *unit = units + (size_t)(first + it.m) * GRAD_UNIT_WORDS;
    const __global float *p = it.p;
    __global float *out = kept + get_global_id(0) * KEPT_ROW;
    float a[16 * CHUNKS], b[16 * CHUNKS], za[16 * CHUNKS], zb[16 * CHUNKS], g[16 * CHUNKS], q[16 * CHUNKS];
    float ha[HIDDEN], hb[HIDDEN], pa[HIDDEN], pb[HIDDEN];
    unit_load(a, za, it.a, it.rot, p);
    unit_load(b, zb, it.b, it.rot + HEAD_DIM, p);
    network(p, it.level, za, zb, ha, hb);
    const float na = key_norm(za), nb = key_norm(zb), d = score_gap(p, it.level, na - nb, ha, hb);
    const float sharp_k = p[SCORE_SHARP_K], sharp_v = p[SCORE_SHARP_V], deviation = p[SCORE_DEVIATION];
    const float keys = score_sigmoid(sharp_k * d), values = score_sigmoid(sharp_v * d);
    const float keys_b = score_sigmoid(-sharp_k * d), values_b = score_sigmoid(-sharp_v * d);
    unit_gradient(dunits, first + it.m, kv_heads, head, g);
    const float loss = weight > 0 ? magnitude(&it, weight, 0.5f * (key_size(a) + key_size(b)), g) : 0.0f;
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 v = first_lanes(vload16(c, g) / vload16(c, p + SCORE_SCALE), SCORE_X - 16 * (int)c);
        vstore16(v, c, q);
        vstore16(v, c, out + KEPT_Q);
        vstore16(vload16(c, za), c, out + KEPT_ZA);
        vstore16(vload16(c, zb), c, out + KEPT_ZB);
    }
    const float2 weights = mixing(g, a, b) * (float2)(keys * keys_b, values * values_b);
    const float gap = weights.x * sharp_k + weights.y * sharp_v;
    hidden_back(p, q, gap, ha, hb, pa, pb, out);
    unit_back(p, g, pa, za, keys, values, na > 0 ? gap * deviation / (HEAD_DIM * na) : 0.0f, a);
    unit_back(p, g, pb, zb, keys_b, values_b, nb > 0 ? -gap * deviation / (HEAD_DIM * nb) : 0.0f, b);
    add_gradient(dunits, unit[UNIT_A], kv_heads, head, a);
    add_gradient(dunits, unit[UNIT_B], kv_heads, head, b);
    out[KEPT_ONES + ONE_PRIOR] = gap;
    out[KEPT_ONES + ONE_DEVIATION] = gap * (na - nb);
    out[KEPT_ONES + ONE_SHARP_K] = weights.x * d;
    out[KEPT_ONES + ONE_SHARP_V] = weights.y * d;
    out[KEPT_ONES + ONE_LOSS] = loss;
}
