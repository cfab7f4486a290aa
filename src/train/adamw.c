#include "train/adamw.h"

#include <math.h>

double adamw_norm(const adamw *a, const float *gradient)
{
    double sum = 0;
    for (size_t i = 0; i < a->count; i++)
        if (a->kind[i] != ADAMW_FROZEN)
            sum += (double)gradient[i] * gradient[i];
    return sqrt(sum);
}

void adamw_update(adamw *a, const float *gradient, double scale, double rate)
{
    a->step++;
    const double first = 1 - pow(a->beta1, (double)a->step), second = 1 - pow(a->beta2, (double)a->step);
    for (size_t i = 0; i < a->count; i++) {
        if (a->kind[i] == ADAMW_FROZEN)
            continue;
        const double g = scale * gradient[i];
        const double mean = a->beta1 * (double)a->mean[i] + (1 - (double)a->beta1) * g;
        const double square = a->beta2 * (double)a->square[i] + (1 - (double)a->beta2) * g * g;
        const double decay = a->kind[i] == ADAMW_DECAY ? (double)a->decay * a->param[i] : 0;
        a->mean[i] = (float)mean;
        a->square[i] = (float)square;
        a->param[i] -= (float)(rate * (mean / first / (sqrt(square / second) + a->eps) + decay));
    }
}

double cosine_rate(double peak, uint64_t step, uint64_t warmup, uint64_t steps)
{
    const double pi = 3.14159265358979323846, floor = 0.05;
    if (step < warmup)
        return peak * (double)(step + 1) / (double)warmup;
    if (step >= steps)
        return peak * floor;
    const double part = (double)(step - warmup) / (double)(steps - warmup);
    return peak * (floor + (1 - floor) * 0.5 * (1 + cos(pi * part)));
}
