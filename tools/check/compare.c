#include "check.h"
#include "score.h"

#include <math.h>
#include <string.h>

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
    d.same_bits = memcmp(a, b, vocab * sizeof *a) == 0;
    d.no_number = !check_all_numbers(b, vocab);
    return d;
}

check_difference check_compare_sketch(const record_step *a, const float *b, size_t vocab)
{
    check_difference d = {.top_a = a->id[0], .top_b = dcm_sample(b, vocab, NULL, NULL)};
    const double sum_b = score_log_sum(b, vocab);
    double error = 0, power = 0, rest_a = 1, rest_b = 1, chosen = a->value[0];
    bool found = false;
    for (size_t i = 0; i < RECORD_TOP && a->id[i] >= 0; i++) {
        const float other = b[a->id[i]];
        const double x = a->value[i], y = other, log_p = x - a->log_sum, p = exp(log_p);
        d.max_abs = fmax(d.max_abs, check_max_abs(a->value + i, &other, 1));
        error += (x - y) * (x - y);
        power += x * x;
        d.kl += p > 0 ? p * (log_p - (y - sum_b)) : 0;
        rest_a -= p;
        rest_b -= exp(y - sum_b);
        chosen = found ? chosen : x;
        found = found || a->id[i] == d.top_b;
    }
    d.nmse = power > 0 ? error / power : error;
    d.kl += rest_a > 0 && rest_b > 0 ? rest_a * log(rest_a / rest_b) : 0;
    d.margin = a->value[0] - chosen;
    d.same_bits = a->checksum == record_checksum(b, vocab);
    d.no_number = !check_all_numbers(b, vocab);
    return d;
}
