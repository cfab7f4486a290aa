/*
 * What `dcm devices` tries on a device: kernels for measurements, and one kernel a feature, built alone with
 * PROBE_FP16, PROBE_SUBGROUPS, PROBE_DOT4, PROBE_DOT2, PROBE_HALF16 or PROBE_MMA since its build may fail.
 */
#if defined(PROBE_FP16)

/* x is (n) halves, out (n), 8 an item: as in cl/common.cl. */
__kernel void probe_fp16(__global const ushort *x, __global float *out)
{
    const size_t i = get_global_id(0);
    vstore8(half_float8(vload8(i, x)), i, out);
}

#elif defined(PROBE_SUBGROUPS)

/*
 * Groups of 64. out is (n, 6): the x of the neighbours whose numbers differ in bit 0, 1, 2, 3; the sum over those that
 * differ in the first two bits; and, over a window of 16, one of the sums of x times 1, 2, 3 and 4, each in four items.
 */
__kernel __attribute__((reqd_work_group_size(64, 1, 1))) SUBGROUP_KERNEL void
probe_subgroups(__global const float *x, __global float *out)
{
    const size_t i = get_global_id(0);
    float one = x[i], several[4];
    for (uint k = 0; k < 4; k++) {
        out[6 * i + k] = lane_xor(x[i], 1u << k);
        several[k] = x[i] * (float)(k + 1);
    }
    out[6 * i + 4] = lane_sums(&one, 1, 1, 4);
    out[6 * i + 5] = lane_sums(several, 4, 1, 16);
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

#elif defined(PROBE_DOT2)

/* The same with the lower 4 bits of x[i]'s bytes, 8 an item: as in cl/linear_fixed.cl. */
__kernel void probe_dot2(__global const int *x, __global int *out)
{
    const size_t i = get_global_id(0);
    const int8 v = vload8(i, x), u = v & 0x0f0f0f0f, first = (int8)(x[0]), ones = 0x00010001;
    int8 s = 0, products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(s), "=&x"(products) : "x"(u), "x"(first));
    __asm__("vpmaddwd %1, %0, %0" : "+x"(s) : "x"(ones));
    vstore8(v + s, i, out);
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
