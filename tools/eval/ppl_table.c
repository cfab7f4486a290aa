#include "ppl.h"

#include "tool.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Values of a policy that get an interval. */
enum { MEAN_NLL, KL, TOP, PPL_RATIO, KL_RATIO, VALUES };

/* Of every policy from the sums of each text: means over a text's predictions, then over the texts. */
typedef struct statistic_context {
    const ppl_results *results;
    size_t texts;
} statistic_context;

static void statistic(const void *context, const double *sums, double *out)
{
    const statistic_context *c = context;
    const ppl_results *r = c->results;
    for (size_t i = 0; i < r->policies; i++) {
        double *value = out + i * VALUES, full = 0;
        memset(value, 0, VALUES * sizeof *value);
        for (size_t t = 0; t < c->texts; t++) {
            const double *all = sums + t * r->columns, *own = all + PPL_FIRST + i * PPL_EACH;
            const double share = 1 / (all[PPL_COUNT] * (double)c->texts);
            value[MEAN_NLL] += own[PPL_NLL] * share;
            value[KL] += own[PPL_KL] * share;
            value[TOP] += own[PPL_TOP] * share;
            full += all[PPL_FULL_NLL] * share;
        }
        value[PPL_RATIO] = exp(value[MEAN_NLL] - full);
    }
    for (size_t i = 0; i < r->policies && r->baseline >= 0; i++)
        out[i * VALUES + KL_RATIO] = out[i * VALUES + KL] / out[(size_t)r->baseline * VALUES + KL];
}

/* Standard error of a policy's mean negative log-probability; independent from text to text. */
static double standard_error(const ppl_results *r, const double *sums, size_t texts, size_t policy)
{
    double variance = 0;
    for (size_t t = 0; t < texts; t++) {
        const double *all = sums + t * r->columns, *own = all + PPL_FIRST + policy * PPL_EACH;
        const double n = all[PPL_COUNT], mean = own[PPL_NLL] / n;
        variance += n > 1 ? fmax(0, own[PPL_NLL_SQUARED] - n * mean * mean) / (n - 1) / n : NAN;
    }
    return sqrt(variance) / (double)texts;
}

/* ---- Rows ---- */

static const table_column columns[] = {
    {"text", 0},          {"policy", 0},         {"tokens", 0},   {"scored", 0},       {"units", 0},
    {"ppl", 4},           {"ppl_se", 4},         {"kv_bytes", 0}, {"kl", 5},           {"kl_low", 5},
    {"kl_high", 5},       {"top1", 4},           {"top1_low", 4}, {"top1_high", 4},    {"ppl_ratio", 4},
    {"ppl_ratio_low", 4}, {"ppl_ratio_high", 4}, {"kl_ratio", 4}, {"kl_ratio_low", 4}, {"kl_ratio_high", 4}};
enum { COLUMNS = sizeof columns / sizeof *columns, OF_RATIO = 3, OF_FULL = 9 };

/* One row's texts: one, or all for their mean. */
typedef struct row_source {
    const ppl_results *results;
    const ppl_text *text;
    size_t texts;
    const double *sums; /* (texts, columns) */
    const double *value;
    const bootstrap_interval *interval;
} row_source;

static void print_row(table *table, const row_source *s, size_t i)
{
    const ppl_results *r = s->results;
    const double *value = s->value + i * VALUES;
    const bootstrap_interval *interval = s->interval + i * VALUES;
    eval_cache cache = {0};
    size_t tokens = 0;
    double scored = 0;
    for (size_t t = 0; t < s->texts; t++) {
        eval_cache_join(&cache, &s->text[t].cache[i]);
        tokens += s->text[t].text.tokens;
        scored += s->sums[t * r->columns + PPL_COUNT];
    }
    table_cell cells[COLUMNS] = {cell_text(s->texts > 1 ? "mean" : s->text->text.name),
                                 cell_text(cache.name),
                                 cell_int((int64_t)tokens),
                                 cell_int((int64_t)scored),
                                 eval_cache_units(&cache),
                                 cell_real(exp(value[MEAN_NLL])),
                                 cell_real(exp(value[MEAN_NLL]) * standard_error(r, s->sums, s->texts, i)),
                                 eval_cache_bytes(&cache)};
    table_cell *at = cells + COLUMNS - OF_FULL - OF_RATIO;
    eval_cells(at, value[KL], interval[KL]);
    eval_cells(at + 3, value[TOP], interval[TOP]);
    eval_cells(at + 6, value[PPL_RATIO], interval[PPL_RATIO]);
    eval_cells(at + OF_FULL, value[KL_RATIO], interval[KL_RATIO]);
    table_row(table, cells + (r->texts == 1));
}

static ppl_point make_point(const row_source *s, size_t i)
{
    ppl_point point = {.kl = s->value[i * VALUES + KL], .interval = s->interval[i * VALUES + KL]};
    eval_cache cache = {0};
    for (size_t t = 0; t < s->texts; t++) {
        eval_cache_join(&cache, &s->text[t].cache[i]);
        point.bytes += (double)s->text[t].cache[i].bytes / (double)s->texts;
    }
    memcpy(point.name, cache.name, sizeof point.name);
    return point;
}

/* A row and a point a policy of `texts` texts from `first` on. */
static int print_rows(table *table, const ppl_results *r, size_t first, size_t texts, ppl_point *point)
{
    const statistic_context context = {r, texts};
    const size_t outputs = r->policies * VALUES;
    bootstrap_stratum *stratum = malloc(texts * sizeof *stratum);
    bootstrap_interval *interval = malloc(outputs * sizeof *interval);
    double *sums = malloc(texts * r->columns * sizeof *sums), *value = malloc(outputs * sizeof *value);
    int code = 0;
    if (!stratum || !interval || !sums || !value) {
        code = tool_fail(DCM_ERR_MEMORY, "no room for the results of %zu texts", texts);
        goto done;
    }
    for (size_t t = 0; t < texts; t++) {
        stratum[t] = (bootstrap_stratum){r->text[first + t].sums, r->text[first + t].blocks};
        bootstrap_total(&stratum[t], r->columns, sums + t * r->columns);
    }
    statistic(&context, sums, value);
    code = bootstrap(&r->e->o->intervals, stratum, r->against ? texts : 0, r->columns, statistic, &context, outputs,
                     interval);
    const row_source source = {r, &r->text[first], texts, sums, value, interval};
    for (size_t i = 0; i < r->policies && code == 0; i++) {
        print_row(table, &source, i);
        point[i] = make_point(&source, i);
    }
done:
    free(stratum);
    free(interval);
    free(sums);
    free(value);
    return code;
}

/* Perplexity is the exponential of the mean negative log-probability; its standard error, to first order, that of the
 * mean times the perplexity. */
int ppl_print(const ppl_results *r, ppl_point point[POLICIES_MAX])
{
    const table_format format = (table_format)r->e->o->format;
    const size_t left_out =
        (size_t)(r->texts == 1) + (r->against ? 0 : OF_FULL) + (r->against && r->baseline >= 0 ? 0 : OF_RATIO);
    json_t *meta = eval_meta(r->e, "ppl");
    json_object_set_new(meta, "file", runtime_text(r->texts == 1 ? r->text->text.name : NULL));
    json_object_set_new(meta, "offset", json_integer(r->offset));
    json_object_set_new(meta, "skip", json_integer(r->skip));
    json_object_set_new(meta, "block", json_integer((json_int_t)r->block));
    if (r->baseline >= 0)
        json_object_set_new(meta, "baseline", json_string(r->text->cache[r->baseline].name));
    table t;
    table_begin(&t, format, columns + (r->texts == 1), COLUMNS - left_out, meta);
    int code = 0;
    for (size_t i = 0; i < r->texts && code == 0; i++)
        code = print_rows(&t, r, i, 1, point);
    if (code == 0 && r->texts > 1)
        code = print_rows(&t, r, 0, r->texts, point);
    table_end(&t);
    char drawn[64];
    snprintf(drawn, sizeof drawn, "blocks of %zu consecutive predictions.", r->block);
    if (r->against)
        eval_note(r->e, format, drawn);
    return code;
}
