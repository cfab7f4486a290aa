/* `dcm eval ppl`: perplexity, and the divergence from the full cache that reads the same text beside. */
#include "ppl.h"

#include "fit.h"
#include "numbers.h"
#include "output.h"
#include "score.h"
#include "tool.h"

#include <stdlib.h>
#include <string.h>

typedef struct ppl_options {
    eval_options common;
    const char *prompt, *logprobs, *baseline, *plot;
    arg_texts files;
    int64_t tokens, offset, skip, block;
    int against;
} ppl_options;

typedef struct ppl_run {
    const ppl_options *o;
    eval e;
    ppl_results results;
    dcm_cache_params full;
    const dcm_cache_params *params[POLICIES_MAX + 1]; /* of the policies, then the full cache; and their sessions */
    dcm_session *session[POLICIES_MAX + 1];
    size_t step;                 /* tokens fed to every session in turn */
    float *logits, *full_logits; /* (step, vocab): of the policy fed last, and of the full cache */
    double *full_sum;            /* log of the sum of the exponentials of each row of full_logits */
    output_file csv, plot;
    progress line;
    uint64_t done; /* tokens of finished texts */
} ppl_run;

/* ---- The run ---- */

/* Is the prediction of the token at `index` asked for? */
static bool is_wanted(const ppl_run *run, const ppl_text *t, size_t index)
{
    return index < t->text.count && (run->csv.out || index >= t->first);
}

/* Score the token at `index` with what policy `i` predicted for it in row `at` of its logits. */
static void score(ppl_run *run, ppl_text *t, size_t i, size_t index, size_t at)
{
    const size_t vocab = run->e.r.info.vocab, columns = run->results.columns;
    const int32_t target = t->text.ids[index];
    const float *logits = run->logits + at * vocab, *full = run->full_logits + at * vocab;
    const double sum = score_log_sum(logits, vocab), logprob = logits[target] - sum;
    double full_logprob = 0, kl = 0;
    bool same = false;
    if (run->results.against) {
        full_logprob = full[target] - run->full_sum[at];
        kl = score_kl(full, run->full_sum[at], logits, sum, vocab);
        same = score_same_top(full, logits, vocab);
    }
    if (run->csv.out && run->results.against)
        fprintf(run->csv.out, "%zu,%d,%.9g,%.9g,%.9g,%d\n", index, target, logprob, full_logprob, kl, same);
    else if (run->csv.out)
        fprintf(run->csv.out, "%zu,%d,%.9g\n", index, target, logprob);
    if (index < t->first)
        return;
    double *sums = t->sums + (index - t->first) / run->results.block * columns, *own = sums + PPL_FIRST + i * PPL_EACH;
    if (i == 0) {
        sums[PPL_COUNT]++;
        sums[PPL_FULL_NLL] -= full_logprob;
    }
    own[PPL_NLL] -= logprob;
    own[PPL_NLL_SQUARED] += logprob * logprob;
    own[PPL_KL] += kl;
    own[PPL_TOP] += same;
}

/* Feed `count` tokens from `first` on to cache `i`; the logits after each where any of their predictions is wanted. */
static int feed(const ppl_run *run, const ppl_text *t, size_t i, size_t first, size_t count, float *logits)
{
    const size_t vocab = run->e.r.info.vocab;
    dcm_session *session = run->session[i];
    const bool each = is_wanted(run, t, first + count) || is_wanted(run, t, first + count - 1);
    const dcm_status status = each ? dcm_session_feed_each(session, t->text.ids + first, count, logits)
                                   : dcm_session_feed(session, t->text.ids + first, count, NULL);
    int code = status == DCM_OK ? 0 : tool_fail_library(status);
    for (size_t at = 0; at < count && code == 0; at++)
        if (is_wanted(run, t, first + at + 1))
            code = numbers_check(logits + at * vocab, vocab, session, run->params[i], first + at + 1);
    return code;
}

/* The full cache comes first, so that one buffer serves all the policies behind it. */
static int feed_step(ppl_run *run, ppl_text *t, size_t first, size_t count)
{
    const size_t vocab = run->e.r.info.vocab, policies = run->results.policies;
    int code = 0;
    if (run->results.against)
        code = feed(run, t, policies, first, count, run->full_logits);
    for (size_t at = 0; at < count && code == 0 && run->results.against; at++)
        if (is_wanted(run, t, first + at + 1))
            run->full_sum[at] = score_log_sum(run->full_logits + at * vocab, vocab);
    for (size_t i = 0; i < policies && code == 0; i++) {
        code = feed(run, t, i, first, count, run->logits);
        for (size_t at = 0; at < count && code == 0; at++)
            if (is_wanted(run, t, first + at + 1))
                score(run, t, i, first + at + 1, at);
    }
    return code == 0 ? tool_stopped() : code;
}

static int open_session(ppl_run *run, size_t i)
{
    const dcm_status status = dcm_session_open(&run->session[i], run->e.r.model, run->params[i]);
    if (status != DCM_OK)
        return tool_fail_library(status);
    policies_settle_merge(&run->e.policies, run->params[i], run->session[i]);
    const size_t chunk = dcm_session_chunk(run->session[i]);
    run->step = run->step && run->step < chunk ? run->step : chunk;
    return 0;
}

/* Sessions step together, by the least of their steps. */
static int open_caches(ppl_run *run, const ppl_text *t)
{
    const size_t policies = run->results.policies, all = policies + run->results.against;
    const size_t vocab = run->e.r.info.vocab;
    int code = policies_resolve(&run->e.policies, t->text.count);
    run->step = 0;
    run->full = eval_full_params(&run->e);
    for (size_t i = 0; i < all && code == 0; i++) {
        run->params[i] = i < policies ? &run->e.policies.item[i].params : &run->full;
        code = open_session(run, i);
    }
    if (code == 0)
        code = fit_check(&run->e.r, &run->o->common.device, run->session[0], run->params, all, t->text.count);
    if (code)
        return code;
    const size_t rows = run->step < t->text.count ? run->step : t->text.count;
    run->logits = malloc(rows * vocab * sizeof *run->logits);
    run->full_logits = malloc(run->results.against ? rows * vocab * sizeof *run->full_logits : 1);
    run->full_sum = calloc(rows, sizeof *run->full_sum);
    if (!run->logits || !run->full_logits || !run->full_sum)
        return tool_fail(DCM_ERR_MEMORY, "no room for the logits of %zu tokens: choose a smaller --chunk", rows);
    return 0;
}

static void close_caches(ppl_run *run)
{
    for (size_t i = 0; i <= POLICIES_MAX; i++)
        dcm_session_close(&run->session[i]);
    free(run->logits);
    free(run->full_logits);
    free(run->full_sum);
    run->logits = run->full_logits = NULL;
    run->full_sum = NULL;
}

static int evaluate_text(ppl_run *run, ppl_text *t)
{
    const size_t scored = t->text.count - t->first;
    t->blocks = (scored - 1) / run->results.block + 1;
    t->sums = calloc(t->blocks, run->results.columns * sizeof *t->sums);
    int code = t->sums ? open_caches(run, t) : tool_fail(DCM_ERR_MEMORY, "no room for the sums of %zu tokens", scored);
    for (size_t first = 0, count; first < t->text.count && code == 0; first += count) {
        count = t->text.count - first < run->step ? t->text.count - first : run->step;
        code = feed_step(run, t, first, count);
        progress_at(&run->line, run->done + first + count);
    }
    run->done += t->text.count;
    for (size_t i = 0; i < run->results.policies && code == 0; i++)
        eval_cache_note(&t->cache[i], &run->e.policies.item[i].params, run->session[i]);
    close_caches(run);
    return code;
}

static int evaluate(ppl_run *run)
{
    const output_name outputs[] = {{"--logprobs", run->o->logprobs}, {"--plot", run->o->plot}};
    uint64_t total = 0;
    int code = output_check_apart(outputs, sizeof outputs / sizeof *outputs);
    for (size_t i = 0; i < run->results.texts; i++)
        total += run->results.text[i].text.count;
    tool_catch(true);
    if (code == 0 && run->o->logprobs)
        code = output_open(&run->csv, run->o->logprobs);
    if (code == 0 && run->o->plot)
        code = output_open(&run->plot, run->o->plot);
    if (run->csv.out)
        fprintf(run->csv.out, "index,token,logprob%s\n", run->results.against ? ",full_logprob,kl,top1" : "");
    progress_begin(&run->line, run->o->common.words.quiet, total);
    for (size_t i = 0; i < run->results.texts && code == 0; i++)
        code = evaluate_text(run, &run->results.text[i]);
    progress_end(&run->line);
    const int closed = output_close(&run->csv, code == 0);
    tool_catch(false);
    return code ? code : closed;
}

/* ---- Set-up ---- */

static int take_baseline(ppl_run *run)
{
    const policy_list *policies = &run->e.policies;
    run->results.baseline = -1;
    if (run->o->baseline)
        return policies_find(policies, run->o->baseline, "baseline", &run->results.baseline);
    for (size_t i = policies->count; i-- > 0 && policies->count > 1;)
        if (policies->item[i].params.kind == DCM_CACHE_WINDOW)
            run->results.baseline = (int)i;
    return 0;
}

static int take_options(ppl_run *run, const args *a)
{
    const ppl_options *o = run->o;
    const int code = eval_take_options(&run->e, a);
    const size_t policies = run->e.policies.count;
    if (code)
        return code;
    if (o->logprobs && policies > 1)
        return tool_fail(DCM_ERR_USAGE, "--logprobs takes one policy, not %zu", policies);
    if (o->logprobs && o->files.count > 1)
        return tool_fail(DCM_ERR_USAGE, "--logprobs takes one text, not %zu", o->files.count);
    static const char *const compared[] = {"baseline", "plot", "block", "interval", "resamples", "seed"};
    for (size_t i = 0; i < sizeof compared / sizeof *compared && !o->against; i++)
        if (args_seen(a, compared[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect without --against full", compared[i]);
    run->results.against = o->against;
    run->results.policies = policies;
    run->results.columns = PPL_FIRST + policies * PPL_EACH;
    run->results.block = (size_t)o->block;
    run->results.offset = o->offset;
    run->results.skip = o->skip;
    return take_baseline(run);
}

/* Open all texts: one where -p or - gives it. */
static int open_readers(ppl_run *run, const args *a, text_reader *readers, size_t *count)
{
    const ppl_options *o = run->o;
    const size_t texts = o->files.count ? o->files.count : 1;
    int code = 0;
    for (*count = 0; *count < texts && code == 0; ++*count) {
        const input_source source = {.text = o->prompt, .file = o->files.count ? o->files.item[*count] : NULL};
        code = reader_open(&readers[*count], a, &source);
    }
    return code;
}

/* The tokens of all texts, before any work is done. */
static int read_texts(ppl_run *run, text_reader *readers, size_t count)
{
    const ppl_options *o = run->o;
    run->results.text = calloc(count, sizeof *run->results.text);
    if (!run->results.text)
        return tool_fail(DCM_ERR_MEMORY, "no room for %zu texts", count);
    run->results.texts = count;
    int code = 0;
    for (size_t i = 0; i < count && code == 0; i++) {
        ppl_text *t = &run->results.text[i];
        t->text.name = o->files.count ? o->files.item[i] : NULL;
        t->first = o->skip ? (size_t)o->skip : 1;
        code = eval_read_text(&t->text, &run->e, &readers[i], (uint64_t)o->offset, (uint64_t)o->tokens);
        if (code == 0 && t->first >= t->text.count)
            code = tool_fail(DCM_ERR_FILE, "%s: nothing to predict: %zu tokens after --offset %lld and --skip %lld",
                             readers[i].name, t->text.tokens, (long long)o->offset, (long long)o->skip);
    }
    return code;
}

static int print_results(ppl_run *run)
{
    ppl_point point[POLICIES_MAX];
    const int code = ppl_print(&run->results, point);
    if (code == 0 && run->plot.out)
        ppl_plot(&run->results, point, run->plot.out);
    const int closed = output_close(&run->plot, code == 0);
    return code ? code : closed;
}

static void close_run(ppl_run *run)
{
    for (size_t i = 0; i < run->results.texts; i++) {
        free(run->results.text[i].text.ids);
        free(run->results.text[i].sums);
    }
    free(run->results.text);
    output_close(&run->plot, false);
    eval_close(&run->e);
}

static void add_options(args *a, ppl_options *o)
{
    const arg_option input[] = {
        {"prompt", 'p', ARG_TEXT, &o->prompt, "TEXT", "The text itself."},
        {"file", 'f', ARG_TEXTS, &o->files, "FILE",
         "Read the text from FILE; - is standard input. Several times: a row for each text, and their mean."},
    };
    const arg_option options[] = {
        {"tokens", 'n', ARG_INT, &o->tokens, "TOKENS", "Tokens of the text to read; 0: all.", 0, INT64_C(1) << 40},
        {"offset", 0, ARG_INT, &o->offset, "T", "Leave out the text's first T tokens.", 0, INT64_C(1) << 40},
        {"skip", 0, ARG_INT, &o->skip, "K", "Do not score the first K tokens that are read.", 0, INT64_C(1) << 40},
        {"logprobs", 0, ARG_TEXT, &o->logprobs, "OUT.csv",
         "Write index,token,logprob: the natural log of the probability given to each token from index 1 on; with "
         "--against full also full_logprob, kl and top1."},
        {"against", 0, ARG_CHOICE, &o->against, .choices = "none|full",
         .help = "full: also run the full cache beside, and give the mean KL to it, how often both find the same token "
                 "most probable, and the ratio of the perplexities, each with an interval."},
        {"baseline", 0, ARG_TEXT, &o->baseline, "N|POLICY",
         "Policy whose KL the others' are divided by: its number or its text in --policies; without it the first "
         "window."},
        {"plot", 0, ARG_TEXT, &o->plot, "OUT.svg",
         "Draw KL against bytes of the cache: a mark with its interval for each policy, those that differ in L or W "
         "alone joined."},
        {"block", 0, ARG_INT, &o->block, "TOKENS", "Consecutive tokens that are drawn together for the intervals.", 1,
         INT64_C(1) << 40},
    };
    eval_add_model(a, &o->common);
    args_add(a, "Input (one of -p, -f and a lone -)", input, sizeof input / sizeof *input);
    args_add(a, "Perplexity", options, sizeof options / sizeof *options);
    eval_add_options(a, &o->common);
}

int eval_ppl(int argc, char **argv)
{
    ppl_options o = {.common = EVAL_OPTIONS_DEFAULT, .block = 64};
    args a = {.usage = "-m MODEL (-f FILE | -p TEXT | -) [options]",
              .stdin_dash = true,
              .about = "Perplexity of a text with its standard error: each token is predicted from the cache of "
                       "those before it, in one pass."};
    ppl_run run = {.o = &o, .e.o = &o.common, .results.e = &run.e};
    text_reader readers[ARG_LIST_MAX] = {0};
    size_t count = 0;
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = take_options(&run, &a);
    if (code == 0)
        code = open_readers(&run, &a, readers, &count);
    if (code == 0)
        code = runtime_open(&run.e.r, &o.common.device, o.common.model);
    if (code == 0)
        code = read_texts(&run, readers, count);
    if (code == 0)
        code = evaluate(&run);
    if (code == 0)
        code = print_results(&run);
    for (size_t i = 0; i < count; i++)
        reader_close(&readers[i]);
    close_run(&run);
    return code;
}
