/* Attention: the partial results of a query head, added. Built behind either shape. */

#define COMBINE_ITEMS (WIDE ? 1 : 64)

/*
 * Groups: query head, query of this launch. out is (n, heads * HEAD_DIM); `partial` as the kernels above left it,
 * with `splits` places for each query head, of which a query's own view may fill fewer.
 */
__kernel __attribute__((reqd_work_group_size(COMBINE_ITEMS, 1, 1))) void
attention_combine(const __global float *partial, uint splits, const __global uint *data, ulong views, uint first,
                  __global float *out)
{
    const uint item = get_local_id(0), head = get_global_id(1), heads = get_global_size(1);
    const size_t token = first + get_global_id(2);
    const uint units = data[views + token * VIEW_WORDS + VIEW_UNITS], used = (units + SPLIT(units) - 1) / SPLIT(units);
    const __global float *from = partial + (get_global_id(2) * heads + head) * splits * PARTIAL;
    __global float *to = out + (token * heads + head) * HEAD_DIM;
#if WIDE
    wide_combine(from, used, to);
#else
    __local float top[SPLITS_MAX], sums[SPLITS_MAX], weight[SPLITS_MAX];
    for (uint s = item; s < used; s += COMBINE_ITEMS) {
        top[s] = from[s * PARTIAL + PARTIAL_MAX];
        sums[s] = from[s * PARTIAL + PARTIAL_SUM];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    float m = -INFINITY;
    for (uint s = 0; s < used; s++)
        m = fmax(m, top[s]);
    for (uint s = item; s < used; s += COMBINE_ITEMS)
        weight[s] = exp(top[s] - m);
    barrier(CLK_LOCAL_MEM_FENCE);
    float total = 0.0f;
    for (uint s = 0; s < used; s++)
        total = fma(weight[s], sums[s], total);
    for (uint c = item; c < HEAD_DIM; c += COMBINE_ITEMS) {
        float sum = 0.0f;
#if !CPU
        _Pragma("unroll 8")
#endif
        for (uint s = 0; s < used; s++)
            sum = fma(weight[s], from[s * PARTIAL + c], sum);
        to[c] = sum / total;
    }
#endif
}
