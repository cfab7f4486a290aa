#include "check.h"
#include "score.h"

#include <float.h>
#include <math.h>

check_difference check_compare(const float *a, const float *b, size_t vocab)
{
    check_difference d = {.top_a = dcm_sample(a, vocab, NULL, NULL), .top_b = dcm_sample(b, vocab, NULL, NULL)};
    double error = 0, power = 0;
    const double sum_a = score_log_sum(a, vocab), sum_b = score_log_sum(b, vocab);
    for (size_t i = 0; i < vocab; i++) {
        const double x = a[i], y = b[i];
        error += (x - y) * (x - y);
        power += x * x;
    }
    d.max_abs = check_max_abs(a, b, vocab);
    d.nmse = power > 0 ? error / power : error;
    d.kl = score_kl(a, sum_a, b, sum_b, vocab);
    d.margin = (double)a[d.top_a] - a[d.top_b];
    return d;
}

double check_max_abs(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - b[i]);
        if (!(d <= most))
            most = isnan(d) ? INFINITY : d;
    }
    return most;
}

double check_bound(const float *ref, const float *with_floats, size_t vocab)
{
    double largest = 0;
    for (size_t i = 0; i < vocab; i++)
        largest = fmax(largest, fabs(ref[i]));
    return fmax(CHECK_FACTOR * check_max_abs(ref, with_floats, vocab), FLT_EPSILON * largest);
}
