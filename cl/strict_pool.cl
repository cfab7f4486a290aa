/* Strict kernels over the cache's pool: attention, and merges by the scorer. A work-item makes a whole result. */

static inline void pool_row(float *x, const __global kv_t *row)
{
    for (uint c = 0; c < HEAD_DIM; c++)
        x[c] = kv_load(row + c);
}

/* Turn by a rotation of the step's data; `back`: turn back. */
static inline void key_rotate(float *x, const __global uint *rot, bool back)
{
    for (uint i = 0; i < HEAD_DIM / 2; i++) {
        const float2 pair = (float2)(x[ROPE_FIRST(i)], x[ROPE_SECOND(i)]), r = as_float2(vload2(i, rot));
        const float2 turned = back ? rope_unturn(pair, r) : rope_turn(pair, r);
        x[ROPE_FIRST(i)] = turned.x;
        x[ROPE_SECOND(i)] = turned.y;
    }
}

/* ---- Attention ---- */

typedef struct strict_attention_of {
    float most, sum;
    float q[HEAD_DIM], out[HEAD_DIM];
} strict_attention_of;

/* `count` <= 16 units of a range, from its unit j on. */
static inline void attend_units(strict_attention_of *a, const __local kv_table *kv, const __global uint *ring,
                                const __global uint *range, uint plane, uint kv_heads, uint j, uint count, float scale,
                                float bias)
{
    float score[16], x[HEAD_DIM];
    for (uint k = 0; k < count; k++) {
        pool_row(x, kv_row(kv, plane, ring[(range[RANGE_BEGIN] + j + k) & range[RANGE_MASK]]));
        score[k] = STRICT_FMA(strict_dot(a->q, x, HEAD_DIM), scale, bias);
    }
    const float keep = strict_weights(score, count, &a->most, &a->sum);
    for (uint c = 0; c < HEAD_DIM; c++)
        a->out[c] = a->out[c] * keep;
    for (uint k = 0; k < count; k++) {
        pool_row(x, kv_row(kv, plane + kv_heads, ring[(range[RANGE_BEGIN] + j + k) & range[RANGE_MASK]]));
        for (uint c = 0; c < HEAD_DIM; c++)
            a->out[c] = STRICT_FMA(score[k], x[c], a->out[c]);
    }
}

/* One work-item per (head, token). qkv is (n, (heads + 2 kv_heads) * HEAD_DIM), out (n, heads * HEAD_DIM). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
strict_attention(KV_PARAMS, const __global uint *data, const __global uint *table, ulong views, ulong query_rot,
                 uint layer, uint heads, uint kv_heads, float scale, const __global float *qkv, __global float *out)
{
    KV_TABLE(kv);
    const size_t h = get_global_id(0), t = get_global_id(1);
    const __global uint *view = data + views + t * VIEW_WORDS;
    const __global float *q = qkv + (t * (heads + 2 * kv_heads) + h) * HEAD_DIM;
    const uint kv_head = (uint)h / (heads / kv_heads), plane = layer * 2 * kv_heads + kv_head;
    const __global float *bias = (const __global float *)data + layer * kv_heads + kv_head;
    strict_attention_of a;
    a.most = -INFINITY;
    a.sum = 0.0f;
    for (uint c = 0; c < HEAD_DIM; c++)
        a.out[c] = 0.0f;
    for (uint r = 0; r < view[VIEW_N_RANGES]; r++) {
        const __global uint *range = view + VIEW_RANGE_0 + r * VIEW_RANGE_WORDS;
        const uint count = range[RANGE_COUNT];
        for (uint c = 0; c < HEAD_DIM; c++)
            a.q[c] = q[c];
        key_rotate(a.q, data + query_rot + (t * VIEW_RANGES + r) * HEAD_DIM, false);
        for (uint j = 0; j < count; j += 16)
            attend_units(&a, kv, table + range[RANGE_RING], range, plane, kv_heads, j, min(count - j, 16u), scale,
                         bias[range[RANGE_BIAS]]);
    }
    for (uint c = 0; c < HEAD_DIM; c++)
        out[(t * heads + h) * HEAD_DIM + c] = a.out[c] / a.sum;
}
