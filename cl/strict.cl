/*
 * Strict kernels without the cache's pool: rows of a table, inputs of linear maps, linear maps. Weights are floats,
 * (rows, cols) row-major, in parts of whole rows. A work-item makes whole results in one order of sums; what neighbours
 * share they compute again.
 */

/* One work-item per (element, token): x[i] = row ids[i]; rows of another part are left to its launch. */
__kernel void strict_embed(const __global float *w, uint row0, uint rows, uint cols, const __global uint *data,
                           ulong tokens, __global float *x)
{
    const size_t c = get_global_id(0), t = get_global_id(1);
    const uint row = data[tokens + t] - row0;
    if (c < cols && row < rows)
        x[t * cols + c] = w[(size_t)row * cols + c];
}

#define INPUT_ITEMS 64 /* elements of a work-item, which computes the norm */

__kernel void strict_input_rows(const __global float *x, ulong offset, const __global float *gain, float eps, uint kind,
                                uint cols, __global float *out)
{
    const size_t t = get_global_id(1);
    const __global float *row = x + offset + t * cols * (kind == STRICT_SWIGLU ? 2 : 1);
    const uint begin = (uint)get_global_id(0) * INPUT_ITEMS;
    const float norm = kind == STRICT_RMSNORM && begin < cols ? strict_norm(row, cols, eps) : 0.0f;
    for (uint i = begin; i < cols && i < begin + INPUT_ITEMS; i++)
        out[t * cols + i] = strict_input(row, gain, cols, i, kind, norm);
}

/* One work-item per (row of the part, token). `what`: STRICT_BIAS | STRICT_ADD | STRICT_ELU. */
__kernel void strict_linear(const __global float *w, uint row0, uint rows, uint cols, const __global float *x,
                            ulong offset, const __global float *bias, uint what, __global float *y, ulong y_offset,
                            ulong ldy)
{
    const size_t r = get_global_id(0), t = get_global_id(1);
    if (r >= rows)
        return;
    __global float *out = y + y_offset + t * ldy + row0 + r;
    const float sum = strict_dot_global(w + r * cols, x + offset + t * cols, cols);
    *out = strict_result(sum, what, what & STRICT_BIAS ? bias[row0 + r] : 0.0f, what & STRICT_ADD ? *out : 0.0f);
}

/* One work-item per (number, operation): each operation by itself, in the order of strict_try in src/ref/strict.h. */
__kernel void strict_try(const __global float *a, const __global float *b, const __global float *c, uint count,
                         __global float *out)
{
    const size_t i = get_global_id(0), what = get_global_id(1);
    float y = 0.0f;
    if (i >= count)
        return;
    switch (what) {
    case 0: y = a[i] * b[i] + c[i]; break;
    case 1: y = STRICT_FMA(a[i], b[i], c[i]); break;
    case 2: y = a[i] / b[i]; break;
    case 3: y = STRICT_SQRT(a[i] < 0 ? -a[i] : a[i]); break;
    case 4: {
        const ushort half_bits = float_to_half(a[i]);
        y = vload_half(0, (const half *)&half_bits);
        break;
    }
    case 5: y = strict_exp(a[i]); break;
    case 6: y = strict_silu(a[i]); break;
    case 7: y = strict_elu(a[i]); break;
    case 8: y = strict_dot_global(a + i, b + i, 40); break;
    }
    out[what * count + i] = y;
}
