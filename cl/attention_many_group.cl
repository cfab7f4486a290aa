/*
 * Attention of many queries, group shape: one work-group for QUERIES queries, HEADS query heads of one KV head and one
 * segment of each query's places; keys and values are floats in local memory, 4 rows (queries of a head) and 8 channels
 * a work-item. Built behind attention_many.cl.
 *
 * Segments are of MANY_SEGMENT(units) places, by the query's own number of units, so that long views give work to all
 * of a large device; attention_many_combine adds them in order. Their scales are powers of 2, so that one segment is
 * as good as the whole.
 */
#ifndef HEADS
#define HEADS 1 /* query heads of a group; divides GROUP */
#endif
#ifndef QUERIES
#define QUERIES 16 /* a multiple of 4 */
#endif

#define ROWS (QUERIES * HEADS)
#define LANES (HEAD_DIM / 8) /* items of a row */
#define ITEMS (ROWS / 4 * LANES)
/* Units of a tile: UNITS_EACH for each lane, 4 at most, or fewer than lanes. */
#define UNITS_FIT (4096 / HEAD_DIM / LANES)
#define UNITS_EACH (UNITS_FIT > 4 ? 4 : UNITS_FIT > 0 ? UNITS_FIT : 1)
#define UNITS (UNITS_FIT > 0 ? LANES * UNITS_EACH : 4096 / HEAD_DIM)
#define ROW_PITCH (ROWS + 4)
#define UNIT_PITCH (HEAD_DIM + 4)

#define MANY_SEGMENT(units) (256 * (((units) + 8191) / 8192))
#define MANY_SEGMENTS 32
#define PARTIAL (HEAD_DIM + 2)
#define PARTIAL_SUM HEAD_DIM
#define PARTIAL_TOP (HEAD_DIM + 1)

/* What the queries see of one ring, as in attention_many_wide.cl, within their segments. */
typedef struct ring_run {
    uint next_ring[QUERIES], next_begin[QUERIES], next_mask[QUERIES]; /* of the next range: its ring + 1, 0: none */
    uint range[QUERIES], first[QUERIES], count[QUERIES];
    float bias[QUERIES];
    uint begin, end, full_begin, full_end; /* units that some query sees, and those that all see */
} ring_run;

/* An item's part of the result: sum[i] is channel 8 lane + i of 4 rows. */
typedef struct item_state {
    float4 sum[8], total, top;
} item_state;

/* What query q of the tile sees next, `done` of its ranges being passed. */
static inline void announce(__local ring_run *run, const __global uint *view, uint q, uint done)
{
    const __global uint *r = view + VIEW_RANGE_0 + done * VIEW_RANGE_WORDS;
    const bool more = done < view[VIEW_N_RANGES];
    run->next_ring[q] = more ? r[RANGE_RING] + 1 : 0;
    run->next_begin[q] = more ? r[RANGE_BEGIN] : 0;
    run->next_mask[q] = more ? r[RANGE_MASK] : 0;
    run->begin = run->full_end = UINT_MAX;
    run->end = run->full_begin = 0;
}

/* The ring to be walked now: the last in the table; returns it + 1, 0 at the end, and where its units count from. */
static inline uint choose_ring(const __local ring_run *run, uint *base, uint *mask)
{
    uint ring = 0;
    for (uint q = 0; q < QUERIES; q++)
        if (run->next_ring[q] > ring) {
            ring = run->next_ring[q];
            *base = run->next_begin[q];
            *mask = run->next_mask[q];
        }
    return ring;
}

/* Query q's run of the chosen ring within places from .. to - 1; `bias` is of the layer and KV head, from the first
 * word of the step's data on. Returns the ranges it has passed then. */
static inline uint take_run(__local ring_run *run, const __global uint *view, const __global float *bias, uint q,
                            uint done, uint ring, uint base, uint from, uint to)
{
    const bool has = run->next_ring[q] == ring;
    const __global uint *r = view + VIEW_RANGE_0 + (has ? done : 0) * VIEW_RANGE_WORDS;
    const uint place = r[RANGE_PLACE], seen = r[RANGE_COUNT];
    const uint skip = min(from > place ? from - place : 0, seen), stop = min(to > place ? to - place : 0, seen);
    const uint first = ((r[RANGE_BEGIN] - base) & r[RANGE_MASK]) + skip, count = has && stop > skip ? stop - skip : 0;
    run->range[q] = has ? done : 0;
    run->first[q] = first;
    run->count[q] = count;
    run->bias[q] = bias[r[RANGE_BIAS]] * LOG2E;
    if (count) {
        atomic_min(&run->begin, first);
        atomic_max(&run->end, first + count);
    }
    atomic_max(&run->full_begin, count ? first : UINT_MAX);
    atomic_min(&run->full_end, count ? first + count : 0);
    return done + has;
}

/* The tile's queries, turned for the ring, as (channel, row). */
static inline void turn_queries(uint item, const __local ring_run *run, const __global float *qkv, ulong qkv_row,
                                const __global float *rot, uint queries, __local float *turned)
{
    for (uint i = item; i < ROWS * HEAD_DIM / 2; i += ITEMS) {
        const uint row = i / (HEAD_DIM / 2), pair = i % (HEAD_DIM / 2), q = row % QUERIES;
        const size_t t = min(q, queries - 1);
        const __global float *from = qkv + t * qkv_row + row / QUERIES * HEAD_DIM;
        const float2 r = vload2(pair, rot + (t * VIEW_RANGES + run->range[q]) * HEAD_DIM);
        const float x = from[ROPE_FIRST(pair)] * QUERY_SCALE, y = from[ROPE_SECOND(pair)] * QUERY_SCALE;
        turned[ROPE_FIRST(pair) * ROW_PITCH + row] = fma(x, r.x, -(y * r.y));
        turned[ROPE_SECOND(pair) * ROW_PITCH + row] = fma(x, r.y, y * r.x);
    }
}

/* Slots of the run's units from `unit` on. */
static inline void find_units(uint item, const __local ring_run *run, const __global uint *ring, uint mask, uint base,
                              uint unit, __local uint *slots)
{
    for (uint u = item; u < UNITS; u += ITEMS)
        if (unit + u < run->end)
            slots[u] = ring[(base + unit + u) & mask];
}

/* Keys or values of the tile's units. */
static inline void load_units(uint item, const __local kv_table *kv, const __local uint *slots, uint plane, uint count,
                              __local float *to)
{
    for (uint i = item; i < count * LANES; i += ITEMS) {
        const float8 x = KV_LOAD(8, kv_row(kv, plane, slots[i / LANES]) + i % LANES * 8);
        __local float *at = to + i / LANES * UNIT_PITCH + i % LANES * 8;
        vstore4(x.lo, 0, at);
        vstore4(x.hi, 0, at + 4);
    }
}

/* The item's scores: of units lane, lane + LANES, ... of the tile, -INFINITY where a query does not see one. */
static inline float4 score_units(uint item, const __local ring_run *run, const __local float *turned,
                                 const __local float *key, uint unit, uint count, float4 *score)
{
    const uint lane = item % LANES, rows = item / LANES, q = rows * 4 % QUERIES;
    const uint4 first = vload4(0, run->first + q), seen = vload4(0, run->count + q);
    const float4 bias = vload4(0, run->bias + q);
    float4 most = (float4)(-INFINITY);
    UNROLL_GROUP
    for (uint j = 0; j < UNITS_EACH; j++)
        score[j] = (float4)(0.0f);
    for (uint c = 0; c < HEAD_DIM; c += 4) {
        const float4 q0 = vload4(rows, turned + c * ROW_PITCH), q1 = vload4(rows, turned + (c + 1) * ROW_PITCH);
        const float4 q2 = vload4(rows, turned + (c + 2) * ROW_PITCH), q3 = vload4(rows, turned + (c + 3) * ROW_PITCH);
        UNROLL_GROUP
        for (uint j = 0; j < UNITS_EACH; j++) {
            if (j * LANES < count && lane < UNITS) {
                const float4 k = vload4(0, key + (lane + j * LANES) * UNIT_PITCH + c);
                score[j] = fma(q0, (float4)(k.x), score[j]);
                score[j] = fma(q1, (float4)(k.y), score[j]);
                score[j] = fma(q2, (float4)(k.z), score[j]);
                score[j] = fma(q3, (float4)(k.w), score[j]);
            }
        }
    }
    UNROLL_GROUP
    for (uint j = 0; j < UNITS_EACH; j++) {
        const int4 visible = (uint4)(unit + lane + j * LANES) - first < seen;
        score[j] = select((float4)(-INFINITY), score[j] + bias, lane < UNITS ? visible : (int4)(0));
        most = max(most, score[j]);
    }
    return most;
}

/* Scores to weights (unit, row); `mosts` has the largest scores of all lanes as (lane, row). */
static inline void weigh_units(uint item, item_state *st, const float4 *score, const __local float *mosts,
                               __local float *weight)
{
    const uint lane = item % LANES, rows = item / LANES;
    float4 most = vload4(rows, mosts);
    for (uint l = 1; l < LANES; l++)
        most = max(most, vload4(rows, mosts + l * ROW_PITCH));
    const float4 top = max(st->top, ROUND(float4, most));
    const float4 down = st->top == top ? (float4)(0.0f) : max(st->top - top, (float4)(EXPONENT_MIN));
    const float4 scale = EXP2_WHOLE(as_float4, as_int4, down);
    const float4 base = top == (float4)(-INFINITY) ? (float4)(0.0f) : top; /* where nothing has been seen */
    st->top = top;
    st->total *= scale;
    UNROLL_GROUP
    for (uint i = 0; i < 8; i++)
        st->sum[i] *= scale;
    UNROLL_GROUP
    for (uint j = 0; j < UNITS_EACH; j++) {
        const float4 t = max(score[j], (float4)(SCORE_MIN)), n = ROUND(float4, t);
        const float4 p =
            EXP2_PART(float4, (t - n)) * EXP2_WHOLE(as_float4, as_int4, max(n - base, (float4)(EXPONENT_MIN)));
        if (lane < UNITS)
            vstore4(p, rows, weight + (lane + j * LANES) * ROW_PITCH);
    }
}

/* Add values by their weights, all queries seeing all units; or not, and then a weight of 0 adds nothing. */
static inline void add_values(uint item, item_state *st, const __local float *weight, const __local float *value,
                              uint count, bool all)
{
    const uint lane = item % LANES, rows = item / LANES;
    for (uint u = 0; u < count; u++) {
        const float4 p = vload4(rows, weight + u * ROW_PITCH);
        const float4 lo = vload4(0, value + u * UNIT_PITCH + lane * 8);
        const float4 hi = vload4(0, value + u * UNIT_PITCH + lane * 8 + 4);
        const float v[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
        st->total += p;
        UNROLL_GROUP
        for (uint i = 0; i < 8; i++) {
            const float4 sum = fma(p, (float4)(v[i]), st->sum[i]);
            st->sum[i] = all ? sum : select(st->sum[i], sum, p > (float4)(0.0f));
        }
    }
}

/* The item's 4 rows: into rows of `out`, divided by their totals; or of `partial`, where there are several segments. */
static inline void store_results(uint item, const item_state *st, uint queries, uint head, uint heads, uint segment,
                                 uint segments, __global float *out, __global float *partial)
{
    const uint lane = item % LANES, row = item / LANES * 4;
    const float total[4] = {st->total.x, st->total.y, st->total.z, st->total.w};
    const float top[4] = {st->top.x, st->top.y, st->top.z, st->top.w};
    for (uint r = 0; r < 4; r++) {
        const uint q = (row + r) % QUERIES;
        const size_t result = (size_t)q * heads + head + row / QUERIES;
        __global float *to = segments > 1 ? partial + (result * segments + segment) * PARTIAL : out + result * HEAD_DIM;
        if (q >= queries)
            continue;
        for (uint i = 0; i < 8; i++) {
            const float4 s = st->sum[i];
            const float sum = r == 0 ? s.x : r == 1 ? s.y : r == 2 ? s.z : s.w;
            to[lane * 8 + i] = segments > 1 ? sum : sum / total[r];
        }
        if (segments > 1 && lane == 0) {
            to[PARTIAL_SUM] = total[r];
            to[PARTIAL_TOP] = top[r];
        }
    }
}

/*
 * Arguments as of attention_many_wide. Group (s, t, i): segment s; QUERIES queries from first + QUERIES t on, those
 * before `end`; HEADS heads from HEADS i on, of `heads`. Results go to `out`, or where there are several segments to
 * partial (end - first, heads, segments, PARTIAL).
 */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
attention_many_group(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
                     const __global float *qkv, ulong qkv_row, uint layer, uint first, uint end, uint heads,
                     __global float *out, __global float *partial)
{
    __local float turned[HEAD_DIM * ROW_PITCH], tile[UNITS * UNIT_PITCH], weight[UNITS * ROW_PITCH];
    __local float mosts[LANES * ROW_PITCH];
    __local uint slots[2][UNITS];
    __local ring_run run;
    KV_TABLE(kv);
    const uint item = get_local_id(0), segment = get_group_id(0), segments = get_num_groups(0),
               tile_first = get_group_id(1) * QUERIES;
    const size_t token = first + tile_first;
    const uint queries = min((uint)QUERIES, end - (uint)token);
    const uint head = get_group_id(2) * HEADS, h = head / GROUP, kv_heads = heads / GROUP;
    const uint plane_k = (layer * 2 + 0) * kv_heads + h, plane_v = (layer * 2 + 1) * kv_heads + h;
    const __global float *query = qkv + token * qkv_row + head * HEAD_DIM;
    const __global float *rot = (const __global float *)data + query_rot + token * VIEW_RANGES * HEAD_DIM;
    const __global uint *view = data + views + token * VIEW_WORDS;
    const __global float *bias = (const __global float *)data + layer * kv_heads + h;
    uint done[(QUERIES + ITEMS - 1) / ITEMS]; /* of the queries that the item walks the views of */
    item_state st;

    st.total = (float4)(0.0f);
    st.top = (float4)(-INFINITY);
    UNROLL_GROUP
    for (uint i = 0; i < 8; i++)
        st.sum[i] = (float4)(0.0f);
    for (uint q = item; q < QUERIES; q += ITEMS) {
        done[q / ITEMS] = 0;
        announce(&run, view + min(q, queries - 1) * VIEW_WORDS, q, 0);
    }
    barrier(CLK_LOCAL_MEM_FENCE);

    uint base = 0, mask = 0, ring = choose_ring(&run, &base, &mask);
    while (ring) {
        for (uint q = item; q < QUERIES; q += ITEMS) {
            const __global uint *v = view + min(q, queries - 1) * VIEW_WORDS;
            const uint size = MANY_SEGMENT(v[VIEW_UNITS]);
            done[q / ITEMS] =
                take_run(&run, v, bias, q, done[q / ITEMS], ring, base, segment * size, (segment + 1) * size);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const uint from = run.begin, to = run.end, full_from = run.full_begin, full_to = run.full_end;
        if (from < to) {
            turn_queries(item, &run, query, qkv_row, rot, queries, turned);
            find_units(item, &run, table + ring - 1, mask, base, from, slots[0]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint unit = from, now = 0; unit < to; unit += UNITS, now ^= 1) {
            const uint count = min((uint)UNITS, to - unit);
            float4 score[UNITS_EACH];
            load_units(item, kv, slots[now], plane_k, count, tile);
            barrier(CLK_LOCAL_MEM_FENCE);
            const float4 most = score_units(item, &run, turned, tile, unit, count, score);
            vstore4(most, item / LANES, mosts + item % LANES * ROW_PITCH);
            barrier(CLK_LOCAL_MEM_FENCE);
            load_units(item, kv, slots[now], plane_v, count, tile);
            find_units(item, &run, table + ring - 1, mask, base, unit + UNITS, slots[now ^ 1]);
            weigh_units(item, &st, score, mosts, weight);
            barrier(CLK_LOCAL_MEM_FENCE);
            if (unit >= full_from && unit + count <= full_to)
                add_values(item, &st, weight, tile, count, true);
            else
                add_values(item, &st, weight, tile, count, false);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        for (uint q = item; q < QUERIES; q += ITEMS)
            announce(&run, view + min(q, queries - 1) * VIEW_WORDS, q, done[q / ITEMS]);
        barrier(CLK_LOCAL_MEM_FENCE);
        ring = choose_ring(&run, &base, &mask);
    }
    store_results(item, &st, queries, head, heads, segment, segments, out + token * heads * HEAD_DIM,
                  partial + (size_t)tile_first * heads * segments * PARTIAL);
}

#define COMBINE_ITEMS 64

/* Group (query of the launch, head): the segments of a query head's view, in order. */
__kernel __attribute__((reqd_work_group_size(COMBINE_ITEMS, 1, 1))) void
attention_many_combine(const __global float *partial, uint segments, const __global uint *data, ulong views, uint first,
                       __global float *out)
{
    const uint head = get_group_id(1), heads = get_num_groups(1), query = get_group_id(2);
    const uint units = data[views + (size_t)(first + query) * VIEW_WORDS + VIEW_UNITS], size = MANY_SEGMENT(units);
    const uint used = (units + size - 1) / size;
    const __global float *from = partial + ((size_t)query * heads + head) * segments * PARTIAL;
    float top = -INFINITY;
    for (uint s = 0; s < used; s++)
        top = max(top, from[s * PARTIAL + PARTIAL_TOP]);
    for (uint c = get_local_id(0); c < HEAD_DIM; c += COMBINE_ITEMS) {
        float sum = 0.0f, total = 0.0f;
        for (uint s = 0; s < used; s++) {
            const __global float *part = from + s * PARTIAL;
            const float scale = EXP2_WHOLE(as_float, as_int, max(part[PARTIAL_TOP] - top, EXPONENT_MIN));
            sum = fma(scale, part[c], sum);
            total = fma(scale, part[PARTIAL_SUM], total);
        }
        out[((size_t)(first + query) * heads + head) * HEAD_DIM + c] = sum / total;
    }
}
