/* Chains of linear maps on every device: each link reads what those before it wrote, and the bits are those of
 * single launches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops_cl.h"
#include "support/fixture.h"
#include "each_device.h"

enum { HIDDEN = 96, FFN = 160, LINKS = 6, ROUNDS = 20 };

/* What stands between two attentions of a model, and a bit more: LINKS maps of x, gate_up and out. */
typedef struct links {
    matrix *attn_out, *gate_up, *down, *other;
    buffer *attn, *x, *gain, *bias, *gate, *out;
} links;

static matrix *make_matrix(backend *b, quant_type type, uint32_t rows, uint32_t cols)
{
    uint64_t rng = rows;
    matrix *w = NULL;
    void *data = fx_weights(type, rows, cols, 0.3, &rng);
    assert_int_equal(b->ops->matrix_new(b, type, rows, cols, data, &w), DCM_OK);
    free(data);
    return w;
}

static buffer *make_vector(backend *b, const char *name, size_t items)
{
    static float x[2 * FFN];
    uint64_t rng = items;
    fx_fill(x, 1, items, FX_NORMAL, &rng);
    return fx_make_plain(b, name, x, items * sizeof *x, 4);
}

static void make(backend *b, quant_type type, links *l)
{
    *l = (links){.attn_out = make_matrix(b, type, HIDDEN, HIDDEN),
                 .gate_up = make_matrix(b, type, 2 * FFN, HIDDEN),
                 .down = make_matrix(b, type, HIDDEN, FFN),
                 .other = make_matrix(b, QUANT_F16, HIDDEN + 5, HIDDEN),
                 .attn = make_vector(b, "attn", HIDDEN),
                 .x = make_vector(b, "x", HIDDEN),
                 .gain = make_vector(b, "gain", HIDDEN),
                 .bias = make_vector(b, "bias", HIDDEN + 5),
                 .gate = make_vector(b, "gate", 2 * FFN),
                 .out = make_vector(b, "out", HIDDEN + 5)};
}

static void release(links *l)
{
    matrix_free(&l->attn_out), matrix_free(&l->gate_up), matrix_free(&l->down), matrix_free(&l->other);
    buffer_free(&l->attn), buffer_free(&l->x), buffer_free(&l->gain), buffer_free(&l->bias), buffer_free(&l->gate);
    buffer_free(&l->out);
}

/* Five of one type, more than one launch takes, and one of another; `out` of the last has the bits of all. */
static void run(backend *b, links *l, bool chained, float *x, float *out)
{
    const linear_args norm = {.w = l->gate_up, .n = 1, .input = INPUT_RMSNORM, .x = l->x, .gain = l->gain, .eps = 1e-5f,
                              .y = l->gate, .ldy = 2 * FFN};
    const linear_args down = {.w = l->down, .n = 1, .input = INPUT_SWIGLU, .x = l->gate, .y = l->x, .ldy = HIDDEN,
                              .add = true};
    const linear_args args[LINKS] = {{.w = l->attn_out, .n = 1, .x = l->attn, .y = l->x, .ldy = HIDDEN, .add = true},
                                     norm,
                                     down,
                                     norm,
                                     down,
                                     {.w = l->other, .n = 1, .x = l->x, .bias = l->bias, .y = l->out,
                                      .ldy = HIDDEN + 5}};
    assert_int_equal((chained ? b->ops->linear_chain : linear_each)(b, args, LINKS), DCM_OK);
    assert_int_equal(b->ops->read(l->x, 0, x, HIDDEN * sizeof *x), DCM_OK);
    assert_int_equal(b->ops->read(l->out, 0, out, (HIDDEN + 5) * sizeof *out), DCM_OK);
}

static void same_bits_of(backend *b, quant_type type)
{
    static float x[2][HIDDEN], out[2][HIDDEN + 5];
    links l[2];
    make(b, type, &l[0]);
    make(b, type, &l[1]);
    for (int round = 0; round < ROUNDS; round++) { /* each begins with the x of the one before */
        run(b, &l[0], false, x[0], out[0]);
        run(b, &l[1], true, x[1], out[1]);
        assert_memory_equal(x[0], x[1], sizeof x[0]);
        assert_true(isfinite(x[0][0]));
        assert_memory_equal(out[0], out[1], sizeof out[0]);
    }
    release(&l[0]);
    release(&l[1]);
}

static void same_bits(backend *b)
{
    same_bits_of(b, QUANT_F32);
    same_bits_of(b, QUANT_F16);
    same_bits_of(b, QUANT_Q4_1);
    same_bits_of(b, QUANT_Q8_0);
}

static void chains(void **state)
{
    (void)state;
    on_every_device(same_bits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(chains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
