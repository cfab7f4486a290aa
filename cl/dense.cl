/* y = act(x w^T + bias): x (n, in), w (out, in), bias (out), y (n, out), all f32. */
#pragma OPENCL FP_CONTRACT OFF

#ifndef ELU
#define ELU 0
#endif

#define SIDE 16 /* of dense_group's tile of outputs */

#if ELU
#define ACTIVATE(V) ((V) > 0 ? (V) : expm1(V))
#else
#define ACTIVATE(V) (V)
#endif

/* ---- Wide: one work-item, 4 x 4 outputs, each a vector of 16 partial sums ---- */

float16 fold_row(float16 a, float16 b, float16 c, float16 d) { return fold4(fold8(a, b), fold8(c, d)); }

/* Element 4 i + j: row i of x times row j of w. */
float16 tile_product(__global const float *const *x, __global const float *const *w, uint in)
{
    float16 s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
    float16 s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;
    uint k = 0;
    for (; k + 16 <= in; k += 16) {
        const float16 w0 = vload16(0, w[0] + k), w1 = vload16(0, w[1] + k), w2 = vload16(0, w[2] + k);
        const float16 w3 = vload16(0, w[3] + k);
        const float16 x0 = vload16(0, x[0] + k), x1 = vload16(0, x[1] + k), x2 = vload16(0, x[2] + k);
        const float16 x3 = vload16(0, x[3] + k);
        s00 = fma(x0, w0, s00), s01 = fma(x0, w1, s01), s02 = fma(x0, w2, s02), s03 = fma(x0, w3, s03);
        s10 = fma(x1, w0, s10), s11 = fma(x1, w1, s11), s12 = fma(x1, w2, s12), s13 = fma(x1, w3, s13);
        s20 = fma(x2, w0, s20), s21 = fma(x2, w1, s21), s22 = fma(x2, w2, s22), s23 = fma(x2, w3, s23);
        s30 = fma(x3, w0, s30), s31 = fma(x3, w1, s31), s32 = fma(x3, w2, s32), s33 = fma(x3, w3, s33);
    }
    const float16 r0 = fold_row(s00, s01, s02, s03), r1 = fold_row(s10, s11, s12, s13);
    const float16 r2 = fold_row(s20, s21, s22, s23), r3 = fold_row(s30, s31, s32, s33);
    float16 sum = fold1(fold2(r0, r1), fold2(r2, r3));
    for (; k < in; k++)
        sum = fma((float16)((float4)(x[0][k]), (float4)(x[1][k]), (float4)(x[2][k]), (float4)(x[3][k])),
                  (float4)(w[0][k], w[1][k], w[2][k], w[3][k]).s0123012301230123, sum);
    return sum;
}

/* Item (i, j): rows 4 i .. 4 i + 3; the j-th share of the columns, four at a time. */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
dense_wide(__global const float *x, __global const float *w, __global const float *bias, __global float *y, uint n,
           uint in, uint out)
{
    const uint row = (uint)get_global_id(0) * 4, quads = (out + 3) / 4;
    const size_t share = get_global_id(1), shares = get_global_size(1);
    __global const float *xr[4], *wr[4];
    for (uint i = 0; i < 4; i++)
        xr[i] = x + (size_t)min(row + i, n - 1) * in;
    for (uint q = (uint)(share * quads / shares); q < (uint)((share + 1) * quads / shares); q++) {
        float part[16];
        float4 b;
        for (uint j = 0; j < 4; j++) {
            wr[j] = w + (size_t)min(q * 4 + j, out - 1) * in;
            part[j] = bias[min(q * 4 + j, out - 1)];
        }
        b = vload4(0, part);
        const float16 v = tile_product(xr, wr, in) + b.s0123012301230123;
        vstore16(ACTIVATE(v), 0, part);
        for (uint i = 0; i < 4 && row + i < n; i++)
            for (uint j = 0; j < 4 && q * 4 + j < out; j++)
                y[(size_t)(row + i) * out + q * 4 + j] = part[4 * i + j];
    }
}

/* ---- Group: a tile of 16 x 16 outputs, 16 columns of x and w at a time in local memory ---- */

__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
dense_group(__global const float *x, __global const float *w, __global const float *bias, __global float *y, uint n,
            uint in, uint out)
{
    __local float xs[SIDE][SIDE + 1], ws[SIDE][SIDE + 1];
    const uint i = get_local_id(0), j = get_local_id(1);
    const size_t col0 = get_group_id(0) * SIDE, row0 = get_group_id(1) * SIDE;
    float sum = 0;
    for (uint k = 0; k < in; k += SIDE) {
        const bool inside = k + i < in;
        xs[j][i] = inside && row0 + j < n ? x[(row0 + j) * in + k + i] : 0;
        ws[j][i] = inside && col0 + j < out ? w[(col0 + j) * in + k + i] : 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (uint c = 0; c < SIDE; c++)
            sum = fma(xs[j][c], ws[i][c], sum);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (row0 + j < n && col0 + i < out) {
        sum += bias[col0 + i];
        y[(row0 + j) * out + col0 + i] = ACTIVATE(sum);
    }
}

/* y = act(y + bias); item (column, row). */
__kernel void dense_finish(__global const float *bias, __global float *y, uint out)
{
    const size_t col = get_global_id(0), at = get_global_id(1) * out + col;
    if (col < out) {
        const float v = y[at] + bias[col];
        y[at] = ACTIVATE(v);
    }
}
