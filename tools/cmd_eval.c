#include "fit.h"
#include "output.h"
#include "policies.h"
#include "progress.h"
#include "reader.h"
#include "runtime.h"
#include "score.h"
#include "table.h"
#include "tool.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    float *logits; /* (step, vocab) */
    score_sums sums;
} ppl_row;

typedef struct ppl_run {
    const ppl_options *o;
    const runtime *r;
    int32_t *ids; /* BOS, where the model asks for one, and the text's tokens */
    size_t count;
    size_t text_tokens;
    policy_list policies;
    ppl_row row[POLICIES_MAX], full; /* full: of --against */
    size_t step;                     /* tokens fed to every session in turn */
    output_file csv;
} ppl_run;

/* ---- The run ---- */

/* Is the prediction of the token at `index` asked for? */
static bool is_wanted(const ppl_run *run, size_t index)
{
    return index < run->count && (run->csv.out || (int64_t)index >= run->o->skip);
}

/* Score the token at `index` with what each session predicted for it in row `at` of its logits. */
static void score(ppl_run *run, size_t index, size_t at)
{
    const size_t vocab = run->r->info.vocab;
    const int32_t target = run->ids[index];
    const bool counted = (int64_t)index >= run->o->skip;
    const float *full = run->full.session ? run->full.logits + at * vocab : NULL;
    const double full_sum = full && counted ? score_log_sum(full, vocab) : 0;
    for (size_t i = 0; i < run->policies.count; i++) {
        ppl_row *row = &run->row[i];
        const float *logits = row->logits + at * vocab;
        const double sum = score_log_sum(logits, vocab), logprob = logits[target] - sum;
        if (run->csv.out)
            fprintf(run->csv.out, "%zu,%d,%.9g\n", index, target, logprob);
        if (!counted)
            continue;
        score_add(&row->sums, logprob);
        if (full)
            score_compare(&row->sums, full, full_sum, logits, sum, vocab);
    }
}

/* Feed `count` tokens from `first` on; the logits after each where any of their predictions is wanted. */
static int feed(const ppl_run *run, ppl_row *row, size_t first, size_t count)
{
    const bool each = is_wanted(run, first + count) || is_wanted(run, first + count - 1);
    const dcm_status status = each ? dcm_session_feed_each(row->session, run->ids + first, count, row->logits)
                                   : dcm_session_feed(row->session, run->ids + first, count, NULL);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int feed_all(ppl_run *run)
{
    progress line;
    int code = 0;
    tool_catch(true);
    progress_begin(&line, run->o->words.quiet, run->count);
    for (size_t first = 0, count; first < run->count && code == 0; first += count) {
        count = run->count - first < run->step ? run->count - first : run->step;
        for (size_t i = 0; i < run->policies.count && code == 0; i++)
            code = feed(run, &run->row[i], first, count);
        if (code == 0 && run->full.session)
            code = feed(run, &run->full, first, count);
        for (size_t at = 0; at < count && code == 0; at++)
            if (is_wanted(run, first + at + 1))
                score(run, first + at + 1, at);
        progress_at(&line, first + count);
        if (code == 0)
            code = tool_stopped();
    }
    progress_end(&line);
    tool_catch(false);
    return code;
}

static int open_row(ppl_run *run, ppl_row *row, const dcm_cache_params *params)
{
    const dcm_status status = dcm_session_open(&row->session, run->r->model, params);
    if (status != DCM_OK)
        return tool_fail_library(status);
    const size_t chunk = dcm_session_chunk(row->session);
    run->step = run->step && run->step < chunk ? run->step : chunk;
    return 0;
}

static int open_logits(const ppl_run *run, ppl_row *row)
{
    const size_t rows = run->step < run->count ? run->step : run->count;
    row->logits = malloc(rows * run->r->info.vocab * sizeof *row->logits);
    return row->logits
               ? 0
               : tool_fail(DCM_ERR_MEMORY, "no room for the logits of %zu tokens: choose a smaller --chunk", rows);
}

/* Sessions step together, by the least of their steps. */
static int open_rows(ppl_run *run)
{
    const size_t count = run->policies.count;
    const dcm_cache_params full = {
        .kind = DCM_CACHE_FULL, .kv = (dcm_kv_type)run->o->cache.kv, .chunk = (uint32_t)run->o->cache.chunk};
    const dcm_cache_params *all[POLICIES_MAX + 1] = {0};
    int code = 0;
    for (size_t i = 0; i < count && code == 0; i++) {
        all[i] = &run->policies.item[i].params;
        code = open_row(run, &run->row[i], all[i]);
    }
    all[count] = &full;
    if (code == 0 && run->o->against)
        code = open_row(run, &run->full, &full);
    if (code == 0)
        code = fit_check(run->r, &run->o->device, run->row[0].session, all, count + !!run->o->against, run->count);
    for (size_t i = 0; i < count && code == 0; i++)
        code = open_logits(run, &run->row[i]);
    return code == 0 && run->o->against ? open_logits(run, &run->full) : code;
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
    json_object_set_new(meta, "file", runtime_text(run->o->input.file));
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
        const score_sums *sums = &row->sums;
        const double n = (double)sums->scored, mean = sums->nll / n;
        const double variance = n > 1 ? fmax(0, (sums->nll_squared - n * mean * mean) / (n - 1)) : NAN;
        const table_cell cells[WITH_FULL] = {cell_text(text),
                                             cell_int((int64_t)run->text_tokens),
                                             cell_int((int64_t)sums->scored),
                                             cell_int((int64_t)stats.units),
                                             cell_real(exp(mean)),
                                             cell_real(exp(mean) * sqrt(variance / n)),
                                             cell_real(sums->kl / n),
                                             cell_real((double)sums->same_top / n)};
        table_row(&t, cells);
    }
    table_end(&t);
}

/* ---- Set-up ---- */

/* Append ids to the run's, less the text's first --offset and what passes --tokens. */
static int append_ids(ppl_run *run, const int32_t *ids, size_t count, size_t *seen, size_t *room)
{
    const size_t offset = (size_t)run->o->offset, wanted = run->o->tokens ? (size_t)run->o->tokens : SIZE_MAX;
    const size_t skipped = *seen < offset ? (offset - *seen < count ? offset - *seen : count) : 0;
    const size_t left = wanted - run->text_tokens;
    const size_t taken = count - skipped < left ? count - skipped : left;
    *seen += count;
    if (*room - run->count < taken) {
        const size_t grown_room = 2 * (run->count + taken);
        int32_t *grown = realloc(run->ids, grown_room * sizeof *grown);
        if (!grown)
            return tool_fail(DCM_ERR_MEMORY, "no room for %zu tokens", grown_room);
        run->ids = grown;
        *room = grown_room;
    }
    if (taken)
        memcpy(run->ids + run->count, ids + skipped, taken * sizeof *ids);
    run->count += taken;
    run->text_tokens += taken;
    return 0;
}

/* The text's tokens from --offset on, at most --tokens, with BOS before them where the model asks for one. */
static int take_tokens(ppl_run *run, text_reader *text)
{
    const int32_t bos = dcm_bos_token(run->r->tokenizer);
    const size_t wanted = (size_t)run->o->tokens;
    size_t seen = 0, room = 0, count;
    int code = 0;
    do {
        int32_t *ids;
        code = reader_next(text, run->r->tokenizer, 0, &ids, &count);
        if (code == 0 && count && !run->ids && bos >= 0) {
            run->ids = malloc(sizeof *run->ids);
            if (!run->ids)
                code = tool_fail(DCM_ERR_MEMORY, "no room for the tokens");
            else
                run->ids[run->count++] = bos;
            room = run->count;
        }
        if (code == 0)
            code = append_ids(run, ids, count, &seen, &room);
        dcm_free(ids);
    } while (code == 0 && count && (!wanted || run->text_tokens < wanted));
    if (code)
        return code;
    if (wanted > run->text_tokens)
        return tool_fail(DCM_ERR_FILE, "the text has %zu tokens after --offset %lld, not the %zu of --tokens",
                         run->text_tokens, (long long)run->o->offset, wanted);
    if (run->count < 2 || (size_t)run->o->skip >= run->count)
        return tool_fail(DCM_ERR_FILE, "nothing to predict: %zu tokens after --offset %lld and --skip %lld",
                         run->text_tokens, (long long)run->o->offset, (long long)run->o->skip);
    return 0;
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
    for (size_t i = 0; i < run->policies.count; i++)
        run->policies.item[i].params.chunk = (uint32_t)o->cache.chunk;
    if (code == 0 && o->logprobs && run->policies.count > 1)
        return tool_fail(DCM_ERR_USAGE, "--logprobs takes one policy, not %zu", run->policies.count);
    return code;
}

static int open_csv(ppl_run *run)
{
    const int code = output_open(&run->csv, run->o->logprobs);
    if (code == 0)
        fputs("index,token,logprob\n", run->csv.out);
    return code;
}

static int evaluate(ppl_run *run, text_reader *text)
{
    int code = take_tokens(run, text);
    if (code == 0)
        code = policies_resolve(&run->policies, run->count);
    if (code == 0 && run->o->logprobs)
        code = open_csv(run);
    if (code == 0)
        code = open_rows(run);
    if (code == 0)
        code = feed_all(run);
    const int closed = output_close(&run->csv, code == 0);
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
              .about = "Perplexity of a text with its standard error: each token is predicted from the cache of "
                       "those before it, in one pass."};
    dcm_cache_params params;
    runtime r = {0};
    ppl_run run = {.o = &o, .r = &r};
    text_reader text = {0};
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
        code = reader_open(&text, &a, &o.input);
    if (code == 0)
        code = runtime_open(&r, &o.device, o.model);
    if (code == 0)
        code = evaluate(&run, &text);
    close_rows(&run);
    policies_release(&run.policies);
    free(run.ids);
    reader_close(&text);
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
