/*
 * Merges by the scorer, `layers` layers from `layer` on and all heads in one launch: a work-item, or a group of them,
 * reads both units of one KV head of one layer of one merge whole before it writes the result, which may take the place
 * of either. src/ops/score.h has the formula.
 */

/* ---- Wide: a work-item each, vectors of 16 channels ---- */

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
    float a[16 * CHUNKS], b[16 * CHUNKS], za[16 * CHUNKS], zb[16 * CHUNKS], ha[HIDDEN], hb[HIDDEN];
    unit_load(a, za, it.a, it.rot, p);
    unit_load(b, zb, it.b, it.rot + HEAD_DIM, p);
    network(p, it.level, za, zb, ha, hb);
    const float gap = score_gap(p, it.level, key_norm(za) - key_norm(zb), ha, hb);
    const float keys = score_sigmoid(p[SCORE_SHARP_K] * gap), values = score_sigmoid(p[SCORE_SHARP_V] * gap);
    float *y = za; /* what follows needs no z */
    for (uint j = 0; j < HIDDEN; j++)
        ha[j] += hb[j];
    transposed(p + SCORE_U, ha, y);
    for (uint c = 0; c < SCORE_X; c++)
        y[c] += p[SCORE_R + it.level * SCORE_X + c];
    UNROLL
    for (uint c = 0; c < CHUNKS; c++) {
        const float16 m = weights16(c, keys, values);
        const float16 mixed = fma(m, vload16(c, a), (1.0f - m) * vload16(c, b));
        vstore16(mixed + vload16(c, y) / vload16(c, p + SCORE_SCALE), c, y);
    }
    key_turn(y, it.rot + 2 * HEAD_DIM, 1);
    half_store(y, it.out[0]);
    half_store(y + HEAD_DIM, it.out[1]);
}

/* ---- Group: SCORE_GROUP work-items each ---- */

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
        __global kv_t *const keys = it->out[0], *const values = it->out[1];
        kv_put((key ? keys : values) + first, v.x);
        kv_put((key ? keys : values) + second, v.y);
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
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE); /* the result may take the place of a unit that was read */
    group_store(&it, x[0]);
}
