/* Floats to the simple element types of GGUF, for tests that need weights of a given type. Round to nearest; not ggml's
 * exact choice. */
#ifndef SUPPORT_QUANTIZE_H
#define SUPPORT_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>

#include "io/quant.h"

/* F32, F16, BF16, Q8_0, Q4_0 or Q4_1. */
bool quantize_knows(quant_type type);

/*
 * `n` floats, a multiple of the type's block, into quant_row_bytes(type, n) bytes at `dst`. Finite input below the
 * range of f16. Read back, an item differs from x by at most: 0 (F32), 2^-11 |x| + 2^-25 (F16), 2^-8 |x| (BF16), and
 * about half a step otherwise.
 */
void quantize(quant_type type, const float *src, size_t n, void *dst);

#endif
