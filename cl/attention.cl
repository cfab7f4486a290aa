/*
 * Decode attention over a compressed history: softmax(q . K / sqrt(HEAD_DIM) + bias) V over the ranges of each
 * query's view.
 *
 * A view is cut into splits of `attention_split(units)` places. attention_wide (one work-item) or attention_group
 * (one work-group) computes one (split, KV head, query) for all GROUP query heads that share the KV head, so that
 * keys and values are read once, and leaves for each query head a partial result of PARTIAL floats: HEAD_DIM sums
 * of p V, the sum of p, the maximum of the scores, p = exp(score - maximum). attention_combine adds the partial
 * results of a query head.
 *
 * Work goes in tiles of TILE places counted from the start of the split, whatever ranges they fall in: the order of
 * all sums depends on the number of units alone. Contraction is off and fma written where it is wanted, so that
 * each copy the compiler makes of a loop rounds alike.
 */
#pragma OPENCL FP_CONTRACT OFF

#ifndef GROUP
#define GROUP 1 /* query heads per KV head */
#endif
#ifndef WIDE
#define WIDE 0
#endif

#define PARTIAL (HEAD_DIM + 2)
#define PARTIAL_SUM HEAD_DIM
#define PARTIAL_MAX (HEAD_DIM + 1)
#define SPLIT(units) (64 * (((units) + 4095) / 4096))
#define SCALE (1.0f / sqrt((float)HEAD_DIM))

static inline uint range_word(const __global uint *view, uint range, uint word)
{
    return view[VIEW_RANGE_0 + range * VIEW_RANGE_WORDS + word];
}

/* The slot of the unit at `place`, which lies in `range`. */
static inline uint range_slot(const __global uint *view, const __global uint *table, uint range, uint place)
{
    const __global uint *r = view + VIEW_RANGE_0 + range * VIEW_RANGE_WORDS;
    return table[r[RANGE_RING] + ((r[RANGE_BEGIN] + place - r[RANGE_PLACE]) & r[RANGE_MASK])];
}

/* Of the ranges from `range` on, the one that `place` lies in. */
static inline uint range_of(const __global uint *view, uint range, uint place)
{
    while (place - range_word(view, range, RANGE_PLACE) >= range_word(view, range, RANGE_COUNT))
        range++;
    return range;
}

/* Pairs i .. i+3 of a query head, turned and divided by sqrt(HEAD_DIM): first channels in .lo, second in .hi. */
static inline float8 turn4(const __global float *q, const __global uint *rot, uint i)
{
    const float8 r = as_float8(vload8(0, rot + 2 * i));
#if ROPE_HALF
    const float4 x = vload4(0, q + i), y = vload4(0, q + i + HEAD_DIM / 2);
#else
    const float8 xy = vload8(0, q + 2 * i);
    const float4 x = xy.even, y = xy.odd;
#endif
    const float4 s = (float4)(SCALE);
    return (float8)(fma(x, r.even, -(y * r.odd)) * s, fma(x, r.odd, y * r.even) * s);
}

#if ROPE_HALF
#define TURN_PUT(to, i, xy)                             \
    do {                                                \
        vstore4((xy).lo, 0, (to) + (i));                \
        vstore4((xy).hi, 0, (to) + (i) + HEAD_DIM / 2); \
    } while (0)
#else
#define TURN_PUT(to, i, xy) vstore8((float8)((xy).s04152637), 0, (to) + 2 * (i))
#endif

#if WIDE
/* ---- One work-item for a split: vectors over channels ---- */

#define TILE 16
#if HEAD_DIM % 16 == 0
#define LANES 16
typedef float16 vec;
#define VLOAD(p) vload16(0, p)
#define VSTORE(x, p) vstore16(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(16, p)
static inline float vsum(float16 x)
{
    const float8 a = x.lo + x.hi;
    const float4 b = a.lo + a.hi;
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}
#else
#define LANES 8
typedef float8 vec;
#define VLOAD(p) vload8(0, p)
#define VSTORE(x, p) vstore8(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(8, p)
static inline float vsum(float8 x)
{
    const float4 b = x.lo + x.hi;
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}
#endif
#define VECS (HEAD_DIM / LANES)
/* Vectors of channels whose sums p V are in registers together: a divisor of VECS, 16 sums at most if possible. */
#if VECS % 4 == 0 && GROUP <= 4
#define VECS_AT_ONCE 4
#elif VECS % 3 == 0 && GROUP <= 5
#define VECS_AT_ONCE 3
#elif VECS % 2 == 0 && GROUP <= 8
#define VECS_AT_ONCE 2
#else
#define VECS_AT_ONCE 1
#endif

static inline float max16(float16 x)
{
    const float8 a = fmax(x.lo, x.hi);
    const float4 b = fmax(a.lo, a.hi);
    const float2 c = fmax(b.lo, b.hi);
    return fmax(c.x, c.y);
}

static inline float sum16(float16 x)
{
    const float8 a = x.lo + x.hi;
    const float4 b = a.lo + a.hi;
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}

/*
 * Scattered slots defeat a processor's own prefetching; OpenCL's prefetch() does nothing on PoCL. No effect on
 * values.
 */
#ifdef __has_builtin
#if __has_builtin(__builtin_prefetch)
#define FETCH_LINE(p) __builtin_prefetch((const void *)(size_t)(p))
#endif
#endif
#ifndef FETCH_LINE
#define FETCH_LINE(p) prefetch(p, (size_t)1)
#endif
/* Where the units of a tile are. */
typedef struct tile_rows {
    const __global kv_t *key[TILE], *value[TILE];
} tile_rows;

/*
 * Find the units of the tile at `tile`, the unit at `last` in place of those past it; `range` is that of a place
 * before them. Returns the last range.
 */
static inline uint tile_find(const __local kv_table *kv, const __global uint *view, const __global uint *table,
                             uint plane_k, uint plane_v, uint range, uint tile, uint last, tile_rows *rows)
{
    for (uint j = 0; j < TILE; j++) {
        const uint place = min(tile + j, last);
        range = range_of(view, range, place);
        const uint slot = range_slot(view, table, range, place);
        rows->key[j] = kv_row(kv, plane_k, slot);
        rows->value[j] = kv_row(kv, plane_v, slot);
    }
    return range;
}

static inline void row_fetch(const __global kv_t *row)
{
    UNROLL
    for (uint c = 0; c < HEAD_DIM; c += 64 / sizeof(kv_t))
        FETCH_LINE(row + c);
}

/* What a work-item has found so far, and its queries turned for one range. */
typedef struct wide_state {
    vec turned[GROUP][VECS], acc[GROUP][VECS];
    float top[GROUP], total[GROUP], score[GROUP][TILE];
    uint range, range_end; /* range_end: first place past it; until one is turned, the first place of the split */
} wide_state;

static inline void wide_turn(wide_state *st, const __global float *q, const __global uint *rot)
{
    float row[HEAD_DIM];
    for (uint g = 0; g < GROUP; g++) {
        for (uint i = 0; i < HEAD_DIM / 2; i += 4)
            TURN_PUT(row, i, turn4(q + g * HEAD_DIM, rot, i));
        for (uint v = 0; v < VECS; v++)
            st->turned[g][v] = VLOAD(row + v * LANES);
    }
}

/* The score of unit j of the tile for each query head. */
static inline void wide_score(wide_state *st, const __global kv_t *key, uint j, float bias)
{
    vec dot[GROUP];
    UNROLL
    for (uint g = 0; g < GROUP; g++)
        dot[g] = (vec)(0.0f);
    UNROLL
    for (uint v = 0; v < VECS; v++) {
        const vec k = KV_VLOAD(key + v * LANES);
        UNROLL
        for (uint g = 0; g < GROUP; g++)
            dot[g] = fma(k, st->turned[g][v], dot[g]);
    }
    UNROLL
    for (uint g = 0; g < GROUP; g++)
        st->score[g][j] = vsum(dot[g]) + bias;
}

/* From scores to weights relative to the largest score yet; what was summed before is scaled down to it. */
static inline void wide_softmax(wide_state *st)
{
    for (uint g = 0; g < GROUP; g++) {
        const float16 s = vload16(0, st->score[g]);
        const float m = fmax(st->top[g], max16(s));
        const float16 p = exp(s - m);
        if (m > st->top[g]) {
            const float less = exp(st->top[g] - m);
            st->total[g] *= less;
            for (uint v = 0; v < VECS; v++)
                st->acc[g][v] *= less;
            st->top[g] = m;
        }
        st->total[g] += sum16(p);
        vstore16(p, 0, st->score[g]);
    }
}

/* Add the tile's values by their weights; have the next tile's fetched. */
static inline void wide_values(wide_state *st, const tile_rows *rows, const tile_rows *next, uint count)
{
    for (uint v = 0; v < VECS; v += VECS_AT_ONCE) {
        vec sum[GROUP][VECS_AT_ONCE];
        UNROLL
        for (uint i = 0; i < GROUP * VECS_AT_ONCE; i++)
            sum[i / VECS_AT_ONCE][i % VECS_AT_ONCE] = st->acc[i / VECS_AT_ONCE][v + i % VECS_AT_ONCE];
        for (uint j = 0; j < count; j++) {
            if (v == 0)
                row_fetch(next->value[j]);
            UNROLL
            for (uint i = 0; i < VECS_AT_ONCE; i++) {
                const vec x = KV_VLOAD(rows->value[j] + (v + i) * LANES);
                UNROLL
                for (uint g = 0; g < GROUP; g++)
                    sum[g][i] = fma((vec)(st->score[g][j]), x, sum[g][i]);
            }
        }
        UNROLL
        for (uint i = 0; i < GROUP * VECS_AT_ONCE; i++)
            st->acc[i / VECS_AT_ONCE][v + i % VECS_AT_ONCE] = sum[i / VECS_AT_ONCE][i % VECS_AT_ONCE];
    }
}

/*
 * views is (n, VIEW_WORDS) and query_rot (n, VIEW_RANGES, HEAD_DIM), as offsets in words into `data`; a token's row
 * of qkv is qkv_row floats; the queries are first + global id 2; partial is (queries of this launch, kv_heads *
 * GROUP, splits, PARTIAL), `splits` being global size 0.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attention_wide(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
               const __global float *qkv, ulong qkv_row, uint layer, uint first, __global float *partial)
{
    KV_TABLE(kv);
    const uint split = get_global_id(0), splits = get_global_size(0);
    const uint h = get_global_id(1), kv_heads = get_global_size(1);
    const size_t token = first + get_global_id(2);
    const __global uint *view = data + views + token * VIEW_WORDS;
    const uint units = view[VIEW_UNITS], begin = split * SPLIT(units), end = min(begin + SPLIT(units), units);
    if (begin >= units)
        return;
    const __global float *q = qkv + token * qkv_row + h * GROUP * HEAD_DIM;
    const uint plane_k = (layer * 2 + 0) * kv_heads + h, plane_v = (layer * 2 + 1) * kv_heads + h;

    wide_state st;
    st.range = 0;
    st.range_end = begin;
    for (uint g = 0; g < GROUP; g++) {
        st.top[g] = -INFINITY;
        st.total[g] = 0.0f;
        for (uint v = 0; v < VECS; v++)
            st.acc[g][v] = (vec)(0.0f);
    }

    tile_rows rows[2];
    uint now = 0, found = tile_find(kv, view, table, plane_k, plane_v, 0, begin, end - 1, &rows[0]);
    for (uint tile = begin; tile < end; tile += TILE, now ^= 1) {
        const uint count = min((uint)TILE, end - tile);
        found = tile_find(kv, view, table, plane_k, plane_v, found, tile + TILE, end - 1, &rows[now ^ 1]);
        for (uint g = 0; g < GROUP; g++)
            vstore16((float16)(-INFINITY), 0, st.score[g]);
        for (uint j = 0; j < count;) {
            if (tile + j >= st.range_end) {
                st.range = range_of(view, st.range, tile + j);
                st.range_end = range_word(view, st.range, RANGE_PLACE) + range_word(view, st.range, RANGE_COUNT);
                wide_turn(&st, q, data + query_rot + (token * VIEW_RANGES + st.range) * HEAD_DIM);
            }
            const float bias = as_float(range_word(view, st.range, RANGE_BIAS));
            for (const uint stop = min(count, st.range_end - tile); j < stop; j++) {
                row_fetch(rows[now ^ 1].key[j]);
                wide_score(&st, rows[now].key[j], j, bias);
            }
        }
        wide_softmax(&st);
        wide_values(&st, &rows[now], &rows[now ^ 1], count);
    }

    for (uint g = 0; g < GROUP; g++) {
        const size_t head = get_global_id(2) * kv_heads * GROUP + h * GROUP + g;
        __global float *to = partial + (head * splits + split) * PARTIAL;
        for (uint v = 0; v < VECS; v++)
            VSTORE(st.acc[g][v], to + v * LANES);
        to[PARTIAL_SUM] = st.total[g];
        to[PARTIAL_MAX] = st.top[g];
    }
}

#else
/* ---- One work-group for a split: 8 channels a work-item, a row of units at a time ---- */

/* PoCL 3.1 miscompiles groups of many work-items when their loops are unrolled; on CPUs only tests run this shape. */
#ifndef UNROLLED
#define UNROLLED 1
#endif
#if UNROLLED
#define UNROLL_GROUP UNROLL
#else
#define UNROLL_GROUP
#endif

#define ITEMS 128
#define LANES (HEAD_DIM / 8)
#define STEPS_MAX (KV_F32 ? 4 : 8) /* keys and values of a tile that an item holds in registers */
#define TILE_FITS(t) (GROUP * (t) * (LANES + 1) <= 4096 && (t) <= STEPS_MAX * (ITEMS / LANES))
#define TILE (TILE_FITS(64) ? 64 : TILE_FITS(32) ? 32 : TILE_FITS(16) ? 16 : 8)
#define ROWS (ITEMS / LANES < TILE ? ITEMS / LANES : TILE)
#define STEPS ((TILE + ROWS - 1) / ROWS)

#if KV_F32
typedef float8 kv8;
static inline float8 kv_float8(kv8 x) { return x; }
#else
typedef ushort8 kv8;
static inline float8 kv_float8(kv8 x) { return vload_half8(0, (const half *)&x); }
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

static inline void tile_find(__local tile_units *to, const __local uint *view, const __global uint *table, uint tile,
                             uint end)
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
        to->bias[u] = as_float(range[RANGE_BIAS]);
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

/* Sum the parts of each score of a tile of `count` units; -INFINITY past them. */
static inline void tile_scores(const __local float *part, const __local tile_units *units, uint count,
                               __local float *score)
{
    for (uint t = get_local_id(0); t < GROUP * TILE; t += ITEMS) {
        float sum = -INFINITY;
        if (t % TILE < count) {
            sum = part[t * (LANES + 1)];
            UNROLL_GROUP
            for (uint i = 1; i < LANES; i++)
                sum += part[t * (LANES + 1) + i];
            sum += units->bias[t % TILE];
        }
        score[t] = sum;
    }
}

/* What an item has found so far for its channels and rows, and its channels of the queries turned for one range. */
typedef struct group_state {
    float8 q[GROUP], acc[GROUP];
    float top[GROUP], total[GROUP];
    uint turned; /* the range; VIEW_RANGES: none yet */
} group_state;

/* This item's part of the scores of its units: the dot product over its channels. */
static inline void tile_dots(group_state *st, const __local tile_units *units, const __global float *query,
                             const __global uint *rot, uint count, const kv8 *key, __local float *part)
{
    const uint lane = get_local_id(0) % LANES, row = get_local_id(0) / LANES;
    UNROLL_GROUP
    for (uint s = 0; s < STEPS; s++) {
        const uint u = s * ROWS + row;
        if (row < ROWS && u < count) {
            if (units->range[u] != st->turned) {
                st->turned = units->range[u];
                UNROLL_GROUP
                for (uint g = 0; g < GROUP; g++)
                    st->q[g] = turn8(query + g * HEAD_DIM, rot + st->turned * HEAD_DIM, lane);
            }
            UNROLL_GROUP
            for (uint g = 0; g < GROUP; g++)
                part[(g * TILE + u) * (LANES + 1) + lane] = dot8(kv_float8(key[s]), st->q[g]);
        }
    }
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

/* Arguments as of attention_wide; a group for each of its work-items. */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
attention_group(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
                const __global float *qkv, ulong qkv_row, uint layer, uint first, __global float *partial)
{
    __local float part[GROUP * TILE * (LANES + 1)], score[GROUP * TILE], weight[GROUP * TILE];
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

    group_state st;
    st.turned = VIEW_RANGES;
    UNROLL_GROUP
    for (uint g = 0; g < GROUP; g++) {
        st.top[g] = -INFINITY;
        st.total[g] = 0.0f;
        st.acc[g] = (float8)(0.0f);
    }
    tile_find(&tiles[0], view, table, begin, end);
    barrier(CLK_LOCAL_MEM_FENCE);

    for (uint tile = begin, now = 0; tile < end; tile += TILE, now ^= 1) {
        const uint count = min((uint)TILE, end - tile);
        kv8 key[STEPS], value[STEPS];
        tile_load(kv, &tiles[now], plane_k, count, key);
        tile_dots(&st, &tiles[now], query, rot, count, key, part);
        tile_load(kv, &tiles[now], plane_v, count, value);
        tile_find(&tiles[now ^ 1], view, table, tile + TILE, end);
        barrier(CLK_LOCAL_MEM_FENCE);
        tile_scores(part, &tiles[now], count, score);
        barrier(CLK_LOCAL_MEM_FENCE);
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

#endif

/* ---- The partial results of a query head, added ---- */

#define COMBINE_ITEMS (WIDE ? 1 : 64)
#define SPLITS_MAX 64

/*
 * Groups: query head, query of this launch. out is (n, heads * HEAD_DIM); `partial` as the kernels above left it,
 * with `splits` places for each query head, of which a query's own view may fill fewer.
 */
__kernel __attribute__((reqd_work_group_size(COMBINE_ITEMS, 1, 1))) void
attention_combine(const __global float *partial, uint splits, const __global uint *data, ulong views, uint first,
                  __global float *out)
{
    __local float top[SPLITS_MAX], weight[SPLITS_MAX];
    const uint item = get_local_id(0), head = get_global_id(1), heads = get_global_size(1);
    const size_t token = first + get_global_id(2);
    const uint units = data[views + token * VIEW_WORDS + VIEW_UNITS], used = (units + SPLIT(units) - 1) / SPLIT(units);
    const __global float *from = partial + (get_global_id(2) * heads + head) * splits * PARTIAL;
    for (uint s = item; s < used; s += COMBINE_ITEMS)
        top[s] = from[s * PARTIAL + PARTIAL_MAX];
    barrier(CLK_LOCAL_MEM_FENCE);
    float m = -INFINITY;
    for (uint s = 0; s < used; s++)
        m = fmax(m, top[s]);
    for (uint s = item; s < used; s += COMBINE_ITEMS)
        weight[s] = exp(top[s] - m);
    barrier(CLK_LOCAL_MEM_FENCE);
    float total = 0.0f;
    for (uint s = 0; s < used; s++)
        total = fma(weight[s], from[s * PARTIAL + PARTIAL_SUM], total);
    __global float *to = out + (token * heads + head) * HEAD_DIM;
#if WIDE
    for (uint v = 0; v < VECS; v++) {
        vec sum = (vec)(0.0f);
        for (uint s = 0; s < used; s++)
            sum = fma((vec)(weight[s]), VLOAD(from + s * PARTIAL + v * LANES), sum);
        VSTORE(sum / total, to + v * LANES);
    }
#else
    for (uint c = item; c < HEAD_DIM; c += COMBINE_ITEMS) {
        float sum = 0.0f;
#if UNROLLED
        _Pragma("unroll 8")
#endif
        for (uint s = 0; s < used; s++)
            sum = fma(weight[s], from[s * PARTIAL + c], sum);
        to[c] = sum / total;
    }
#endif
}
