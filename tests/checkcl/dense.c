/* cl_dense: float products with bias and ELU, by our kernels and by CLBlast. */
#include "harness.h"

typedef struct dense_case {
    uint32_t n, in, out;
    activation act;
    float *x, *w, *bias, *y;
} dense_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const dense_case *d = what;
    const dense_args args = {.x = ck_buffer(c, side, "x", d->x, (size_t)d->n * d->in * 4, 4),
                             .w = ck_buffer(c, side, "w", d->w, (size_t)d->out * d->in * 4, 4),
                             .bias = ck_buffer(c, side, "bias", d->bias, d->out * 4, 4),
                             .y = ck_buffer(c, side, "y", d->y, (size_t)d->n * d->out * 4, 4),
                             .n = d->n,
                             .in = d->in,
                             .out = d->out,
                             .act = d->act};
    return c->side[side]->ops->dense(c->side[side], &args);
}

/* ELU has slope 1 at most, and expm1 is good for a few units in the last place. */
static void bounds(ck *c, const void *what)
{
    const dense_case *d = what;
    double *bound = ck_bound(c, "y");
    for (uint32_t t = 0; t < d->n; t++)
        for (uint32_t o = 0; o < d->out; o++) {
            double sum = d->bias[o], terms = fabs(d->bias[o]);
            for (uint32_t i = 0; i < d->in; i++) {
                const double term = (double)d->x[(size_t)t * d->in + i] * d->w[(size_t)o * d->in + i];
                sum += term;
                terms += fabs(term);
            }
            const double value = d->act == ACT_ELU && sum < 0 ? fabs(expm1(sum)) : fabs(sum);
            bound[(size_t)t * d->out + o] = (d->in + 4) * CK_U * terms + 8 * CK_U * value + (d->in + 1) * FLT_MIN;
        }
}

static void one(ck *c, uint32_t n, uint32_t in, uint32_t out, activation act, fx_input fill)
{
    dense_case d = {n, in, out, act};
    if (!ck_case(c, "dense/n%u_in%u_out%u_%s_%s", n, in, out, act == ACT_ELU ? "elu" : "none", fx_input_name(fill)))
        return;
    d.x = fx_alloc((size_t)n * in * 4), d.w = fx_alloc((size_t)out * in * 4);
    d.bias = fx_alloc(out * 4), d.y = fx_alloc((size_t)n * out * 4);
    fx_fill(d.x, n, in, fill, &c->rng);
    fx_fill(d.w, out, in, FX_NORMAL, &c->rng);
    fx_fill(d.bias, 1, out, fill, &c->rng);
    fx_pattern(d.y, (size_t)n * out * 4);
    for (size_t i = 0; i < (size_t)out * in; i++)
        d.w[i] /= sqrtf((float)in);
    c->traffic = ((size_t)n * in + (size_t)out * in + out + (size_t)n * out) * 4;
    ck_run(c, run, bounds, &d);
    free(d.x), free(d.w), free(d.bias), free(d.y);
}

void check_dense(ck *c)
{
    static const uint32_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129};
    const size_t count = sizeof sizes / sizeof *sizes;
    for (size_t i = 0; i < count; i++) {
        one(c, sizes[i], 64, 64, ACT_ELU, FX_NORMAL);
        one(c, 18, sizes[i], 33, ACT_NONE, FX_NORMAL);
        one(c, 17, 48, sizes[i], ACT_ELU, FX_NORMAL);
        one(c, sizes[i], sizes[(i + 5) % count], sizes[(i + 11) % count], (activation)(i % 2), FX_NORMAL);
    }
    for (int fill = 0; fill < FX_INPUTS; fill++)
        for (int act = ACT_NONE; act <= ACT_ELU; act++)
            one(c, 37, 96, 40, (activation)act, (fx_input)fill);
    one(c, 180, 128, 128, ACT_ELU, FX_NORMAL); /* one merge of SmolLM2-135M */
    one(c, 180, 128, 1, ACT_NONE, FX_NORMAL);
    one(c, 720, 128, 64, ACT_ELU, FX_NORMAL);
}
