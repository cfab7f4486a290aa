/* Weight matrices: what the kernels of many-item groups share. Built behind cl/weights.cl. */

/* Aligned for the vector that is loaded, unlike vload. */
static inline float8 halves8(const __global uchar *p) { return half_float8(*(const __global ushort8 *)p); }

static inline float8 bytes8(const __global uchar *p) { return convert_float8(*(const __global uchar8 *)p); }
static inline float8 signed8(const __global uchar *p) { return convert_float8(*(const __global char8 *)p); }

/* As SCALES and MINIMUMS of cl/weights.cl. */
#if TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K
#define SCALES8(H, P, S) (halves8((S) + 16 * (H)) * bytes8((P) + 8 * (H)))
#define MINIMUMS8(H, P, S, D) (-(halves8((S) + 32 + 16 * (H)) * bytes8((P) + 16 + 8 * (H))))
#elif TYPE == TYPE_Q6_K
#define SCALES8(H, P, S) (halves8((S) + 16 * (H)) * signed8((P) + 8 * (H)))
#else
#define SCALES8(H, P, S) halves8((P) + 16 * (H))
#if TYPE == TYPE_Q4_1
#define MINIMUMS8(H, P, S, D) halves8((P) + 32 + 16 * (H))
#else
#define MINIMUMS8(H, P, S, D) (-8.0f * (D))
#endif
#endif

#if !QUANTIZED
/* Eight rows of a column as they are stored, and as floats. */
#if BITS == 32
typedef float8 packed8;
static inline float8 floats8(packed8 v) { return v; }
#else
typedef uint4 packed8;
#if TYPE == TYPE_BF16
static inline float8 floats8(packed8 v)
{
    return as_float8((uint8)(v.x << 16, v.x & 0xffff0000u, v.y << 16, v.y & 0xffff0000u, v.z << 16, v.z & 0xffff0000u,
                             v.w << 16, v.w & 0xffff0000u));
}
#else
static inline float8 floats8(packed8 v) { return half_float8(as_ushort8(v)); }
#endif
#endif
#endif
