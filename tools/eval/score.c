#include "score.h"

#include <dcm/session.h>

#include <math.h>

double score_log_sum(const float *logits, size_t vocab)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++)
        top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return top + log(sum);
}

double score_kl(const float *full, double full_sum, const float *other, double other_sum, size_t vocab)
{
    double kl = 0;
    for (size_t i = 0; i < vocab; i++) {
        const double log_p = full[i] - full_sum, p = exp(log_p);
        if (p > 0)
            kl += p * (log_p - (other[i] - other_sum));
    }
    return kl;
}

bool score_same_top(const float *full, const float *other, size_t vocab)
{
    return dcm_sample(full, vocab, NULL, NULL) == dcm_sample(other, vocab, NULL, NULL);
}
