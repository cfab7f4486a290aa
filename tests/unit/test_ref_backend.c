/* Memory of the reference back end: counters, limits, failures that leave nothing behind; sums that no instruction set
 * changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ref/ref.h"
#include "support/fixture.h"

static void counts(void **state)
{
    backend *b = NULL;
    buffer *one = NULL, *two = NULL;
    matrix *m = NULL;
    uint64_t rng = 1;
    void *w = fx_weights(QUANT_Q8_0, 3, 64, 1, &rng);
    (void)state;
    assert_int_equal(backend_ref_open(&b, 0, 0), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, 1000, MEM_CACHE, &one), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, 24, MEM_SCRATCH, &two), DCM_OK);
    assert_int_equal(b->ops->matrix_new(b, QUANT_Q8_0, 3, 64, w, &m), DCM_OK);
    assert_int_equal(m->bytes, 3 * 2 * 34);
    assert_int_equal(b->memory.now[MEM_CACHE], 1000);
    assert_int_equal(b->memory.now[MEM_WEIGHTS], m->bytes);
    assert_int_equal(b->memory.total, 1024 + m->bytes);
    buffer_free(&one), buffer_free(&two), matrix_free(&m);
    assert_null(one);
    assert_null(m);
    assert_int_equal(b->memory.total, 0);
    assert_int_equal(b->memory.peak, 1024 + 3 * 2 * 34);
    backend_close(&b);
    assert_null(b);
    free(w);
}

static void limits(void **state)
{
    backend *b = NULL;
    buffer *one = NULL, *two = NULL;
    matrix *m = NULL;
    float w[64] = {0};
    (void)state;
    assert_int_equal(backend_ref_open(&b, 1, 1000), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, 900, MEM_CACHE, &one), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, 101, MEM_CACHE, &two), DCM_ERR_MEMORY);
    assert_null(two);
    assert_non_null(strstr(dcm_error(), "101 bytes asked for, 100 of 1000 are left"));
    assert_int_equal(b->ops->matrix_new(b, QUANT_F32, 2, 32, w, &m), DCM_ERR_MEMORY);
    assert_null(m);
    assert_int_equal(b->memory.total, 900);
    assert_int_equal(b->ops->buffer_new(b, 100, MEM_CACHE, &two), DCM_OK);
    buffer_free(&one), buffer_free(&two);
    backend_close(&b);
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, (size_t)1 << 60, MEM_CACHE, &one), DCM_ERR_MEMORY);
    backend_close(&b);
}

/* Each allocation in turn fails: an error, and nothing counted. */
static void failures(void **state)
{
    backend *b = NULL;
    buffer *one = NULL;
    matrix *m = NULL;
    float w[64] = {0};
    (void)state;
    mem_fail_at(1);
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_ERR_MEMORY);
    assert_null(b);
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    for (long n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(b->ops->buffer_new(b, 100, MEM_CACHE, &one), DCM_ERR_MEMORY);
        assert_null(one);
        mem_fail_at(n);
        assert_int_equal(b->ops->matrix_new(b, QUANT_F32, 2, 32, w, &m), DCM_ERR_MEMORY);
        assert_null(m);
    }
    mem_fail_at(0);
    assert_int_equal(b->memory.total, 0);
    assert_int_equal(b->ops->matrix_new(b, QUANT_F32, 2, 32, w, &m), DCM_OK);
    buffer *x = fx_make_plain(b, "x", w, sizeof w, 4), *y = fx_make_plain(b, "y", w, sizeof w, 4);
    const linear_args args = {.w = m, .n = 1, .x = x, .y = y, .ldy = 2};
    for (long n = 1; n <= 2; n++) {
        mem_fail_at(n);
        assert_int_equal(b->ops->linear(b, &args), DCM_ERR_MEMORY);
    }
    mem_fail_at(0);
    assert_int_equal(b->ops->linear(b, &args), DCM_OK);
    matrix_free(&m), buffer_free(&x), buffer_free(&y);
    backend_close(&b);
}

static void write_and_read(void **state)
{
    backend *b = NULL;
    buffer *one = NULL;
    char got[8];
    (void)state;
    assert_int_equal(backend_ref_open(&b, 1, 0), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, 8, MEM_TABLES, &one), DCM_OK);
    assert_int_equal(b->ops->write(one, 0, "abcdefgh", 8), DCM_OK);
    assert_int_equal(b->ops->write(one, 3, "XY", 2), DCM_OK);
    assert_int_equal(b->ops->read(one, 2, got, 5), DCM_OK);
    assert_memory_equal(got, "cXYfg", 5);
    assert_int_equal(b->ops->sync(b), DCM_OK);
    buffer_free(&one);
    backend_close(&b);
}

enum { TERMS = 100 };

/* Weights in float, and a vector for sums in either type. */
static void fill_terms(float *w, size_t count, float *x)
{
    uint64_t rng = 8;
    fx_fill(w, 1, count, FX_NORMAL, &rng);
    fx_fill(x, 1, TERMS, FX_NORMAL, &rng);
}

/* The documented lanes, written out. */
static void dot_lanes(void **state)
{
    float w[TERMS], narrow[TERMS];
    double x[TERMS];
    (void)state;
    fill_terms(w, TERMS, narrow);
    for (size_t i = 0; i < TERMS; i++)
        x[i] = narrow[i] / 3.0;
    for (size_t n = 0; n <= TERMS; n++) {
        volatile double lane[16] = {0};
        for (size_t i = 0; i < n; i++) {
            const volatile double product = w[i] * x[i];
            lane[i % 16] += product;
        }
        for (size_t width = 8; width; width /= 2)
            for (size_t k = 0; k < width; k++)
                lane[k] += lane[k + width];
        const double want = lane[0], got = ref_dot(w, x, n);
        double rows[1];
        ref_dots(w, 1, x, n, rows);
        assert_memory_equal(&got, &want, sizeof got);
        assert_memory_equal(rows, &want, sizeof want);
    }
}

/* Term by term, whatever the number of rows beside each other. */
static void dot_in_order_of_floats(void **state)
{
    enum { ROWS = 19 };
    float w[ROWS * TERMS], x[TERMS], sums[ROWS + 1];
    (void)state;
    fill_terms(w, ROWS * TERMS, x);
    for (size_t n = 0; n <= TERMS; n += 7)
        for (size_t rows = 0; rows <= ROWS; rows++) {
            sums[rows] = 5;
            ref_dots_float(w, rows, x, n, sums);
            assert_true(sums[rows] == 5);
            for (size_t r = 0; r < rows; r++) {
                volatile float want = 0;
                for (size_t i = 0; i < n; i++) {
                    const volatile float product = w[r * n + i] * x[i];
                    want += product;
                }
                const float in_order = want, alone = ref_dot_float(w + r * n, x, n);
                assert_memory_equal(&sums[r], &in_order, sizeof in_order);
                assert_memory_equal(&alone, &in_order, sizeof in_order);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts),    cmocka_unit_test(limits),
                                       cmocka_unit_test(failures),  cmocka_unit_test(write_and_read),
                                       cmocka_unit_test(dot_lanes), cmocka_unit_test(dot_in_order_of_floats)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
