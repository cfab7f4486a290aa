/* cl_dense_back: gradients of the dense product, by our kernels and by CLBlast. */
#include "harness.h"

#include "ops/grad.h"

typedef struct back_case {
    uint32_t n, in, out;
    activation act;
    bool dx;
    float *x, *w, *y, *dy, *before_dx, *dw, *dbias;
} back_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const back_case *d = what;
    const size_t rows = (size_t)d->n * d->out * 4, inputs = (size_t)d->n * d->in * 4,
                 weights = (size_t)d->out * d->in * 4;
    const dense_back_args args = {.n = d->n,
                                  .in = d->in,
                                  .out = d->out,
                                  .act = d->act,
                                  .x = ck_buffer(c, side, "x", d->x, inputs, 4),
                                  .w = ck_buffer(c, side, "w", d->w, weights, 4),
                                  .y = d->act == ACT_ELU ? ck_buffer(c, side, "y", d->y, rows, 4) : NULL,
                                  .dy = ck_buffer(c, side, "dy", d->dy, rows, 4),
                                  .dx = d->dx ? ck_buffer(c, side, "dx", d->before_dx, inputs, 4) : NULL,
                                  .dw = ck_buffer(c, side, "dw", d->dw, weights, 4),
                                  .dbias = ck_buffer(c, side, "dbias", d->dbias, d->out * 4, 4)};
    return c->side[side]->ops->grad->dense_back(c->side[side], &args);
}

/* dy times the slope, absolute: two roundings on the device, one in the reference. */
static double through(const back_case *d, uint32_t t, uint32_t o)
{
    const size_t at = (size_t)t * d->out + o;
    const double y = d->y[at];
    return fabs(d->dy[at] * (d->act == ACT_ELU && !(y > 0) ? y + 1 : 1));
}

/* Sums of `terms` in any order, of inputs that are off by four roundings; added to what was there. */
static double sum_bound(uint32_t terms, double sum, double before)
{
    return (terms + 8) * CK_U * sum + 2 * CK_U * (fabs(before) + sum) + (terms + 1) * FLT_MIN;
}

static void bounds(ck *c, const void *what)
{
    const back_case *d = what;
    double *dy = ck_bound(c, "dy"), *dx = d->dx ? ck_bound(c, "dx") : NULL, *dw = ck_bound(c, "dw"),
           *dbias = ck_bound(c, "dbias");
    for (uint32_t t = 0; t < d->n; t++) {
        for (uint32_t o = 0; d->act == ACT_ELU && o < d->out; o++)
            dy[(size_t)t * d->out + o] = 4 * CK_U * through(d, t, o) + FLT_MIN;
        for (uint32_t i = 0; dx && i < d->in; i++) {
            double sum = 0;
            for (uint32_t o = 0; o < d->out; o++)
                sum += through(d, t, o) * fabs(d->w[(size_t)o * d->in + i]);
            dx[(size_t)t * d->in + i] = sum_bound(d->out, sum, 0);
        }
    }
    for (uint32_t o = 0; o < d->out; o++) {
        double bias = 0;
        for (uint32_t t = 0; t < d->n; t++)
            bias += through(d, t, o);
        dbias[o] = sum_bound(d->n, bias, d->dbias[o]);
        for (uint32_t i = 0; i < d->in; i++) {
            double sum = 0;
            for (uint32_t t = 0; t < d->n; t++)
                sum += through(d, t, o) * fabs(d->x[(size_t)t * d->in + i]);
            dw[(size_t)o * d->in + i] = sum_bound(d->n, sum, d->dw[(size_t)o * d->in + i]);
        }
    }
}

static void one(ck *c, uint32_t n, uint32_t in, uint32_t out, activation act, fx_input fill, bool dx)
{
    back_case d = {n, in, out, act, dx};
    if (!ck_case(c, "dense_back/n%u_in%u_out%u_%s_%s%s", n, in, out, act == ACT_ELU ? "elu" : "none",
                 fx_input_name(fill), dx ? "" : "_params"))
        return;
    const size_t rows = (size_t)n * out, inputs = (size_t)n * in, weights = (size_t)out * in;
    d.x = fx_alloc(inputs * 4), d.before_dx = fx_alloc(inputs * 4), d.y = fx_alloc(rows * 4);
    d.dy = fx_alloc(rows * 4), d.w = fx_alloc(weights * 4), d.dw = fx_alloc(weights * 4), d.dbias = fx_alloc(out * 4);
    fx_fill(d.x, n, in, fill, &c->rng);
    fx_fill(d.y, n, out, fill, &c->rng);
    for (size_t i = 0; i < rows; i++)
        d.y[i] = d.y[i] > 0 ? d.y[i] : expm1f(d.y[i]);
    fx_fill(d.dy, n, out, fill, &c->rng);
    fx_fill(d.w, out, in, FX_NORMAL, &c->rng);
    fx_fill(d.dw, out, in, FX_NORMAL, &c->rng);
    fx_fill(d.dbias, 1, out, FX_NORMAL, &c->rng);
    fx_pattern(d.before_dx, inputs * 4);
    c->traffic = (2 * inputs + 3 * rows + 3 * weights + out) * 4;
    ck_run(c, run, bounds, &d);
    free(d.x), free(d.before_dx), free(d.y), free(d.dy), free(d.w), free(d.dw), free(d.dbias);
}

void check_dense_back(ck *c)
{
    static const uint32_t sizes[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129};
    const size_t count = sizeof sizes / sizeof *sizes;
    for (size_t i = 0; i < count; i++) {
        one(c, sizes[i], 64, 64, ACT_ELU, FX_NORMAL, true);
        one(c, 18, sizes[i], 33, ACT_NONE, FX_NORMAL, true);
        one(c, 17, 48, sizes[i], ACT_ELU, FX_NORMAL, true);
        one(c, sizes[i], sizes[(i + 5) % count], sizes[(i + 11) % count], (activation)(i % 2), FX_NORMAL, i % 3);
    }
    for (int fill = 0; fill < FX_INPUTS; fill++)
        for (int act = ACT_NONE; act <= ACT_ELU; act++)
            one(c, 37, 96, 40, (activation)act, (fx_input)fill, true);
    one(c, 1200, 32, 36, ACT_ELU, FX_NORMAL, true); /* several partial sums */
    one(c, 720, 128, 128, ACT_ELU, FX_NORMAL, true);
    one(c, 720, 128, 1, ACT_NONE, FX_NORMAL, true); /* a gate */
}
