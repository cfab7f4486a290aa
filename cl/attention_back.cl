/*
 * Gradients of attention over views (attention_back_args in src/ops/grad.h). A program is attention_view.cl, this file,
 * and attention_back_wide.cl or attention_back_group.cl; both have the same two kernels:
 *
 * query_back finds the sums of exp(scores) of a query again, and the queries' gradients from them: with D = dout . out
 * known before, that is sum p (dout . v - D) k over the view. unit_back gathers the units' gradients from the queries
 * that see them. views is (n, VIEW_WORDS) and query_rot (n, VIEW_RANGES, HEAD_DIM), as offsets in words into `data`;
 * rows of qkv and dqkv are qkv_row floats; out and dout are (n, heads * HEAD_DIM), lse (n, heads, 2): the log of the
 * sum of exp(scores), and D; edge (n, heads, VIEW_RANGES): what the boundary term adds to the gradient of the score of
 * each range's newest unit, the negated of which belongs to the next range's oldest; unit is (count) grad_units, dunits
 * (count, 2, kv_heads, HEAD_DIM), dscores (count, kv_heads).
 */
#ifndef BOUNDARY
#define BOUNDARY 0 /* 1: with the boundary term */
#endif
#define RATIO_MOST 6.90775528f /* log of the largest ratio of neighbours' weights that counts */

/* Words of a grad_unit. */
enum { UNIT_SLOT, UNIT_RING, UNIT_FIRST, UNIT_END, UNIT_ROTATION, UNIT_WORDS = 8 };

/* The boundary term's gradient of the older of two neighbours' scores, which are `step` apart (older less newer). */
static inline float boundary_slope(float step, float boundary)
{
    return fabs(step) > RATIO_MOST ? 0.0f : sign(step) * boundary * exp(step);
}

/* A view, its rotations, and the pool's planes it is read from. */
typedef struct seen {
    const __local kv_table *kv;
    const __global uint *table, *view, *rot;
    const __global float *bias; /* of the layer and KV head, from the first word of the step's data on */
    uint plane_k, plane_v;
} seen;

/* What query `token` sees, with KV head h of a layer. */
static inline seen seen_find(const __local kv_table *kv, const __global uint *table, const __global uint *data,
                             ulong views, ulong query_rot, size_t token, uint layer, uint kv_heads, uint h)
{
    const seen s = {kv,
                    table,
                    data + views + token * VIEW_WORDS,
                    data + query_rot + token * VIEW_RANGES * HEAD_DIM,
                    (const __global float *)data + layer * kv_heads + h,
                    (layer * 2 + 0) * kv_heads + h,
                    (layer * 2 + 1) * kv_heads + h};
    return s;
}

/* The slot of unit j of a range. */
static inline uint seen_slot(const seen *s, uint range, uint j)
{
    return range_slot(s->view, s->table, range, range_word(s->view, range, RANGE_PLACE) + j);
}

/* The key of a range's newest or oldest unit. */
static inline const __global kv_t *end_key(const seen *s, uint range, bool newest)
{
    return kv_row(s->kv, s->plane_k, seen_slot(s, range, newest ? range_word(s->view, range, RANGE_COUNT) - 1 : 0));
}

/* Which range of a view is the ring; any where none is. */
static inline uint find_range(const __global uint *view, uint ring)
{
    uint r = view[VIEW_N_RANGES] - 1;
    while (r && range_word(view, r, RANGE_RING) != ring)
        r--;
    return r;
}
