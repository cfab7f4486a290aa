#include <dcm/session.h>

#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>

static int32_t greedy(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
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

/* Let c[at] sink to its place in a heap whose root is the lightest. */
static void sift(candidate *c, size_t count, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heavier(&c[child + 1], &c[child]) > 0)
            child++;
        if (heavier(&c[at], &c[child]) > 0)
            return;
        const candidate swap = c[at];
        c[at] = c[child];
        c[child] = swap;
    }
}

/* The k heaviest to the front, by a heap of k. */
static void keep_heaviest(candidate *c, size_t count, size_t k)
{
    for (size_t i = k / 2; i-- > 0;)
        sift(c, k, i);
    for (size_t i = k; i < count; i++)
        if (heavier(&c[i], &c[0]) < 0) {
            c[0] = c[i];
            sift(c, k, 0);
        }
}

static double total_of(const candidate *c, size_t count)
{
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += c[i].weight;
    return total;
}

/*
 * The smallest set of heaviest candidates whose weight reaches p of the total, to the front. Candidates below
 * (1 - p) / count of the total weigh less than 1 - p of it together, so that only those above need sorting.
 */
static size_t keep_mass(candidate *c, size_t count, double p)
{
    const double total = total_of(c, count), least = (1 - p) * total / (double)count;
    size_t heavy = 0;
    for (size_t i = 0; i < count; i++)
        if (c[i].weight >= least)
            c[heavy++] = c[i];
    qsort(c, heavy, sizeof *c, heavier);
    double sum = 0;
    for (size_t i = 0; i < heavy; i++)
        if ((sum += c[i].weight) >= p * total)
            return i + 1;
    return heavy;
}

static int32_t draw(const candidate *c, size_t count, uint64_t *rng)
{
    const double point = rng_uniform(rng) * total_of(c, count);
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        if ((sum += c[i].weight) > point)
            return c[i].id;
    return c[count - 1].id;
}

int32_t dcm_sample(const float *logits, size_t vocab, const dcm_sample_params *params, uint64_t *rng)
{
    const dcm_sample_params p = params ? *params : (dcm_sample_params){0};
    const int32_t best = greedy(logits, vocab);
    candidate *c = NULL;
    if (!(p.temperature > 0) || !isfinite(logits[best]))
        return best;
    if (mem_new(&c, vocab, sizeof *c, "the candidates of a sample") != DCM_OK)
        return -1;
    for (size_t i = 0; i < vocab; i++)
        c[i] = (candidate){isnan(logits[i]) ? 0 : exp(((double)logits[i] - logits[best]) / p.temperature), (int32_t)i};
    size_t kept = vocab;
    if (p.top_k && p.top_k < vocab)
        keep_heaviest(c, vocab, kept = p.top_k);
    if (p.top_p > 0 && p.top_p < 1)
        kept = keep_mass(c, kept, p.top_p);
    const int32_t id = draw(c, kept, rng);
    mem_free(&c);
    return id;
}
