/*
 * Gradients of attention, group shape: one work-group for a query and a query head, or for a unit and a KV head. Built
 * behind attention_back.cl and group_fold.cl.
 *
 * Work goes in tiles of ITEMS units (of a query) or queries (of a unit). First each item has one of them to itself, for
 * its score and its gradient; then each has channels, as RoPE pairs, of all of them. Nothing is kept in an item's
 * memory but a few registers.
 */
#define ITEMS 32
#define PAIRS (HEAD_DIM / 2)
#define EACH ((PAIRS + ITEMS - 1) / ITEMS) /* pairs of an item: item, item + ITEMS ... */

/* Pair i of a row of the pool or of floats. */
#if ROPE_HALF
#define KV_PAIR(row, i) (float2)(kv_load((row) + (i)), kv_load((row) + (i) + PAIRS))
#define PAIR(row, i) (float2)((row)[i], (row)[(i) + PAIRS])
#else
#define KV_PAIR(row, i) KV_LOAD(2, (row) + 2 * (i))
#define PAIR(row, i) vload2(i, row)
#endif

static inline void put_pair(__global float *row, uint i, float2 x)
{
    row[ROPE_FIRST(i)] = x.x;
    row[ROPE_SECOND(i)] = x.y;
}

static inline float2 rotation(const __global uint *rot, uint i) { return as_float2(vload2(i, rot)); }

/* ---- The queries' gradients ---- */

/* The query turned for a range and scaled, into `turned`, in the order of the channels. */
static inline void turn_query(const __global float *query, const __global uint *rot, __local float *turned)
{
    barrier(CLK_LOCAL_MEM_FENCE); /* the range before is done */
    for (uint i = get_local_id(0); i < PAIRS; i += ITEMS) {
        const float2 x = rope_turn(PAIR(query, i), rotation(rot, i)) * SCALE;
        turned[ROPE_FIRST(i)] = x.x;
        turned[ROPE_SECOND(i)] = x.y;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}

/* A row of the pool times a vector. */
static inline float row_dot(const __global kv_t *row, const __local float *x)
{
#if HEAD_DIM % 8 == 0
    float8 sum = (float8)(0.0f);
    for (uint c = 0; c < HEAD_DIM; c += 8)
        sum = fma(KV_LOAD(8, row + c), vload8(0, x + c), sum);
    return sum8(sum);
#else
    float2 sum = (float2)(0.0f);
    for (uint c = 0; c < HEAD_DIM; c += 2)
        sum = fma(KV_LOAD(2, row + c), vload2(0, x + c), sum);
    return sum.x + sum.y;
#endif
}

/* The largest score of the view, and the sum of exp(score - largest). */
static inline float2 view_sum(const seen *s, const __global float *query, __local float *turned, __local float *shared)
{
    float top = -INFINITY, total = 0.0f;
    for (uint r = 0; r < s->view[VIEW_N_RANGES]; r++) {
        const uint units = range_word(s->view, r, RANGE_COUNT);
        const float bias = s->bias[range_word(s->view, r, RANGE_BIAS)];
        turn_query(query, s->rot + r * HEAD_DIM, turned);
        for (uint j = get_local_id(0); j < units; j += ITEMS) {
            const float score = row_dot(kv_row(s->kv, s->plane_k, seen_slot(s, r, j)), turned) + bias;
            if (score > top) {
                total *= exp(top - score);
                top = score;
            }
            total += exp(score - top);
        }
    }
    const float most = group_fold(shared, top, true);
    return (float2)(most, group_fold(shared, total * exp(top - most), false));
}

/* What a tile's `count` units add to this item's pairs of the query's gradient, turned as they are. */
static inline void add_units(const seen *s, uint count, const __local uint *slot, const __local float *ds, float2 *acc)
{
    for (uint j = 0; j < count; j++) {
        const __global kv_t *key = kv_row(s->kv, s->plane_k, slot[j]);
        UNROLL_GROUP
        for (uint p = 0; p < EACH; p++) {
            const uint i = get_local_id(0) + p * ITEMS;
            if (i < PAIRS)
                acc[p] = fma((float2)(ds[j]), KV_PAIR(key, i), acc[p]);
        }
    }
}

#if BOUNDARY
/*
 * The boundary term, into edge and, with it, this item's pairs of the query's gradient. None from range 0 with `sinks`.
 * `score` has two floats for each range: its oldest and its newest unit's.
 */
static inline void add_boundaries(const seen *s, const __global float *query, float boundary, uint sinks,
                                  __local float *score, __global float *edge, float2 *sum)
{
    const uint item = get_local_id(0), ranges = s->view[VIEW_N_RANGES];
    for (uint e = item; e < 2 * ranges; e += ITEMS) {
        const uint r = e / 2;
        const __global kv_t *key = end_key(s, r, e % 2);
        float2 dot = (float2)(0.0f);
        for (uint i = 0; i < PAIRS; i++)
            dot = fma(rope_turn(PAIR(query, i), rotation(s->rot + r * HEAD_DIM, i)) * SCALE, KV_PAIR(key, i), dot);
        score[e] = dot.x + dot.y + s->bias[range_word(s->view, r, RANGE_BIAS)];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    float down = 0.0f;
    for (uint r = 0; r < ranges; r++) {
        const bool counts = r + 1 < ranges && r >= sinks;
        const float up = counts ? boundary_slope(score[2 * r + 1] - score[2 * r + 2], boundary) : 0.0f;
        const __global kv_t *newest = end_key(s, r, true), *oldest = end_key(s, r, false);
        if (item == 0)
            edge[r] = up;
        UNROLL_GROUP
        for (uint p = 0; p < EACH; p++) {
            const uint i = item + p * ITEMS;
            if (i < PAIRS)
                sum[p] += rope_unturn(fma((float2)(up), KV_PAIR(newest, i), -(down * KV_PAIR(oldest, i))),
                                      rotation(s->rot + r * HEAD_DIM, i)) *
                          SCALE;
        }
        down = up;
    }
}
#endif

/* Group (query, query head). */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
query_back(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
           const __global float *qkv, ulong qkv_row, uint layer, const __global float *out, const __global float *dout,
           float boundary, uint sinks, __global float *lse, __global float *dqkv, __global float *edge)
{
    __local float turned[HEAD_DIM], slopes[HEAD_DIM], ds[ITEMS], shared[ITEMS], ends[2 * VIEW_RANGES];
    __local uint slot[ITEMS];
    KV_TABLE(kv);
    const uint item = get_local_id(0);
    const size_t token = get_group_id(0);
    const uint head = get_group_id(1), heads = get_num_groups(1), h = head / GROUP, kv_heads = heads / GROUP;
    const size_t row = (token * heads + head) * HEAD_DIM, at = token * qkv_row + head * HEAD_DIM;
    const seen s = seen_find(kv, table, data, views, query_rot, token, layer, kv_heads, h);
    float part = 0.0f;
    for (uint c = item; c < HEAD_DIM; c += ITEMS) {
        slopes[c] = dout[row + c];
        part = fma(out[row + c], slopes[c], part);
    }
    const float delta = group_fold(shared, part, false);
    const float2 weights = view_sum(&s, qkv + at, turned, shared);

    float2 sum[EACH];
    UNROLL_GROUP
    for (uint p = 0; p < EACH; p++)
        sum[p] = (float2)(0.0f);
    for (uint r = 0; r < s.view[VIEW_N_RANGES]; r++) {
        const uint units = range_word(s.view, r, RANGE_COUNT);
        const float bias = s.bias[range_word(s.view, r, RANGE_BIAS)];
        float2 acc[EACH];
        UNROLL_GROUP
        for (uint p = 0; p < EACH; p++)
            acc[p] = (float2)(0.0f);
        turn_query(qkv + at, s.rot + r * HEAD_DIM, turned);
        for (uint first = 0; first < units; first += ITEMS) {
            const uint count = min((uint)ITEMS, units - first);
            if (item < count) {
                slot[item] = seen_slot(&s, r, first + item);
                const float score = row_dot(kv_row(kv, s.plane_k, slot[item]), turned) + bias;
                const float slope = row_dot(kv_row(kv, s.plane_v, slot[item]), slopes);
                ds[item] = exp(score - weights.x) * (slope - delta);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            add_units(&s, count, slot, ds, acc);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        UNROLL_GROUP
        for (uint p = 0; p < EACH; p++)
            if (item + p * ITEMS < PAIRS)
                sum[p] += rope_unturn(acc[p], rotation(s.rot + r * HEAD_DIM, item + p * ITEMS)) * SCALE;
    }
    UNROLL_GROUP
    for (uint p = 0; p < EACH; p++)
        sum[p] /= weights.y;
#if BOUNDARY
    add_boundaries(&s, qkv + at, boundary, sinks, ends, edge + (token * heads + head) * VIEW_RANGES, sum);
#endif
    UNROLL_GROUP
    for (uint p = 0; p < EACH; p++)
        if (item + p * ITEMS < PAIRS)
            put_pair(dqkv + at, item + p * ITEMS, sum[p]);
    if (item == 0) {
        lse[2 * (token * heads + head)] = weights.x + log(weights.y);
        lse[2 * (token * heads + head) + 1] = delta;
    }
}

/* ---- The units' gradients ---- */

/* A unit's rows, and those of a query head of the KV head, for query 0. */
typedef struct unit_rows {
    const __global kv_t *key, *value;
    const __global float *query, *dout, *lse, *edge;
    size_t query_row, dout_row, lse_row, edge_row; /* from one query to the next */
} unit_rows;

/*
 * The weight of unit u in the view of query t and the gradient of its score, for the query head of `rows`; `rot` are
 * the rotations of range r of the view.
 */
static inline float2 unit_weight(const unit_rows *rows, const __global uint *u, const __global uint *view,
                                 const __global uint *table, const __global uint *rot, uint r, float bias, size_t t)
{
    const __global float *query = rows->query + t * rows->query_row, *dout = rows->dout + t * rows->dout_row;
    const __global float *lse = rows->lse + t * rows->lse_row;
    float2 score = (float2)(0.0f), slope = (float2)(0.0f);
    for (uint i = 0; i < PAIRS; i++) {
        score = fma(rope_turn(PAIR(query, i), rotation(rot, i)) * SCALE, KV_PAIR(rows->key, i), score);
        slope = fma(PAIR(dout, i), KV_PAIR(rows->value, i), slope);
    }
    const float p = exp(score.x + score.y + bias - lse[0]);
    float ds = p * (slope.x + slope.y - lse[1]);
#if BOUNDARY
    const __global float *edge = rows->edge + t * rows->edge_row;
    const uint place = range_word(view, r, RANGE_PLACE), last = range_word(view, r, RANGE_COUNT) - 1;
    if (range_slot(view, table, r, place + last) == u[UNIT_SLOT])
        ds += edge[r];
    if (r && range_slot(view, table, r, place) == u[UNIT_SLOT])
        ds -= edge[r - 1];
#endif
    return (float2)(p, ds);
}

/* What `count` queries from t on add to this item's pairs of the unit's gradients; rot: of query t's ranges. */
static inline void add_queries(const unit_rows *rows, const __global uint *rot, const __local uint *range,
                               const __local float *p, const __local float *ds, size_t t, uint count, float2 *dk,
                               float2 *dv)
{
    for (uint q = 0; q < count; q++) {
        const __global float *query = rows->query + (t + q) * rows->query_row;
        const __global float *dout = rows->dout + (t + q) * rows->dout_row;
        UNROLL_GROUP
        for (uint e = 0; e < EACH; e++) {
            const uint i = get_local_id(0) + e * ITEMS;
            if (i >= PAIRS)
                break;
            const float2 r = rotation(rot + (q * VIEW_RANGES + range[q]) * HEAD_DIM, i);
            dk[e] = fma((float2)(ds[q]), rope_turn(PAIR(query, i), r) * SCALE, dk[e]);
            dv[e] = fma((float2)(p[q]), PAIR(dout, i), dv[e]);
        }
    }
}

/* Group (unit, KV head). */
__kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void
unit_back(KV_PARAMS, const __global uint *table, const __global uint *data, ulong views, ulong query_rot,
          const __global float *qkv, ulong qkv_row, uint layer, const __global float *dout, const __global float *lse,
          const __global float *edge, const __global uint *unit, uint count, __global float *dunits,
          __global float *dscores)
{
    __local float p[ITEMS], ds[ITEMS], shared[ITEMS];
    __local uint range[ITEMS];
    KV_TABLE(kv);
    const uint item = get_local_id(0), h = get_group_id(1), kv_heads = get_num_groups(1), heads = kv_heads * GROUP;
    const __global uint *u = unit + get_group_id(0) * UNIT_WORDS;
    const __global float *bias = (const __global float *)data + layer * kv_heads + h;
    float dscore = 0.0f;
    float2 dk[EACH], dv[EACH];
    UNROLL_GROUP
    for (uint e = 0; e < EACH; e++)
        dk[e] = dv[e] = (float2)(0.0f);

    for (uint first = u[UNIT_FIRST], end = u[UNIT_END]; first < end; first += ITEMS) {
        const uint queries = min((uint)ITEMS, end - first);
        const size_t t = first + item;
        const __global uint *view = data + views + t * VIEW_WORDS;
        const __global uint *rot = data + query_rot + (size_t)first * VIEW_RANGES * HEAD_DIM;
        if (item < queries)
            range[item] = find_range(view, u[UNIT_RING]);
        for (uint g = 0; g < GROUP; g++) {
            const size_t head = h * GROUP + g;
            const unit_rows rows = {kv_row(kv, (layer * 2 + 0) * kv_heads + h, u[UNIT_SLOT]),
                                    kv_row(kv, (layer * 2 + 1) * kv_heads + h, u[UNIT_SLOT]),
                                    qkv + head * HEAD_DIM,
                                    dout + head * HEAD_DIM,
                                    lse + head * 2,
                                    edge + head * VIEW_RANGES,
                                    qkv_row,
                                    (size_t)heads * HEAD_DIM,
                                    heads * 2,
                                    heads * VIEW_RANGES};
            if (item < queries) {
                const uint r = range[item];
                const float2 weight = unit_weight(&rows, u, view, table, rot + (item * VIEW_RANGES + r) * HEAD_DIM, r,
                                                  bias[range_word(view, r, RANGE_BIAS)], t);
                p[item] = weight.x;
                ds[item] = weight.y;
                dscore += weight.y;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            add_queries(&rows, rot, range, p, ds, first, queries, dk, dv);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
    }

    dscore = group_fold(shared, dscore, false);
    if (item == 0)
        dscores[get_group_id(0) * kv_heads + h] = dscore;
    __global float *to = dunits + (get_group_id(0) * 2 * kv_heads + h) * HEAD_DIM;
    UNROLL_GROUP
    for (uint e = 0; e < EACH; e++) {
        const uint i = item + e * ITEMS;
        if (i < PAIRS) {
            put_pair(to, i, rope_unturn(dk[e], rotation(data + u[UNIT_ROTATION], i)));
            put_pair(to + (size_t)kv_heads * HEAD_DIM, i, dv[e]);
        }
    }
}
