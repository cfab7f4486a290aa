#define _GNU_SOURCE
#include "input.h"
#include "policies.h"
#include "runtime.h"
#include "table.h"
#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct ppl_options {
    const char *model, *logprobs, *policies;
    input_source input;
    int64_t tokens, offset, skip;
    int against, format;
    cache_options cache;
    device_options device;
    verbosity_options words;
} ppl_options;

/* One policy's session and what is summed over its predictions. */
typedef struct ppl_row {
    dcm_session *session;
    float *logits;
    double nll, nll_squared, kl;
    size_t scored, same_top;
} ppl_row;

typedef struct ppl_run {
    const ppl_options *o;
    const runtime *r;
    int32_t *ids; /* BOS, where the model asks for one, and the text's tokens */
    size_t count;
    size_t text_tokens;
    policy_list policies;
    ppl_row row[POLICIES_MAX], full; /* full: of --against */
    FILE *csv;
} ppl_run;

/* ---- Scores ---- */

/* log of the sum of exp(logits), in double. */
static double log_sum(const float *logits, size_t vocab)
{
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++)
        top = logits[i] > top ? logits[i] : top;
    for (size_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return top + log(sum);
}

static size_t most_probable(const float *logits, size_t vocab)
{
    size_t best = 0;
    for (size_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* KL(full || other) in nats. */
static double divergence(const float *full, double full_sum, const float *other, double other_sum, size_t vocab)
{
    double kl = 0;
    for (size_t i = 0; i < vocab; i++) {
        const double log_p = full[i] - full_sum, p = exp(log_p);
        if (p > 0)
            kl += p * (log_p - (other[i] - other_sum));
    }
    return kl;
}

/* Score the token at `index` with what each session predicted for it. */
static void score(ppl_run *run, size_t index)
{
    const size_t vocab = run->r->info.vocab;
    const int32_t target = run->ids[index];
    const bool counted = (int64_t)index >= run->o->skip;
    const double full_sum = run->full.session && counted ? log_sum(run->full.logits, vocab) : 0;
    for (size_t i = 0; i < run->policies.count; i++) {
        ppl_row *row = &run->row[i];
        if (!counted && !run->csv)
            continue;
        const double sum = log_sum(row->logits, vocab), logprob = row->logits[target] - sum;
        if (run->csv)
            fprintf(run->csv, "%zu,%d,%.9g\n", index, target, logprob);
        if (!counted)
            continue;
        row->nll -= logprob;
        row->nll_squared += logprob * logprob;
        row->scored++;
        if (run->full.session) {
            row->kl += divergence(run->full.logits, full_sum, row->logits, sum, vocab);
            row->same_top += most_probable(run->full.logits, vocab) == most_probable(row->logits, vocab);
        }
    }
}

/* ---- The run ---- */

static int feed(const ppl_run *run, ppl_row *row, size_t index)
{
    const dcm_status status = dcm_session_feed(row->session, &run->ids[index], 1, row->logits);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int feed_all(ppl_run *run)
{
    const bool progress = isatty(STDERR_FILENO) && !run->o->words.quiet;
    int code = 0;
    for (size_t index = 0; index < run->count && code == 0; index++) {
        if (index)
            score(run, index);
        for (size_t i = 0; i < run->policies.count && code == 0; i++)
            code = feed(run, &run->row[i], index);
        if (code == 0 && run->full.session)
            code = feed(run, &run->full, index);
        if (progress && (index % 16 == 0 || index + 1 == run->count))
            fprintf(stderr, "\r%zu of %zu tokens", index + 1, run->count);
    }
    if (progress)
        fputs("\r\033[K", stderr);
    return code;
}

static int open_row(const ppl_run *run, ppl_row *row, const dcm_cache_params *params)
{
    row->logits = malloc(run->r->info.vocab * sizeof *row->logits);
    if (!row->logits)
        return tool_fail(DCM_ERR_MEMORY, "no room for logits");
    const dcm_status status = dcm_session_open(&row->session, run->r->model, params);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int open_rows(ppl_run *run)
{
    int code = 0;
    for (size_t i = 0; i < run->policies.count && code == 0; i++)
        code = open_row(run, &run->row[i], &run->policies.item[i].params);
    const dcm_cache_params full = {.kind = DCM_CACHE_FULL, .kv = (dcm_kv_type)run->o->cache.kv};
    if (code == 0 && run->o->against)
        code = open_row(run, &run->full, &full);
    return code;
}

static void close_rows(ppl_run *run)
{
    for (size_t i = 0; i < POLICIES_MAX; i++) {
        dcm_session_close(&run->row[i].session);
        free(run->row[i].logits);
    }
    dcm_session_close(&run->full.session);
    free(run->full.logits);
}

/*
 * Perplexity is the exponential of the mean negative log-probability m; its standard error, to first order, that of m
 * times the perplexity.
 */
static void print_rows(const ppl_run *run)
{
    static const table_column columns[] = {{"policy", 0}, {"tokens", 0}, {"scored", 0}, {"units", 0},
                                           {"ppl", 4},    {"ppl_se", 4}, {"kl", 5},     {"top1", 4}};
    enum { WITH_FULL = sizeof columns / sizeof *columns };
    json_t *meta = runtime_meta(run->r);
    json_object_set_new(meta, "test", json_string("ppl"));
    json_object_set_new(meta, "file", json_string(run->o->input.file ? run->o->input.file : ""));
    json_object_set_new(meta, "offset", json_integer(run->o->offset));
    json_object_set_new(meta, "skip", json_integer(run->o->skip));
    table t;
    table_begin(&t, (table_format)run->o->format, columns, run->o->against ? WITH_FULL : WITH_FULL - 2, meta);
    for (size_t i = 0; i < run->policies.count; i++) {
        const ppl_row *row = &run->row[i];
        dcm_session_stats stats;
        char text[POLICY_TEXT];
        dcm_session_get_stats(row->session, &stats);
        policy_text(&run->policies.item[i].params, stats.merge, text, sizeof text);
        const double n = (double)row->scored, mean = row->nll / n;
        const double variance = n > 1 ? fmax(0, (row->nll_squared - n * mean * mean) / (n - 1)) : NAN;
        const table_cell cells[WITH_FULL] = {cell_text(text),
                                             cell_int((int64_t)run->text_tokens),
                                             cell_int((int64_t)row->scored),
                                             cell_int((int64_t)stats.units),
                                             cell_real(exp(mean)),
                                             cell_real(exp(mean) * sqrt(variance / n)),
                                             cell_real(row->kl / n),
                                             cell_real((double)row->same_top / n)};
        table_row(&t, cells);
    }
    table_end(&t);
}

/* ---- Set-up ---- */

/* The text's tokens from --offset on, at most --tokens, with BOS before them where the model asks for one. */
static int take_tokens(ppl_run *run, const char *text, size_t size)
{
    int32_t *ids;
    size_t count;
    const int32_t bos = dcm_bos_token(run->r->tokenizer);
    const dcm_status status = dcm_tokenize(run->r->tokenizer, text, size, 0, &ids, &count);
    if (status != DCM_OK)
        return tool_fail_library(status);
    const size_t offset = (size_t)run->o->offset, wanted = (size_t)run->o->tokens;
    const size_t left = count > offset ? count - offset : 0;
    const size_t taken = wanted && wanted < left ? wanted : left, first = bos >= 0;
    int code = 0;
    if (wanted > left)
        code = tool_fail(DCM_ERR_FILE, "the text has %zu tokens after --offset %zu, not the %zu of --tokens", left,
                         offset, wanted);
    else if (taken + first < 2 || (size_t)run->o->skip >= taken + first)
        code = tool_fail(DCM_ERR_FILE, "nothing to predict: %zu tokens after --offset %zu and --skip %lld", left,
                         offset, (long long)run->o->skip);
    else if (!(run->ids = malloc((taken + first) * sizeof *run->ids)))
        code = tool_fail(DCM_ERR_MEMORY, "no room for %zu tokens", taken);
    if (code == 0) {
        run->ids[0] = bos;
        memcpy(run->ids + first, ids + offset, taken * sizeof *ids);
        run->count = taken + first;
        run->text_tokens = taken;
    }
    dcm_free(ids);
    return code;
}

static int take_policies(const args *a, ppl_run *run, const dcm_cache_params *params)
{
    const ppl_options *o = run->o;
    if (!o->policies) {
        run->policies.count = 1;
        run->policies.item[0].params = *params;
        return 0;
    }
    static const char *const excluded[] = {"cache", "group", "sinks", "merge", "window", "log-r"};
    for (size_t i = 0; i < sizeof excluded / sizeof *excluded; i++)
        if (args_seen(a, excluded[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --policies: leave one of them out", excluded[i]);
    const int code = policies_read(&run->policies, o->policies, (dcm_kv_type)o->cache.kv);
    if (code == 0 && o->logprobs && run->policies.count > 1)
        return tool_fail(DCM_ERR_USAGE, "--logprobs takes one policy, not %zu", run->policies.count);
    return code;
}

static int open_csv(ppl_run *run)
{
    if (!run->o->logprobs)
        return 0;
    run->csv = fopen(run->o->logprobs, "w");
    if (!run->csv)
        return tool_fail(DCM_ERR_FILE, "%s: cannot write: %s", run->o->logprobs, strerror(errno));
    fputs("index,token,logprob\n", run->csv);
    return 0;
}

static int close_csv(ppl_run *run)
{
    if (!run->csv)
        return 0;
    const bool failed = ferror(run->csv);
    const bool unwritten = fclose(run->csv) != 0;
    run->csv = NULL;
    return failed || unwritten ? tool_fail(DCM_ERR_FILE, "%s: cannot write all of it", run->o->logprobs) : 0;
}

static int evaluate(ppl_run *run, const char *text, size_t size)
{
    int code = take_tokens(run, text, size);
    if (code == 0)
        code = policies_resolve(&run->policies, run->count);
    if (code == 0)
        code = open_csv(run);
    if (code == 0)
        code = open_rows(run);
    if (code == 0)
        code = feed_all(run);
    const int closed = close_csv(run);
    if (code == 0)
        code = closed;
    if (code == 0)
        print_rows(run);
    return code;
}

static void add_options(args *a, ppl_options *o)
{
    const arg_option options[] = {
        {"tokens", 'n', ARG_INT, &o->tokens, "TOKENS", "Tokens of the text to read; 0: all.", 0, INT64_C(1) << 40},
        {"offset", 0, ARG_INT, &o->offset, "T", "Leave out the text's first T tokens.", 0, INT64_C(1) << 40},
        {"skip", 0, ARG_INT, &o->skip, "K", "Do not score the first K tokens that are read.", 0, INT64_C(1) << 40},
        {"logprobs", 0, ARG_TEXT, &o->logprobs, "OUT.csv",
         "Write index,token,logprob: the natural log of the probability given to each token from index 1 on."},
        {"against", 0, ARG_CHOICE, &o->against, .choices = "none|full",
         .help = "full: also run the full cache beside, and give the mean KL to it and how often both find the same "
                 "token most probable."},
        {"policies", 0, ARG_TEXT, &o->policies, "A,B,...",
         "Several policies in one run, such as dcm:L=64:S=4:merge=newer,window:W=auto,full; auto is the units of the "
         "first."},
        table_format_option(&o->format),
    };
    input_add_model(a, &o->model);
    input_add_options(a, &o->input);
    args_add(a, "Perplexity", options, sizeof options / sizeof *options);
    options_add_cache(a, &o->cache);
    options_add_device(a, &o->device);
    options_add_verbosity(a, &o->words);
}

static int eval_ppl(int argc, char **argv)
{
    ppl_options o = {.cache = CACHE_OPTIONS_DEFAULT};
    args a = {.usage = "-m MODEL (-f FILE | -p TEXT | -) [options]",
              .stdin_dash = true,
              .about = "Perplexity of a text with its standard error: token by token, each predicted from the cache of "
                       "those before it."};
    dcm_cache_params params;
    runtime r = {0};
    ppl_run run = {.o = &o, .r = &r};
    char *text = NULL;
    size_t size = 0;
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.words);
    if (code == 0)
        code = options_cache_params(&a, &o.cache, &params);
    if (code == 0)
        code = take_policies(&a, &run, &params);
    if (code == 0)
        code = input_read(&a, &o.input, &text, &size);
    if (code == 0)
        code = runtime_open(&r, &o.device, o.model);
    if (code == 0)
        code = evaluate(&run, text, size);
    close_rows(&run);
    policies_release(&run.policies);
    free(run.ids);
    free(text);
    runtime_close(&r);
    return code;
}

int cmd_eval(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "ppl") == 0) {
        tool_set_name("dcm eval ppl");
        return eval_ppl(argc - 1, argv + 1);
    }
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        puts("usage: dcm eval MEASURE [options]\n\nMeasures:\n  ppl        perplexity of a text, and the divergence "
             "from the full cache\n\n"
             "`dcm eval MEASURE --help` says more.");
        return tool_flush();
    }
    return tool_fail(DCM_ERR_USAGE,
                     argc > 1 ? "unknown measure \"%s\"; see dcm eval --help" : "no measure; see dcm eval --help",
                     argc > 1 ? argv[1] : "");
}
