/*
 * Before every family: constants shared with src/ops/ops.h, storage types of the cache, and the table of its blocks.
 * OpenCL C 1.2, float accumulation; each kernel file compiles with this one before it and nothing else.
 */
#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#ifndef ROPE_HALF
#define ROPE_HALF 0 /* 0: channel pairs (2i, 2i+1); 1: (i, i + HEAD_DIM/2) */
#endif
#ifndef KV_F32
#define KV_F32 0
#endif

#ifndef STRICT
#define STRICT 0 /* 1: the same bits from every compiler, with strict_math.cl behind this file */
#endif
#if STRICT
#pragma OPENCL FP_CONTRACT OFF
#endif
#ifndef EXP
#define EXP exp /* or strict_exp */
#endif

#ifndef CHAIN
#define CHAIN 0 /* 1: before chain.cl, whose kernel takes the place of others */
#endif

#ifndef CPU
#define CPU 0 /* 1: the device is a CPU */
#endif

/*
 * Ask for the cache line of p before its turn, FETCH_FAR into the second cache; no effect on values. OpenCL's
 * prefetch() does nothing on PoCL.
 */
#ifndef PREFETCH_BUILTIN
#define PREFETCH_BUILTIN 0 /* 1: a CPU, whose compiler may have clang's */
#endif
#if PREFETCH_BUILTIN && defined(__has_builtin)
#if __has_builtin(__builtin_prefetch)
#define FETCH_LINE(p) __builtin_prefetch((const void *)(size_t)(p))
#define FETCH_FAR(p) __builtin_prefetch((const void *)(size_t)(p), 0, 2)
#endif
#endif
#ifndef FETCH_LINE
#define FETCH_LINE(p) prefetch(p, (size_t)1)
#define FETCH_FAR(p) FETCH_LINE(p)
#endif

#define KV_BLOCKS 64
#ifndef KV_ARGS
#define KV_ARGS KV_BLOCKS /* or 16, or 4: blocks that kernels take; the pool has no more */
#endif
#define KV_SLOT_BITS 26
#define VIEW_RANGES 14
#define VIEW_RANGE_WORDS 8
#define VIEW_WORDS (8 + VIEW_RANGES * VIEW_RANGE_WORDS)
#define MERGE_WORDS 4

/* Words of a view and of each of its ranges. */
enum { VIEW_N_RANGES, VIEW_UNITS, VIEW_RANGE_0 = 8 };
enum { RANGE_RING, RANGE_MASK, RANGE_BEGIN, RANGE_COUNT, RANGE_PLACE, RANGE_BIAS };

/* Before a loop of few rounds, known when it is compiled, over private arrays that should live in registers. */
#define UNROLL _Pragma("unroll")
/* The same in kernels of many-item groups. PoCL 3.1 miscompiles them unrolled; on CPUs only tests run those shapes. */
#if CPU
#define UNROLL_GROUP
#else
#define UNROLL_GROUP UNROLL
#endif

/* ---- Half precision without cl_khr_fp16 ---- */

/* Round to nearest, ties to even; overflow gives infinity, NaN stays NaN; no float in it is subnormal unless f is. */
static inline ushort float_to_half(float f)
{
    const uint bits = as_uint(f), sign = bits >> 16 & 0x8000u;
    const uint magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (ushort)(sign | 0x7e00u);
    if (magnitude >= 0x47800000u)
        return (ushort)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) /* below the smallest normal half: let a float addition round */
        return (ushort)(sign | (as_uint(as_float(magnitude) + 0.5f) - 0x3f000000u));
    return (ushort)(sign | (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
}

#ifndef FP16
#define FP16 0 /* 1: half is a type that converts (cl_khr_fp16) */
#endif
#if FP16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif

/* Halves in registers as floats: without the type they go by way of memory, as some compilers have it. */
static inline float4 half_float4(ushort4 bits)
{
#if FP16
    return convert_float4(as_half4(bits));
#else
    return vload_half4(0, (const half *)&bits);
#endif
}

static inline float8 half_float8(ushort8 bits)
{
#if FP16
    return convert_float8(as_half8(bits));
#else
    return vload_half8(0, (const half *)&bits);
#endif
}

/* 16 halves as floats. */
#ifndef X86
#define X86 0 /* 1: a CPU whose compiler takes inline assembly of AVX-512 */
#endif
#if X86
/* In one instruction, where the compiler makes three of vload_half16. */
static inline float16 load_half16(const __global void *p)
{
    float16 x;
    __asm__("vcvtph2ps %1, %0" : "=v"(x) : "m"(*(const __global ushort16 *)p));
    return x;
}
#else
static inline float16 load_half16(const __global void *p) { return vload_half16(0, (const __global half *)p); }
#endif

/* ---- Vectors of 16 ---- */

static inline float max8(float8 x)
{
    const float4 a = fmax(x.lo, x.hi);
    const float2 b = fmax(a.lo, a.hi);
    return fmax(b.x, b.y);
}

static inline float max16(float16 x) { return max8(fmax(x.lo, x.hi)); }

static inline float sum4(float4 x)
{
    const float2 a = x.lo + x.hi;
    return a.x + a.y;
}

static inline float sum8(float8 x) { return sum4(x.lo + x.hi); }
static inline float sum16(float16 x) { return sum8(x.lo + x.hi); }

/* Sums within halves, quarters, eighths ... of two vectors: four such steps turn 16 vectors into that of their sums. */
static inline float16 fold8(float16 a, float16 b) { return (float16)(a.lo + a.hi, b.lo + b.hi); }

static inline float16 fold4(float16 a, float16 b)
{
    return (float16)(a.s012389ab, b.s012389ab) + (float16)(a.s4567cdef, b.s4567cdef);
}

static inline float16 fold2(float16 a, float16 b)
{
    return (float16)(a.s014589cd, b.s014589cd) + (float16)(a.s2367abef, b.s2367abef);
}

static inline float16 fold1(float16 a, float16 b) { return (float16)(a.even, b.even) + (float16)(a.odd, b.odd); }

static inline float16 fold_four(const float16 *x) { return fold4(fold8(x[0], x[1]), fold8(x[2], x[3])); }

/* The sums of each of 16 vectors, as one vector. */
static inline float16 fold16(const float16 *x)
{
    const float16 a = fold2(fold_four(x), fold_four(x + 4)), b = fold2(fold_four(x + 8), fold_four(x + 12));
    return fold1(a, b);
}

/* ---- Storage of the cache ---- */

#if KV_F32
typedef float kv_t;
#define KV_LOAD(WIDTH, p) vload##WIDTH(0, p)
static inline float kv_load(const __global kv_t *p) { return *p; }
static inline void kv_put(__global kv_t *p, float x) { *p = x; }
#else
typedef ushort kv_t;
#define KV_LOAD(WIDTH, p) KV_LOAD_##WIDTH(p)
#define KV_LOAD_2(p) vload_half2(0, (const __global half *)(p))
#define KV_LOAD_8(p) vload_half8(0, (const __global half *)(p))
#define KV_LOAD_16(p) load_half16(p)
static inline float kv_load(const __global kv_t *p) { return vload_half(0, (const __global half *)p); }
static inline void kv_put(__global kv_t *p, float x) { *p = float_to_half(x); }
#endif

/*
 * A kernel that reads or writes the pool takes KV_PARAMS as its first parameters: KV_ARGS block buffers (from kv_00,
 * octal; where the pool has fewer, its first again) and the units of each. In its body: KV_TABLE(kv); the
 * table is in local memory, and all work-items reach it.
 */
typedef struct kv_sizes {
    uint units[KV_BLOCKS];
} kv_sizes;

typedef struct kv_table {
    __global kv_t *base[KV_ARGS];
    uint units[KV_ARGS];
} kv_table;

#define KV_EIGHT(X, n, SEP) \
    X(n##0) SEP() X(n##1) SEP() X(n##2) SEP() X(n##3) SEP() X(n##4) SEP() X(n##5) SEP() X(n##6) SEP() X(n##7)
#if KV_ARGS == 4
#define KV_EACH(X, SEP) X(00) SEP() X(01) SEP() X(02) SEP() X(03)
#elif KV_ARGS == 16
#define KV_EACH(X, SEP) KV_EIGHT(X, 0, SEP) SEP() KV_EIGHT(X, 1, SEP)
#else
#define KV_EACH(X, SEP)                                                                  \
    KV_EIGHT(X, 0, SEP) SEP() KV_EIGHT(X, 1, SEP) SEP() KV_EIGHT(X, 2, SEP) SEP()        \
    KV_EIGHT(X, 3, SEP) SEP() KV_EIGHT(X, 4, SEP) SEP() KV_EIGHT(X, 5, SEP) SEP()        \
    KV_EIGHT(X, 6, SEP) SEP() KV_EIGHT(X, 7, SEP)
#endif
#define KV_COMMA() ,
#define KV_SEMICOLON() ;
#define KV_PARAM(n) __global kv_t *kv_##n
#define KV_SET(n) kv_table_.base[0##n] = kv_##n, kv_table_.units[0##n] = kv_sizes_.units[0##n]
#define KV_PARAMS KV_EACH(KV_PARAM, KV_COMMA), const kv_sizes kv_sizes_

#define KV_TABLE(NAME)                                                                                   \
    __local kv_table kv_table_;                                                                          \
    __local kv_table *const NAME = &kv_table_;                                                           \
    if (get_local_id(0) == 0) {                                                                          \
        KV_EACH(KV_SET, KV_SEMICOLON);                                                                   \
    }                                                                                                    \
    barrier(CLK_LOCAL_MEM_FENCE)

/* Channel 0 of a slot's unit in plane (layer * 2 + w) * kv_heads + h. */
static inline __global kv_t *kv_row(const __local kv_table *kv, uint plane, uint slot)
{
    const uint block = slot >> KV_SLOT_BITS, unit = slot & ((1u << KV_SLOT_BITS) - 1);
    return kv->base[block] + ((size_t)plane * kv->units[block] + unit) * HEAD_DIM;
}

/* ---- RoPE ---- */

/* Channels of RoPE pair i. */
#if ROPE_HALF
#define ROPE_FIRST(i) (i)
#define ROPE_SECOND(i) ((i) + HEAD_DIM / 2)
#else
#define ROPE_FIRST(i) (2 * (i))
#define ROPE_SECOND(i) (2 * (i) + 1)
#endif

/* Turn (x.x, x.y) by the angle whose (cos, sin) is r. */
static inline float2 rope_turn(float2 x, float2 r)
{
    return (float2)(x.x * r.x - x.y * r.y, x.x * r.y + x.y * r.x);
}

/* Turn it back. */
static inline float2 rope_unturn(float2 x, float2 r) { return rope_turn(x, (float2)(r.x, -r.y)); }

/* ---- Units ---- */

/*
 * Of a new unit RoPE pair i of the key k, turned by the i-th pair of `rot`, and channels 2i and 2i+1 of the value v,
 * into the rows of its slot.
 */
static inline void kv_put_pair(__global kv_t *to_k, __global kv_t *to_v, const __global float *k,
                               const __global float *v, const __global uint *rot, uint i)
{
    const float2 r = as_float2(vload2(0, rot + 2 * i));
    const float2 turned = rope_turn((float2)(k[ROPE_FIRST(i)], k[ROPE_SECOND(i)]), r);
    kv_put(to_k + ROPE_FIRST(i), turned.x);
    kv_put(to_k + ROPE_SECOND(i), turned.y);
    kv_put(to_v + 2 * i, v[2 * i]);
    kv_put(to_v + 2 * i + 1, v[2 * i + 1]);
}

/* Scattered slots defeat a processor's own prefetching. */
static inline void row_fetch(const __global kv_t *row)
{
    UNROLL
    for (uint c = 0; c < HEAD_DIM; c += 64 / sizeof(kv_t))
        FETCH_LINE(row + c);
}
