/* One prediction: the log-probability of the token that came, and the divergence from the full cache's. */
#ifndef SCORE_H
#define SCORE_H

#include <stdbool.h>
#include <stddef.h>

/* log of the sum of exp(logits), in double. */
double score_log_sum(const float *logits, size_t vocab);

/* KL(full || other) in nats; the sums are those of score_log_sum. */
double score_kl(const float *full, double full_sum, const float *other, double other_sum, size_t vocab);

/* Do both find the same token most probable? */
bool score_same_top(const float *full, const float *other, size_t vocab);

#endif
