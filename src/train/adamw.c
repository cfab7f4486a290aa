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

/* Averaging takes the noise of single texts out of the weights; it is short while there are few updates. */
static double average_share(uint64_t step)
{
    const double share = 10.0 / (double)(step + 9), least = 0.02;
    return share > least ? share : least;
}

void adamw_update(adamw *a, const float *gradient, double scale, double rate)
{
    a->step++;
    const double first = 1 - pow(a->beta1, (double)a->step), second = 1 - pow(a->beta2, (double)a->step);
    const double share = average_share(a->step);
    for (size_t i = 0; i < a->count; i++) {
        if (a->kind[i] == ADAMW_FROZEN)
            continue;
        const double g = scale * gradient[i];
        const double mean = a->beta1 * (double)a->mean[i] + (1 - (double)a->beta1) * g;
        const double square = a->beta2 * (double)a->square[i] + (1 - (double)a->beta2) * g * g;
        const adamw_kind kind = a->kind[i];
        const double decay = kind == ADAMW_PLAIN || kind == ADAMW_FAST ? 0 : (double)a->decay * a->param[i];
        const double own = kind == ADAMW_SLOW ? 0.2 * rate : kind == ADAMW_FAST ? 20 * rate : rate;
        a->mean[i] = (float)mean;
        a->square[i] = (float)square;
        a->param[i] -= (float)(own * (mean / first / (sqrt(square / second) + a->eps) + decay));
        a->average[i] += (float)(share * ((double)a->param[i] - a->average[i]));
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
