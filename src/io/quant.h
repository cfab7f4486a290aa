/* Element types of GGUF tensors, and their exact meaning as floats. */
#ifndef IO_QUANT_H
#define IO_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The types dcm computes with; the values are GGUF's own numbers. */
typedef enum quant_type {
    QUANT_F32 = 0,
    QUANT_F16 = 1,
    QUANT_Q4_0 = 2,
    QUANT_Q4_1 = 3,
    QUANT_Q8_0 = 8,
    QUANT_Q4_K = 12,
    QUANT_Q5_K = 13,
    QUANT_Q6_K = 14,
    QUANT_BF16 = 30
} quant_type;

/* A type's block: `items` consecutive elements of a row in `bytes` bytes. */
typedef struct quant_info {
    const char *name;
    uint32_t items;
    uint32_t bytes;
} quant_info;

/* NULL for a number that is none of quant_type. Names of other GGUF types for messages: quant_name. */
const quant_info *quant_get(uint32_t type);

/* GGUF's name of any type number it knows ("IQ2_XXS"), or NULL. */
const char *quant_name(uint32_t type);

/* Bytes of a row of `cols` elements; `cols` must be a multiple of the block's items. */
size_t quant_row_bytes(quant_type type, size_t cols);

/*
 * Elements [0, n) of the row at `src` as floats; n a multiple of the block's items; `src` needs no alignment. The
 * formulas are those of ggml's reference dequantisation, in float arithmetic, one rounding at each step as written
 * there.
 */
void quant_to_float(quant_type type, const void *src, float *dst, size_t n);

#endif
