/* The row by row gradients of the reference, against differences of losses written in long double from ops/grad.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ops/grad.h"
#include "support/fixture.h"

enum { X_OFFSET = 3, OUT_OFFSET = 5, MARGIN = 4, THREADS = 3 };
static const float EPS = 1e-5f;

typedef enum kind { NORM, SWIGLU, KL, SQUARE } kind;

typedef struct problem {
    kind kind;
    uint32_t n, cols;
    fx_input fill;
    bool add; /* NORM: add; SWIGLU: dx is x */
    float scale;

    float *x, *other; /* other: dy, or what x is compared with */
    float *gain, *before;
    size_t x_cols; /* of a row of x */
} problem;

/* ---- Losses ---- */

static long double norm_loss(const problem *p, const long double *x, const float *dy)
{
    long double squares = 0, loss = 0;
    for (uint32_t i = 0; i < p->cols; i++)
        squares += x[i] * x[i];
    for (uint32_t i = 0; i < p->cols; i++)
        loss += dy[i] * (x[i] / sqrtl(squares / p->cols + EPS) * p->gain[i]);
    return loss;
}

static long double swiglu_loss(const problem *p, const long double *x, const float *dy)
{
    long double loss = 0;
    for (uint32_t i = 0; i < p->cols; i++)
        loss += dy[i] * (x[i] / (1 + expl(-x[i])) * x[p->cols + i]);
    return loss;
}

static long double log_sum(const long double *x, size_t n)
{
    long double most = x[0], sum = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxl(most, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += expl(x[i] - most);
    return most + logl(sum);
}

static long double kl_loss(const problem *p, const long double *x, const float *target)
{
    long double *t = fx_alloc(p->cols * sizeof *t), loss = 0;
    for (uint32_t i = 0; i < p->cols; i++)
        t[i] = target[i];
    const long double p_sum = log_sum(t, p->cols), q_sum = log_sum(x, p->cols);
    for (uint32_t i = 0; i < p->cols; i++)
        loss += expl(t[i] - p_sum) * (t[i] - p_sum - x[i] + q_sum);
    free(t);
    return loss;
}

static long double square_loss(const problem *p, const long double *x, const float *y)
{
    long double loss = 0;
    for (uint32_t i = 0; i < p->cols; i++)
        loss += (x[i] - y[i]) * (x[i] - y[i]);
    return loss;
}

static long double row_loss(const problem *p, const long double *x, uint32_t row)
{
    static long double (*const losses[])(const problem *, const long double *, const float *) = {norm_loss, swiglu_loss,
                                                                                                kl_loss, square_loss};
    return losses[p->kind](p, x, p->other + (size_t)row * p->cols);
}

/* ---- Gradients ---- */

/* The loss of a row with x[i] + d. */
static long double loss_at(const problem *p, uint32_t row, long double *x, size_t i, long double d)
{
    const long double at = x[i];
    x[i] = at + d;
    const long double loss = row_loss(p, x, row);
    x[i] = at;
    return loss;
}

/* Differences of fourth order: good for some 1e-9 of the largest gradient of the row. */
static void check_row(const problem *p, uint32_t row, const float *got)
{
    const long double h = 1e-5L;
    long double *x = fx_alloc(p->x_cols * sizeof *x), *want = fx_alloc(p->x_cols * sizeof *want), most = 0;
    for (size_t i = 0; i < p->x_cols; i++)
        x[i] = p->x[row * p->x_cols + i];
    for (size_t i = 0; i < p->x_cols; i++) {
        const long double near = loss_at(p, row, x, i, h) - loss_at(p, row, x, i, -h);
        const long double far = loss_at(p, row, x, i, 2 * h) - loss_at(p, row, x, i, -2 * h);
        want[i] = p->scale * (8 * near - far) / (12 * h);
        most = fmaxl(most, fabsl(want[i]));
    }
    for (size_t i = 0; i < p->x_cols; i++) {
        const bool adds = p->kind == SQUARE || (p->kind == NORM && p->add);
        const long double sum = want[i] + (adds ? p->before[row * p->x_cols + i] : 0);
        const long double bound = 0x1p-24L * fabsl(sum) + 2e-9L * most + 1e-9L * fabsf(p->scale);
        if (!(fabsl(got[i] - sum) <= bound))
            fail_msg("kind %d, %u x %u, row %u, %zu: %.9g, not %.9Lg", p->kind, p->n, p->cols, row, i, got[i], sum);
    }
    free(x), free(want);
}

static void check_loss(const problem *p, uint32_t row, float got)
{
    long double *x = fx_alloc(p->x_cols * sizeof *x);
    for (size_t i = 0; i < p->x_cols; i++)
        x[i] = p->x[row * p->x_cols + i];
    const long double want = row_loss(p, x, row);
    if (!(fabsl(got - want) <= 0x1p-24L * fabsl(want) + 1e-11L))
        fail_msg("kind %d, %u x %u, row %u: loss %.9g, not %.9Lg", p->kind, p->n, p->cols, row, got, want);
    free(x);
}

/* A buffer of `items` behind `offset` patterns and before MARGIN more. */
static buffer *padded(backend *b, const float *data, size_t items, size_t offset)
{
    float *all = fx_alloc((offset + items + MARGIN) * sizeof *all);
    fx_pattern(all, (offset + items + MARGIN) * sizeof *all);
    memcpy(all + offset, data, items * sizeof *all);
    buffer *made = fx_make_plain(b, "padded", all, (offset + items + MARGIN) * sizeof *all, 4);
    free(all);
    return made;
}

/* What is in it; what is around must be as before. The caller frees it. */
static float *unpadded(buffer *from, size_t items, size_t offset)
{
    float *all = fx_alloc(from->bytes);
    const uint32_t pattern = FX_PATTERN;
    assert_int_equal(from->bytes, (offset + items + MARGIN) * sizeof *all);
    assert_int_equal(from->owner->ops->read(from, 0, all, from->bytes), DCM_OK);
    for (size_t i = 0; i < offset + items + MARGIN; i++)
        if (i < offset || i >= offset + items)
            assert_memory_equal(all + i, &pattern, sizeof pattern);
    memmove(all, all + offset, items * sizeof *all);
    return all;
}

static dcm_status run(const problem *p, backend *b, buffer *x, buffer *other, buffer *out, buffer *loss)
{
    buffer *gain = fx_make_plain(b, "gain", p->gain, p->cols * 4, 4);
    const norm_back_args norm = {p->n, p->cols, x, X_OFFSET, gain, EPS, other, out, OUT_OFFSET, p->add};
    const swiglu_back_args swiglu = {p->n, p->cols, x, other, out};
    const kl_back_args kl = {p->n, p->cols, x, other, p->scale, loss, OUT_OFFSET};
    const square_back_args square = {p->n, p->cols, x, other, out, p->scale, loss};
    const grad_ops *ops = b->ops->grad;
    const dcm_status status = p->kind == NORM     ? ops->norm_back(b, &norm)
                              : p->kind == SWIGLU ? ops->swiglu_back(b, &swiglu)
                              : p->kind == KL     ? ops->kl_back(b, &kl)
                                                  : ops->square_back(b, &square);
    buffer_free(&gain);
    return status;
}

static void check_threads(const problem *p, int threads)
{
    const size_t items = p->n * p->x_cols, x_offset = p->kind == NORM ? X_OFFSET : 0,
                 out_offset = p->kind == NORM ? OUT_OFFSET : 0, loss_offset = p->kind == KL ? OUT_OFFSET : 0;
    float *none = fx_alloc(p->n * sizeof *none);
    backend *b = NULL;
    assert_int_equal(backend_ref_open(&b, threads, 0), DCM_OK);
    buffer *x = padded(b, p->x, items, x_offset), *out = padded(b, p->before, items, out_offset),
           *other = fx_make_plain(b, "other", p->other, (size_t)p->n * p->cols * 4, 4),
           *loss = padded(b, none, p->n, loss_offset);
    const bool in_place = p->kind == KL || (p->kind == SWIGLU && p->add);
    assert_int_equal(run(p, b, x, other, in_place ? x : out, loss), DCM_OK);
    float *losses = unpadded(loss, p->n, loss_offset), *x_after = unpadded(x, items, x_offset),
          *out_after = unpadded(out, items, out_offset), *got = in_place ? x_after : out_after;
    assert_memory_equal(in_place ? out_after : x_after, in_place ? p->before : p->x, items * sizeof *got);
    for (uint32_t r = 0; r < p->n; r++) {
        check_row(p, r, got + r * p->x_cols);
        if (p->kind == KL || p->kind == SQUARE)
            check_loss(p, r, losses[r]);
    }
    free(none), free(losses), free(x_after), free(out_after);
    buffer_free(&x), buffer_free(&out), buffer_free(&other), buffer_free(&loss);
    backend_close(&b);
}

static void check(kind kind, uint32_t n, uint32_t cols, fx_input fill, bool add)
{
    uint64_t rng = kind * 1000 + cols + fill;
    problem p = {kind, n, cols, fill, add, kind == KL ? 0.25f : kind == SQUARE ? 0.5f : 1};
    p.x_cols = cols * (kind == SWIGLU ? 2 : 1);
    p.x = fx_alloc(n * p.x_cols * 4), p.before = fx_alloc(n * p.x_cols * 4);
    p.other = fx_alloc((size_t)n * cols * 4), p.gain = fx_alloc(cols * 4);
    fx_fill(p.x, n, p.x_cols, fill, &rng);
    fx_fill(p.before, n, p.x_cols, FX_NORMAL, &rng);
    fx_fill(p.other, n, cols, kind == KL ? fill : FX_NORMAL, &rng);
    fx_fill(p.gain, 1, cols, FX_NORMAL, &rng);
    for (int threads = 1; threads <= THREADS; threads += 2)
        check_threads(&p, threads);
    free(p.x), free(p.before), free(p.other), free(p.gain);
}

static void sizes_of(kind kind)
{
    static const uint32_t cols[] = {1, 2, 15, 16, 17, 33, 100};
    for (size_t i = 0; i < sizeof cols / sizeof *cols; i++)
        for (int add = 0; add <= 1; add++)
            check(kind, 1 + (uint32_t)i % 3, cols[i], FX_NORMAL, add);
}

static void norm(void **state)
{
    (void)state;
    sizes_of(NORM);
    check(NORM, 2, 40, FX_OUTLIER, true);
}

static void swiglu(void **state)
{
    (void)state;
    sizes_of(SWIGLU);
    check(SWIGLU, 2, 40, FX_OUTLIER, false);
}

static void kl(void **state)
{
    (void)state;
    sizes_of(KL);
    check(KL, 2, 40, FX_OUTLIER, false);
    check(KL, 2, 40, FX_LARGE, false);
    check(KL, 3, 40, FX_EQUAL, false);
}

static void square(void **state)
{
    (void)state;
    sizes_of(SQUARE);
}

/* Enough elements that threads share them. */
static void many_rows(void **state)
{
    (void)state;
    for (int k = NORM; k <= SQUARE; k++)
        check((kind)k, 1200, 30, FX_NORMAL, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(norm), cmocka_unit_test(swiglu), cmocka_unit_test(kl),
                                       cmocka_unit_test(square), cmocka_unit_test(many_rows)};
    return cmocka_run_group_tests_name("grad_rows", tests, NULL, NULL);
}
