/* Parts of `dcm eval table`: measuring (tables.c), the rows (tables_print.c), table 2 as curves (tables_plot.c). */
#ifndef TABLES_H
#define TABLES_H

#include <dcm/merge.h>

#include <stdio.h>

#include "eval.h"
#include "output.h"

enum { TABLES_FILES_MAX = 16, TABLES_GROUPS_MAX = 12 };

typedef struct tables_options {
    eval_options common;
    eval_source source;
    const char *merges, *plot;
    arg_ints groups;
    int64_t skip;
} tables_options;

/* One merge file with one group length, and its sums over the tokens scored. */
typedef struct table_cache {
    dcm_cache_params params;
    dcm_session *session;
    double kl, nll;
} table_cache;

typedef struct tables_run {
    tables_options *o;
    eval e;
    int number;   /* 1, 2 or 3 */
    char *merges; /* o->merges, cut into paths */
    const char *path[TABLES_FILES_MAX];
    dcm_merge_info info[TABLES_FILES_MAX];
    size_t files, groups;
    int32_t far_limit; /* as dcm_cache_params has it */
    eval_text text;
    size_t first;                                            /* the index of the first token that is scored */
    table_cache cache[TABLES_FILES_MAX * TABLES_GROUPS_MAX]; /* (files, groups) */
    dcm_cache_params full_params;
    dcm_session *full;
    double full_nll;
    float *logits, *full_logits; /* of a piece of the text: (tokens, vocab) */
    dcm_attention_metrics metrics[TABLES_FILES_MAX];
    output_file plot;
} tables_run;

/* Mean KL to the full cache and perplexity of a cache, and the full cache's perplexity. */
double tables_kl(const tables_run *run, size_t cache);
double tables_ppl(const tables_run *run, size_t cache);
double tables_full_ppl(const tables_run *run);

/* Print the table that was measured. */
void tables_print(const tables_run *run);

/* Draw table 2 as curves, an SVG: KL against the group length at test, a line a file. */
void tables_plot(const tables_run *run, FILE *out);

#endif
