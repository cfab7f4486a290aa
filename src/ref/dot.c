#include "ref/ref.h"

#include "base/half.h"
#include "ref/clones.h"

#include <omp.h>

enum { LANES = 16 };

int ref_threads(int asked) { return asked > 0 ? asked : omp_get_num_procs(); }

int ref_thread(void) { return omp_get_thread_num(); }

#define DOT(NAME, REAL)                                                                                                \
    CLONES REAL NAME(const float *restrict w, const REAL *restrict x, size_t n)                                        \
    {                                                                                                                  \
        REAL lane[LANES] = {0};                                                                                        \
        size_t i = 0;                                                                                                  \
        for (; i + LANES <= n; i += LANES)                                                                             \
            for (size_t k = 0; k < LANES; k++)                                                                         \
                lane[k] += (REAL)w[i + k] * x[i + k];                                                                  \
        for (size_t k = 0; i + k < n; k++)                                                                             \
            lane[k] += (REAL)w[i + k] * x[i + k];                                                                      \
        for (size_t width = LANES / 2; width; width /= 2)                                                              \
            for (size_t k = 0; k < width; k++)                                                                         \
                lane[k] += lane[k + width];                                                                            \
        return lane[0];                                                                                                \
    }
DOT(ref_dot, double)
DOT(ref_dot_float, float)

CLONES void ref_half_to_float(const uint16_t *restrict src, float *restrict dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = half_to_float(src[i]);
}
