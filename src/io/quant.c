#include "io/quant.h"

#include "base/half.h"

enum { SMALL = 32, SUPER = 256 }; /* items of a block: Q8_0, Q4_0, Q4_1; and the K types */

const quant_info *quant_get(uint32_t type)
{
    static const quant_info infos[] = {
        [QUANT_F32] = {"F32", 1, 4},         [QUANT_F16] = {"F16", 1, 2},         [QUANT_Q4_0] = {"Q4_0", SMALL, 18},
        [QUANT_Q4_1] = {"Q4_1", SMALL, 20},  [QUANT_Q8_0] = {"Q8_0", SMALL, 34},  [QUANT_Q4_K] = {"Q4_K", SUPER, 144},
        [QUANT_Q5_K] = {"Q5_K", SUPER, 176}, [QUANT_Q6_K] = {"Q6_K", SUPER, 210}, [QUANT_BF16] = {"BF16", 1, 2},
    };
    return type < sizeof infos / sizeof *infos && infos[type].name ? &infos[type] : NULL;
}

const char *quant_name(uint32_t type)
{
    static const char *const names[] = {
        [0] = "F32",     [1] = "F16",         [2] = "Q4_0",        [3] = "Q4_1",        [4] = "Q4_2",
        [5] = "Q4_3",    [6] = "Q5_0",        [7] = "Q5_1",        [8] = "Q8_0",        [9] = "Q8_1",
        [10] = "Q2_K",   [11] = "Q3_K",       [12] = "Q4_K",       [13] = "Q5_K",       [14] = "Q6_K",
        [15] = "Q8_K",   [16] = "IQ2_XXS",    [17] = "IQ2_XS",     [18] = "IQ3_XXS",    [19] = "IQ1_S",
        [20] = "IQ4_NL", [21] = "IQ3_S",      [22] = "IQ2_S",      [23] = "IQ4_XS",     [24] = "I8",
        [25] = "I16",    [26] = "I32",        [27] = "I64",        [28] = "F64",        [29] = "IQ1_M",
        [30] = "BF16",   [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",   [34] = "TQ1_0",
        [35] = "TQ2_0",  [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4",
        [40] = "NVFP4",  [41] = "Q1_0",
    };
    return type < sizeof names / sizeof *names ? names[type] : NULL;
}

size_t quant_row_bytes(quant_type type, size_t cols)
{
    const quant_info *info = quant_get(type);
    return cols / info->items * info->bytes;
}

static inline uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float load_half(const uint8_t *p) { return half_to_float(load_u16(p)); }

static void from_half(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = load_half(src + 2 * i);
}

static void from_bf16(const uint8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = bf16_to_float(load_u16(src + 2 * i));
}

/* Block: f16 scale; 32 signed bytes. */
static void from_q8_0(const uint8_t *b, float *y)
{
    const float d = load_half(b);
    for (int i = 0; i < SMALL; i++)
        y[i] = (float)(int8_t)b[2 + i] * d;
}

/* Block: f16 scale; 16 bytes whose low nibbles are items 0 .. 15, high ones 16 .. 31, each plus 8. */
static void from_q4_0(const uint8_t *b, float *y)
{
    const float d = load_half(b);
    for (int i = 0; i < SMALL / 2; i++) {
        y[i] = (float)((b[2 + i] & 15) - 8) * d;
        y[i + SMALL / 2] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

/* Block: f16 scale, f16 minimum; nibbles as in Q4_0, not shifted. */
static void from_q4_1(const uint8_t *b, float *y)
{
    const float d = load_half(b), min = load_half(b + 2);
    for (int i = 0; i < SMALL / 2; i++) {
        y[i] = (float)(b[4 + i] & 15) * d + min;
        y[i + SMALL / 2] = (float)(b[4 + i] >> 4) * d + min;
    }
}

/*
 * Q4_K and Q5_K: 6-bit scale and minimum of group g (0 .. 7) in 12 bytes. Groups 0 .. 3 lie in the low six bits of
 * bytes g and g + 4; the others have four bits in byte g + 4 and their upper two in the top of bytes g - 4 and g.
 */
static void group_scale(const uint8_t *s, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *min = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/*
 * Block of Q4_K (`high` NULL): f16 scale, f16 minimum, 12 bytes of group scales, 128 of nibbles; Q5_K has 32 bytes of
 * fifth bits before the nibbles: bit g of byte i is item i of group g. Groups 2p and 2p + 1 share the nibbles' bytes
 * 32p .. 32p + 31.
 */
static void from_q45_k(const uint8_t *b, const uint8_t *high, const uint8_t *nibbles, float *y)
{
    const float d = load_half(b), dmin = load_half(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        group_scale(b + 4, g, &scale, &min);
        const float dg = d * (float)scale, mg = dmin * (float)min;
        const uint8_t *q = nibbles + g / 2 * 32;
        for (int i = 0; i < 32; i++) {
            const int low = q[i] >> g % 2 * 4 & 15, fifth = high ? high[i] >> g & 1 : 0;
            y[g * 32 + i] = dg * (float)(low | fifth << 4) - mg;
        }
    }
}

static void from_q4_k(const uint8_t *b, float *y) { from_q45_k(b, NULL, b + 16, y); }

static void from_q5_k(const uint8_t *b, float *y) { from_q45_k(b, b + 16, b + 48, y); }

/*
 * Block: 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales (one for 16 items), f16 scale. Each half of
 * 128 items has four parts of 32: parts 0 and 1 in the low nibbles of its 64 bytes, 2 and 3 in the high ones; pair p of
 * byte i belongs to part p.
 */
static void from_q6_k(const uint8_t *b, float *y)
{
    const float d = load_half(b + 208);
    for (int part = 0; part < 8; part++) {
        const int half = part / 4, p = part % 4;
        const uint8_t *low = b + 64 * half + 32 * (p % 2), *high = b + 128 + 32 * half, *scales = b + 192 + 2 * part;
        for (int i = 0; i < 32; i++) {
            const int q = (low[i] >> p / 2 * 4 & 15) | (high[i] >> 2 * p & 3) << 4;
            y[part * 32 + i] = d * (float)(int8_t)scales[i / 16] * (float)(q - 32);
        }
    }
}

void quant_to_float(quant_type type, const void *src, float *dst, size_t n)
{
    static void (*const blocks[])(const uint8_t *, float *) = {
        [QUANT_Q8_0] = from_q8_0, [QUANT_Q4_0] = from_q4_0, [QUANT_Q4_1] = from_q4_1,
        [QUANT_Q4_K] = from_q4_k, [QUANT_Q5_K] = from_q5_k, [QUANT_Q6_K] = from_q6_k,
    };
    const quant_info *info = quant_get(type);
    if (type == QUANT_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (type == QUANT_F16)
        from_half(src, dst, n);
    else if (type == QUANT_BF16)
        from_bf16(src, dst, n);
    else
        for (size_t i = 0; i < n / info->items; i++)
            blocks[type]((const uint8_t *)src + i * info->bytes, dst + i * info->items);
}
