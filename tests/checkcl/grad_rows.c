/* cl_norm_back, cl_swiglu_back, cl_kl_back and cl_square_back. */
#include "harness.h"

#include "ops/grad.h"

enum { X_OFFSET = 6, OUT_OFFSET = 9 };
static const float EPS = 1e-5f;

typedef enum row_op { NORM, SWIGLU, KL, SQUARE } row_op;

typedef struct row_case {
    row_op op;
    uint32_t n, cols;
    bool add; /* NORM: add; SWIGLU: dx is x */
    float scale;
    size_t x_cols, out_offset; /* of a row of x and dx; floats before dx */
    float *x, *other, *gain, *out, *loss;
} row_case;

static size_t x_floats(const row_case *r) { return X_OFFSET + r->n * r->x_cols; }
static size_t out_floats(const row_case *r) { return OUT_OFFSET + r->n * r->x_cols; }

/* Ops without offsets start at the first float. */
static dcm_status run(ck *c, int side, const void *what)
{
    const row_case *r = what;
    backend *b = c->side[side];
    const size_t floats = r->n * r->x_cols * 4, other = (size_t)r->n * r->cols * 4;
    if (r->op == NORM) {
        const norm_back_args a = {.n = r->n,
                                  .cols = r->cols,
                                  .x = ck_buffer(c, side, "x", r->x, x_floats(r) * 4, 4),
                                  .x_offset = X_OFFSET,
                                  .gain = ck_buffer(c, side, "gain", r->gain, r->cols * 4, 4),
                                  .eps = EPS,
                                  .dy = ck_buffer(c, side, "dy", r->other, other, 4),
                                  .dx = ck_buffer(c, side, "out", r->out, out_floats(r) * 4, 4),
                                  .dx_offset = OUT_OFFSET,
                                  .add = r->add};
        return b->ops->grad->norm_back(b, &a);
    }
    if (r->op == SWIGLU) {
        buffer *x = ck_buffer(c, side, r->add ? "out" : "x", r->x, floats, 4);
        const swiglu_back_args a = {.n = r->n,
                                    .cols = r->cols,
                                    .x = x,
                                    .dy = ck_buffer(c, side, "dy", r->other, other, 4),
                                    .dx = ck_buffer(c, side, "out", r->out, floats, 4)};
        return b->ops->grad->swiglu_back(b, &a);
    }
    buffer *loss = ck_buffer(c, side, "loss", r->loss, (OUT_OFFSET + r->n) * 4, 4);
    if (r->op == KL) {
        const kl_back_args a = {.n = r->n,
                                .vocab = r->cols,
                                .logits = ck_buffer(c, side, "out", r->x, floats, 4),
                                .target = ck_buffer(c, side, "target", r->other, other, 4),
                                .scale = r->scale,
                                .loss = loss,
                                .loss_offset = OUT_OFFSET};
        return b->ops->grad->kl_back(b, &a);
    }
    const square_back_args a = {.n = r->n,
                                .cols = r->cols,
                                .x = ck_buffer(c, side, "x", r->x, floats, 4),
                                .y = ck_buffer(c, side, "y", r->other, other, 4),
                                .dx = ck_buffer(c, side, "out", r->out, floats, 4),
                                .scale = r->scale,
                                .loss = loss};
    return b->ops->grad->square_back(b, &a);
}

/* ---- Bounds ---- */

/* Of a sum: chains of a sixteenth of the columns, and what adds them up. A result is rounded on both sides. */
static double chain(const row_case *r) { return (r->cols / 16 + 40) * CK_U; }

/* Factors of the square root, divisions and products beside the sums. */
static void norm_bounds(const row_case *r, const float *x, const float *dy, const float *before, double *bound)
{
    double squares = 0, terms = 0, dot = 0;
    for (uint32_t i = 0; i < r->cols; i++) {
        const double term = (double)x[i] * r->gain[i] * dy[i];
        squares += (double)x[i] * x[i];
        dot += term;
        terms += fabs(term) + FLT_MIN;
    }
    const double mean = squares / r->cols + EPS, scale = 1 / sqrt(mean), along = fabs(dot) / r->cols / mean;
    const double along_error = terms / r->cols / mean * (chain(r) + 3 * CK_U) + along * (chain(r) + 8 * CK_U);
    for (uint32_t i = 0; i < r->cols; i++) {
        const double direct = fabs((double)r->gain[i] * dy[i]), d = scale * (direct + fabs(x[i]) * along);
        bound[i] = d * (chain(r) / 2 + 12 * CK_U) + scale * fabs(x[i]) * along_error + FLT_MIN * scale;
        if (r->add)
            bound[i] += 2 * CK_U * (fabs(before[i]) + d);
    }
}

/* The sigmoid is good for 16 roundings (exp 6, sum, division 5), 1 - s for as much of s and one of 1. */
static void swiglu_bounds(const row_case *r, const float *x, const float *dy, double *bound)
{
    for (uint32_t i = 0; i < r->cols; i++) {
        const double z = x[i], up = x[r->cols + i], d = dy[i], s = 1 / (1 + exp(-z));
        const double error = 16 * CK_U * s + FLT_MIN, factor = 1 + fabs(z) * (1 - s);
        bound[i] = fabs(d * up) * (factor * error + s * fabs(z) * (error + 2 * CK_U) + 6 * CK_U * s * factor) + FLT_MIN;
        bound[r->cols + i] = fabs(d * z) * (error + 3 * CK_U * s) + FLT_MIN * (1 + fabs(d));
    }
}

static double largest(const float *x, size_t n)
{
    double most = x[0];
    for (size_t i = 1; i < n; i++)
        most = fmax(most, x[i]);
    return most;
}

/* exp is good for 3 units in the last place of its argument's value, which is off by a rounding. */
static double exp_error(double at) { return exp(at) * (fabs(at) + 8) * CK_U + FLT_MIN; }

/* The sum of exp(x - most), and its error. */
static double weights(const row_case *r, const float *x, double most, double *error)
{
    double sum = 0;
    *error = 0;
    for (uint32_t i = 0; i < r->cols; i++) {
        sum += exp(x[i] - most);
        *error += exp_error(x[i] - most);
    }
    *error += sum * chain(r);
    return sum;
}

static void kl_bounds(const row_case *r, const float *x, const float *target, double *bound, double *loss)
{
    const double top_q = largest(x, r->cols), top_p = largest(target, r->cols);
    double error_q, error_p, differences = 0, error = 0;
    const double sum_q = weights(r, x, top_q, &error_q), sum_p = weights(r, target, top_p, &error_p);
    for (uint32_t i = 0; i < r->cols; i++) {
        const double at_q = x[i] - top_q, at_p = target[i] - top_p, q = exp(at_q) / sum_q, p = exp(at_p) / sum_p;
        const double off_q = exp_error(at_q) / sum_q + q * error_q / sum_q;
        const double off_p = exp_error(at_p) / sum_p + p * error_p / sum_p;
        bound[i] = r->scale * (off_q + off_p + 6 * CK_U * (q + p)) + FLT_MIN;
        differences += p * fabs(at_p - at_q);
        error += exp_error(at_p) / sum_p * fabs(at_p - at_q) + p * 2 * CK_U * (fabs(at_p) + fabs(at_q));
    }
    error += differences * (chain(r) + error_p / sum_p + 4 * CK_U);
    const double logs = fabs(log(sum_q)) + fabs(log(sum_p));
    *loss = error + error_q / sum_q + error_p / sum_p + 8 * CK_U * (logs + differences) + FLT_MIN;
}

static void square_bounds(const row_case *r, const float *x, const float *y, const float *before, double *bound,
                          double *loss)
{
    double sum = 0;
    for (uint32_t i = 0; i < r->cols; i++) {
        const double d = (double)x[i] - y[i], step = fabs(2 * r->scale * d);
        sum += d * d;
        bound[i] = 3 * CK_U * step + 2 * CK_U * (fabs(before[i] + 2 * r->scale * d) + 2 * CK_U * step) + FLT_MIN;
    }
    *loss = sum * (chain(r) + 4 * CK_U) + r->cols * FLT_MIN;
}

static void bounds(ck *c, const void *what)
{
    const row_case *r = what;
    double *out = ck_bound(c, "out"), *loss = r->op == KL || r->op == SQUARE ? ck_bound(c, "loss") : NULL;
    for (uint32_t row = 0; row < r->n; row++) {
        const size_t at = row * r->x_cols;
        const float *other = r->other + (size_t)row * r->cols;
        switch (r->op) {
        case NORM:
            norm_bounds(r, r->x + X_OFFSET + at, other, r->out + OUT_OFFSET + at, out + OUT_OFFSET + at);
            break;
        case SWIGLU: swiglu_bounds(r, r->x + at, other, out + at); break;
        case KL: kl_bounds(r, r->x + at, other, out + at, loss + OUT_OFFSET + row); break;
        case SQUARE: square_bounds(r, r->x + at, other, r->out + at, out + at, loss + row); break;
        }
    }
}

/* ---- Cases ---- */

static void one(ck *c, row_op op, uint32_t n, uint32_t cols, fx_input fill, bool add)
{
    static const char *const names[] = {"norm", "swiglu", "kl", "square"};
    row_case r = {op, n, cols, add, op == KL ? 0.125f : 0.75f, cols * (op == SWIGLU ? 2 : 1)};
    if (!ck_case(c, "grad_rows/%s_n%u_c%u_%s%s", names[op], n, cols, fx_input_name(fill), add ? "_add" : ""))
        return;
    r.x = fx_alloc(x_floats(&r) * 4), r.out = fx_alloc(out_floats(&r) * 4);
    r.other = fx_alloc((size_t)n * cols * 4), r.gain = fx_alloc(cols * 4), r.loss = fx_alloc((OUT_OFFSET + n) * 4);
    const bool fresh = (op == NORM && !add) || op == SWIGLU; /* what is written over may be NaN */
    fx_fill(r.x, 1, X_OFFSET, FX_NORMAL, &c->rng);
    fx_fill(r.x + (op == NORM ? X_OFFSET : 0), n, r.x_cols, fill, &c->rng);
    fx_fill(r.other, n, cols, op == KL ? fill : FX_NORMAL, &c->rng);
    fx_fill(r.gain, 1, cols, FX_NORMAL, &c->rng);
    fx_pattern(r.out, out_floats(&r) * 4);
    fx_pattern(r.loss, (OUT_OFFSET + n) * 4);
    if (!fresh)
        fx_fill(r.out + (op == NORM ? OUT_OFFSET : 0), n, r.x_cols, FX_NORMAL, &c->rng);
    c->traffic = n * (2 * r.x_cols + cols) * 4;
    ck_run(c, run, bounds, &r);
    free(r.x), free(r.out), free(r.other), free(r.gain), free(r.loss);
}

void check_grad_rows(ck *c)
{
    static const uint32_t cols[] = {1, 2, 15, 16, 17, 33, 255, 256, 257, 576, 1000};
    for (int op = NORM; op <= SQUARE; op++) {
        for (size_t i = 0; i < sizeof cols / sizeof *cols; i++)
            one(c, (row_op)op, 1 + (uint32_t)i % 4, cols[i], FX_NORMAL, i % 2);
        for (int fill = 0; fill < FX_INPUTS; fill++)
            for (int add = 0; add <= (op == NORM || op == SWIGLU); add++)
                one(c, (row_op)op, 3, 100, (fx_input)fill, add);
    }
    one(c, NORM, 300, 576, FX_NORMAL, true); /* SmolLM2-135M */
    one(c, SWIGLU, 300, 1536, FX_NORMAL, true);
    one(c, KL, 64, 49152, FX_NORMAL, false);
    one(c, KL, 2, 49152, FX_LARGE, false);
    one(c, SQUARE, 300, 576, FX_NORMAL, false);
}
