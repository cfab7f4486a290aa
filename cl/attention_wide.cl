/* Attention, wide shape: one work-item for a split, vectors over channels. Built behind attention_view.cl. */

#ifndef VECTOR_FLOATS
#define VECTOR_FLOATS 8 /* that a vector register of the device holds */
#endif
#define TILE_UNITS (GROUP > 4 ? 32 : 64) /* whose scores are found before their values are added: a divisor of 64 */
#define AHEAD 16                         /* units that are fetched before their turn, beyond the split, too */
#if HEAD_DIM % 16 == 0 && VECTOR_FLOATS >= 16
#define LANES 16
typedef float16 vec;
#define VLOAD(p) vload16(0, p)
#define VSTORE(x, p) vstore16(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(16, p)
#define VEC_MAX(x) max16(x)
#define VEC_SUM(x) sum16(x)
#define FIRST_TWICE(x) (x).s0022446688aaccee /* of each pair of channels */
#define SECOND_TWICE(x) (x).s1133557799bbddff
#define SWAPPED(x) (x).s1032547698badcfe
#define MINUS_PLUS (float16)((float8)(MINUS_PLUS_4, MINUS_PLUS_4), (float8)(MINUS_PLUS_4, MINUS_PLUS_4))
#else
#define LANES 8
typedef float8 vec;
#define VLOAD(p) vload8(0, p)
#define VSTORE(x, p) vstore8(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(8, p)
#define VEC_MAX(x) max8(x)
#define VEC_SUM(x) sum8(x)
#define FIRST_TWICE(x) (x).s00224466
#define SECOND_TWICE(x) (x).s11335577
#define SWAPPED(x) (x).s10325476
#define MINUS_PLUS (float8)(MINUS_PLUS_4, MINUS_PLUS_4)
#endif
#define MINUS_PLUS_4 (float4)(-1.0f, 1.0f, -1.0f, 1.0f)
#define VECS (HEAD_DIM / LANES)

/*
 * What is in registers together: dots of so many units with GROUP queries, and sums p V of so many vectors of channels.
 * Of 16 registers compilers leave some 9 to sums (one more, and all wait for one that goes by way of memory), of the 32
 * that come with 16 floats 16.
 */
#if LANES == 8
#define UNITS_AT_ONCE (GROUP <= 2 ? 4 : GROUP == 3 ? 3 : GROUP == 4 ? 2 : 1)
#define VECS_AT_ONCE UNITS_AT_ONCE
#else
#define UNITS_AT_ONCE 1
#if VECS % 4 == 0 && GROUP <= 4
#define VECS_AT_ONCE 4
#elif VECS % 3 == 0 && GROUP <= 5
#define VECS_AT_ONCE 3
#elif VECS % 2 == 0 && GROUP <= 8
#define VECS_AT_ONCE 2
#else
#define VECS_AT_ONCE 1
#endif
#endif

/* The sums of each of LANES vectors, as one vector. */
#if LANES == 16
static inline float16 fold(const vec *x) { return fold16(x); }
#else
static inline float8 fold_pairs(float8 a, float8 b)
{
    return (float8)(a.s02, b.s02, a.s46, b.s46) + (float8)(a.s13, b.s13, a.s57, b.s57);
}

static inline float8 fold(const vec *x)
{
    const float8 a = fold_pairs(fold_pairs(x[0], x[1]), fold_pairs(x[2], x[3]));
    const float8 b = fold_pairs(fold_pairs(x[4], x[5]), fold_pairs(x[6], x[7]));
    return (float8)(a.lo, b.lo) + (float8)(a.hi, b.hi);
}
#endif

/* Keys of unit 0 of each block for one layer and KV head, and how far its values are from its keys. */
typedef struct block_rows {
    const __global kv_t *key[KV_ARGS];
    size_t to_value[KV_ARGS];
} block_rows;

/* Where the units of a tile are, and those behind it that are fetched with it. */
#define ROWS (TILE_UNITS + AHEAD + UNITS_AT_ONCE)
typedef struct tile_rows {
    const __global kv_t *key[ROWS], *value[ROWS];
} tile_rows;

/* What a work-item has found so far, and its queries turned for one range. */
typedef struct wide_state {
    vec turned[GROUP][VECS], acc[GROUP][VECS], dot[GROUP][TILE_UNITS + UNITS_AT_ONCE];
    float top[GROUP], total[GROUP], weight[GROUP][TILE_UNITS], bias[TILE_UNITS + UNITS_AT_ONCE];
    uint range, range_end; /* range_end: first place past it; until one is turned, the first place of the split */
} wide_state;

/*
 * Find `count` units from `tile` on; past them stands the last one, to be fetched. `range` is that of a place before
 * them.
 */
static inline void tile_find(const block_rows *blocks, const __global uint *view, const __global uint *table,
                             uint range, uint tile, uint count, tile_rows *rows)
{
    for (uint j = 0; j < count;) {
        range = range_of(view, range, tile + j);
        const __global uint *r = view + VIEW_RANGE_0 + range * VIEW_RANGE_WORDS, *ring = table + r[RANGE_RING];
        const uint begin = r[RANGE_BEGIN] + tile - r[RANGE_PLACE], mask = r[RANGE_MASK];
        for (const uint stop = min(count, r[RANGE_PLACE] + r[RANGE_COUNT] - tile); j < stop; j++) {
            const uint slot = ring[(begin + j) & mask], block = slot >> KV_SLOT_BITS;
            rows->key[j] = blocks->key[block] + (size_t)(slot & ((1u << KV_SLOT_BITS) - 1)) * HEAD_DIM;
            rows->value[j] = rows->key[j] + blocks->to_value[block];
        }
    }
    for (uint j = count; j < ROWS; j++) {
        rows->key[j] = rows->key[count - 1];
        rows->value[j] = rows->value[count - 1];
    }
}

/* Turn the queries for a range. */
static inline void wide_turn(wide_state *st, const __global float *q, const __global uint *rot)
{
#if ROPE_HALF
    for (uint i = 0; i < HEAD_DIM / 2; i += 4)
        for (uint g = 0; g < GROUP; g++)
            TURN_PUT((float *)st->turned[g], i, turn4(q + g * HEAD_DIM, rot, i));
#else
    for (uint v = 0; v < VECS; v++) {
        const vec r = VLOAD((const __global float *)rot + v * LANES) * SCALE;
        const vec first = FIRST_TWICE(r), second = SECOND_TWICE(r) * MINUS_PLUS;
        for (uint g = 0; g < GROUP; g++) {
            const vec x = VLOAD(q + g * HEAD_DIM + v * LANES);
            st->turned[g][v] = fma(x, first, SWAPPED(x) * second);
        }
    }
#endif
}

/*
 * Units j .. stop - 1 of the tile, which are of one range, times each query head, in LANES parts. The last one stands
 * for those behind it that would be at once with it: what is left in their places is written over, or not read.
 */
static inline void wide_dots(wide_state *st, const tile_rows *rows, uint j, uint stop, float bias)
{
    for (; j < stop; j += UNITS_AT_ONCE) {
        vec dot[GROUP][UNITS_AT_ONCE];
        const __global kv_t *key[UNITS_AT_ONCE];
        UNROLL
        for (uint u = 0; u < UNITS_AT_ONCE; u++) {
            key[u] = rows->key[min(j + u, stop - 1)];
            row_fetch(rows->key[j + u + AHEAD]);
            UNROLL
            for (uint g = 0; g < GROUP; g++)
                dot[g][u] = (vec)(0.0f);
        }
        UNROLL
        for (uint v = 0; v < VECS; v++) {
            UNROLL
            for (uint u = 0; u < UNITS_AT_ONCE; u++) {
                const vec k = KV_VLOAD(key[u] + v * LANES);
                UNROLL
                for (uint g = 0; g < GROUP; g++)
                    dot[g][u] = fma(k, st->turned[g][v], dot[g][u]);
            }
        }
        UNROLL
        for (uint u = 0; u < UNITS_AT_ONCE; u++) {
            UNROLL
            for (uint g = 0; g < GROUP; g++)
                st->dot[g][j + u] = dot[g][u];
            st->bias[j + u] = bias;
        }
    }
}

/*
 * From parts of `count` scores to weights relative to the largest score yet; what was summed before is scaled down to
 * it.
 */
static inline void wide_softmax(wide_state *st, uint count)
{
    for (uint j = count; j % LANES; j++) {
        st->bias[j] = -INFINITY;
        for (uint g = 0; g < GROUP; g++)
            st->dot[g][j] = (vec)(0.0f);
    }
    for (uint g = 0; g < GROUP; g++) {
        vec most = -INFINITY, sum = 0.0f;
        for (uint j = 0; j < count; j += LANES) {
            const vec s = fold(&st->dot[g][j]) + VLOAD(st->bias + j);
            most = fmax(most, s);
            VSTORE(s, st->weight[g] + j);
        }
        const float m = fmax(st->top[g], VEC_MAX(most));
        for (uint j = 0; j < count; j += LANES) {
            const vec p = exp(VLOAD(st->weight[g] + j) - m);
            sum += p;
            VSTORE(p, st->weight[g] + j);
        }
        if (st->top[g] == -INFINITY) /* nothing is summed yet */
            st->top[g] = m;
        if (m > st->top[g]) {
            const float less = exp(st->top[g] - m);
            st->total[g] *= less;
            for (uint v = 0; v < VECS; v++)
                st->acc[g][v] *= less;
            st->top[g] = m;
        }
        st->total[g] += VEC_SUM(sum);
    }
}

/*
 * Add vectors v .. v + n - 1 of the tile's values by their weights. n is known when this is compiled, but only after it
 * is inlined: the loops to be unrolled do not end at it.
 */
static inline void wide_sums(wide_state *st, const tile_rows *rows, uint count, uint v, uint n)
{
    vec sum[GROUP][VECS_AT_ONCE];
    UNROLL
    for (uint i = 0; i < GROUP * VECS_AT_ONCE; i++)
        if (i % VECS_AT_ONCE < n)
            sum[i / VECS_AT_ONCE][i % VECS_AT_ONCE] = st->acc[i / VECS_AT_ONCE][v + i % VECS_AT_ONCE];
    for (uint j = 0; j < count; j++) {
        row_fetch(rows->value[j + AHEAD]);
        UNROLL
        for (uint i = 0; i < VECS_AT_ONCE; i++) {
            if (i >= n)
                break;
            const vec x = KV_VLOAD(rows->value[j] + (v + i) * LANES);
            UNROLL
            for (uint g = 0; g < GROUP; g++)
                sum[g][i] = fma((vec)(st->weight[g][j]), x, sum[g][i]);
        }
    }
    UNROLL
    for (uint i = 0; i < GROUP * VECS_AT_ONCE; i++)
        if (i % VECS_AT_ONCE < n)
            st->acc[i / VECS_AT_ONCE][v + i % VECS_AT_ONCE] = sum[i / VECS_AT_ONCE][i % VECS_AT_ONCE];
}

/* Add the tile's values by their weights. */
static inline void wide_values(wide_state *st, const tile_rows *rows, uint count)
{
    uint v = 0;
    for (; v + VECS_AT_ONCE <= VECS; v += VECS_AT_ONCE)
        wide_sums(st, rows, count, v, VECS_AT_ONCE);
    if (VECS % VECS_AT_ONCE)
        wide_sums(st, rows, count, v, VECS % VECS_AT_ONCE);
}

/* Put this KV head's new key, turned at its anchor, and the value into the token's slot. */
static inline void wide_store(const __local kv_table *kv, uint plane_k, uint plane_v, uint slot,
                              const __global float *k, const __global float *v, const __global uint *rot)
{
    __global kv_t *to_k = kv_row(kv, plane_k, slot), *to_v = kv_row(kv, plane_v, slot);
    for (uint i = 0; i < HEAD_DIM / 2; i++)
        kv_put_pair(to_k, to_v, k, v, rot, i);
}

/* Add the partial results of a query head's `used` splits. */
static inline void wide_combine(const __global float *from, uint used, __global float *to)
{
    float weight[SPLITS_MAX], top = -INFINITY, total = 0.0f;
    for (uint s = 0; s < used; s++)
        top = fmax(top, from[s * PARTIAL + PARTIAL_MAX]);
    for (uint s = 0; s < used; s++) {
        weight[s] = exp(from[s * PARTIAL + PARTIAL_MAX] - top);
        total = fma(weight[s], from[s * PARTIAL + PARTIAL_SUM], total);
    }
    for (uint v = 0; v < VECS; v++) {
        vec sum = (vec)(0.0f);
        for (uint s = 0; s < used; s++)
            sum = fma((vec)(weight[s]), VLOAD(from + s * PARTIAL + v * LANES), sum);
        VSTORE(sum / total, to + v * LANES);
    }
}

/*
 * What all splits of a launch have in common. views is (n, VIEW_WORDS) and query_rot (n, VIEW_RANGES, HEAD_DIM), as
 * offsets in words into `data`; a token's row of qkv is qkv_row floats; the queries are first, first + 1 and so on.
 * partial is (queries of this launch, kv_heads * GROUP, splits, PARTIAL); with one split, which needs no combining,
 * the result itself goes to out (n, heads * HEAD_DIM). With STORE the one token's new unit, which is the last of its
 * view, is written first, by the work-item that reads it (slots and key_rot as in cl/cache.cl), and who ends the last
 * of a KV head's splits combines their results, in the order of the splits: which it is, `ended` tells, (kv_heads)
 * zeros before and after.
 */
typedef struct wide_args {
    const __local kv_table *kv;
    const __global uint *table, *data;
    ulong views, query_rot, slots, key_rot, qkv_row;
    const __global float *qkv;
    __global float *partial, *out;
    volatile __global uint *ended;
    uint layer, first, splits, kv_heads;
} wide_args;

/* Put a split's partial results, or with one split the results, where they belong. */
static inline void wide_leave(const wide_args *a, const wide_state *st, uint split, uint h, uint query)
{
    const uint splits = a->splits;
    for (uint g = 0; g < GROUP; g++) {
        const size_t head = (splits == 1 ? a->first + query : query) * (size_t)a->kv_heads * GROUP + h * GROUP + g;
        __global float *to = splits == 1 ? a->out + head * HEAD_DIM : a->partial + (head * splits + split) * PARTIAL;
        for (uint v = 0; v < VECS; v++)
            VSTORE(splits == 1 ? st->acc[g][v] / st->total[g] : st->acc[g][v], to + v * LANES);
        if (splits == 1)
            continue;
        to[PARTIAL_SUM] = st->total[g];
        to[PARTIAL_MAX] = st->top[g];
    }
}

/* Units of split `split` for KV head h and query first + `query`. */
static inline void wide_split(const wide_args *a, uint split, uint h, uint query)
{
    const size_t token = a->first + query;
    const uint kv_heads = a->kv_heads;
    const __global uint *view = a->data + a->views + token * VIEW_WORDS;
    const uint units = view[VIEW_UNITS], begin = split * SPLIT(units), end = min(begin + SPLIT(units), units);
    if (begin >= units)
        return;
    const __global float *q = a->qkv + token * a->qkv_row + h * GROUP * HEAD_DIM;
    const uint plane_k = (a->layer * 2 + 0) * kv_heads + h, plane_v = plane_k + kv_heads;
    const __global float *bias = (const __global float *)a->data + a->layer * kv_heads + h;
#if STORE
    if (end == units) {
        const __global float *k = a->qkv + (size_t)(kv_heads * GROUP + h) * HEAD_DIM;
        wide_store(a->kv, plane_k, plane_v, a->data[a->slots], k, k + (size_t)kv_heads * HEAD_DIM,
                   a->data + a->key_rot);
    }
#endif
    block_rows blocks;
    for (uint i = 0; i < KV_ARGS; i++) {
        blocks.key[i] = a->kv->base[i] + (size_t)plane_k * a->kv->units[i] * HEAD_DIM;
        blocks.to_value[i] = (size_t)kv_heads * a->kv->units[i] * HEAD_DIM;
    }

    wide_state st;
    st.range = 0;
    st.range_end = begin;
    for (uint g = 0; g < GROUP; g++) {
        st.top[g] = -INFINITY;
        st.total[g] = 0.0f;
        for (uint v = 0; v < VECS; v++)
            st.acc[g][v] = (vec)(0.0f);
    }

    for (uint tile = begin; tile < end; tile += TILE_UNITS) {
        const uint count = min((uint)TILE_UNITS, end - tile);
        tile_rows rows;
        tile_find(&blocks, view, a->table, st.range, tile, min((uint)(TILE_UNITS + AHEAD), units - tile), &rows);
        for (uint j = 0; j < count;) {
            if (tile + j >= st.range_end) {
                st.range = range_of(view, st.range, tile + j);
                st.range_end = range_word(view, st.range, RANGE_PLACE) + range_word(view, st.range, RANGE_COUNT);
                wide_turn(&st, q, a->data + a->query_rot + (token * VIEW_RANGES + st.range) * HEAD_DIM);
            }
            const uint stop = min(count, st.range_end - tile);
            wide_dots(&st, &rows, j, stop, bias[range_word(view, st.range, RANGE_BIAS)]);
            j = stop;
        }
        wide_softmax(&st, count);
        wide_values(&st, &rows, count);
    }

    wide_leave(a, &st, split, h, query);
#if STORE
    const uint used = (units + SPLIT(units) - 1) / SPLIT(units);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    if (a->splits == 1 || atomic_inc(a->ended + h) + 1 < used)
        return;
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    a->ended[h] = 0;
    for (uint head = h * GROUP; head < (h + 1) * GROUP; head++)
        wide_combine(a->partial + (size_t)head * a->splits * PARTIAL, used, a->out + head * HEAD_DIM);
#endif
}

#if !CHAIN
#if STORE
#define ENDED_PARAM , volatile __global uint *ended
#else
#define ENDED_PARAM
#endif
/* Item (split, KV head, query). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attention_wide(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
               const __global float *qkv, ulong qkv_row, uint layer, uint first, __global float *partial STORE_PARAMS,
               __global float *out ENDED_PARAM)
{
    KV_TABLE(kv);
    const wide_args args = {
        .kv = kv,
        .table = table,
        .data = data,
        .views = views,
        .query_rot = query_rot,
        .qkv_row = qkv_row,
        .qkv = qkv,
        .partial = partial,
        .out = out,
        .layer = layer,
        .first = first,
        .splits = get_global_size(0),
        .kv_heads = get_global_size(1),
#if STORE
        .slots = slots,
        .key_rot = key_rot,
        .ended = ended,
#endif
    };
    wide_split(&args, get_global_id(0), get_global_id(1), get_global_id(2));
}
#endif
