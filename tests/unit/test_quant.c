/* Dequantisation against the python `gguf` package's (tests/golden/quant/make.py), bit for bit. */
#include "base/rng.h"
#include "io/quant.h"
#include "support/quantize.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { GOLDEN_BYTES = 4096, ITEMS = 512 };

static const quant_type all_types[] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0,
                                       QUANT_Q4_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};
enum { TYPES = sizeof all_types / sizeof *all_types };

/* The golden's bytes: blocks, then their floats. Returns the number of items. */
static size_t read_golden(quant_type type, unsigned char *bytes)
{
    const quant_info *info = quant_get(type);
    char path[1024], name[16];
    snprintf(name, sizeof name, "%s", info->name);
    for (char *c = name; *c; c++)
        *c = *c >= 'A' && *c <= 'Z' ? (char)(*c - 'A' + 'a') : *c;
    snprintf(path, sizeof path, "%s/quant/%s.bin", TEST_GOLDEN, name);
    FILE *in = fopen(path, "rb");
    if (!in)
        fail_msg("%s: cannot open it", path);
    const size_t size = fread(bytes, 1, GOLDEN_BYTES, in), per_block = info->bytes + info->items * sizeof(float);
    fclose(in);
    assert_true(size > 0 && size % per_block == 0);
    return size / per_block * info->items;
}

static void test_goldens(void **state)
{
    (void)state;
    static unsigned char bytes[GOLDEN_BYTES], shifted[GOLDEN_BYTES + 1];
    for (size_t t = 0; t < TYPES; t++) {
        const size_t items = read_golden(all_types[t], bytes), blocks = quant_row_bytes(all_types[t], items);
        float out[ITEMS + 1], wanted[ITEMS];
        assert_in_range(items, 64, ITEMS);
        memcpy(wanted, bytes + blocks, items * sizeof *wanted);
        for (size_t shift = 0; shift < 2; shift++) { /* no alignment is needed */
            memcpy(shifted + shift, bytes, blocks);
            out[items] = 12345;
            quant_to_float(all_types[t], shifted + shift, out, items);
            for (size_t i = 0; i < items; i++) {
                if (memcmp(&out[i], &wanted[i], sizeof *out) != 0)
                    fail_msg("%s item %zu: %.9g, not %.9g", quant_get(all_types[t])->name, i, out[i], wanted[i]);
            }
            assert_true(out[items] == 12345);
        }
    }
}

/* The K types' scales and bits in full: one block is read as the published bit layout says, item by item, in double. */
static double q4_k_item(const unsigned char *b, int i, double d, double dmin)
{
    const int g = i / 32;
    const int scale = g < 4 ? b[4 + g] % 64 : b[12 + g - 4] % 16 + b[g] / 64 * 16;
    const int min = g < 4 ? b[8 + g] % 64 : b[12 + g - 4] / 16 + b[4 + g] / 64 * 16;
    const int byte = b[16 + i / 64 * 32 + i % 32], q = i / 32 % 2 ? byte / 16 : byte % 16;
    return d * scale * q - dmin * min;
}

static void test_q4_k_layout(void **state)
{
    (void)state;
    uint64_t rng = 5;
    unsigned char b[144];
    float out[256];
    for (int trial = 0; trial < 100; trial++) {
        for (size_t i = 0; i < sizeof b; i++)
            b[i] = (unsigned char)rng_next(&rng);
        memcpy(b, "\x00\x3c\x00\xb8", 4); /* d = 1, dmin = -1/2: all products are exact */
        quant_to_float(QUANT_Q4_K, b, out, 256);
        for (int i = 0; i < 256; i++)
            assert_true(out[i] == q4_k_item(b, i, 1, -0.5));
    }
}

static void test_special_halves(void **state)
{
    (void)state;
    const uint16_t bits[] = {0x7c00, 0xfc00, 0x7e00, 0x8000, 0x0001, 0x7bff};
    float out[6];
    quant_to_float(QUANT_F16, bits, out, 6);
    assert_true(out[0] == INFINITY && out[1] == -INFINITY && isnan(out[2]));
    assert_true(out[3] == 0 && signbit(out[3]) && out[4] == 0x1p-24f && out[5] == 65504);
    const uint16_t brain[] = {0x7f80, 0xff80, 0x7fc0, 0x3f80};
    quant_to_float(QUANT_BF16, brain, out, 4);
    assert_true(out[0] == INFINITY && out[1] == -INFINITY && isnan(out[2]) && out[3] == 1);
}

static void test_tables(void **state)
{
    (void)state;
    for (uint32_t type = 0; type < 100; type++) {
        const quant_info *info = quant_get(type);
        if (info) {
            assert_string_equal(info->name, quant_name(type));
            assert_int_equal(quant_row_bytes((quant_type)type, 512), 512 / info->items * info->bytes);
        }
    }
    assert_null(quant_get(6));
    assert_string_equal(quant_name(6), "Q5_0");
    assert_string_equal(quant_name(16), "IQ2_XXS");
    assert_string_equal(quant_name(39), "MXFP4");
    assert_null(quant_get(99));
    assert_null(quant_name(99));
    assert_null(quant_get(UINT32_MAX));
    assert_null(quant_name(UINT32_MAX));
}

/* The support library's quantisers: what is read back lies within the bounds that support/quantize.h promises. */
static void test_quantise_back(void **state)
{
    (void)state;
    uint64_t rng = 7;
    float x[64], y[64];
    unsigned char bytes[256];
    for (size_t t = 0; t < TYPES; t++) {
        if (!quantize_knows(all_types[t]))
            continue;
        for (int i = 0; i < 64; i++)
            x[i] = (float)(rng_uniform(&rng) * 2 - 1);
        quantize(all_types[t], x, 64, bytes);
        quant_to_float(all_types[t], bytes, y, 64);
        double bound = 0;
        switch (all_types[t]) {
        case QUANT_F16: bound = 0x1p-11; break;
        case QUANT_BF16: bound = 0x1p-8; break;
        case QUANT_Q8_0: bound = 0.51 / 127; break;
        case QUANT_Q4_0: bound = 1.01 / 8; break; /* the end away from the largest item is one step short */
        case QUANT_Q4_1: bound = 0.52 * 2 / 15; break;
        default: break;
        }
        for (int i = 0; i < 64; i++)
            assert_true(fabs((double)x[i] - y[i]) <= bound);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens), cmocka_unit_test(test_q4_k_layout),   cmocka_unit_test(test_special_halves),
        cmocka_unit_test(test_tables),  cmocka_unit_test(test_quantise_back),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
