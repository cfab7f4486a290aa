/* Gradients of the dense product, f32: sums over rows or columns of dy. */
#pragma OPENCL FP_CONTRACT OFF

#define ROWS 4
#define COLS 32
#define TERMS 512 /* of a partial sum: long chains lose bits */

/*
 * c[r][j] (+)= sum over k < terms of a[r a_row + k a_step] b[k cols + j]; c (rows, cols). One work-item, ROWS x COLS
 * outputs; rows past the end stand for the last one, and are not stored.
 */
__kernel void dense_back_product(const __global float *a, ulong a_row, ulong a_step, const __global float *b,
                                 __global float *c, uint rows, uint cols, uint terms, uint add)
{
    const uint r0 = get_global_id(0) * ROWS, j0 = get_global_id(1) * COLS, last = min(rows - r0, (uint)ROWS) - 1;
    const __global float *a0 = a + r0 * a_row, *a1 = a0 + min(1u, last) * a_row, *a2 = a0 + min(2u, last) * a_row,
                         *a3 = a0 + last * a_row;
    c += (size_t)r0 * cols;
    if (j0 + COLS > cols) {
        for (uint r = 0; r <= last; r++)
            for (uint j = j0; j < cols; j++) {
                float total = 0;
                for (uint from = 0; from < terms; from += TERMS) {
                    float sum = 0;
                    for (uint k = from; k < min(terms, from + TERMS); k++)
                        sum = fma(a0[r * a_row + k * a_step], b[(size_t)k * cols + j], sum);
                    total += sum;
                }
                c[(size_t)r * cols + j] = total + (add ? c[(size_t)r * cols + j] : 0.0f);
            }
        return;
    }
    float16 t00 = 0, t01 = 0, t10 = 0, t11 = 0, t20 = 0, t21 = 0, t30 = 0, t31 = 0;
    for (uint from = 0; from < terms; from += TERMS) {
        float16 s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
        for (uint k = from; k < min(terms, from + TERMS); k++) {
            const __global float *row = b + (size_t)k * cols + j0;
            const float16 b0 = vload16(0, row), b1 = vload16(1, row);
            const size_t at = k * a_step;
            s00 = fma((float16)(a0[at]), b0, s00), s01 = fma((float16)(a0[at]), b1, s01);
            s10 = fma((float16)(a1[at]), b0, s10), s11 = fma((float16)(a1[at]), b1, s11);
            s20 = fma((float16)(a2[at]), b0, s20), s21 = fma((float16)(a2[at]), b1, s21);
            s30 = fma((float16)(a3[at]), b0, s30), s31 = fma((float16)(a3[at]), b1, s31);
        }
        t00 += s00, t01 += s01, t10 += s10, t11 += s11, t20 += s20, t21 += s21, t30 += s30, t31 += s31;
    }
#define PUT(R, LEFT, RIGHT)                                                    \
    if (R <= last) {                                                           \
        __global float *to = c + (size_t)R * cols + j0;                        \
        vstore16(add ? LEFT + vload16(0, to) : LEFT, 0, to);                   \
        vstore16(add ? RIGHT + vload16(1, to) : RIGHT, 1, to);                 \
    }
    PUT(0, t00, t01)
    PUT(1, t10, t11)
    PUT(2, t20, t21)
    PUT(3, t30, t31)
#undef PUT
}

/* Sums of dy's columns, added to dbias: a group 16 columns wide, of PARTS rows at a time. */
#ifndef PARTS
#define PARTS 1
#endif
#define SIDE 16

__kernel void dense_back_bias(const __global float *dy, uint n, uint out, __global float *dbias)
{
    __local float part[PARTS * SIDE];
    const uint item = get_local_id(0), column = get_group_id(0) * SIDE + item % SIDE;
    float sum = 0;
    for (uint t = item / SIDE; t < n && column < out; t += PARTS)
        sum += dy[(size_t)t * out + column];
    part[item] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item >= SIDE || column >= out)
        return;
    for (uint p = 1; p < PARTS; p++)
        sum += part[p * SIDE + item];
    dbias[column] += sum;
}
