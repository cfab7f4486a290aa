/*
 * Attention, group shape: one work-group for a split, 8 channels a work-item, a row of units at a time. Built behind
 * attention_view.cl and lanes.cl.
 */

#define ITEMS 128
#define LANES (HEAD_DIM / 8)
#define STEPS_MAX (KV_F32 ? 4 : 8) /* keys and values of a tile that an item holds in registers */
#define TILE_FITS(t) (GROUP * (t) * (LANES + 1) <= 4096 && (t) <= STEPS_MAX * (ITEMS / LANES))
#define TILE (TILE_FITS(64) ? 64 : TILE_FITS(32) ? 32 : TILE_FITS(16) ? 16 : 8)
#define ROWS (ITEMS / LANES < TILE ? ITEMS / LANES : TILE)
#define STEPS ((TILE + ROWS - 1) / ROWS)
#define SHUFFLED (SUBGROUPS && (LANES == 4 || LANES == 8 || LANES == 16)) /* scores summed by lane_sums */

#if KV_F32
typedef float8 kv8;
static inline float8 kv_float8(kv8 x) { return x; }
#else
typedef ushort8 kv8;
static inline float8 kv_float8(kv8 x) { return half_float8(x); }
#endif
static inline kv8 kv_fetch8(const __global kv_t *p) { return *(const __global kv8 *)p; }

static inline float dot8(float8 x, float8 y)
{
    float d = x.s0 * y.s0;
    d = fma(x.s1, y.s1, d);
    d = fma(x.s2, y.s2, d);
    d = fma(x.s3, y.s3, d);
    d = fma(x.s4, y.s4, d);
    d = fma(x.s5, y.s5, d);
    d = fma(x.s6, y.s6, d);
    return fma(x.s7, y.s7, d);
}

/* The largest of the TILE scores of a query head. */
static inline float tile_max(const __local float *score)
{
    float4 m = vload4(0, score);
    for (uint u = 4; u < TILE; u += 4)
        m = fmax(m, vload4(0, score + u));
    return fmax(fmax(m.x, m.y), fmax(m.z, m.w));
}

/* Channels 8 lane .. 8 lane + 7 of a query head, turned. */
static inline float8 turn8(const __global float *q, const __global uint *rot, uint lane)
{
#if ROPE_HALF
    const uint c = 8 * lane, d = c + 4;
    const float4 x = c < HEAD_DIM / 2 ? turn4(q, rot, c).lo : turn4(q, rot, c - HEAD_DIM / 2).hi;
    const float4 y = d < HEAD_DIM / 2 ? turn4(q, rot, d).lo : turn4(q, rot, d - HEAD_DIM / 2).hi;
    return (float8)(x, y);
#else
    return turn4(q, rot, 4 * lane).s04152637;
#endif
}

/* Where the units of a tile are, and their ranges; filled a tile ahead of their use. */
typedef struct tile_units {
    uint slot[TILE], range[TILE];
    float bias[TILE];
} tile_units;

/* `bias`: of the layer and KV head, from the first word of the step's data on. */
static inline void tile_find(__local tile_units *to, const __local uint *view, const __global uint *table,
                             const __global float *bias, uint tile, uint end)
{
    for (uint u = get_local_id(0); u < TILE && tile + u < end; u += ITEMS) {
        uint r = 0;
        while (tile + u - view[VIEW_RANGE_0 + r * VIEW_RANGE_WORDS + RANGE_PLACE] >=
               view[VIEW_RANGE_0 + r * VIEW_RANGE_WORDS + RANGE_COUNT])
            r++;
        const __local uint *range = view + VIEW_RANGE_0 + r * VIEW_RANGE_WORDS;
        const uint at = (range[RANGE_BEGIN] + tile + u - range[RANGE_PLACE]) & range[RANGE_MASK];
        to->slot[u] = table[range[RANGE_RING] + at];
        to->range[u] = r;
        to->bias[u] = bias[range[RANGE_BIAS]];
    }
}

/*
 * This item's eight channels of its units of a tile of `count` units; the last unit in place of those past it, so
 * that all are defined.
 */
static inline void tile_load(const __local kv_table *kv, const __local tile_units *units, uint plane, uint count,
                             kv8 *to)
{
    const uint lane = get_local_id(0) % LANES, row = get_local_id(0) / LANES;
    UNROLL_GROUP
    for (uint s = 0; s < STEPS; s++)
        to[s] = kv_fetch8(kv_row(kv, plane, units->slot[min(s * ROWS + row, count - 1)]) + lane * 8);
}

/* What an item has found so far for its channels and rows, and its channels of the queries turned for one range. */
typedef struct group_state {
    float8 q[GROUP], acc[GROUP];
    float top[GROUP], total[GROUP];
    uint turned; /* the range; VIEW_RANGES: none yet */
} group_state;

/* The queries turned for unit `u` of a tile. */
static inline void turn_queries(group_state *st, const __local tile_units *units, const __global float *query,
                                const __global uint *rot, uint u)
{
    if (units->range[u] == st->turned)
        return;
    st->turned = units->range[u];
    UNROLL_GROUP
    for (uint g = 0; g < GROUP; g++)
        st->q[g] = turn8(query + g * HEAD_DIM, rot + st->turned * HEAD_DIM, get_local_id(0) % LANES);
}

/*
 * Of a tile of `count` units either the scores, as tile_scores has them, or each item's part of those of its units: the
 * dot product over its channels.
 */
#if SHUFFLED

static inline void tile_dots(group_state *st, const __local tile_units *units, const __global float *query,
                             const __global uint *rot, uint count, const kv8 *key, __local float *score)
{
    const uint lane = get_local_id(0) % LANES, row = get_local_id(0) / LANES, share = LANES / STEPS;
    float dot[GROUP][STEPS];
    UNROLL_GROUP
    for (uint s = 0; s < STEPS; s++) {
        turn_queries(st, units, query, rot, min(s * ROWS + row, count - 1));
        UNROLL_GROUP
        for (uint g = 0; g < GROUP; g++)
            dot[g][s] = dot8(kv_float8(key[s]), st->q[g]);
    }
    const uint u = lane / share * ROWS + row; /* the unit whose score this item has then */
    UNROLL_GROUP
    for (uint g = 0; g < GROUP; g++) {
        const float sum = lane_sums(dot[g], STEPS, 1, LANES);
        if (lane % share == 0 && row < ROWS && u < TILE)
            score[g * TILE + u] = u < count ? sum + units->bias[u] : -INFINITY;
    }
}

#else

static inline void tile_dots(group_state *st, const __local tile_units *units, const __global float *query,
                             const __global uint *rot, uint count, const kv8 *key, __local float *part)
{
    const uint lane = get_local_id(0) % LANES, row = get_local_id(0) / LANES;
    UNROLL_GROUP
    for (uint s = 0; s < STEPS; s++) {
        const uint u = s * ROWS + row;
        if (row < ROWS && u < count) {
            turn_queries(st, units, query, rot, u);
            UNROLL_GROUP
            for (uint g = 0; g < GROUP; g++)
                part[(g * TILE + u) * (LANES + 1) + lane] = dot8(kv_float8(key[s]), st->q[g]);
        }
    }
}

#endif

/* The sum of a score's parts, in the order of lane_sums where that can be used. */
static inline float part_sum(const __local float *part)
{
#if LANES == 16
    return sum16(vload16(0, part));
#elif LANES == 8
    return sum8(vload8(0, part));
#elif LANES == 4
    return sum4(vload4(0, part));
#else
    float sum = part[0];
    UNROLL_GROUP
    for (uint i = 1; i < LANES; i++)
        sum += part[i];
    return sum;
#endif
}

/* The scores (GROUP, TILE) of a tile of `count` units, -INFINITY past them. */
static inline void tile_scores(const __local float *part, const __local tile_units *units, uint count,
                               __local float *score)
{
    for (uint t = get_local_id(0); t < GROUP * TILE; t += ITEMS)
        score[t] = t % TILE < count ? part_sum(part + t * (LANES + 1)) + units->bias[t % TILE] : -INFINITY;
}

/* From scores to weights relative to the largest score yet; what was summed before is scaled down to it. */
static inline void tile_softmax(group_state *st, const __local float *score, __local float *weight)
{
    UNROLL_GROUP
    for (uint g = 0; g < GROUP; g++) {
        const float m = fmax(st->top[g], tile_max(score + g * TILE));
        for (uint u = get_local_id(0); u < TILE; u += ITEMS)
            weight[g * TILE + u] = exp(score[g * TILE + u] - m);
        const float less = m > st->top[g] ? exp(st->top[g] - m) : 1.0f;
        st->total[g] *= less;
        st->acc[g] *= less;
        st->top[g] = m;
    }
}

/* Add this item's channels of its units' values by their weights. */
static inline void tile_values(group_state *st, uint count, const kv8 *value, const __local float *weight)
{
    const uint row = get_local_id(0) / LANES;
    UNROLL_GROUP
    for (uint s = 0; s < STEPS; s++) {
        const uint u = s * ROWS + row;
        if (row < ROWS && u < count) {
            const float8 v = kv_float8(value[s]);
            UNROLL_GROUP
            for (uint g = 0; g < GROUP; g++) {
                const float p = weight[g * TILE + u];
                st->total[g] += p;
                st->acc[g] = fma((float8)(p), v, st->acc[g]);
            }
        }
    }
}

/*
 * One query head's row of sums into local memory; returns the maximum. Query head g is chosen without an index into
 * registers.
 */
static inline float group_put(const group_state *st, uint g, __local float *rows)
{
    const uint lane = get_local_id(0) % LANES, row = get_local_id(0) / LANES;
    float8 acc = st->acc[0];
    float total = st->total[0], top = st->top[0];
    UNROLL_GROUP
    for (uint i = 1; i < GROUP; i++)
        if (i == g) {
            acc = st->acc[i];
            total = st->total[i];
            top = st->top[i];
        }
    if (row < ROWS) {
        vstore8(acc, lane, rows + row * (HEAD_DIM + 1));
        if (lane == 0)
            rows[row * (HEAD_DIM + 1) + PARTIAL_SUM] = total;
    }
    return top;
}

#if STORE
/* Put this KV head's new key, turned at its anchor, and the value into the token's slot. All of a group call it. */
static inline void group_store(const __local kv_table *kv, uint plane_k, uint plane_v, uint slot,
                               const __global float *k, const __global float *v, const __global uint *rot)
{
    for (uint i = get_local_id(0); i < HEAD_DIM / 2; i += ITEMS)
        kv_put_pair(kv_row(kv, plane_k, slot), kv_row(kv, plane_v, slot), k, v, rot, i);
    barrier(CLK_GLOBAL_MEM_FENCE);
}
#endif

/* Arguments as of attention_wide; a group for each of its work-items. */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) SUBGROUP_KERNEL void
attention_group(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
                const __global float *qkv, ulong qkv_row, uint layer, uint first, __global float *partial STORE_PARAMS)
{
    __local float part[SHUFFLED ? 1 : GROUP * TILE * (LANES + 1)], score[GROUP * TILE], weight[GROUP * TILE];
    __local float rows[ROWS * (HEAD_DIM + 1)];
    __local tile_units tiles[2];
    __local uint view[VIEW_WORDS];
    const uint item = get_local_id(0);
    const uint split = get_group_id(0), splits = get_num_groups(0), h = get_group_id(1), kv_heads = get_num_groups(1);
    const size_t token = first + get_group_id(2);
    for (uint i = item; i < VIEW_WORDS; i += ITEMS)
        view[i] = data[views + token * VIEW_WORDS + i];
    KV_TABLE(kv);
    const uint units = view[VIEW_UNITS], begin = split * SPLIT(units), end = min(begin + SPLIT(units), units);
    if (begin >= units)
        return;
    const __global float *query = qkv + token * qkv_row + h * GROUP * HEAD_DIM;
    const __global uint *rot = data + query_rot + token * VIEW_RANGES * HEAD_DIM;
    const uint plane_k = (layer * 2 + 0) * kv_heads + h, plane_v = (layer * 2 + 1) * kv_heads + h;
    const __global float *bias = (const __global float *)data + layer * kv_heads + h;
#if STORE
    if (end == units) {
        const __global float *k = qkv + (size_t)(kv_heads * GROUP + h) * HEAD_DIM;
        group_store(kv, plane_k, plane_v, data[slots], k, k + (size_t)kv_heads * HEAD_DIM, data + key_rot);
    }
#endif

    group_state st;
    st.turned = VIEW_RANGES;
    UNROLL_GROUP
    for (uint g = 0; g < GROUP; g++) {
        st.top[g] = -INFINITY;
        st.total[g] = 0.0f;
        st.acc[g] = (float8)(0.0f);
    }
    tile_find(&tiles[0], view, table, bias, begin, end);
    barrier(CLK_LOCAL_MEM_FENCE);

    kv8 key[STEPS], value[STEPS];
    tile_load(kv, &tiles[0], plane_k, min((uint)TILE, end - begin), key);
    for (uint tile = begin, now = 0; tile < end; tile += TILE, now ^= 1) {
        const uint count = min((uint)TILE, end - tile), next = tile + TILE;
        tile_dots(&st, &tiles[now], query, rot, count, key, SHUFFLED ? score : part);
        tile_load(kv, &tiles[now], plane_v, count, value);
        tile_find(&tiles[now ^ 1], view, table, bias, next, end);
        barrier(CLK_LOCAL_MEM_FENCE);
        if (next < end) /* on their way while this tile's values are added */
            tile_load(kv, &tiles[now ^ 1], plane_k, min((uint)TILE, end - next), key);
        if (!SHUFFLED) {
            tile_scores(part, &tiles[now], count, score);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        tile_softmax(&st, score, weight);
        barrier(CLK_LOCAL_MEM_FENCE);
        tile_values(&st, count, value, weight);
    }

    for (uint g = 0; g < GROUP; g++) {
        const size_t head = get_group_id(2) * kv_heads * GROUP + h * GROUP + g;
        __global float *to = partial + (head * splits + split) * PARTIAL;
        const float top = group_put(&st, g, rows);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint c = item; c <= HEAD_DIM; c += ITEMS) {
            float sum = rows[c];
            for (uint r = 1; r < ROWS; r++)
                sum += rows[r * (HEAD_DIM + 1) + c];
            to[c] = sum;
        }
        if (item == 0)
            to[PARTIAL_MAX] = top;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}
