/*
 * Gradients of attention, wide shape: vectors over channels, one work-item a group. Built behind attention_back.cl.
 *
 * In query_back, a work-item for a query and a KV head, what was summed is scaled down whenever a larger score comes,
 * as in attention itself. In unit_back, a work-item for UNITS units and a KV head, these share the turned queries. Sums
 * of 16 scores are folded together.
 */
#if HEAD_DIM % 16 == 0
#define LANES 16
typedef float16 vec;
#define VLOAD(p) vload16(0, p)
#define VSTORE(x, p) vstore16(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(16, p)
#else
#define LANES 2
typedef float2 vec;
#define VLOAD(p) vload2(0, p)
#define VSTORE(x, p) vstore2(x, 0, p)
#define KV_VLOAD(p) KV_LOAD(2, p)
#endif
#define VECS (HEAD_DIM / LANES)
#define TILE 16 /* units of a query, or queries of a unit, at a time */
#define UNITS 32 /* of a work-item */

#define LANE_INDEX ((uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))

/* The sums of each of TILE vectors. */
#if LANES == 16
static inline float16 fold(const vec *x) { return fold16(x); }
#else
static inline float16 fold(const vec *x)
{
    float sum[TILE];
    for (uint i = 0; i < TILE; i++)
        sum[i] = x[i].x + x[i].y;
    return vload16(0, sum);
}
#endif

/* A row of channels turned by a rotation (sign 1) or back (-1), and scaled. */
#if HEAD_DIM % 16 == 0
static inline void turn_row(const float *x, const __global uint *rot, float sign, float scale, float *to)
{
    for (uint i = 0; i < HEAD_DIM / 2; i += 8) {
        const float16 r = as_float16(vload16(0, rot + 2 * i)) * scale;
        const float8 c = r.even, s = r.odd * sign;
#if ROPE_HALF
        const float8 a = vload8(0, x + i), b = vload8(0, x + i + HEAD_DIM / 2);
        vstore8(fma(a, c, -(b * s)), 0, to + i);
        vstore8(fma(a, s, b * c), 0, to + i + HEAD_DIM / 2);
#else
        const float16 ab = vload16(0, x + 2 * i);
        float16 turned;
        turned.even = fma(ab.even, c, -(ab.odd * s));
        turned.odd = fma(ab.even, s, ab.odd * c);
        vstore16(turned, 0, to + 2 * i);
#endif
    }
}
#else
static inline void turn_row(const float *x, const __global uint *rot, float sign, float scale, float *to)
{
    for (uint i = 0; i < HEAD_DIM / 2; i++) {
        const float a = x[ROPE_FIRST(i)], b = x[ROPE_SECOND(i)];
        const float c = as_float(rot[2 * i]) * scale, s = as_float(rot[2 * i + 1]) * scale * sign;
        to[ROPE_FIRST(i)] = fma(a, c, -(b * s));
        to[ROPE_SECOND(i)] = fma(a, s, b * c);
    }
}
#endif

static inline void load_row(const __global float *from, float *to)
{
    for (uint v = 0; v < VECS; v++)
        VSTORE(VLOAD(from + v * LANES), to + v * LANES);
}

/* ---- The queries' gradients ---- */

/* Where the units of a tile are. */
typedef struct tile_rows {
    const __global kv_t *key[TILE], *value[TILE];
} tile_rows;

/* The query heads of a KV head. */
typedef struct query_state {
    vec turned[GROUP][VECS], dout[GROUP][VECS], acc[GROUP][VECS]; /* of a range; acc: turned as its keys are */
    vec score[GROUP][TILE], slope[GROUP][TILE];                   /* of a tile, in LANES parts */
    float query[GROUP][HEAD_DIM], sum[GROUP][HEAD_DIM];           /* sum: of the ranges, turned back */
    float ds[GROUP][TILE], top[GROUP], total[GROUP], delta[GROUP];
} query_state;

static inline void tile_find(const seen *s, uint range, uint first, uint count, tile_rows *rows)
{
    for (uint j = 0; j < count; j++) {
        const uint slot = seen_slot(s, range, first + j);
        rows->key[j] = kv_row(s->kv, s->plane_k, slot);
        rows->value[j] = kv_row(s->kv, s->plane_v, slot);
        row_fetch(rows->key[j]);
        row_fetch(rows->value[j]);
    }
}

/* Scores and dout . v of a tile's units, in parts. */
static inline void tile_dots(query_state *st, const tile_rows *rows, uint count)
{
    for (uint j = 0; j < count; j++) {
        vec score[GROUP], slope[GROUP];
        UNROLL
        for (uint g = 0; g < GROUP; g++)
            score[g] = slope[g] = (vec)(0.0f);
        UNROLL
        for (uint v = 0; v < VECS; v++) {
            const vec k = KV_VLOAD(rows->key[j] + v * LANES), x = KV_VLOAD(rows->value[j] + v * LANES);
            UNROLL
            for (uint g = 0; g < GROUP; g++) {
                score[g] = fma(k, st->turned[g][v], score[g]);
                slope[g] = fma(x, st->dout[g][v], slope[g]);
            }
        }
        UNROLL
        for (uint g = 0; g < GROUP; g++) {
            st->score[g][j] = score[g];
            st->slope[g][j] = slope[g];
        }
    }
    for (uint j = count; j < TILE; j++)
        for (uint g = 0; g < GROUP; g++)
            st->score[g][j] = st->slope[g][j] = (vec)(0.0f);
}

/* What was summed before is scaled down to a larger score. */
static inline void rescale(query_state *st, uint g, float top)
{
    const float less = exp(st->top[g] - top);
    st->top[g] = top;
    st->total[g] *= less;
    for (uint v = 0; v < VECS; v++) {
        st->acc[g][v] *= less;
        VSTORE(VLOAD(st->sum[g] + v * LANES) * less, st->sum[g] + v * LANES);
    }
}

/* Gradients of a tile's scores, relative to the largest score yet. */
static inline void tile_slopes(query_state *st, float bias, uint count)
{
    const int16 there = LANE_INDEX < (uint16)(count);
    for (uint g = 0; g < GROUP; g++) {
        const float16 s = select((float16)(-INFINITY), fold(st->score[g]) + bias, there);
        const float most = max16(s);
        if (most > st->top[g])
            rescale(st, g, most);
        const float16 p = exp(s - st->top[g]);
        st->total[g] += sum16(p);
        vstore16(p * (fold(st->slope[g]) - st->delta[g]), 0, st->ds[g]);
    }
}

static inline void tile_add(query_state *st, const tile_rows *rows, uint count)
{
    for (uint v = 0; v < VECS; v++) {
        vec sum[GROUP];
        UNROLL
        for (uint g = 0; g < GROUP; g++)
            sum[g] = st->acc[g][v];
        for (uint j = 0; j < count; j++) {
            const vec k = KV_VLOAD(rows->key[j] + v * LANES);
            UNROLL
            for (uint g = 0; g < GROUP; g++)
                sum[g] = fma((vec)(st->ds[g][j]), k, sum[g]);
        }
        UNROLL
        for (uint g = 0; g < GROUP; g++)
            st->acc[g][v] = sum[g];
    }
}

/* Add a row of a range's frame to the sums of head g. */
static inline void add_turned_back(query_state *st, uint g, const vec *acc, const __global uint *rot)
{
    float row[HEAD_DIM], back[HEAD_DIM];
    for (uint v = 0; v < VECS; v++)
        VSTORE(acc[v], row + v * LANES);
    turn_row(row, rot, -1.0f, SCALE, back);
    for (uint v = 0; v < VECS; v++)
        VSTORE(VLOAD(st->sum[g] + v * LANES) + VLOAD(back + v * LANES), st->sum[g] + v * LANES);
}

static inline void turn_query(query_state *st, uint g, const __global uint *rot)
{
    float row[HEAD_DIM];
    turn_row(st->query[g], rot, 1.0f, SCALE, row);
    for (uint v = 0; v < VECS; v++)
        st->turned[g][v] = VLOAD(row + v * LANES);
}

static inline void add_range(query_state *st, const seen *s, uint range)
{
    const uint units = range_word(s->view, range, RANGE_COUNT);
    const float bias = s->bias[range_word(s->view, range, RANGE_BIAS)];
    for (uint g = 0; g < GROUP; g++) {
        turn_query(st, g, s->rot + range * HEAD_DIM);
        for (uint v = 0; v < VECS; v++)
            st->acc[g][v] = (vec)(0.0f);
    }
    for (uint first = 0; first < units; first += TILE) {
        const uint count = min((uint)TILE, units - first);
        tile_rows rows;
        tile_find(s, range, first, count, &rows);
        tile_dots(st, &rows, count);
        tile_slopes(st, bias, count);
        tile_add(st, &rows, count);
    }
    for (uint g = 0; g < GROUP; g++)
        add_turned_back(st, g, st->acc[g], s->rot + range * HEAD_DIM);
}

#if BOUNDARY
/* The boundary term of head g, whose sums are those of dq by now. None from range 0 with `sinks`. */
static inline void add_boundaries(query_state *st, const seen *s, uint g, float boundary, uint sinks,
                                  __global float *edge)
{
    const uint ranges = s->view[VIEW_N_RANGES];
    float before = 0.0f; /* score of the older range's newest unit */
    for (uint r = 0; r < ranges; r++) {
        const float bias = s->bias[range_word(s->view, r, RANGE_BIAS)];
        float score[2];
        turn_query(st, g, s->rot + r * HEAD_DIM);
        for (uint newest = 0; newest < 2; newest++) {
            const __global kv_t *key = end_key(s, r, newest);
            float row[LANES];
            vec sum = (vec)(0.0f);
            for (uint v = 0; v < VECS; v++)
                sum = fma(KV_VLOAD(key + v * LANES), st->turned[g][v], sum);
            VSTORE(sum, row);
            score[newest] = bias;
            for (uint i = 0; i < LANES; i++)
                score[newest] += row[i];
        }
        if (r)
            edge[r - 1] = r <= sinks ? 0.0f : boundary_slope(before - score[0], boundary);
        before = score[1];
    }
    edge[ranges - 1] = 0.0f;
    for (uint r = 0; r < ranges; r++) {
        const __global kv_t *newest = end_key(s, r, true), *oldest = end_key(s, r, false);
        const float up = edge[r], down = r ? edge[r - 1] : 0.0f;
        vec acc[VECS];
        for (uint v = 0; v < VECS; v++)
            acc[v] = fma((vec)(up), KV_VLOAD(newest + v * LANES), -(down * KV_VLOAD(oldest + v * LANES)));
        add_turned_back(st, g, acc, s->rot + r * HEAD_DIM);
    }
}
#endif

/* Item (query, KV head). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
query_back(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
           const __global float *qkv, ulong qkv_row, uint layer, const __global float *out, const __global float *dout,
           float boundary, uint sinks, __global float *lse, __global float *dqkv, __global float *edge)
{
    KV_TABLE(kv);
    const size_t token = get_global_id(0);
    const uint h = get_global_id(1), kv_heads = get_global_size(1);
    const size_t head = (token * kv_heads + h) * GROUP, at = token * qkv_row + h * GROUP * HEAD_DIM;
    const seen s = seen_find(kv, table, data, views, query_rot, token, layer, kv_heads, h);
    query_state st;
    for (uint g = 0; g < GROUP; g++) {
        float delta = 0.0f;
        load_row(qkv + at + g * HEAD_DIM, st.query[g]);
        for (uint v = 0; v < VECS; v++) {
            st.dout[g][v] = VLOAD(dout + (head + g) * HEAD_DIM + v * LANES);
            VSTORE((vec)(0.0f), st.sum[g] + v * LANES);
        }
        for (uint c = 0; c < HEAD_DIM; c++)
            delta = fma(out[(head + g) * HEAD_DIM + c], dout[(head + g) * HEAD_DIM + c], delta);
        st.delta[g] = delta;
        st.top[g] = -INFINITY;
        st.total[g] = 0.0f;
    }
    for (uint r = 0; r < s.view[VIEW_N_RANGES]; r++)
        add_range(&st, &s, r);
    for (uint g = 0; g < GROUP; g++) {
        for (uint v = 0; v < VECS; v++)
            VSTORE(VLOAD(st.sum[g] + v * LANES) / st.total[g], st.sum[g] + v * LANES);
#if BOUNDARY
        add_boundaries(&st, &s, g, boundary, sinks, edge + (head + g) * VIEW_RANGES);
#endif
        for (uint v = 0; v < VECS; v++)
            VSTORE(VLOAD(st.sum[g] + v * LANES), dqkv + at + g * HEAD_DIM + v * LANES);
        lse[2 * (head + g)] = st.top[g] + log(st.total[g]);
        lse[2 * (head + g) + 1] = st.delta[g];
    }
}

/* ---- The units' gradients ---- */

/* Units of one ring, and TILE queries turned for it. */
typedef struct unit_state {
    vec dk[UNITS][VECS], dv[UNITS][VECS];
    vec turned[TILE][VECS], score[TILE], slope[TILE];
    float p[TILE], ds[TILE];
    float16 dscore[UNITS]; /* sums of ds */
    float bias[TILE], lse[TILE], delta[TILE];
    uint range[TILE]; /* that is of the ring, in each query's view */
    uint newest[TILE], oldest[TILE]; /* slots of its ends */
    float up[TILE], down[TILE];      /* what the boundary term adds to them */
} unit_state;

/* Which range of each query's view is the units' ring; any where it is not seen. */
static inline void find_ranges(unit_state *st, const __global uint *views, const __global uint *table,
                               const __global float *bias, uint ring, uint queries)
{
    for (uint q = 0; q < queries; q++) {
        const __global uint *view = views + (size_t)q * VIEW_WORDS;
        const uint r = find_range(view, ring);
        st->range[q] = r;
        st->bias[q] = bias[range_word(view, r, RANGE_BIAS)];
#if BOUNDARY
        const uint place = range_word(view, r, RANGE_PLACE);
        st->oldest[q] = range_slot(view, table, r, place);
        st->newest[q] = range_slot(view, table, r, place + range_word(view, r, RANGE_COUNT) - 1);
#endif
    }
}

/* What queries lo .. hi - 1 of the tile add to unit j. `dout` is the first query's row. */
static inline void add_queries(unit_state *st, uint j, uint slot, const __global kv_t *key, const __global kv_t *value,
                               const __global float *dout, size_t dout_row, uint lo, uint hi)
{
    vec k[VECS], x[VECS];
    UNROLL
    for (uint v = 0; v < VECS; v++) {
        k[v] = KV_VLOAD(key + v * LANES);
        x[v] = KV_VLOAD(value + v * LANES);
    }
    for (uint q = lo; q < hi; q++) {
        vec score = (vec)(0.0f), slope = (vec)(0.0f);
        UNROLL
        for (uint v = 0; v < VECS; v++) {
            score = fma(k[v], st->turned[q][v], score);
            slope = fma(x[v], VLOAD(dout + q * dout_row + v * LANES), slope);
        }
        st->score[q] = score;
        st->slope[q] = slope;
    }
    const int16 seen = LANE_INDEX - lo < (uint16)(hi - lo);
    const float16 s = fold(st->score) + vload16(0, st->bias) - vload16(0, st->lse);
    const float16 p = exp(select((float16)(-INFINITY), s, seen));
    float16 ds = select((float16)(0.0f), p * (fold(st->slope) - vload16(0, st->delta)), seen);
#if BOUNDARY
    ds += select((float16)(0.0f), vload16(0, st->up), vload16(0, st->newest) == slot && seen);
    ds -= select((float16)(0.0f), vload16(0, st->down), vload16(0, st->oldest) == slot && seen);
#endif
    vstore16(p, 0, st->p);
    vstore16(ds, 0, st->ds);
    st->dscore[j] += ds;
    UNROLL
    for (uint v = 0; v < VECS; v++) {
        k[v] = st->dk[j][v];
        x[v] = st->dv[j][v];
    }
    for (uint q = lo; q < hi; q++) {
        const vec by_key = (vec)(st->ds[q]), by_value = (vec)(st->p[q]);
        UNROLL
        for (uint v = 0; v < VECS; v++) {
            k[v] = fma(by_key, st->turned[q][v], k[v]);
            x[v] = fma(by_value, VLOAD(dout + q * dout_row + v * LANES), x[v]);
        }
    }
    UNROLL
    for (uint v = 0; v < VECS; v++) {
        st->dk[j][v] = k[v];
        st->dv[j][v] = x[v];
    }
}

/* Arrays and rows of a work-item. */
typedef struct unit_args {
    const __global uint *data, *table;
    const __global float *bias, *qkv, *dout, *lse, *edge;
    size_t views, query_rot, qkv_row, dout_row;
    uint kv_heads, heads, h, plane_k, plane_v;
} unit_args;

/* Head g of queries t .. t + queries - 1. */
static inline void turn_queries(unit_state *st, const unit_args *a, uint g, uint t, uint queries)
{
    for (uint q = 0; q < queries; q++) {
        const size_t token = t + q, head = token * a->heads + a->h * GROUP + g;
        float row[HEAD_DIM], turned[HEAD_DIM];
        load_row(a->qkv + token * a->qkv_row + (a->h * GROUP + g) * HEAD_DIM, row);
        turn_row(row, a->data + a->query_rot + (token * VIEW_RANGES + st->range[q]) * HEAD_DIM, 1.0f, SCALE, turned);
        for (uint v = 0; v < VECS; v++)
            st->turned[q][v] = VLOAD(turned + v * LANES);
        st->lse[q] = a->lse[2 * head];
        st->delta[q] = a->lse[2 * head + 1];
#if BOUNDARY
        const __global float *edge = a->edge + head * VIEW_RANGES + st->range[q];
        st->up[q] = edge[0];
        st->down[q] = st->range[q] ? edge[-1] : 0.0f;
#endif
    }
}

/* Of `count` units of one ring: the first query of [t, ..) that sees one of them, and past the last one. */
static inline uint next_seen(const __global uint *unit, uint count, uint t, uint *end)
{
    uint first = UINT_MAX;
    *end = 0;
    for (uint j = 0; j < count; j++) {
        const uint from = max(unit[j * UNIT_WORDS + UNIT_FIRST], t), stop = unit[j * UNIT_WORDS + UNIT_END];
        if (from < stop) {
            first = min(first, from);
            *end = max(*end, stop);
        }
    }
    return first;
}

/* Gradients of `count` units of one ring into st->dk and dv. */
static inline void gather_units(unit_state *st, const unit_args *a, const __local kv_table *kv,
                                const __global uint *unit, uint count)
{
    uint end;
    for (uint t = next_seen(unit, count, 0, &end); t < end; t = next_seen(unit, count, t + TILE, &end)) {
        const uint queries = min((uint)TILE, end - t);
        find_ranges(st, a->data + a->views + (size_t)t * VIEW_WORDS, a->table, a->bias, unit[UNIT_RING], queries);
        for (uint g = 0; g < GROUP; g++) {
            const __global float *dout = a->dout + t * a->dout_row + (a->h * GROUP + g) * HEAD_DIM;
            turn_queries(st, a, g, t, queries);
            for (uint j = 0; j < count; j++) {
                const __global uint *u = unit + j * UNIT_WORDS;
                const uint lo = max(u[UNIT_FIRST], t) - t, hi = min(max(u[UNIT_END], t), t + queries) - t;
                if (lo < hi)
                    add_queries(st, j, u[UNIT_SLOT], kv_row(kv, a->plane_k, u[UNIT_SLOT]),
                                kv_row(kv, a->plane_v, u[UNIT_SLOT]), dout, a->dout_row, lo, hi);
            }
        }
    }
}

/* Item (i, KV head): units UNITS i and on. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
unit_back(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
          const __global float *qkv, ulong qkv_row, uint layer, const __global float *dout, const __global float *lse,
          const __global float *edge, const __global uint *unit, uint count, __global float *dunits,
          __global float *dscores)
{
    KV_TABLE(kv);
    const uint h = get_global_id(1), kv_heads = get_global_size(1), heads = kv_heads * GROUP;
    const uint stop = min((uint)(get_global_id(0) + 1) * UNITS, count);
    const unit_args a = {data,
                         table,
                         (const __global float *)data + layer * kv_heads + h,
                         qkv,
                         dout,
                         lse,
                         edge,
                         views,
                         query_rot,
                         qkv_row,
                         (size_t)heads * HEAD_DIM,
                         kv_heads,
                         heads,
                         h,
                         (layer * 2 + 0) * kv_heads + h,
                         (layer * 2 + 1) * kv_heads + h};
    for (uint first = get_global_id(0) * UNITS; first < stop;) {
        const __global uint *some = unit + (size_t)first * UNIT_WORDS;
        uint n = 1;
        unit_state st;
        while (first + n < stop && some[n * UNIT_WORDS + UNIT_RING] == some[UNIT_RING])
            n++;
        for (uint i = 0; i < n * VECS; i++)
            st.dk[i / VECS][i % VECS] = st.dv[i / VECS][i % VECS] = (vec)(0.0f);
        for (uint j = 0; j < n; j++)
            st.dscore[j] = (float16)(0.0f);
        for (uint q = 0; q < TILE; q++) {
            st.score[q] = st.slope[q] = (vec)(0.0f);
            st.bias[q] = st.lse[q] = st.delta[q] = 0.0f;
        }
        gather_units(&st, &a, kv, some, n);
        for (uint j = 0; j < n; j++) {
            __global float *to = dunits + ((size_t)(first + j) * 2 * kv_heads + h) * HEAD_DIM;
            float row[HEAD_DIM], back[HEAD_DIM];
            dscores[(size_t)(first + j) * kv_heads + h] = sum16(st.dscore[j]);
            for (uint v = 0; v < VECS; v++)
                VSTORE(st.dk[j][v], row + v * LANES);
            turn_row(row, data + some[j * UNIT_WORDS + UNIT_ROTATION], -1.0f, 1.0f, back);
            for (uint v = 0; v < VECS; v++) {
                VSTORE(VLOAD(back + v * LANES), to + v * LANES);
                VSTORE(st.dv[j][v], to + (size_t)kv_heads * HEAD_DIM + v * LANES);
            }
        }
        first += n;
    }
}
