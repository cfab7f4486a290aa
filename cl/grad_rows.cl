/*
 * Gradients row by row, formulas as in src/ops/grad.h. A row is made by ITEMS work-items: by one, with vectors of 16
 * (CPUs), or by a group whose items each take every ITEMS-th column.
 */
#pragma OPENCL FP_CONTRACT OFF

#ifndef ITEMS
#define ITEMS 1 /* or a power of two, 16 at least */
#endif

#if ITEMS == 1

#define LANES 16
typedef float16 vec;
#define VEC_MAX(V) max16(V)
#define VEC_SUM(V) sum16(V)

/* Columns i .. i + 15 of a row; `pad` for those that it does not have. */
static inline vec load(const __global float *row, uint i, uint cols, float pad)
{
    if (i + LANES <= cols)
        return vload16(0, row + i);
    float part[LANES];
    for (uint k = 0; k < LANES; k++)
        part[k] = i + k < cols ? row[i + k] : pad;
    return vload16(0, part);
}

static inline void store(vec v, __global float *row, uint i, uint cols)
{
    if (i + LANES <= cols) {
        vstore16(v, 0, row + i);
        return;
    }
    float part[LANES];
    vstore16(v, 0, part);
    for (uint k = 0; i + k < cols; k++)
        row[i + k] = part[k];
}

#define ROW_LOCAL
#define ROW_MAX(V) (V)
#define ROW_SUM(V) (V)

#else

#define LANES 1
typedef float vec;
#define VEC_MAX(V) (V)
#define VEC_SUM(V) (V)

static inline vec load(const __global float *row, uint i, uint cols, float pad) { return row[i]; }
static inline void store(vec v, __global float *row, uint i, uint cols) { row[i] = v; }

/* All items' sums, or maxima, in a fixed order; to be called again without a barrier between. */
#define FOLDERS 16
static inline float4 row_fold(float4 v, bool sum, __local float4 *parts, __local float4 *folded)
{
    const uint item = get_local_id(0);
    parts[item] = v;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < FOLDERS) {
        v = parts[item];
        for (uint k = item + FOLDERS; k < ITEMS; k += FOLDERS)
            v = sum ? v + parts[k] : fmax(v, parts[k]);
        folded[item] = v;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    v = folded[0];
    for (uint k = 1; k < FOLDERS; k++)
        v = sum ? v + folded[k] : fmax(v, folded[k]);
    return v;
}

#define ROW_LOCAL __local float4 parts_[ITEMS], folded_[FOLDERS]
#define ROW_MAX(V) row_fold(V, false, parts_, folded_)
#define ROW_SUM(V) row_fold(V, true, parts_, folded_)

#endif

#define EACH(I, COLS) for (uint I = get_local_id(0) * LANES; I < (COLS); I += ITEMS * LANES)

__kernel void norm_back(uint cols, const __global float *x, ulong x_offset, const __global float *gain, float eps,
                        const __global float *dy, __global float *dx, ulong dx_offset, uint add)
{
    const size_t row = get_group_id(0) * (size_t)cols;
    vec squares = 0, dots = 0;
    ROW_LOCAL;
    x += x_offset + row;
    dy += row;
    dx += dx_offset + row;
    EACH(i, cols)
    {
        const vec v = load(x, i, cols, 0);
        squares = fma(v, v, squares);
        dots = fma(v, load(gain, i, cols, 0) * load(dy, i, cols, 0), dots);
    }
    const float4 sums = ROW_SUM((float4)(VEC_SUM(squares), VEC_SUM(dots), 0, 0));
    const float mean = sums.x / cols + eps, scale = 1.0f / sqrt(mean), along = sums.y / cols / mean;
    EACH(i, cols)
    {
        vec d = scale * (load(gain, i, cols, 0) * load(dy, i, cols, 0) - load(x, i, cols, 0) * along);
        if (add)
            d += load(dx, i, cols, 0);
        store(d, dx, i, cols);
    }
}

__kernel void swiglu_back(uint cols, const __global float *x, const __global float *dy, __global float *dx)
{
    const size_t row = get_group_id(0) * (size_t)cols;
    x += 2 * row;
    dy += row;
    dx += 2 * row;
    EACH(i, cols)
    {
        const vec z = load(x, i, cols, 0), up = load(x + cols, i, cols, 0), d = load(dy, i, cols, 0);
        const vec s = 1.0f / (1.0f + exp(-z));
        store(d * up * (s * (1.0f + z * (1.0f - s))), dx, i, cols);
        store(d * (z * s), dx + cols, i, cols);
    }
}

/* What stands for columns that are not there: weighs nothing, and differs from itself by 0. */
#define NO_LOGIT -MAXFLOAT

__kernel void kl_back(uint vocab, __global float *logits, const __global float *target, float scale,
                      __global float *loss, ulong loss_offset)
{
    const size_t row = get_group_id(0) * (size_t)vocab;
    vec top_q = NO_LOGIT, top_p = NO_LOGIT, sum_q = 0, sum_p = 0, differences = 0;
    ROW_LOCAL;
    logits += row;
    target += row;
    EACH(i, vocab)
    {
        top_q = fmax(top_q, load(logits, i, vocab, NO_LOGIT));
        top_p = fmax(top_p, load(target, i, vocab, NO_LOGIT));
    }
    const float4 top = ROW_MAX((float4)(VEC_MAX(top_q), VEC_MAX(top_p), 0, 0));
    EACH(i, vocab)
    {
        const vec q = load(logits, i, vocab, NO_LOGIT) - top.x, p = load(target, i, vocab, NO_LOGIT) - top.y;
        const vec weight = exp(p);
        sum_q += exp(q);
        sum_p += weight;
        differences = fma(weight, p - q, differences);
    }
    const float4 sums = ROW_SUM((float4)(VEC_SUM(sum_q), VEC_SUM(sum_p), VEC_SUM(differences), 0));
    EACH(i, vocab)
    {
        const vec q = exp(load(logits, i, vocab, NO_LOGIT) - top.x) / sums.x;
        const vec p = exp(load(target, i, vocab, NO_LOGIT) - top.y) / sums.y;
        store(scale * (q - p), logits, i, vocab);
    }
    if (get_local_id(0) == 0)
        loss[loss_offset + get_group_id(0)] = sums.z / sums.y - log(sums.y) + log(sums.x);
}

__kernel void square_back(uint cols, const __global float *x, const __global float *y, float scale, __global float *dx,
                          __global float *loss)
{
    const size_t row = get_group_id(0) * (size_t)cols;
    vec squares = 0;
    ROW_LOCAL;
    x += row;
    y += row;
    dx += row;
    EACH(i, cols)
    {
        const vec d = load(x, i, cols, 0) - load(y, i, cols, 0);
        squares = fma(d, d, squares);
        store(load(dx, i, cols, 0) + 2.0f * scale * d, dx, i, cols);
    }
    const float4 sums = ROW_SUM((float4)(VEC_SUM(squares), 0, 0, 0));
    if (get_local_id(0) == 0)
        loss[get_group_id(0)] = sums.x;
}

__kernel void elu_back(uint cols, const __global float *y, __global float *dy)
{
    const size_t row = get_group_id(0) * (size_t)cols;
    y += row;
    dy += row;
    EACH(i, cols)
    {
        const vec v = load(y, i, cols, 0);
        store(load(dy, i, cols, 0) * (v > 0 ? (vec)(1.0f) : v + 1.0f), dy, i, cols);
    }
}
