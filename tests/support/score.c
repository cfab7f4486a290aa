#include "support/score.h"

#include "support/fixture.h"

#include <math.h>

static void normals(float *x, size_t n, double middle, double scale, uint64_t *rng)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(middle + scale * fx_normal(rng));
}

float *fx_score(score_shape shape, size_t rows, double size, uint64_t *rng)
{
    const score_layout l = score_layout_of(shape);
    const size_t x = 2 * (size_t)shape.head_dim, h = shape.hidden, g = shape.levels;
    float *params = fx_alloc(rows * l.row * sizeof *params);
    fx_pattern(params, rows * l.row * sizeof *params);
    for (size_t i = 0; i < rows; i++) {
        float *p = params + i * l.row;
        normals(p + l.mean, x, 0, size / 2, rng);
        for (size_t c = 0; c < x; c++)
            p[l.scale + c] = (float)(exp(fx_normal(rng) / 3) / size);
        normals(p + l.w1, h * x, 0, 1 / sqrt((double)x), rng);
        normals(p + l.b1, g * h, 0, 0.3, rng);
        normals(p + l.w2, h, 0, 2 / sqrt((double)h), rng);
        normals(p + l.u, h * x, 0, 0.2 / sqrt((double)h), rng);
        normals(p + l.r, g * x, 0, 0.1, rng);
        normals(p + l.prior, g, 0, 0.5, rng);
        normals(p + l.deviation, 1, 0.3, 0.2, rng);
        normals(p + l.sharp_k, 1, 1.5, 0.3, rng);
        normals(p + l.sharp_v, 1, 0.7, 0.3, rng);
    }
    return params;
}
