#include <dcm/session.h>

#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

static int32_t greedy(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

typedef struct candidate {
    double weight; /* exp((logit - highest) / temperature) */
    int32_t id;
} candidate;

/* Heaviest first, the lower id among equals. */
static int heavier(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight > y->weight ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* How many of the sorted candidates the top-k and top-p rules keep; at least one. */
static size_t keep(const candidate *c, size_t count, const dcm_sample_params *p)
{
    if (p->top_k && p->top_k < count)
        count = p->top_k;
    if (!(p->top_p > 0 && p->top_p < 1))
        return count;
    double total = 0, sum = 0;
    for (size_t i = 0; i < count; i++)
        total += c[i].weight;
    for (size_t i = 0; i < count; i++)
        if ((sum += c[i].weight) >= p->top_p * total)
            return i + 1;
    return count;
}

int32_t dcm_sample(const float *logits, size_t vocab, const dcm_sample_params *params, uint64_t *rng)
{
    const dcm_sample_params p = params ? *params : (dcm_sample_params){0};
    const int32_t best = greedy(logits, vocab);
    candidate *c = p.temperature > 0 ? malloc(vocab * sizeof *c) : NULL;
    if (!c)
        return best;
    for (size_t i = 0; i < vocab; i++)
        c[i] = (candidate){exp(((double)logits[i] - logits[best]) / p.temperature), (int32_t)i};
    qsort(c, vocab, sizeof *c, heavier);
    const size_t kept = keep(c, vocab, &p);
    double total = 0, sum = 0;
    for (size_t i = 0; i < kept; i++)
        total += c[i].weight;
    const double point = rng_uniform(rng) * total;
    int32_t chosen = c[kept - 1].id;
    for (size_t i = 0; i < kept; i++)
        if ((sum += c[i].weight) > point) {
            chosen = c[i].id;
            break;
        }
    free(c);
    return chosen;
}
