#include "support/quantize.h"

#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 32 };

bool quantize_knows(quant_type type)
{
    return type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16 || type == QUANT_Q8_0 || type == QUANT_Q4_0 ||
           type == QUANT_Q4_1;
}

static void put_u16(uint8_t *dst, uint16_t v) { memcpy(dst, &v, sizeof v); }

/* Store the step `d` as f16; returns one over what was stored, 0 for 0. */
static float put_step(uint8_t *dst, float d)
{
    const uint16_t h = float_to_half(d);
    const float stored = half_to_float(h);
    put_u16(dst, h);
    return stored != 0 ? 1 / stored : 0;
}

static int nearest(float x, int low, int high)
{
    const long q = lrintf(x);
    return q < low ? low : q > high ? high : (int)q;
}

static void to_q8_0(const float *x, uint8_t *b)
{
    float most = 0;
    for (int i = 0; i < BLOCK; i++)
        most = fmaxf(most, fabsf(x[i]));
    const float inverse = put_step(b, most / 127);
    for (int i = 0; i < BLOCK; i++)
        b[2 + i] = (uint8_t)(int8_t)nearest(x[i] * inverse, -127, 127);
}

/* Item i in the low nibble of byte i, or for i >= 16 in the high one of byte i - 16. */
static void put_nibble(uint8_t *nibbles, int i, int q)
{
    if (i < BLOCK / 2)
        nibbles[i] = (uint8_t)q;
    else
        nibbles[i - BLOCK / 2] |= (uint8_t)(q << 4);
}

static void to_q4_0(const float *x, uint8_t *b)
{
    float most = 0;
    for (int i = 0; i < BLOCK; i++)
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    const float inverse = put_step(b, most / -8);
    for (int i = 0; i < BLOCK; i++)
        put_nibble(b + 2, i, nearest(x[i] * inverse, -8, 7) + 8);
}

static void to_q4_1(const float *x, uint8_t *b)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < BLOCK; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    const float inverse = put_step(b, (high - low) / 15);
    put_step(b + 2, low);
    for (int i = 0; i < BLOCK; i++)
        put_nibble(b + 4, i, nearest((x[i] - low) * inverse, 0, 15));
}

static uint16_t to_bf16(float f)
{
    const uint32_t bits = float_to_bits(f);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void quantize(quant_type type, const float *src, size_t n, void *dst)
{
    uint8_t *b = dst;
    const quant_info *info = quant_get(type);
    for (size_t i = 0; i < n; i += info->items, b += info->bytes) {
        switch (type) {
        case QUANT_F32: memcpy(b, src + i, sizeof *src); break;
        case QUANT_F16: put_u16(b, float_to_half(src[i])); break;
        case QUANT_BF16: put_u16(b, to_bf16(src[i])); break;
        case QUANT_Q8_0: to_q8_0(src + i, b); break;
        case QUANT_Q4_0: to_q4_0(src + i, b); break;
        case QUANT_Q4_1: to_q4_1(src + i, b); break;
        default: abort(); /* the caller asks quantize_knows first */
        }
    }
}
