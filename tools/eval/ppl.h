/* Parts of `dcm eval ppl`: sums over the predictions (ppl.c), and what is made of them (ppl_table.c, ppl_plot.c). */
#ifndef PPL_H
#define PPL_H

#include <stdio.h>

#include "eval.h"

/* Columns of the sums of a block of predictions: two of all policies, then PPL_EACH of every policy. */
enum { PPL_COUNT, PPL_FULL_NLL, PPL_FIRST };
enum { PPL_NLL, PPL_NLL_SQUARED, PPL_KL, PPL_TOP, PPL_EACH }; /* KL of the full cache's predictions to these, in nats */

typedef struct ppl_text {
    eval_text text;
    double *sums; /* (blocks, columns), of the predictions from `first` on */
    size_t first, blocks;
    eval_cache cache[POLICIES_MAX];
} ppl_text;

typedef struct ppl_results {
    const eval *e;
    ppl_text *text;
    size_t texts, policies, columns, block; /* block: predictions in one */
    bool against;                           /* the full cache ran beside: its columns are filled */
    int baseline;                           /* policy whose KL the others' are divided by; -1: none */
    int64_t offset, skip;
} ppl_results;

/* A policy in the only text, or in the mean over all. */
typedef struct ppl_point {
    char name[POLICY_TEXT];
    double bytes, kl;
    bootstrap_interval interval; /* of kl */
} ppl_point;

/* Print a row a policy for every text, and of several texts their mean: `point`s too. 0, or 5 after a message. */
int ppl_print(const ppl_results *results, ppl_point point[POLICIES_MAX]);

/* Draw the points: KL against bytes, as an SVG (ppl_plot.c). */
void ppl_plot(const ppl_results *results, const ppl_point *point, FILE *out);

#endif
