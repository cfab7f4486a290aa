/*
 * The truth of the gradients that work row by row: formulas as in ops/grad.h, sums and all between in double, results
 * rounded to float once.
 */
#ifndef REF_GRAD_H
#define REF_GRAD_H

#include <stdbool.h>
#include <stdint.h>

/* Rows of `cols` numbers, shared among threads. */
typedef struct ref_rows {
    uint32_t n, cols;
    int threads;
} ref_rows;

/* x, dy, dx (n, cols); gain (cols). */
void ref_norm_back(ref_rows rows, const float *x, const float *gain, float eps, const float *dy, float *dx, bool add);

/* x, dx (n, 2 cols), which may be the same; dy (n, cols). */
void ref_swiglu_back(ref_rows rows, const float *x, const float *dy, float *dx);

/* logits, target (n, cols); loss (n). */
void ref_kl_back(ref_rows rows, float *logits, const float *target, float scale, float *loss);

/* x, y, dx (n, cols); loss (n). */
void ref_square_back(ref_rows rows, const float *x, const float *y, float scale, float *dx, float *loss);

/* As dense_back_args: x (n, in), w (out, in), y and dy (n, out), dx (n, in) or NULL, dw (out, in), dbias (out). */
typedef struct ref_dense_back_args {
    uint32_t n, in, out;
    bool elu; /* else y is not read */
    const float *x, *w, *y;
    float *dy, *dx, *dw, *dbias;
} ref_dense_back_args;

void ref_dense_back(const ref_dense_back_args *args, int threads);

#endif
