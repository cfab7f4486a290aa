/*
 * Decode attention over a compressed history: softmax(q . K / sqrt(HEAD_DIM) + bias) V over the ranges of each
 * query's view.
 *
 * A program is this file, then attention_wide.cl or lanes.cl and attention_group.cl, then attention_combine.cl; or it
 * is one of chains (chain.cl), behind its products.
 *
 * A view is cut into splits of `attention_split(units)` places. attention_wide (one work-item) or attention_group
 * (one work-group) computes one (split, KV head, query) for all GROUP query heads that share the KV head, so that
 * keys and values are read once, and leaves for each query head a partial result of PARTIAL floats: HEAD_DIM sums
 * of p V, the sum of p, the maximum of the scores, p = exp(score - maximum). attention_combine adds the partial
 * results of a query head.
 *
 * Work goes in tiles of so many places counted from the start of the split, whatever ranges they fall in: the order
 * of all sums depends on the number of units alone. Contraction is off and fma written where it is wanted, so that
 * each copy the compiler makes of a loop rounds alike.
 */
#pragma OPENCL FP_CONTRACT OFF

#ifndef GROUP
#define GROUP 1 /* query heads per KV head */
#endif
#ifndef WIDE
#define WIDE 0 /* 1: behind attention_wide.cl, 0: behind attention_group.cl */
#endif
#ifndef STORE
#define STORE 0 /* 1: the one query's new unit, which is the last of its view, is written first */
#endif
#if STORE
#define STORE_PARAMS , ulong slots, ulong key_rot /* as in cl/cache.cl */
#else
#define STORE_PARAMS
#endif

#define SPLITS_MAX 64
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
