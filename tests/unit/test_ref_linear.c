/* Linear maps, the dense product and embedding of the reference, against long double formulas written from ops.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "support/fixture.h"

enum { X_OFFSET = 5, Y_OFFSET = 3, Y_MARGIN = 4 };
static const float EPS = 1e-5f;

typedef struct problem {
    quant_type type;
    uint32_t rows, cols, n;
    linear_input input;
    bool bias, add;
} problem;

/* f(x)[c] of token t; x starts at its first element. */
static long double input_at(const problem *p, const float *x, const float *gain, uint32_t t, uint32_t c)
{
    const size_t width = p->cols * (p->input == INPUT_SWIGLU ? 2u : 1u);
    const float *row = x + t * width;
    if (p->input == INPUT_SWIGLU)
        return row[c] / (1 + expl(-(long double)row[c])) * row[p->cols + c];
    if (p->input == INPUT_PLAIN)
        return row[c];
    long double squares = 0;
    for (uint32_t i = 0; i < p->cols; i++)
        squares += (long double)row[i] * row[i];
    return row[c] / sqrtl(squares / p->cols + EPS) * gain[c];
}

/* One rounding to float, and what double sums lose against long double. */
static void check(float got, long double want, long double absolute, const char *what)
{
    const long double bound = fabsl(want) * 0x1p-24L + absolute * 0x1p-45L + 0x1p-149L;
    if (!(fabsl(got - want) <= bound))
        fail_msg("%s: %.9g, not %.9Lg (error %.3Lg, bound %.3Lg)", what, got, want, fabsl(got - want), bound);
}

static void check_linear(const problem *p, const float *x, const float *gain, const float *bias, const void *w,
                         const float *before, const float *after)
{
    const size_t ldy = p->rows + Y_MARGIN;
    float *row = fx_alloc(p->cols * sizeof *row);
    for (uint32_t t = 0; t < p->n; t++)
        for (uint32_t r = 0; r < p->rows; r++) {
            quant_to_float(p->type, (const char *)w + r * quant_row_bytes(p->type, p->cols), row, p->cols);
            const size_t at = Y_OFFSET + t * ldy + r;
            long double want = (p->bias ? bias[r] : 0) + (p->add ? (long double)before[at] : 0), absolute = fabsl(want);
            for (uint32_t c = 0; c < p->cols; c++) {
                const long double term = row[c] * input_at(p, x + X_OFFSET, gain, t, c);
                want += term;
                absolute += fabsl(term);
            }
            check(after[at], want, absolute, quant_name(p->type));
        }
    free(row);
}

static void fill_output(const problem *p, float *y, size_t items, uint64_t *rng)
{
    fx_pattern(y, items * 4);
    for (uint32_t t = 0; p->add && t < p->n; t++)
        fx_fill(y + Y_OFFSET + t * (p->rows + Y_MARGIN), 1, p->rows, FX_NORMAL, rng);
}

static void check_margins(const problem *p, const float *before, const float *after, size_t items)
{
    const size_t ldy = p->rows + Y_MARGIN;
    for (size_t i = 0; i < items; i++) {
        const bool inside = i >= Y_OFFSET && i < Y_OFFSET + p->n * ldy && (i - Y_OFFSET) % ldy < p->rows;
        if (!inside)
            assert_memory_equal(before + i, after + i, 4);
    }
}

static void run_linear(const problem *p, uint64_t seed)
{
    const size_t wide = p->cols * (p->input == INPUT_SWIGLU ? 2u : 1u), x_items = X_OFFSET + p->n * wide;
    const size_t y_items = Y_OFFSET + p->n * (p->rows + Y_MARGIN) + Y_MARGIN;
    uint64_t rng = seed;
    float *x = fx_alloc(x_items * 4), *gain = fx_alloc(p->cols * 4), *bias = fx_alloc(p->rows * 4);
    float *before = fx_alloc(y_items * 4), *first = fx_alloc(y_items * 4), *after = fx_alloc(y_items * 4);
    void *w = fx_weights(p->type, p->rows, p->cols, 0.5, &rng);
    fx_pattern(x, X_OFFSET * 4);
    fx_fill(x + X_OFFSET, p->n, wide, FX_NORMAL, &rng);
    fx_fill(gain, 1, p->cols, FX_NORMAL, &rng);
    fx_fill(bias, 1, p->rows, FX_NORMAL, &rng);
    fill_output(p, before, y_items, &rng);
    for (int threads = 1; threads <= 5; threads += 2) {
        backend *b = NULL;
        matrix *m = NULL;
        assert_int_equal(backend_ref_open(&b, threads, 0), DCM_OK);
        assert_int_equal(b->ops->matrix_new(b, p->type, p->rows, p->cols, w, &m), DCM_OK);
        buffer *bx = fx_make_plain(b, "x", x, x_items * 4, 4), *bg = fx_make_plain(b, "gain", gain, p->cols * 4, 4);
        buffer *bb = fx_make_plain(b, "bias", bias, p->rows * 4, 4),
               *by = fx_make_plain(b, "y", before, y_items * 4, 4);
        const linear_args args = {.w = m,
                                  .n = p->n,
                                  .input = p->input,
                                  .x = bx,
                                  .x_offset = X_OFFSET,
                                  .gain = p->input == INPUT_RMSNORM ? bg : NULL,
                                  .eps = EPS,
                                  .bias = p->bias ? bb : NULL,
                                  .y = by,
                                  .y_offset = Y_OFFSET,
                                  .ldy = p->rows + Y_MARGIN,
                                  .add = p->add};
        assert_int_equal(b->ops->linear(b, &args), DCM_OK);
        assert_int_equal(b->ops->read(by, 0, threads == 1 ? first : after, y_items * 4), DCM_OK);
        if (threads > 1)
            assert_memory_equal(first, after, y_items * 4);
        buffer_free(&bx), buffer_free(&bg), buffer_free(&bb), buffer_free(&by), matrix_free(&m);
        backend_close(&b);
    }
    check_linear(p, x, gain, bias, w, before, first);
    check_margins(p, before, first, y_items);
    free(x), free(gain), free(bias), free(before), free(first), free(after), free(w);
}

static void every_type(void **state)
{
    (void)state;
    for (int i = 0; i < FX_TYPES; i++)
        for (uint32_t blocks = 1; blocks <= 3; blocks += 2)
            for (uint32_t n = 1; n <= 3; n += 2) {
                const uint32_t items = quant_get(fx_types[i])->items;
                run_linear(&(problem){fx_types[i], 7, blocks * items, n, INPUT_PLAIN, i % 2, n == 3}, 1000 + n);
            }
}

static void every_input(void **state)
{
    static const uint32_t sizes[] = {1, 15, 16, 17, 33, 577};
    (void)state;
    for (int input = INPUT_PLAIN; input <= INPUT_SWIGLU; input++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int flags = 0; flags < 4; flags++)
                run_linear(&(problem){QUANT_F32, 1 + 8 * (uint32_t)flags, sizes[s], 1 + (uint32_t)flags,
                                      (linear_input)input, flags & 1, flags & 2},
                           7 + s);
}

/* y = act(x w^T + bias), with results small enough that exp(z) - 1 would lose them. */
static void dense(void **state)
{
    enum { N = 5, IN = 37, OUT = 19 };
    float x[N * IN], w[OUT * IN], bias[OUT], y[N * OUT];
    uint64_t rng = 3;
    (void)state;
    fx_fill(x, N, IN, FX_NORMAL, &rng);
    memset(x, 0, sizeof *x * IN); /* token 0: the bias alone */
    fx_fill(w, OUT, IN, FX_NORMAL, &rng);
    fx_fill(bias, 1, OUT, FX_NORMAL, &rng);
    bias[0] = -1e-12f;
    backend *b = NULL;
    assert_int_equal(backend_ref_open(&b, 2, 0), DCM_OK);
    buffer *bx = fx_make_plain(b, "x", x, sizeof x, 4), *bw = fx_make_plain(b, "w", w, sizeof w, 4);
    buffer *bb = fx_make_plain(b, "bias", bias, sizeof bias, 4), *by = fx_make_plain(b, "y", y, sizeof y, 4);
    for (int act = ACT_NONE; act <= ACT_ELU; act++) {
        const dense_args args = {bx, bw, bb, by, N, IN, OUT, (activation)act};
        assert_int_equal(b->ops->dense(b, &args), DCM_OK);
        assert_int_equal(b->ops->read(by, 0, y, sizeof y), DCM_OK);
        for (uint32_t i = 0; i < N * OUT; i++) {
            long double want = bias[i % OUT], absolute = fabsl(want);
            for (uint32_t c = 0; c < IN; c++) {
                const long double term = (long double)x[i / OUT * IN + c] * w[i % OUT * IN + c];
                want += term;
                absolute += fabsl(term);
            }
            check(y[i], act == ACT_ELU && want < 0 ? expm1l(want) : want, absolute, "dense");
        }
    }
    buffer_free(&bx), buffer_free(&bw), buffer_free(&bb), buffer_free(&by);
    backend_close(&b);
}

static void embed(void **state)
{
    enum { VOCAB = 11, COLS = 512, N = 4 };
    static const int32_t ids[N] = {10, 0, 3, 10};
    (void)state;
    for (int i = 0; i < FX_TYPES; i++) {
        uint64_t rng = 5;
        uint32_t words[2 + N];
        float x[N * COLS], row[COLS];
        backend *b = NULL;
        matrix *m = NULL;
        void *w = fx_weights(fx_types[i], VOCAB, COLS, 1, &rng);
        memcpy(words + 2, ids, sizeof ids);
        assert_int_equal(backend_ref_open(&b, 2, 0), DCM_OK);
        assert_int_equal(b->ops->matrix_new(b, fx_types[i], VOCAB, COLS, w, &m), DCM_OK);
        buffer *bs = fx_make_plain(b, "step", words, sizeof words, 4), *bx = fx_make_plain(b, "x", x, sizeof x, 4);
        const step s = {.data = bs, .n = N, .tokens = 2};
        const embed_args args = {m, &s, bx};
        assert_int_equal(b->ops->embed(b, &args), DCM_OK);
        assert_int_equal(b->ops->read(bx, 0, x, sizeof x), DCM_OK);
        for (int t = 0; t < N; t++) {
            quant_to_float(fx_types[i], (char *)w + (size_t)ids[t] * quant_row_bytes(fx_types[i], COLS), row, COLS);
            assert_memory_equal(x + t * COLS, row, sizeof row);
        }
        buffer_free(&bs), buffer_free(&bx), matrix_free(&m);
        backend_close(&b);
        free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_type), cmocka_unit_test(every_input),
                                       cmocka_unit_test(dense), cmocka_unit_test(embed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
