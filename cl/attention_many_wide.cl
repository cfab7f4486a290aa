/*
 * Attention of many queries, wide shape: one work-item for 16 queries and HEADS query heads of one KV head, a query a
 * lane. Built behind attention_many.cl.
 *
 * Units are collected in tiles of UNITS, whatever rings they are from; weights and values of a tile are multiplied
 * together.
 */
#ifndef HEADS
#define HEADS 1 /* query heads of an item; divides GROUP */
#endif
#ifndef VECTOR_FLOATS
#define VECTOR_FLOATS 16
#endif

#ifndef QUERIES
#define QUERIES 16
#endif
#define UNITS (HEAD_DIM <= 64 ? 64 : 32)
/* Units or channels whose sums are in registers together, for each head. */
#if VECTOR_FLOATS < 16
#define AT_ONCE 4
#elif HEADS == 1 && HEAD_DIM % 16 == 0
#define AT_ONCE 16
#else
#define AT_ONCE 8
#endif

/* Walking the views of the tile's queries. */
typedef struct walk {
    const __global uint *view[QUERIES];
    uint done[QUERIES]; /* ranges passed */
    const __global float *bias; /* of the layer and KV head, from the first word of the step's data on */
} walk;

/* What the queries see of one ring, counted from unit `base`: lane q's are first .. first + count - 1. */
typedef struct ring_run {
    uint ring, mask, base, begin, end; /* begin .. end - 1 are seen by some query */
    uint range[QUERIES];               /* in the query's view */
    uint first[QUERIES], count[QUERIES];
    float bias[QUERIES];
} ring_run;

typedef struct many_state {
    float16 query[HEAD_DIM * HEADS], turned[HEAD_DIM * HEADS], acc[HEAD_DIM * HEADS]; /* (channel, head) */
    float16 score[(UNITS + AT_ONCE) * HEADS];                                         /* then weights */
    float16 top[HEADS], total[HEADS];
    float key[AT_ONCE * HEAD_DIM], value[(UNITS + AT_ONCE) * HEAD_DIM];
    uint count; /* units in the tile */
} many_state;

/* ---- The views ---- */

static inline const __global uint *walk_range(const walk *w, uint q, uint range)
{
    return w->view[q] + VIEW_RANGE_0 + range * VIEW_RANGE_WORDS;
}

/* The next ring of the tile: of those not yet passed, the one that is last in the table. False at the end. */
static inline bool next_ring(walk *w, ring_run *run)
{
    bool found = false;
    for (uint q = 0; q < QUERIES; q++)
        if (w->done[q] < w->view[q][VIEW_N_RANGES]) {
            const __global uint *r = walk_range(w, q, w->done[q]);
            if (!found || r[RANGE_RING] > run->ring) {
                run->ring = r[RANGE_RING];
                run->mask = r[RANGE_MASK];
                run->base = r[RANGE_BEGIN];
            }
            found = true;
        }
    run->begin = UINT_MAX;
    run->end = 0;
    for (uint q = 0; q < QUERIES; q++) {
        const uint at = w->done[q];
        const __global uint *r = walk_range(w, q, at);
        const bool has = at < w->view[q][VIEW_N_RANGES] && r[RANGE_RING] == run->ring;
        const uint first = has ? (r[RANGE_BEGIN] - run->base) & run->mask : 0;
        run->range[q] = has ? at : 0;
        run->first[q] = first;
        run->count[q] = has ? r[RANGE_COUNT] : 0;
        run->bias[q] = has ? w->bias[r[RANGE_BIAS]] * LOG2E : 0.0f;
        run->begin = has ? min(run->begin, first) : run->begin;
        run->end = has ? max(run->end, first + r[RANGE_COUNT]) : run->end;
        w->done[q] = at + has;
    }
    return found;
}

/* ---- Queries and results: rows of channels against lanes of queries ---- */

static inline float16 interleave(float8 a, float8 b)
{
    float16 x;
    x.even = a;
    x.odd = b;
    return x;
}

static inline void transpose16(float16 *m)
{
    UNROLL
    for (uint round = 0; round < 4; round++) {
        float16 to[16];
        UNROLL
        for (uint i = 0; i < 8; i++) {
            to[2 * i] = interleave(m[i].lo, m[i + 8].lo);
            to[2 * i + 1] = interleave(m[i].hi, m[i + 8].hi);
        }
        UNROLL
        for (uint i = 0; i < 16; i++)
            m[i] = to[i];
    }
}

/* Channels c .. c+15 of each row, or 8 where there are no more: m[i] is channel c + i of all rows. */
static inline void load_lanes(const __global float *const *row, uint c, float16 *m)
{
    UNROLL
    for (uint q = 0; q < QUERIES; q++)
        m[q] = c + 16 <= HEAD_DIM ? vload16(0, row[q] + c) : (float16)(vload8(0, row[q] + c), (float8)(0.0f));
    transpose16(m);
}

/* The tile's queries, `row` being the first head's. */
static inline void load_queries(many_state *st, const __global float *const *row)
{
    const __global float *head[QUERIES];
    float16 m[16];
    for (uint v = 0; v < HEADS; v++) {
        for (uint q = 0; q < QUERIES; q++)
            head[q] = row[q] + v * HEAD_DIM;
        for (uint c = 0; c < HEAD_DIM; c += 16) {
            load_lanes(head, c, m);
            for (uint i = 0; i < min(16u, HEAD_DIM - c); i++)
                st->query[(c + i) * HEADS + v] = m[i] * QUERY_SCALE;
        }
    }
}

/* The queries turned for a ring; rot[q] points to query q's rotation for it. */
static inline void turn_queries(many_state *st, const __global float *const *rot)
{
    float16 m[16];
    for (uint c = 0; c < HEAD_DIM; c += 16) {
        load_lanes(rot, c, m);
        for (uint i = c / 2; i < min(c + 16, (uint)HEAD_DIM) / 2; i++) {
            const float16 cosine = m[2 * i - c], sine = m[2 * i + 1 - c];
            UNROLL
            for (uint v = 0; v < HEADS; v++) {
                const uint first = ROPE_FIRST(i) * HEADS + v, second = ROPE_SECOND(i) * HEADS + v;
                const float16 x = st->query[first], y = st->query[second];
                st->turned[first] = fma(x, cosine, -(y * sine));
                st->turned[second] = fma(x, sine, y * cosine);
            }
        }
    }
}

/* ---- A tile of units ---- */

static inline void unpack_row(const __global kv_t *row, float *to)
{
#if HEAD_DIM % 16 == 0
    UNROLL
    for (uint c = 0; c < HEAD_DIM; c += 16)
        vstore16(KV_LOAD(16, row + c), 0, to + c);
#else
    UNROLL
    for (uint c = 0; c < HEAD_DIM; c += 8)
        vstore8(KV_LOAD(8, row + c), 0, to + c);
#endif
}

/* Scores of the AT_ONCE units in st->key, of which `count` are there, for the tile's units from st->count on. */
static inline void score_units(many_state *st, const ring_run *run, uint unit, uint count)
{
    float16 dot[AT_ONCE][HEADS];
    UNROLL
    for (uint i = 0; i < AT_ONCE * HEADS; i++)
        dot[i / HEADS][i % HEADS] = (float16)(0.0f);
    for (uint c = 0; c < HEAD_DIM; c++) {
        float16 q[HEADS];
        UNROLL
        for (uint v = 0; v < HEADS; v++)
            q[v] = st->turned[c * HEADS + v];
        UNROLL
        for (uint u = 0; u < AT_ONCE; u++) {
            const float16 k = (float16)(st->key[u * HEAD_DIM + c]);
            UNROLL
            for (uint v = 0; v < HEADS; v++)
                dot[u][v] = fma(q[v], k, dot[u][v]);
        }
    }
    const uint16 first = vload16(0, run->first), seen = vload16(0, run->count);
    const float16 bias = vload16(0, run->bias);
    UNROLL
    for (uint u = 0; u < AT_ONCE; u++)
        if (u < count) {
            const int16 visible = (uint16)(unit + u) - first < seen;
            UNROLL
            for (uint v = 0; v < HEADS; v++)
                st->score[(st->count + u) * HEADS + v] = select((float16)(-INFINITY), dot[u][v] + bias, visible);
        }
}

/* What was summed before is scaled down to larger exponents. */
static inline void rescale_head(many_state *st, uint v, float16 top)
{
    const float16 old = st->top[v], down = old == top ? (float16)(0.0f) : max(old - top, (float16)(EXPONENT_MIN));
    const float16 scale = EXP2_WHOLE(as_float16, as_int16, down);
    st->top[v] = top;
    st->total[v] *= scale;
    for (uint c = 0; c < HEAD_DIM; c++)
        st->acc[c * HEADS + v] *= scale;
}

/* Scores to weights relative to the largest exponent yet. */
static inline void weigh_units(many_state *st)
{
    float16 most[HEADS], total[HEADS];
    UNROLL
    for (uint v = 0; v < HEADS; v++)
        most[v] = st->score[v];
    for (uint u = 1; u < st->count; u++) {
        UNROLL
        for (uint v = 0; v < HEADS; v++)
            most[v] = max(most[v], st->score[u * HEADS + v]);
    }
    UNROLL
    for (uint v = 0; v < HEADS; v++) {
        const float16 top = max(st->top[v], ROUND(float16, most[v]));
        if (any(top != st->top[v]))
            rescale_head(st, v, top);
        most[v] = top == (float16)(-INFINITY) ? (float16)(0.0f) : top; /* where nothing has been seen */
        total[v] = st->total[v];
    }
    for (uint u = 0; u < st->count; u++) {
        UNROLL
        for (uint v = 0; v < HEADS; v++) {
            const float16 t = max(st->score[u * HEADS + v], (float16)(SCORE_MIN)), n = ROUND(float16, t);
            const float16 p = EXP2_PART(float16, (t - n)) *
                              EXP2_WHOLE(as_float16, as_int16, max(n - most[v], (float16)(EXPONENT_MIN)));
            total[v] += p;
            st->score[u * HEADS + v] = p;
        }
    }
    UNROLL
    for (uint v = 0; v < HEADS; v++)
        st->total[v] = total[v];
}

/* Add the tile's values by their weights. */
static inline void add_values(many_state *st)
{
    for (uint c = 0; c < HEAD_DIM; c += AT_ONCE) {
        float16 sum[AT_ONCE][HEADS];
        UNROLL
        for (uint i = 0; i < AT_ONCE * HEADS; i++)
            sum[i / HEADS][i % HEADS] = st->acc[c * HEADS + i];
        for (uint u = 0; u < st->count; u++) {
            float16 p[HEADS];
            UNROLL
            for (uint v = 0; v < HEADS; v++)
                p[v] = st->score[u * HEADS + v];
            UNROLL
            for (uint i = 0; i < AT_ONCE; i++) {
                const float16 x = (float16)(st->value[u * HEAD_DIM + c + i]);
                UNROLL
                for (uint v = 0; v < HEADS; v++)
                    sum[i][v] = select(sum[i][v], fma(p[v], x, sum[i][v]), p[v] > 0.0f);
            }
        }
        UNROLL
        for (uint i = 0; i < AT_ONCE * HEADS; i++)
            st->acc[c * HEADS + i] = sum[i / HEADS][i % HEADS];
    }
}

static inline void finish_tile(many_state *st)
{
    weigh_units(st);
    add_values(st);
    st->count = 0;
}

/* Where AT_ONCE units of a run are, the last one in place of those past it. */
typedef struct unit_rows {
    const __global kv_t *key[AT_ONCE], *value[AT_ONCE];
} unit_rows;

static inline void find_units(const __local kv_table *kv, const __global uint *table, const ring_run *run, uint unit,
                              uint plane_k, uint plane_v, unit_rows *rows)
{
    for (uint j = 0; j < AT_ONCE; j++) {
        const uint slot = table[run->ring + ((run->base + min(unit + j, run->end - 1)) & run->mask)];
        rows->key[j] = kv_row(kv, plane_k, slot);
        rows->value[j] = kv_row(kv, plane_v, slot);
    }
}

/* All units of a run; the next ones' rows are on their way from memory meanwhile. */
static inline void add_run(many_state *st, const __local kv_table *kv, const __global uint *table, const ring_run *run,
                           uint plane_k, uint plane_v)
{
    unit_rows rows, next;
    find_units(kv, table, run, run->begin, plane_k, plane_v, &rows);
    for (uint u = run->begin; u < run->end; u += AT_ONCE) {
        const uint count = min((uint)AT_ONCE, run->end - u);
        find_units(kv, table, run, u + AT_ONCE, plane_k, plane_v, &next);
        if (st->count + count > UNITS)
            finish_tile(st);
        for (uint j = 0; j < AT_ONCE; j++) {
            row_fetch(next.key[j]);
            unpack_row(rows.key[j], st->key + j * HEAD_DIM);
            row_fetch(next.value[j]);
            unpack_row(rows.value[j], st->value + (st->count + j) * HEAD_DIM);
        }
        score_units(st, run, u, count);
        st->count += count;
        rows = next;
    }
}

/* Rows first .. of `out` (n, row): the sums over the totals. */
static inline void store_results(const many_state *st, __global float *out, size_t row, uint queries)
{
    for (uint v = 0; v < HEADS; v++)
        for (uint c = 0; c < HEAD_DIM; c += 16) {
            float16 m[16];
            for (uint i = 0; i < 16; i++)
                m[i] = st->acc[min(c + i, HEAD_DIM - 1u) * HEADS + v] / st->total[v];
            transpose16(m);
            for (uint q = 0; q < queries; q++) {
                __global float *to = out + q * row + v * HEAD_DIM + c;
                if (c + 16 <= HEAD_DIM)
                    vstore16(m[q], 0, to);
                else
                    vstore8(m[q].lo, 0, to);
            }
        }
}

/*
 * views is (n, VIEW_WORDS) and query_rot (n, VIEW_RANGES, HEAD_DIM), as offsets in words into `data`; a token's row of
 * qkv is qkv_row floats. Item (t, h, i): queries 16 t .., heads HEADS i .. of KV head h; out is (n, heads * HEAD_DIM).
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
attention_many_wide(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
                    const __global float *qkv, ulong qkv_row, uint layer, uint n, __global float *out)
{
    KV_TABLE(kv);
    const uint token = get_global_id(0) * QUERIES, queries = min((uint)QUERIES, n - token);
    const uint h = get_global_id(1), kv_heads = get_global_size(1);
    const uint plane_k = (layer * 2 + 0) * kv_heads + h, plane_v = (layer * 2 + 1) * kv_heads + h;
    const size_t head = h * GROUP + get_global_id(2) * HEADS, out_row = (size_t)kv_heads * GROUP * HEAD_DIM;
    const __global float *rows[QUERIES];
    many_state st;
    walk w;
    ring_run run;

    for (uint q = 0; q < QUERIES; q++) {
        const size_t t = token + min(q, queries - 1);
        w.view[q] = data + views + t * VIEW_WORDS;
        w.done[q] = q < queries ? 0 : VIEW_RANGES;
        rows[q] = qkv + t * qkv_row + head * HEAD_DIM;
    }
    w.bias = (const __global float *)data + layer * kv_heads + h;
    load_queries(&st, rows);
    for (uint v = 0; v < HEADS; v++) {
        st.top[v] = (float16)(-INFINITY);
        st.total[v] = (float16)(0.0f);
    }
    for (uint i = 0; i < HEAD_DIM * HEADS; i++)
        st.acc[i] = (float16)(0.0f);
    st.count = 0;

    while (next_ring(&w, &run)) {
        for (uint q = 0; q < QUERIES; q++) {
            const size_t t = token + min(q, queries - 1);
            rows[q] = (const __global float *)data + query_rot + (t * VIEW_RANGES + run.range[q]) * HEAD_DIM;
        }
        turn_queries(&st, rows);
        add_run(&st, kv, table, &run, plane_k, plane_v);
    }
    if (st.count)
        finish_tile(&st);
    store_results(&st, out + token * out_row + head * HEAD_DIM, out_row, queries);
}
