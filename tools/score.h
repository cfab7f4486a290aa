/* What is summed over a text's predictions: perplexity, and the divergence from the full cache. */
#ifndef SCORE_H
#define SCORE_H

#include <stddef.h>
#include <stdint.h>

typedef struct score_sums {
    double nll, nll_squared, kl; /* kl: of the full cache's predictions to these, in nats */
    size_t scored, same_top;
} score_sums;

/* log of the sum of exp(logits), in double. */
double score_log_sum(const float *logits, size_t vocab);

/* Add a prediction: the log-probability given to the token that came. */
void score_add(score_sums *sums, double logprob);

/* Compare two predictions of one token; the sums are those of score_log_sum. */
void score_compare(score_sums *sums, const float *full, double full_sum, const float *other, double other_sum,
                   size_t vocab);

#endif
