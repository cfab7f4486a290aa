/*
 * Gradients of the units that a scorer merged, group shape: SCORE_GROUP work-items for a merge and KV head. Built
 * behind score_group.cl, merge_score_back.cl and group_fold.cl.
 */

/* What a group finds of its merge, in local memory: [0] is of unit a, [1] of b. */
typedef struct back_state {
    __local float (*x)[SCORE_X], (*z)[SCORE_X]; /* the units with their keys turned back */
    __local float *g, *q; /* (SCORE_X): gradients of the result, and of its residual in the channels' own scale */
    __local float (*h)[HIDDEN], (*pre)[HIDDEN]; /* hidden units, and their gradients before ELU */
    __local float *gaps;                        /* (HIDDEN): shares of D */
    __local float (*parts)[HIDDEN][SHARE], (*norms)[SHARE], *shared;
} back_state;

/* Channel c of a unit's keys (below HEAD_DIM) or values. */
static inline __global float *gradient_at(__global float *dunits, uint unit, uint kv_heads, uint head, uint c)
{
    return dunits + ((size_t)unit * 2 * kv_heads + (c < HEAD_DIM ? head : kv_heads + head)) * HEAD_DIM + c % HEAD_DIM;
}

/* |k|. */
static inline float key_size(const back_state *st, const __local float *k)
{
    float sum = 0.0f;
    for (uint c = get_local_id(0); c < HEAD_DIM; c += SCORE_GROUP)
        sum = fma(k[c], k[c], sum);
    return sqrt(group_fold(st->shared, sum, false));
}

/* Pair i of the result's key, as it is stored, turned back. */
static inline float2 result_pair(const score_item *it, uint i)
{
    const float2 k = (float2)(kv_load(it->out[0] + ROPE_FIRST(i)), kv_load(it->out[0] + ROPE_SECOND(i)));
    return rope_unturn(k, as_float2(vload2(i, it->rot + 2 * HEAD_DIM)));
}

/*
 * Add the gradient of weight (|k| / t - 1)^2 by the result's key k to g, t being the mean of both keys' lengths;
 * returns its value.
 */
static inline float magnitude(const back_state *st, const score_item *it, float weight)
{
    const float t = 0.5f * (key_size(st, st->x[0]) + key_size(st, st->x[1]));
    float sum = 0.0f;
    for (uint i = get_local_id(0); i < HEAD_DIM / 2; i += SCORE_GROUP) {
        const float2 k = result_pair(it, i);
        sum += k.x * k.x + k.y * k.y;
    }
    const float size = sqrt(group_fold(st->shared, sum, false));
    const float gap = t > 0 ? size / t - 1.0f : 0.0f;
    const float slope = t > 0 && size > 0 ? 2.0f * weight * gap / (t * size) : 0.0f;
    for (uint i = get_local_id(0); i < HEAD_DIM / 2; i += SCORE_GROUP) {
        const float2 k = result_pair(it, i);
        st->g[ROPE_FIRST(i)] = fma(slope, k.x, st->g[ROPE_FIRST(i)]);
        st->g[ROPE_SECOND(i)] = fma(slope, k.y, st->g[ROPE_SECOND(i)]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return weight * gap * gap;
}

/* q, and what is kept of the channels, zeros behind them; returns the sums of g (a - b) of keys (x) and values (y). */
static inline float2 channels_back(const back_state *st, const __global float *p, __global float *kept)
{
    float keys = 0.0f, values = 0.0f;
    for (uint c = get_local_id(0); c < KEPT_X; c += SCORE_GROUP) {
        const bool there = c < SCORE_X;
        const float q = there ? st->g[c] / p[SCORE_SCALE + c] : 0.0f;
        const float mixed = there ? st->g[c] * (st->x[0][c] - st->x[1][c]) : 0.0f;
        keys += c < HEAD_DIM ? mixed : 0.0f;
        values += c < HEAD_DIM ? 0.0f : mixed;
        kept[KEPT_Q + c] = q;
        kept[KEPT_ZA + c] = there ? st->z[0][c] : 0.0f;
        kept[KEPT_ZB + c] = there ? st->z[1][c] : 0.0f;
        if (there)
            st->q[c] = q;
    }
    const float of_keys = group_fold(st->shared, keys, false);
    return (float2)(of_keys, group_fold(st->shared, values, false));
}

/* Of the hidden units: gradients before ELU, and all that is kept. `gap`: of D. */
static inline void hidden_back(const back_state *st, const __global float *p, float gap, __global float *kept)
{
    const uint t = get_local_id(0) % SHARE;
    for (uint j = get_local_id(0) / SHARE; j < HIDDEN; j += SCORE_GROUP / SHARE) {
        float sum = 0.0f;
        for (uint c = t; c < SCORE_X; c += SHARE)
            sum = fma(p[SCORE_U + j * SCORE_X + c], st->q[c], sum);
        st->parts[0][j][t] = sum;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint j = get_local_id(0); j < HIDDEN; j += SCORE_GROUP) {
        const float both = group_sum(st->parts[0][j]), own = gap * p[SCORE_W2 + j], a = st->h[0][j], b = st->h[1][j];
        st->pre[0][j] = (both + own) * (a > 0.0f ? 1.0f : a + 1.0f);
        st->pre[1][j] = (both - own) * (b > 0.0f ? 1.0f : b + 1.0f);
        kept[KEPT_PA + j] = st->pre[0][j];
        kept[KEPT_PB + j] = st->pre[1][j];
        kept[KEPT_BOTH + j] = a + b;
        kept[KEPT_W2 + j] = gap * (a - b);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}

/* Add m g + (w1^T p + turn z, of keys alone) scale, m that of keys or values, to a unit's gradients. */
static inline void unit_back(const back_state *st, const __global float *p, uint unit, float keys, float values,
                             float turn, __global float *dunits, uint number, uint kv_heads, uint head)
{
    for (uint c = get_local_id(0); c < SCORE_X; c += SCORE_GROUP) {
        __global float *to = gradient_at(dunits, number, kv_heads, head, c);
        float dz = c < HEAD_DIM ? turn * st->z[unit][c] : 0.0f;
        for (uint j = 0; j < HIDDEN; j++)
            dz = fma(p[SCORE_W1 + j * SCORE_X + c], st->pre[unit][j], dz);
        *to += fma(c < HEAD_DIM ? keys : values, st->g[c], dz * p[SCORE_SCALE + c]);
    }
}

/* Read both units and the result's gradients; find the hidden units. Returns the norms of both keys. */
static inline float2 forward_again(const back_state *st, const score_item *it, const __global float *dunits,
                                   uint number, uint kv_heads, uint head)
{
    const __global float *p = it->p;
    group_load(it, st->x, st->z);
    for (uint c = get_local_id(0); c < SCORE_X; c += SCORE_GROUP)
        st->g[c] = *gradient_at((__global float *)dunits, number, kv_heads, head, c);
    barrier(CLK_LOCAL_MEM_FENCE);
    group_parts(p, st->z, st->parts, st->norms);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint j = get_local_id(0); j < HIDDEN; j += SCORE_GROUP) {
        const float bias = p[SCORE_B1 + it->level * HIDDEN + j];
        st->h[0][j] = score_elu(group_sum(st->parts[0][j]) + bias);
        st->h[1][j] = score_elu(group_sum(st->parts[1][j]) + bias);
        st->gaps[j] = p[SCORE_W2 + j] * (st->h[0][j] - st->h[1][j]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return (float2)(sqrt(group_sum(st->norms[0]) / HEAD_DIM), sqrt(group_sum(st->norms[1]) / HEAD_DIM));
}

/* Group head * n_merges + m. */
__kernel __attribute__((reqd_work_group_size(SCORE_GROUP, 1, 1))) void
merge_score_back_units(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint n_merges, uint layer,
                       uint kv_heads, const __global float *params, const __global uint *units, uint first,
                       float weight, __global float *dunits, __global float *kept)
{
    __local float x[2][SCORE_X], z[2][SCORE_X], g[SCORE_X], q[SCORE_X], h[2][HIDDEN], pre[2][HIDDEN], gaps[HIDDEN];
    __local float parts[2][HIDDEN][SHARE], norms[2][SHARE], shared[SCORE_GROUP];
    const back_state st = {x, z, g, q, h, pre, gaps, parts, norms, shared};
    KV_TABLE(kv);
    const score_item it =
        score_find(kv, data, merges, merge_rot, n_merges, layer, kv_heads, get_group_id(0), params);
    const uint head = get_group_id(0) / n_merges, number = first + it.m;
    const __global uint *unit = units + (size_t)number * GRAD_UNIT_WORDS;
    const __global float *p = it.p;
    __global float *out = kept + get_group_id(0) * KEPT_ROW;
    const float2 norm = forward_again(&st, &it, dunits, number, kv_heads, head);
    const float sharp_k = p[SCORE_SHARP_K], sharp_v = p[SCORE_SHARP_V], deviation = p[SCORE_DEVIATION];
    float d = deviation * (norm.x - norm.y) + p[SCORE_PRIOR + it.level];
    for (uint j = 0; j < HIDDEN; j++)
        d += st.gaps[j];
    const float keys = score_sigmoid(sharp_k * d), values = score_sigmoid(sharp_v * d);
    const float keys_b = score_sigmoid(-sharp_k * d), values_b = score_sigmoid(-sharp_v * d);
    const float loss = weight > 0 ? magnitude(&st, &it, weight) : 0.0f;
    const float2 weights = channels_back(&st, p, out) * (float2)(keys * keys_b, values * values_b);
    const float gap = weights.x * sharp_k + weights.y * sharp_v;
    hidden_back(&st, p, gap, out);
    unit_back(&st, p, 0, keys, values, norm.x > 0 ? gap * deviation / (HEAD_DIM * norm.x) : 0.0f, dunits, unit[UNIT_A],
              kv_heads, head);
    unit_back(&st, p, 1, keys_b, values_b, norm.y > 0 ? -gap * deviation / (HEAD_DIM * norm.y) : 0.0f, dunits,
              unit[UNIT_B], kv_heads, head);
    if (get_local_id(0) == 0) {
        out[KEPT_ONES + ONE_PRIOR] = gap;
        out[KEPT_ONES + ONE_DEVIATION] = gap * (norm.x - norm.y);
        out[KEPT_ONES + ONE_SHARP_K] = weights.x * d;
        out[KEPT_ONES + ONE_SHARP_V] = weights.y * d;
        out[KEPT_ONES + ONE_LOSS] = loss;
    }
}
