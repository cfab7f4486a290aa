#include "support/score.h"

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
        normals(p + l.bias, g, -0.3, 0.3, rng);
        normals(p + l.deviation, 1, 0.3, 0.2, rng);
        normals(p + l.sharp_k, 1, 1.5, 0.3, rng);
        normals(p + l.sharp_v, 1, 0.7, 0.3, rng);
    }
    return params;
}

void fx_score_unit(const fx_cache *c, uint32_t layer, uint32_t h, uint32_t slot, const float *rot, long double *x)
{
    const uint32_t d = c->spec.head_dim;
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t one, two;
        fx_pair(c->spec.rope, d, i, &one, &two);
        const long double k = fx_get(c, c->block, layer, 0, h, slot, one);
        const long double q = fx_get(c, c->block, layer, 0, h, slot, two);
        x[one] = k * rot[2 * i] + q * rot[2 * i + 1];
        x[two] = q * rot[2 * i] - k * rot[2 * i + 1];
    }
    for (uint32_t i = 0; i < d; i++)
        x[d + i] = fx_get(c, c->block, layer, 1, h, slot, i);
}

/* s of a unit; adds its h to `both`. */
static long double scored(score_shape shape, const float *p, uint32_t g, const long double *x, long double *both)
{
    const uint32_t d = shape.head_dim, hidden = shape.hidden;
    const score_layout at = score_layout_of(shape);
    long double s = 0, squares = 0;
    for (uint32_t j = 0; j < hidden; j++) {
        long double pre = p[at.b1 + g * hidden + j];
        for (uint32_t c = 0; c < 2 * d; c++)
            pre += p[at.w1 + j * 2 * d + c] * (x[c] - p[at.mean + c]) * p[at.scale + c];
        const long double h = pre > 0 ? pre : expl(pre) - 1;
        both[j] += h;
        s += p[at.w2 + j] * h;
    }
    for (uint32_t c = 0; c < d; c++)
        squares += powl((x[c] - p[at.mean + c]) * p[at.scale + c], 2);
    return s + p[at.deviation] * sqrtl(squares / d);
}

void fx_score_merge(score_shape shape, const float *p, uint32_t level, const long double *a, const long double *b,
                    long double *y)
{
    const uint32_t d = shape.head_dim, hidden = shape.hidden, g = level < shape.levels ? level : shape.levels - 1;
    const score_layout at = score_layout_of(shape);
    long double both[SCORE_HIDDEN_MAX] = {0};
    const long double sa = scored(shape, p, g, a, both), gap = sa - scored(shape, p, g, b, both) + p[at.prior + g];
    for (uint32_t c = 0; c < 2 * d; c++) {
        const long double w = 1 / (1 + expl(-p[c < d ? at.sharp_k : at.sharp_v] * gap));
        long double e = p[at.r + g * 2 * d + c];
        for (uint32_t j = 0; j < hidden; j++)
            e += p[at.u + j * 2 * d + c] * both[j];
        y[c] = w * a[c] + (1 - w) * b[c] + e / p[at.scale + c];
    }
}
