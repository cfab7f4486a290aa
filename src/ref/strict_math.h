/* Inside the reference: cl/strict_math.cl as C. */
#ifndef REF_STRICT_MATH_H
#define REF_STRICT_MATH_H

#include "base/half.h"

#include <sys/types.h>

#define __global
#define STRICT_INLINE static inline __attribute__((always_inline))
#define STRICT_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define STRICT_SQRT(x) __builtin_sqrtf(x)
#define STRICT_BITS(x) ((int)float_to_bits(x))
#define STRICT_FLOAT(i) bits_to_float((uint32_t)(i))

#include <strict_math.cl>

#endif
