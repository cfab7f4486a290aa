/*
 * Decode attention over a compressed history: softmax(q . K / sqrt(HEAD_DIM) + bias) V over the ranges of each query's view.
 *
 * A view is cut into splits of `attention_split(units)` places. attention_wide (one work-item) or attention_group (one work-group)
 * computes one (split, KV head, query) for all GROUP query heads that share the KV head, so that keys and values are read once, and leaves for
 * each query head a partial result of PARTIAL floats: HEAD_DIM sums of p V, the sum of p, the maximum of the scores, p = exp(score - maximum).
 * attention_combine adds the partial results of a query head.
 *
 * Work goes in tiles of TILE places counted from the start of the split, whatever ranges they fall in: the order of all sums depends on the
 * number of units alone. Contraction is off and fma written where it is wanted, so that each copy the compiler makes of a loop rounds alike.
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

/* Scattered slots defeat a processor's own prefetching; OpenCL's prefetch() does nothing on PoCL. No effect on values. */
#ifdef __has_builtin
#if __has_builtin(__builtin_prefetch)
#define FETCH_LINE(p) __builtin_prefetch((const void *)(size_t)(p))
#endif
#endif
#ifndef FETCH_LINE
#define FETCH_LINE(p) prefetch(p, (size_t)1)
#endif
#define LINE (64 / sizeof(kv_t))

/* Where the units of a tile are. */
typedef struct tile_rows {
    const __global kv_t *key[TILE], *value[TILE];
} tile_rows;

/* Find the units of the tile at `tile`, which may be past the end, and have them fetched; `range` is that of a place before them. */
static inline uint tile_fetch(const __local kv_table *kv, const __global uint *view, const __global uint *table,
                              uint plane_k, uint plane_v, uint range, uint tile, uint end, tile_rows *rows)
{
    for (uint j = 0; j < TILE && tile + j < end; j++) {
        range = range_of(view, range, tile + j);
        const uint slot = range_slot(view, table, range, tile + j);
        rows->key[j] = kv_row(kv, plane_k, slot);
        rows->value[j] = kv_row(kv, plane_v, slot);
        for (uint c = 0; c < HEAD_DIM; c += LINE) {
            FETCH_LINE(rows->key[j] + c);
            FETCH_LINE(rows->value[j] + c);
        }
    }
    return range;
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

/* Add the tile's values by their weights. */
static inline void wide_values(wide_state *st, const tile_rows *rows, uint count)
{
    for (uint v = 0; v < VECS; v += VECS_AT_ONCE) {
        vec sum[GROUP][VECS_AT_ONCE];
        UNROLL
        for (uint i = 0; i < GROUP * VECS_AT_ONCE; i++)
            sum[i / VECS_AT_ONCE][i % VECS_AT_ONCE] = st->acc[i / VECS_AT_ONCE][v + i % VECS_AT_ONCE];
        for (uint j = 0; j < count; j++) {
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
 * views is (n, VIEW_WORDS) and query_rot (n, VIEW_RANGES, HEAD_DIM), as offsets in words into `data`; a token's row of qkv is qkv_row floats; the
 * queries are first + global id 2; partial is (queries of this launch, kv_heads * GROUP, splits, PARTIAL), `splits` being global size 0.
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
    uint now = 0, fetched = tile_fetch(kv, view, table, plane_k, plane_v, 0, begin, end, &rows[0]);
    for (uint tile = begin; tile < end; tile += TILE, now ^= 1) {
        const uint count = min((uint)TILE, end - tile);
        fetched = tile_fetch(kv, view, table, plane_k, plane_v, fetched, tile + TILE, end, &rows[now ^ 1]);
        for (uint g = 0; g < GROUP; g++)
            vstore16((float16)(-INFINITY), 0, st.score[g]);
        for (uint j = 0; j < count;) {
            if (tile + j >= st.range_end) {
                st.range = range_of(view, st.range, tile + j);
                st.range_end = range_word(view, st.range, RANGE_PLACE) + range_word(view, st.range, RANGE_COUNT);
                wide_turn(&st, q, data + query_rot + (token * VIEW_RANGES + st.range) * HEAD_DIM);
            }
            const float bias = as_float(range_word(view, st.range, RANGE_BIAS));
            for (const uint stop = min(count, st.range_end - tile); j < stop; j++)
                wide_score(&st, rows[now].key[j], j, bias);
        }
        wide_softmax(&st);
        wide_values(&st, &rows[now], count);
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

#define COMBINE_CHANNELS HEAD_DIM
#else
/* ---- One work-group for a split: 8 channels a work-item, a row of units at a time ---- */

#define ITEMS 128
#define LANES (HEAD_DIM / 8)
#define TILE_FITS(t) (GROUP * (t) * (LANES + 1) <= 4096)
#define TILE (TILE_FITS(64) ? 64 : TILE_FITS(32) ? 32 : TILE_FITS(16) ? 16 : 8)
#define ROWS (ITEMS / LANES < TILE ? ITEMS / LANES : TILE)
#define STEPS ((TILE + ROWS - 1) / ROWS)

/* Eight channels as stored, 16 or 32 bytes, so that they can wait in registers. */
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

/* Arguments as of attention_wide; here groups where there global ids. */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
attention_group(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
                const __global float *qkv, ulong qkv_row, uint layer, uint first, __global float *partial)
{
    KV_TABLE(kv);
    __local float turned[GROUP * HEAD_DIM], part[GROUP * TILE * (LANES + 1)], score[GROUP * TILE], weight[GROUP * TILE];
    __local float rows[ROWS * (HEAD_DIM + 1)], bias[TILE];
    __local uint slot[TILE];
    const uint item = get_local_id(0), lane = item % LANES, row = item / LANES;
    const uint split = get_group_id(0), splits = get_num_groups(0), h = get_group_id(1), kv_heads = get_num_groups(1);
    const size_t token = first + get_group_id(2);
    const __global uint *view = data + views + token * VIEW_WORDS;
    const uint units = view[VIEW_UNITS], begin = split * SPLIT(units), end = min(begin + SPLIT(units), units);
    if (begin >= units)
        return;
    const __global float *query = qkv + token * qkv_row + h * GROUP * HEAD_DIM;
    const uint plane_k = (layer * 2 + 0) * kv_heads + h, plane_v = (layer * 2 + 1) * kv_heads + h;

    float8 q[GROUP], acc[GROUP];
    float top[GROUP], total[GROUP];
    for (uint g = 0; g < GROUP; g++) {
        top[g] = -INFINITY;
        total[g] = 0.0f;
        acc[g] = (float8)(0.0f);
    }

    uint range = 0, range_end = begin; /* no range is turned yet */
    for (uint tile = begin; tile < end; tile += TILE) {
        const uint count = min((uint)TILE, end - tile);
        for (uint u = item; u < count; u += ITEMS) {
            const uint r = range_of(view, 0, tile + u);
            slot[u] = range_slot(view, table, r, tile + u);
            bias[u] = as_float(range_word(view, r, RANGE_BIAS));
        }
        barrier(CLK_LOCAL_MEM_FENCE);

        for (uint j = 0; j < count;) {
            if (tile + j >= range_end) {
                range = range_of(view, range, tile + j);
                range_end = range_word(view, range, RANGE_PLACE) + range_word(view, range, RANGE_COUNT);
                const __global uint *rot = data + query_rot + (token * VIEW_RANGES + range) * HEAD_DIM;
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint i = item; i < GROUP * HEAD_DIM / 8; i += ITEMS) {
                    const uint at = i / LANES * HEAD_DIM, pair = i % LANES * 4;
                    TURN_PUT(turned + at, pair, turn4(query + at, rot, pair));
                }
                barrier(CLK_LOCAL_MEM_FENCE);
                for (uint g = 0; g < GROUP; g++)
                    q[g] = vload8(0, turned + g * HEAD_DIM + lane * 8);
            }
            const uint stop = min(count, range_end - tile);
            for (uint s = 0; s < STEPS; s++) {
                const uint u = s * ROWS + row;
                if (row < ROWS && u >= j && u < stop) {
                    const float8 k = kv_float8(kv_fetch8(kv_row(kv, plane_k, slot[u]) + lane * 8));
                    for (uint g = 0; g < GROUP; g++)
                        part[(g * TILE + u) * (LANES + 1) + lane] = dot8(k, q[g]);
                }
            }
            j = stop;
        }
        kv8 value[STEPS];
        for (uint s = 0; s < STEPS; s++)
            if (row < ROWS && s * ROWS + row < count)
                value[s] = kv_fetch8(kv_row(kv, plane_v, slot[s * ROWS + row]) + lane * 8);
        barrier(CLK_LOCAL_MEM_FENCE);

        for (uint t = item; t < GROUP * TILE; t += ITEMS) {
            float sum = -INFINITY;
            if (t % TILE < count) {
                sum = part[t * (LANES + 1)];
                for (uint i = 1; i < LANES; i++)
                    sum += part[t * (LANES + 1) + i];
                sum += bias[t % TILE];
            }
            score[t] = sum;
        }
        barrier(CLK_LOCAL_MEM_FENCE);

        for (uint g = 0; g < GROUP; g++) {
            const float m = fmax(top[g], tile_max(score + g * TILE));
            for (uint u = item; u < TILE; u += ITEMS)
                weight[g * TILE + u] = exp(score[g * TILE + u] - m);
            const float less = m > top[g] ? exp(top[g] - m) : 1.0f;
            total[g] *= less;
            acc[g] *= less;
            top[g] = m;
        }
        barrier(CLK_LOCAL_MEM_FENCE);

        for (uint s = 0; s < STEPS; s++) {
            const uint u = s * ROWS + row;
            if (row < ROWS && u < count) {
                const float8 v = kv_float8(value[s]);
                for (uint g = 0; g < GROUP; g++) {
                    const float p = weight[g * TILE + u];
                    total[g] += p;
                    acc[g] = fma((float8)(p), v, acc[g]);
                }
            }
        }
    }

    for (uint g = 0; g < GROUP; g++) {
        __global float *to = partial + (((size_t)get_group_id(2) * kv_heads * GROUP + h * GROUP + g) * splits + split) * PARTIAL;
        if (row < ROWS) {
            __local float *mine = rows + row * (HEAD_DIM + 1);
            vstore8(acc[g], lane, mine);
            if (lane == 0)
                mine[PARTIAL_SUM] = total[g];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint c = item; c <= HEAD_DIM; c += ITEMS) {
            float sum = rows[c];
            for (uint r = 1; r < ROWS; r++)
                sum += rows[r * (HEAD_DIM + 1) + c];
            to[c] = sum;
        }
        if (item == 0)
            to[PARTIAL_MAX] = top[g];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}

#define COMBINE_CHANNELS 8
#endif

/*
 * Ids: COMBINE_CHANNELS channels, query head, query of this launch. out is (n, heads * HEAD_DIM); `partial` as attention_wide left it, with `splits`
 * places for each query head, of which a query's own view may fill fewer.
 */
__kernel void attention_combine(const __global float *partial, uint splits, const __global uint *data, ulong views, uint first,
                                __global float *out)
{
    const uint channel = get_global_id(0) * COMBINE_CHANNELS, head = get_global_id(1), heads = get_global_size(1);
    const size_t token = first + get_global_id(2);
    const uint units = data[views + token * VIEW_WORDS + VIEW_UNITS], used = (units + SPLIT(units) - 1) / SPLIT(units);
    const __global float *from = partial + (get_global_id(2) * heads + head) * splits * PARTIAL;
    float top = -INFINITY, total = 0.0f;
    for (uint s = 0; s < used; s++)
        top = fmax(top, from[s * PARTIAL + PARTIAL_MAX]);
    float8 sum[COMBINE_CHANNELS / 8];
    for (uint v = 0; v < COMBINE_CHANNELS / 8; v++)
        sum[v] = (float8)(0.0f);
    for (uint s = 0; s < used; s++) {
        const __global float *p = from + s * PARTIAL;
        const float w = exp(p[PARTIAL_MAX] - top);
        total = fma(w, p[PARTIAL_SUM], total);
        for (uint v = 0; v < COMBINE_CHANNELS / 8; v++)
            sum[v] = fma((float8)(w), vload8(v, p + channel), sum[v]);
    }
    __global float *to = out + (token * heads + head) * HEAD_DIM + channel;
    for (uint v = 0; v < COMBINE_CHANNELS / 8; v++)
        vstore8(sum[v] / total, v, to);
}
