/* AdamW (Loshchilov and Hutter 2019) over one array of parameters on the host. */
#ifndef TRAIN_ADAMW_H
#define TRAIN_ADAMW_H

#include <stddef.h>
#include <stdint.h>

/* What is done to a parameter. */
typedef enum adamw_kind {
    ADAMW_FROZEN,
    ADAMW_PLAIN,
    ADAMW_DECAY,
    ADAMW_SLOW, /* decays, at a fifth of the rate */
    ADAMW_FAST  /* at 20 times the rate */
} adamw_kind;

typedef struct adamw {
    size_t count;
    float *param, *mean, *square; /* (count); the caller's */
    float *average;               /* (count) running mean of the parameters over some 50 updates */
    const uint8_t *kind;          /* (count) adamw_kind */
    float beta1, beta2, eps, decay;
    uint64_t step; /* updates so far */
} adamw;

/* Euclidean norm of the gradient over what is not frozen. */
double adamw_norm(const adamw *a, const float *gradient);

/*
 * One update with `scale` times the gradient: mean and square are moved, both corrected for their start, and each
 * parameter goes by -rate x (mean / (sqrt(square) + eps) + decay x itself), as its kind says. The average follows.
 */
void adamw_update(adamw *a, const float *gradient, double scale, double rate);

/* Linear warm-up to `peak`, then a cosine down to a twentieth of it at `steps`. */
double cosine_rate(double peak, uint64_t step, uint64_t warmup, uint64_t steps);

#endif
