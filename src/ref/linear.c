#include "ref/ref.h"

#include "base/error.h"
#include "base/memory.h"

#include <math.h>

enum { ROWS = 16 /* that a thread takes at a time */ };

/* Twice: sums in double are the truth, those in float show what the rounding of sums alone does. */
#define REAL double
#define OF(NAME) NAME
#include "ref/linear_sums.h"
#undef REAL
#undef OF
#define REAL float
#define OF(NAME) NAME##_float
#include "ref/linear_sums.h"

void ref_embed(quant_type type, const void *table, uint32_t cols, const int32_t *ids, uint32_t n, float *x)
{
    const size_t row_bytes = quant_row_bytes(type, cols);
    for (uint32_t i = 0; i < n; i++)
        quant_to_float(type, (const char *)table + (size_t)ids[i] * row_bytes, x + (size_t)i * cols, cols);
}
