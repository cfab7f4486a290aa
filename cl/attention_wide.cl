/* Attention, wide shape: one work-item for a split, vectors over channels. Built behind attention_view.cl. */

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
#if CPU && defined(__has_builtin)
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
