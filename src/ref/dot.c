#include "ref/ref.h"

#include "base/half.h"
#include "ref/clones.h"

#include <omp.h>

enum { LANES = 16, SIDE_BY_SIDE = 8 /* rows, whose additions do not wait for each other */ };

int ref_threads(int asked) { return asked > 0 ? asked : omp_get_num_procs(); }

int ref_thread(void) { return omp_get_thread_num(); }

CLONES double ref_dot(const float *restrict w, const double *restrict x, size_t n)
{
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)w[i + k] * x[i + k];
    for (size_t k = 0; i + k < n; k++)
        lane[k] += (double)w[i + k] * x[i + k];
    for (size_t width = LANES / 2; width; width /= 2)
        for (size_t k = 0; k < width; k++)
            lane[k] += lane[k + width];
    return lane[0];
}

float ref_dot_float(const float *restrict w, const float *restrict x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += w[i] * x[i];
    return sum;
}

void ref_dots(const float *restrict w, size_t rows, const double *restrict x, size_t n, double *restrict sums)
{
    for (size_t r = 0; r < rows; r++)
        sums[r] = ref_dot(w + r * n, x, n);
}

CLONES void ref_dots_float(const float *restrict w, size_t rows, const float *restrict x, size_t n,
                           float *restrict sums)
{
    size_t r = 0;
    for (; r + SIDE_BY_SIDE <= rows; r += SIDE_BY_SIDE) {
        const float *side = w + r * n;
        float sum[SIDE_BY_SIDE] = {0};
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < SIDE_BY_SIDE; k++)
                sum[k] += side[k * n + i] * x[i];
        for (size_t k = 0; k < SIDE_BY_SIDE; k++)
            sums[r + k] = sum[k];
    }
    for (; r < rows; r++)
        sums[r] = ref_dot_float(w + r * n, x, n);
}

CLONES void ref_half_to_float(const uint16_t *restrict src, float *restrict dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = half_to_float(src[i]);
}
