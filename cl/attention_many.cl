/*
 * Attention of many queries, as when a prompt is read: softmax(q . K / sqrt(HEAD_DIM) + bias) V over the ranges of each
 * query's view, for a tile of consecutive queries at a time, so that keys and values are read once for all of them.
 *
 * A program is this file and attention_many_wide.cl or attention_many_group.cl.
 *
 * The views of a tile are walked together, ring by ring; what its queries see of a ring are runs that differ at their
 * ends. A query's result depends on its own view alone, bit for bit, whatever the tile: its sums run over its units in
 * the order of their places, one at a time; a unit that it does not see has the weight 0 and changes none of them; and
 * weights are powers of 2 relative to an integer exponent (the largest yet, rounded), so that scaling what was summed
 * before a larger one came is exact.
 *
 * Contraction is off and fma written where it is wanted, so that each copy the compiler makes of a loop rounds alike.
 */
#pragma OPENCL FP_CONTRACT OFF

#ifndef GROUP
#define GROUP 1 /* query heads per KV head */
#endif

/* Scores are exponents of 2: log2(e) goes into the query and the bias. */
#define LOG2E 1.44269504f
#define QUERY_SCALE (LOG2E / sqrt((float)HEAD_DIM))

/*
 * 2^f for f in [-0.5, 0.5] (2^0 is exactly 1; relative error below 1.1 * 2^-24) and 2^n for integers n <= 0, 0 for
 * those below -126. FLOAT and INT are vectors of the same width.
 */
#define EXP2_PART(FLOAT, f)                                                                                            \
    fma(fma(fma(fma(fma(fma((FLOAT)(0x1.416b5cp-13f), f, (FLOAT)(0x1.5f083p-10f)), f, (FLOAT)(0x1.3b2dep-7f)), f,      \
                    (FLOAT)(0x1.c6af7cp-5f)),                                                                          \
                f, (FLOAT)(0x1.ebfbdcp-3f)),                                                                           \
            f, (FLOAT)(0x1.62e43p-1f)),                                                                                \
        f, (FLOAT)(1.0f))
/* The exponent lands in the low bits of 1.5 * 2^23 + 127 + n, and the shift drops the others. */
#define EXP2_WHOLE(AS_FLOAT, AS_INT, n) AS_FLOAT(AS_INT((n) + 12583039.0f) << 23)
#define EXPONENT_MIN (-127.0f)
/* In place of the scores of units that are not seen: a finite integer below all others. */
#define SCORE_MIN (-0x1p100f)
/* The nearest integer, by an addition of 1.5 * 2^23; from 2^22 on the number itself. */
#define ROUND(FLOAT, t) select((t), ((t) + (FLOAT)(12582912.0f)) - (FLOAT)(12582912.0f), fabs(t) < (FLOAT)(0x1p22f))
