/*
 * Gradients of merges by the scorer, all of one level of one layer: first merge_score_back_units, of
 * merge_score_back_wide.cl or merge_score_back_group.cl behind this file, finds those of both units of each merge and
 * KV head, and keeps in `kept` (kv_heads, n_merges, KEPT_ROW) what parameters' gradients are sums over merges of; then
 * here a work-item for each piece of the parameters adds them up, in the order of the merges.
 */

/* Words of a grad_unit (src/ops/grad.h). */
enum { UNIT_A = 6, UNIT_B = 7, GRAD_UNIT_WORDS = 8 };

/* What is kept of a merge and KV head: z of a and b, the residual's gradient (in the channels' own scale), all three
 * padded with zeros; by hidden unit the gradients before ELU, h_a + h_b and w2's; the single ones. */
#define KEPT_X (16 * CHUNKS)
#define KEPT_ZA 0
#define KEPT_ZB KEPT_X
#define KEPT_Q (2 * KEPT_X)
#define KEPT_PA (3 * KEPT_X)
#define KEPT_PB (KEPT_PA + HIDDEN)
#define KEPT_BOTH (KEPT_PB + HIDDEN)
#define KEPT_W2 (KEPT_BOTH + HIDDEN)
#define KEPT_ONES (KEPT_W2 + HIDDEN)
#define KEPT_ROW (KEPT_ONES + 16)
enum { ONE_PRIOR, ONE_DEVIATION, ONE_SHARP_K, ONE_SHARP_V, ONE_LOSS };

/* The sum of the vectors at `at` of all rows. */
static inline float16 sum_kept(const __global float *kept, uint n_merges, uint at)
{
    float16 sum = 0;
    for (uint m = 0; m < n_merges; m++)
        sum += vload16(0, kept + (size_t)m * KEPT_ROW + at);
    return sum;
}

/* Add to channels 16 c .. of a row of SCORE_X. */
static inline void add_channels(__global float *row, uint c, float16 x)
{
    float part[16];
    vstore16(x, 0, part);
    for (uint i = 0; i < 16 && 16 * c + i < SCORE_X; i++)
        row[16 * c + i] += part[i];
}

/* Channels 16 c .. of rows j .. j + 15 of w1, then of u. */
static inline void sum_matrices(const __global float *kept, uint n_merges, uint j, uint c, __global float *dp)
{
    float16 sum[16];
    UNROLL
    for (uint i = 0; i < 16; i++)
        sum[i] = 0;
    for (uint m = 0; m < n_merges; m++) {
        const __global float *row = kept + (size_t)m * KEPT_ROW;
        const float16 za = vload16(c, row + KEPT_ZA), zb = vload16(c, row + KEPT_ZB);
        UNROLL
        for (uint i = 0; i < 16; i++)
            sum[i] = fma((float16)(row[KEPT_PA + j + i]), za, fma((float16)(row[KEPT_PB + j + i]), zb, sum[i]));
    }
    UNROLL
    for (uint i = 0; i < 16; i++)
        add_channels(dp + SCORE_W1 + (j + i) * SCORE_X, c, sum[i]);
    UNROLL
    for (uint i = 0; i < 16; i++)
        sum[i] = 0;
    for (uint m = 0; m < n_merges; m++) {
        const __global float *row = kept + (size_t)m * KEPT_ROW;
        const float16 q = vload16(c, row + KEPT_Q);
        UNROLL
        for (uint i = 0; i < 16; i++)
            sum[i] = fma((float16)(row[KEPT_BOTH + j + i]), q, sum[i]);
    }
    UNROLL
    for (uint i = 0; i < 16; i++)
        add_channels(dp + SCORE_U + (j + i) * SCORE_X, c, sum[i]);
}

/*
 * Items (i, head). i under CHUNKS HIDDEN / 16: 16 channels of 16 rows of w1 and u; then CHUNKS: of r; HIDDEN / 16: 16
 * items of b1 and w2; the last one: the single ones. dscores is (units, kv_heads), the results being `first` and on.
 */
__kernel void merge_score_back_params(const __global uint *data, ulong merges, uint n_merges, uint layer, uint kv_heads,
                                      const __global float *kept_all, const __global float *dscores, uint first,
                                      __global float *dparams, __global float *loss, uint add_loss)
{
    const uint head = get_global_id(1), matrices = CHUNKS * (HIDDEN / 16);
    const uint level = min(data[merges + 3], LEVELS - 1u);
    const __global float *kept = kept_all + (size_t)head * n_merges * KEPT_ROW;
    __global float *dp = dparams + (size_t)(layer * kv_heads + head) * SCORE_ROW;
    uint i = get_global_id(0);
    if (i < matrices) {
        sum_matrices(kept, n_merges, i / CHUNKS * 16, i % CHUNKS, dp);
        return;
    }
    i -= matrices;
    if (i < CHUNKS) {
        add_channels(dp + SCORE_R + level * SCORE_X, i, sum_kept(kept, n_merges, KEPT_Q + 16 * i));
        return;
    }
    i -= CHUNKS;
    if (i < HIDDEN / 16) {
        __global float *b1 = dp + SCORE_B1 + level * HIDDEN + 16 * i, *w2 = dp + SCORE_W2 + 16 * i;
        const float16 pre = sum_kept(kept, n_merges, KEPT_PA + 16 * i) + sum_kept(kept, n_merges, KEPT_PB + 16 * i);
        vstore16(vload16(0, b1) + pre, 0, b1);
        vstore16(vload16(0, w2) + sum_kept(kept, n_merges, KEPT_W2 + 16 * i), 0, w2);
        return;
    }
    float ones[16], bias = 0.0f;
    for (uint m = 0; m < n_merges; m++)
        bias += dscores[(size_t)(first + m) * kv_heads + head];
    dp[SCORE_BIAS + level] += bias;
    vstore16(sum_kept(kept, n_merges, KEPT_ONES), 0, ones);
    dp[SCORE_PRIOR + level] += ones[ONE_PRIOR];
    dp[SCORE_DEVIATION] += ones[ONE_DEVIATION];
    dp[SCORE_SHARP_K] += ones[ONE_SHARP_K];
    dp[SCORE_SHARP_V] += ones[ONE_SHARP_V];
    if (add_loss)
        loss[head] += ones[ONE_LOSS];
}
