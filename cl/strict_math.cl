/*
 * Arithmetic with the same bits whoever compiles it. This text is OpenCL C, before every family of a strict back end
 * (which is built with STRICT=1), and C for src/ref/strict.h. Nothing in it is left to a compiler: products that feed
 * sums are explicit fma, sums have 16 lanes and then one tree, exponentials are made of these. It needs +, -, *, /,
 * sqrt and fma that round to nearest, and subnormal numbers; docs/method.md, "What keeps the bits", has the rules.
 */
enum { STRICT_PLAIN, STRICT_RMSNORM, STRICT_SWIGLU };   /* inputs of linear maps: linear_input of src/ops/ops.h */
enum { STRICT_BIAS = 1, STRICT_ADD = 2, STRICT_ELU = 4 }; /* what becomes of their sums */

#ifdef __OPENCL_VERSION__

#define STRICT_INLINE static inline
#define STRICT_FMA(a, b, c) fma(a, b, c)
#define STRICT_FMA16(a, b, c) fma(a, b, c)
#define STRICT_SQRT(x) sqrt(x)
#define STRICT_BITS(x) as_int(x)
#define STRICT_FLOAT(i) as_float(i)
#define STRICT_LOAD(p) vload16(0, p)
#define STRICT_ZERO ((float16)(0.0f))

typedef float16 strict_lanes;

STRICT_INLINE float strict_sum(strict_lanes x)
{
    const float8 a = x.lo + x.hi;
    const float4 b = a.lo + a.hi;
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}

#else /* src/ref/strict.h has the other names */

typedef struct strict_lanes {
    float at[16];
} strict_lanes;

#define STRICT_ZERO ((strict_lanes){{0}})

STRICT_INLINE strict_lanes STRICT_LOAD(const float *p)
{
    strict_lanes x;
    for (uint k = 0; k < 16; k++)
        x.at[k] = p[k];
    return x;
}

STRICT_INLINE strict_lanes STRICT_FMA16(strict_lanes a, strict_lanes b, strict_lanes c)
{
    for (uint k = 0; k < 16; k++)
        c.at[k] = STRICT_FMA(a.at[k], b.at[k], c.at[k]);
    return c;
}

STRICT_INLINE float strict_sum(strict_lanes x)
{
    for (uint width = 8; width; width /= 2)
        for (uint k = 0; k < width; k++)
            x.at[k] = x.at[k] + x.at[k + width];
    return x.at[0];
}

#endif

/* ---- Sums ---- */

/*
 * sum a[i] b[i], i < n: lane k of 16 takes the terms with i mod 16 = k in their order, the last of them zeros behind n;
 * then lanes k and k + 8 are added, then k and k + 4, ...; for each pair of address spaces that is needed.
 */
#define STRICT_DOT(NAME, A, B)                                                                                         \
    STRICT_INLINE float NAME(const A float *a, const B float *b, uint n)                                               \
    {                                                                                                                  \
        strict_lanes sum = STRICT_ZERO;                                                                                \
        uint i = 0;                                                                                                    \
        for (; i + 16 <= n; i += 16)                                                                                   \
            sum = STRICT_FMA16(STRICT_LOAD(a + i), STRICT_LOAD(b + i), sum);                                           \
        if (i < n) {                                                                                                   \
            float last_a[16], last_b[16];                                                                              \
            for (uint k = 0; k < 16; k++) {                                                                            \
                last_a[k] = i + k < n ? a[i + k] : 0.0f;                                                               \
                last_b[k] = i + k < n ? b[i + k] : 0.0f;                                                               \
            }                                                                                                          \
            sum = STRICT_FMA16(STRICT_LOAD(last_a), STRICT_LOAD(last_b), sum);                                         \
        }                                                                                                              \
        return strict_sum(sum);                                                                                        \
    }
STRICT_DOT(strict_dot, , )
STRICT_DOT(strict_dot_global, __global, __global)
STRICT_DOT(strict_dot_mixed, __global, )

/* ---- Exponentials ---- */

/*
 * e^x: x = n ln 2 + r, |r| <= ln(2) / 2, a polynomial in r, and 2^n in two factors, of which the second alone may round
 * (below the smallest normal number). Within 0.9 ulp of normal numbers; 0 below -104, infinity above 89.
 */
STRICT_INLINE float strict_exp(float x)
{
    if (x != x)
        return x;
    if (x < -104.0f)
        return 0.0f;
    if (x > 89.0f)
        return STRICT_FLOAT(0x7f800000);
    const float shifted = STRICT_FMA(x, 0x1.715476p+0f, 0x1.8p23f); /* its last bits are n */
    const float whole = shifted - 0x1.8p23f;
    const float high = STRICT_FMA(whole, -0x1.62e43p-1f, x), r = STRICT_FMA(whole, 0x1.05c61p-29f, high);
    float p = 0x1.6850e4p-10f;
    p = STRICT_FMA(p, r, 0x1.123bccp-7f);
    p = STRICT_FMA(p, r, 0x1.555b98p-5f);
    p = STRICT_FMA(p, r, 0x1.55548ep-3f);
    p = STRICT_FMA(p, r, 0x1.fffff8p-2f);
    p = STRICT_FMA(p, r, 1.0f);
    p = STRICT_FMA(p, r, 1.0f);
    const int n = STRICT_BITS(shifted) - 0x4b400000, half_n = n >> 1;
    return p * STRICT_FLOAT((half_n + 127) << 23) * STRICT_FLOAT((n - half_n + 127) << 23);
}

STRICT_INLINE float strict_sigmoid(float x) { return 1.0f / (1.0f + strict_exp(-x)); }

STRICT_INLINE float strict_silu(float x) { return x / (1.0f + strict_exp(-x)); }

STRICT_INLINE float strict_elu(float x) { return x > 0.0f ? x : strict_exp(x) - 1.0f; }

/* ---- Inputs of linear maps ---- */

/* 1 / sqrt(mean of squares + eps). */
STRICT_INLINE float strict_norm(const __global float *x, uint n, float eps)
{
    return 1.0f / STRICT_SQRT(strict_dot_global(x, x, n) / (float)n + eps);
}

/* Element i of f(x), a row of n (INPUT_SWIGLU: 2 n) floats; `norm` is strict_norm's. */
STRICT_INLINE float strict_input(const __global float *x, const __global float *gain, uint n, uint i, uint kind,
                                 float norm)
{
    if (kind == STRICT_RMSNORM)
        return x[i] * norm * gain[i];
    return kind == STRICT_SWIGLU ? strict_silu(x[i]) * x[n + i] : x[i];
}

/* A result of a linear map. */
STRICT_INLINE float strict_result(float sum, uint what, float bias, float before)
{
    if (what & STRICT_BIAS)
        sum = sum + bias;
    if (what & STRICT_ADD)
        sum = sum + before;
    return what & STRICT_ELU ? strict_elu(sum) : sum;
}

/* ---- Attention ---- */

/* Sixteen units' scores (fewer: `count`) make weights of them; what was summed before counts `keep` times from now. */
STRICT_INLINE float strict_weights(float *score, uint count, float *most, float *sum)
{
    float now = *most;
    for (uint k = 0; k < count; k++)
        now = score[k] > now ? score[k] : now;
    const float keep = strict_exp(*most - now);
    for (uint k = 0; k < 16; k++)
        score[k] = k < count ? strict_exp(score[k] - now) : 0.0f;
    *most = now;
    *sum = STRICT_FMA(*sum, keep, strict_sum(STRICT_LOAD(score)));
    return keep;
}

/* ---- The scorer (src/ops/score.h) ---- */

/* One (layer, KV head)'s parameters. */
typedef struct strict_score {
    const __global float *mean, *scale, *w1, *b1, *w2, *u, *r; /* b1, r: of the merge's level */
    float prior, deviation, sharp_k, sharp_v;
} strict_score;

/* h and s of a unit x of 2 d channels; z is room for as many. */
STRICT_INLINE float strict_score_unit(const strict_score *p, uint d, uint hidden, const float *x, float *z, float *h)
{
    for (uint c = 0; c < 2 * d; c++)
        z[c] = (x[c] - p->mean[c]) * p->scale[c];
    for (uint j = 0; j < hidden; j++)
        h[j] = strict_elu(strict_dot_mixed(p->w1 + j * 2 * d, z, 2 * d) + p->b1[j]);
    const float norm = STRICT_SQRT(strict_dot(z, z, d) / (float)d);
    return STRICT_FMA(p->deviation, norm, strict_dot_mixed(p->w2, h, hidden));
}

/* The result into a; ha becomes h_a + h_b. */
STRICT_INLINE void strict_score_merge(const strict_score *p, uint d, uint hidden, float gap, float *a, const float *b,
                                      float *ha, const float *hb)
{
    const float keys = strict_sigmoid(p->sharp_k * gap), values = strict_sigmoid(p->sharp_v * gap);
    for (uint j = 0; j < hidden; j++)
        ha[j] = ha[j] + hb[j];
    for (uint c = 0; c < 2 * d; c++) {
        const float m = c < d ? keys : values;
        float e = p->r[c];
        for (uint j = 0; j < hidden; j++)
            e = STRICT_FMA(p->u[j * 2 * d + c], ha[j], e);
        a[c] = STRICT_FMA(m, a[c], (1.0f - m) * b[c]) + e / p->scale[c];
    }
}
