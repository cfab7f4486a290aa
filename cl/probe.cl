/*
 * What `dcm devices` tries on a device: kernels for measurements, and one kernel a feature, built alone with
 * PROBE_FP16, PROBE_SUBGROUPS, PROBE_DOT4, PROBE_HALF16 or PROBE_MMA since its build may fail.
 */
#if defined(PROBE_FP16)

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

/*
 * Half arithmetic through every basic operation: x is (n) f16 stored, out (n): x * x + x / 4 - 1/2. Exact for small
 * integers x.
 */
__kernel void probe_fp16(__global const half *x, __global half *out)
{
    const size_t i = get_global_id(0);
    const half v = x[i];
    out[i] = v * v + v / (half)4 - (half)0.5f;
}

#elif defined(PROBE_SUBGROUPS)

#ifdef cl_khr_subgroups
#pragma OPENCL EXTENSION cl_khr_subgroups : enable
#endif
#ifdef cl_intel_subgroups
#pragma OPENCL EXTENSION cl_intel_subgroups : enable
#endif

/* out is (n, 3): this item's sub-group number, the sub-group's size, and the sum of x over the sub-group. */
__kernel void probe_subgroups(__global const int *x, __global int *out)
{
    const size_t i = get_global_id(0);
    out[3 * i] = (int)get_sub_group_id();
    out[3 * i + 1] = (int)get_sub_group_size();
    out[3 * i + 2] = sub_group_reduce_add(x[i]);
}

#elif defined(PROBE_DOT4)

/* x and out are (n), 16 an item: out[i] = x[i] + the sum of the products of x[i]'s bytes, unsigned, with x[0]'s. */
__kernel void probe_dot4(__global const int *x, __global int *out)
{
    const size_t i = get_global_id(0);
    const int16 u = vload16(i, x), first = (int16)(x[0]);
    int16 s = u;
    __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(u), "v"(first));
    vstore16(s, i, out);
}

#elif defined(PROBE_HALF16)

/* x is (n) halves, out (n), 16 an item: as in cl/common.cl. */
__kernel void probe_half16(__global const ushort *x, __global float *out)
{
    const size_t i = get_global_id(0);
    float16 v;
    __asm__("vcvtph2ps %1, %0" : "=v"(v) : "m"(*(const __global ushort16 *)(x + 16 * i)));
    vstore16(v, i, out);
}

#elif defined(PROBE_MMA)

/* out (16, 8) = a (16, 8) b (8, 8), 32 items: as in cl/matmul_group.cl. */
__kernel void probe_mma(__global const float *x, __global float *out)
{
    const uint row = get_local_id(0) / 4, k = get_local_id(0) % 4;
    __global const float *a = x, *b = x + 128;
    float4 c = 0;
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)
        : "r"(as_uint(a[row * 8 + k])), "r"(as_uint(a[(row + 8) * 8 + k])), "r"(as_uint(a[row * 8 + k + 4])),
          "r"(as_uint(a[(row + 8) * 8 + k + 4])), "r"(as_uint(b[k * 8 + row])), "r"(as_uint(b[(k + 4) * 8 + row])));
    out[row * 8 + 2 * k] = c.x;
    out[row * 8 + 2 * k + 1] = c.y;
    out[(row + 8) * 8 + 2 * k] = c.z;
    out[(row + 8) * 8 + 2 * k + 1] = c.w;
}

#else

__kernel void probe_empty(void) {}

/* out[i] = the sum of the items i, i + stride, ... of x, (n) float4; stride is the number of work-items. */
__kernel void probe_read_strided(__global const float4 *x, __global float *out, ulong n)
{
    const size_t stride = get_global_size(0);
    float4 sum = 0.0f;
    for (size_t i = get_global_id(0); i < n; i += stride)
        sum += x[i];
    out[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}

/*
 * out[i] = the sum of the i-th slice of n / items items of x, (n) float16; n is a multiple of the number of
 * work-items, times 4.
 */
__kernel void probe_read_slices(__global const float16 *x, __global float *out, ulong n)
{
    const size_t slice = n / get_global_size(0), begin = get_global_id(0) * slice;
    float16 a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
    for (size_t i = begin; i < begin + slice; i += 4) {
        a += x[i];
        b += x[i + 1];
        c += x[i + 2];
        d += x[i + 3];
    }
    const float16 sum = a + b + (c + d);
    const float8 s8 = sum.lo + sum.hi;
    const float4 s4 = s8.lo + s8.hi;
    out[get_global_id(0)] = s4.x + s4.y + s4.z + s4.w;
}

#endif
