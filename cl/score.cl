/*
 * The scorer's parameters, as src/ops/score.h lays them out in the row of one (layer, KV head), and its functions.
 */
#ifndef HIDDEN
#define HIDDEN 32 /* a multiple of 16 */
#endif
#ifndef LEVELS
#define LEVELS 9
#endif

#define SCORE_X (2 * HEAD_DIM) /* channels of a unit: keys, then values */
#define SCORE_MEAN 0
#define SCORE_SCALE SCORE_X
#define SCORE_W1 (2 * SCORE_X)
#define SCORE_B1 (SCORE_W1 + HIDDEN * SCORE_X)
#define SCORE_W2 (SCORE_B1 + LEVELS * HIDDEN)
#define SCORE_U (SCORE_W2 + HIDDEN)
#define SCORE_R (SCORE_U + HIDDEN * SCORE_X)
#define SCORE_PRIOR (SCORE_R + LEVELS * SCORE_X)
#define SCORE_DEVIATION (SCORE_PRIOR + LEVELS)
#define SCORE_SHARP_K (SCORE_DEVIATION + 1)
#define SCORE_SHARP_V (SCORE_SHARP_K + 1)
#define SCORE_ROW ((SCORE_SHARP_V + 1 + 15) / 16 * 16)

static inline float score_sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static inline float score_elu(float x) { return x > 0 ? x : exp(x) - 1.0f; }

/* One (layer, KV head) of one merge: neighbouring items are merges of the same parameters. */
typedef struct score_item {
    uint m, level;
    const __global float *p;    /* its row of parameters */
    const __global uint *rot;   /* rotations of a, of b and of the result */
    __global kv_t *a[2], *b[2]; /* rows of keys and values */
    __global kv_t *out[2];
} score_item;

static inline score_item score_find(const __local kv_table *kv, const __global uint *data, ulong merges,
                                    ulong merge_rot, uint n_merges, uint layer, uint kv_heads, size_t item,
                                    const __global float *params)
{
    score_item it;
    it.m = item % n_merges;
    const uint row = layer * kv_heads + (uint)(item / n_merges);
    const __global uint *pair = data + merges + (size_t)it.m * MERGE_WORDS;
    it.level = min(pair[3], LEVELS - 1u);
    it.p = params + (size_t)row * SCORE_ROW;
    it.rot = data + merge_rot + (size_t)it.m * 3 * HEAD_DIM;
    for (uint w = 0; w < 2; w++) {
        const uint plane = (row / kv_heads * 2 + w) * kv_heads + row % kv_heads;
        it.a[w] = kv_row(kv, plane, pair[0]);
        it.b[w] = kv_row(kv, plane, pair[1]);
        it.out[w] = kv_row(kv, plane, pair[2]);
    }
    return it;
}
