/* cl_linear: every type, every input, one token and several; chains of products. */
#include "harness.h"

#include <string.h>

static const float EPS = 1e-5f;
enum { X_OFFSET = 3, Y_OFFSET = 5, Y_GAP = 7 };

typedef struct linear_case {
    quant_type type;
    uint32_t rows, cols, n;
    linear_input input;
    fx_input fill;
    bool bias, add, many, chain;
    void *w;
    float *x, *gain, *b, *y;
    size_t x_items, y_items, ldy;
} linear_case;

static const char *const input_names[] = {"plain", "rmsnorm", "swiglu"};

static dcm_status run(ck *c, int side, const void *what)
{
    const linear_case *l = what;
    const linear_args args = {
        .w = ck_matrix(c, side, l->type, l->rows, l->cols, l->w),
        .n = l->n,
        .many = l->many,
        .input = l->input,
        .x = ck_buffer(c, side, "x", l->x, l->x_items * 4, 4),
        .x_offset = X_OFFSET,
        .gain = l->input == INPUT_RMSNORM ? ck_buffer(c, side, "gain", l->gain, l->cols * 4, 4) : NULL,
        .eps = EPS,
        .bias = l->bias ? ck_buffer(c, side, "bias", l->b, l->rows * 4, 4) : NULL,
        .y = ck_buffer(c, side, "y", l->y, l->y_items * 4, 4),
        .y_offset = Y_OFFSET,
        .ldy = l->ldy,
        .add = l->add,
    };
    if (!l->chain)
        return c->side[side]->ops->linear(c->side[side], &args);
    /* The same once more into another result; how links depend on each other is tests/unit/test_chain.c's. */
    op_link links[] = {{.linear = args}, {.linear = args}};
    links[1].linear.y = ck_buffer(c, side, "again", l->y, l->y_items * 4, 4);
    return c->side[side]->ops->chain(c->side[side], links, 2);
}

/*
 * |f(x)| of one token, and a bound on what float loses of it. The mean of squares is a sum of `cols` terms of one sign,
 * and its root halves the error; exp is good for a few units in the last place of its argument and result.
 */
static void input_terms(const linear_case *l, const float *x, double *value, double *error)
{
    double squares = 0;
    for (uint32_t i = 0; i < l->cols; i++)
        squares += (double)x[i] * x[i];
    const double scale = 1 / sqrt(squares / l->cols + EPS);
    for (uint32_t i = 0; i < l->cols; i++) {
        if (l->input == INPUT_PLAIN) {
            value[i] = fabs(x[i]);
            error[i] = 0;
        } else if (l->input == INPUT_RMSNORM) {
            value[i] = fabs(x[i] * scale * l->gain[i]);
            error[i] = value[i] * (l->cols / 2.0 + 8) * CK_U;
        } else {
            value[i] = fabs(x[i] / (1 + exp(-(double)x[i])) * x[l->cols + i]);
            error[i] = value[i] * (16 + 2 * fabs(x[i])) * CK_U + FLT_MIN * (1 + fabs(x[l->cols + i]));
        }
    }
}

/* Bytes before a block's quants in the file, and bytes of quants; Q6_K has its quants first. */
static void quants_of(quant_type type, size_t *at, size_t *bytes)
{
    *at = type == QUANT_Q6_K ? 0 : type == QUANT_Q4_K || type == QUANT_Q5_K ? 16 : type == QUANT_Q4_1 ? 4 : 2;
    *bytes = type == QUANT_Q6_K ? 192 : quant_get(type)->bytes - *at;
}

/*
 * What integer products lose: half a unit of x in fixed point, of which the largest value of a block (32 columns at
 * most) has 2^23 or so, for each unit of the quants. Those are w less what it is where all bits of the quants are zero.
 */
static double fixed_loss(const linear_case *l, const void *row, const float *w, const double *value)
{
    const quant_info *info = quant_get(l->type);
    const size_t bytes = quant_row_bytes(l->type, l->cols);
    double lost = 0;
    size_t at, quants;
    if (info->items == 1)
        return 0;
    unsigned char *zero = fx_alloc(bytes);
    float *base = fx_alloc(l->cols * sizeof *base);
    quants_of(l->type, &at, &quants);
    memcpy(zero, row, bytes);
    for (size_t b = 0; b < l->cols / info->items; b++)
        memset(zero + b * info->bytes + at, 0, quants);
    quant_to_float(l->type, zero, base, l->cols);
    for (uint32_t first = 0; first < l->cols; first += 32) {
        double top = 0, sum = 0;
        for (uint32_t i = first; i < first + 32; i++) {
            top = fmax(top, value[i]);
            sum += fabs((double)w[i] - base[i]);
        }
        lost += 1.01 * CK_U * top * sum;
    }
    free(zero);
    free(base);
    return lost;
}

static void bounds(ck *c, const void *what)
{
    const linear_case *l = what;
    const size_t wide = l->cols * (l->input == INPUT_SWIGLU ? 2u : 1u), row_bytes = quant_row_bytes(l->type, l->cols);
    double *bound = ck_bound(c, "y"), *again = l->chain ? ck_bound(c, "again") : NULL;
    double *value = fx_alloc(l->cols * sizeof *value), *error = fx_alloc(l->cols * sizeof *error);
    float *w = fx_alloc(l->cols * sizeof *w);
    for (uint32_t t = 0; t < l->n; t++) {
        input_terms(l, l->x + X_OFFSET + t * wide, value, error);
        for (uint32_t r = 0; r < l->rows; r++) {
            const size_t at = Y_OFFSET + t * l->ldy + r;
            double terms = (l->bias ? fabs(l->b[r]) : 0) + (l->add ? fabs(l->y[at]) : 0), lost;
            quant_to_float(l->type, (const char *)l->w + r * row_bytes, w, l->cols);
            lost = fixed_loss(l, (const char *)l->w + r * row_bytes, w, value);
            for (uint32_t i = 0; i < l->cols; i++) {
                terms += fabs(w[i]) * value[i];
                lost += fabs(w[i]) * error[i];
            }
            bound[at] = (l->cols + 8) * CK_U * terms + lost + (l->cols + 1) * FLT_MIN;
            if (again)
                again[at] = bound[at];
        }
    }
    free(value);
    free(error);
    free(w);
}

static void one(ck *c, const linear_case *shape)
{
    linear_case l = *shape;
    if (l.n > 1 && !l.many) { /* both ways */
        l.many = true;
        one(c, &l);
        l.many = false;
    }
    if (!ck_case(c, "linear/%s_%s_r%u_c%u_n%u%s%s%s_%s", quant_name(l.type), input_names[l.input], l.rows, l.cols, l.n,
                 l.bias ? "_bias" : "", l.add ? "_add" : "", l.many ? "_many" : l.chain ? "_chain" : "",
                 fx_input_name(l.fill)))
        return;
    const size_t wide = l.cols * (l.input == INPUT_SWIGLU ? 2u : 1u);
    l.ldy = l.rows + (l.n > 1 ? Y_GAP : 0u);
    l.x_items = X_OFFSET + l.n * wide;
    l.y_items = Y_OFFSET + l.n * l.ldy;
    l.w = fx_weights(l.type, l.rows, l.cols, 0.3, &c->rng);
    l.x = fx_alloc(l.x_items * 4), l.y = fx_alloc(l.y_items * 4);
    l.gain = fx_alloc(l.cols * 4), l.b = fx_alloc(l.rows * 4);
    fx_pattern(l.x, X_OFFSET * 4);
    fx_pattern(l.y, l.y_items * 4);
    fx_fill(l.x + X_OFFSET, l.n, wide, l.fill, &c->rng);
    fx_fill(l.gain, 1, l.cols, FX_NORMAL, &c->rng);
    fx_fill(l.b, 1, l.rows, FX_NORMAL, &c->rng);
    for (uint32_t t = 0; l.add && t < l.n; t++)
        fx_fill(l.y + Y_OFFSET + t * l.ldy, 1, l.rows, l.fill, &c->rng);
    c->traffic = l.rows * quant_row_bytes(l.type, l.cols) + l.n * (wide + l.rows * (l.add ? 2u : 1u)) * sizeof(float);
    ck_run(c, run, bounds, &l);
    free(l.w), free(l.x), free(l.y), free(l.gain), free(l.b);
}

void check_linear(ck *c)
{
    static const uint32_t rows[] = {1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 129, 257},
                          n[] = {2, 3, 4, 5, 11, 12, 13, 15, 16, 17, 25, 63, 64, 65};
    static const uint32_t odd[] = {1, 2, 3, 15, 17, 31, 33, 63, 65, 129, 255, 257, 577};
    for (int i = 0; i < FX_TYPES; i++) {
        const quant_type type = fx_types[i];
        const uint32_t items = quant_get(type)->items, some = items == 256 ? 512 : 96;
        for (int input = INPUT_PLAIN; input <= INPUT_SWIGLU; input++) {
            for (int fill = 0; fill < FX_INPUTS; fill++)
                one(c, &(linear_case){type, 37, some, 1 + 2 * (fill % 2u), (linear_input)input, (fx_input)fill,
                                      fill % 2, fill % 3 == 0});
            one(c, &(linear_case){type, 5, items == 256 ? 256 : 32, 1, (linear_input)input, FX_NORMAL, .add = true});
            one(c, &(linear_case){type, 21, items == 256 ? 256 : 32, 3, (linear_input)input, FX_NORMAL, .bias = true});
            one(c, &(linear_case){type, 64, 7 * (items == 256 ? 256 : 32), 1, (linear_input)input, FX_NORMAL});
        }
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
            one(c, &(linear_case){type, rows[k], some, 1, INPUT_PLAIN, FX_NORMAL, .bias = k % 2, .add = k % 3 == 1});
        for (size_t k = 0; k < sizeof n / sizeof *n; k++)
            one(c, &(linear_case){type, 66, some, n[k], (linear_input)(k % 3), FX_NORMAL, .bias = k % 2,
                                  .add = k % 3 == 1});
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k += 3)
            one(c, &(linear_case){type, rows[k], some, 19, INPUT_RMSNORM, FX_NORMAL, .bias = k % 2, .add = k % 3 == 1});
        one(c, &(linear_case){type, 576, items == 256 ? 1536 : 576, 1, INPUT_RMSNORM, FX_NORMAL});
        one(c, &(linear_case){type, 576, 1536, 1, INPUT_SWIGLU, FX_NORMAL, .add = true});
        one(c, &(linear_case){type, 70, some, 1, INPUT_RMSNORM, FX_NORMAL, .many = true});
        one(c, &(linear_case){type, 37, some, 1, INPUT_RMSNORM, FX_NORMAL, .bias = true, .chain = true});
        one(c, &(linear_case){type, 576, some, 1, INPUT_SWIGLU, FX_NORMAL, .add = true, .chain = true});
        for (size_t k = 0; items == 1 && k < sizeof odd / sizeof *odd; k++)
            one(c, &(linear_case){type, 13, odd[k], k % 2 ? 1 + k % 3 : 18, (linear_input)(k % 3), FX_NORMAL});
    }
}
