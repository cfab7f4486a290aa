/* `dcm eval table 1|2|3`: the paper's tables in their own rows and columns, of merge files on the model at hand. */
#include "tables.h"

#include "numbers.h"
#include "score.h"
#include "tool.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* TOKENS_MAX of table 3: two of a session's units a token, at most 65536. */
enum { ROWS = 256, TOKENS_MAX = 32768, QUERIES = 64 };

/* ---- Measuring ---- */

static int library(dcm_status status) { return status == DCM_OK ? 0 : tool_fail_library(status); }

static int open_sessions(tables_run *run)
{
    const size_t vocab = run->e.r.info.vocab;
    run->full_params = eval_full_params(&run->e);
    int code = library(dcm_session_open(&run->full, run->e.r.model, &run->full_params));
    for (size_t i = 0; i < run->files * run->groups && code == 0; i++) {
        table_cache *c = &run->cache[i];
        c->params = (dcm_cache_params){.kind = DCM_CACHE_DCM,
                                       .group = (uint32_t)run->o->groups.item[i % run->groups],
                                       .sinks = run->o->common.cache.sinks ? (int32_t)run->o->common.cache.sinks : -1,
                                       .log_r = (float)run->o->common.cache.log_r,
                                       .far_limit = run->far_limit,
                                       .merge = run->path[i / run->groups],
                                       .kv = (dcm_kv_type)run->o->common.cache.kv};
        code = library(dcm_session_open(&c->session, run->e.r.model, &c->params));
    }
    run->logits = malloc(ROWS * vocab * sizeof *run->logits);
    run->full_logits = malloc(ROWS * vocab * sizeof *run->full_logits);
    if (code == 0 && (!run->logits || !run->full_logits))
        code = tool_fail(DCM_ERR_MEMORY, "no room for the logits of %d tokens", ROWS);
    return code;
}

/* Is the prediction of the token at `index` one that is scored? */
static bool is_scored(const tables_run *run, size_t index) { return index >= run->first && index < run->text.count; }

/* One cache reads tokens at .. at + count - 1. */
static int feed(const tables_run *run, dcm_session *session, const dcm_cache_params *params, size_t at, size_t count,
                float *logits)
{
    const size_t vocab = run->e.r.info.vocab;
    int code = library(dcm_session_feed_each(session, run->text.ids + at, count, logits));
    for (size_t t = 0; t < count && code == 0; t++)
        if (is_scored(run, at + t + 1))
            code = numbers_check(logits + t * vocab, vocab, session, params, at + t + 1);
    return code;
}

/* Every cache reads tokens at .. at + count - 1, the full one first, and predicts those behind. */
static int feed_piece(tables_run *run, size_t at, size_t count)
{
    const size_t vocab = run->e.r.info.vocab;
    const int32_t *ids = run->text.ids + at;
    int code = feed(run, run->full, &run->full_params, at, count, run->full_logits);
    for (size_t i = 0; i < run->files * run->groups && code == 0; i++) {
        table_cache *c = &run->cache[i];
        code = feed(run, c->session, &c->params, at, count, run->logits);
        for (size_t t = 0; t < count && code == 0; t++) {
            const float *logits = run->logits + t * vocab, *full = run->full_logits + t * vocab;
            if (!is_scored(run, at + t + 1))
                continue;
            const double sum = score_log_sum(logits, vocab), full_sum = score_log_sum(full, vocab);
            c->kl += score_kl(full, full_sum, logits, sum, vocab);
            c->nll += sum - logits[ids[t + 1]];
            run->full_nll += i ? 0 : full_sum - full[ids[t + 1]];
        }
    }
    return code ? code : tool_stopped();
}

/* Attention of file i's cache, in the mean over layers. */
static int measure_attention(tables_run *run, size_t i)
{
    const size_t layers = run->e.r.info.layers;
    dcm_attention_metrics *layer = calloc(layers, sizeof *layer);
    dcm_cache_params params = run->cache[i].params;
    dcm_session *session = NULL;
    params.chunk = 2 * (uint32_t)run->text.count;
    int code = layer ? library(dcm_session_open(&session, run->e.r.model, &params))
                     : tool_fail(DCM_ERR_MEMORY, "no room for %zu layers' metrics", layers);
    if (code == 0)
        code = library(dcm_session_measure(session, run->text.ids, run->text.count, run->first - 1, QUERIES, layer));
    if (code == 0)
        run->metrics[i] = eval_mean_metrics(layer, layers);
    dcm_session_close(&session);
    free(layer);
    return code;
}

static int measure(tables_run *run)
{
    progress line;
    int code = run->o->plot ? output_open(&run->plot, run->o->plot) : 0;
    if (code == 0)
        code = open_sessions(run);
    progress_begin(&line, run->o->common.words.quiet, run->text.count);
    for (size_t at = 0, count; at < run->text.count && code == 0; at += count) {
        count = run->text.count - at < ROWS ? run->text.count - at : ROWS;
        code = feed_piece(run, at, count);
        progress_at(&line, at + count);
    }
    for (size_t i = 0; i < run->files && run->number == 3 && code == 0; i++)
        code = measure_attention(run, i);
    progress_end(&line);
    return code;
}

/* ---- Set-up ---- */

static int take_merges(tables_run *run)
{
    run->merges = strdup(run->o->merges);
    if (!run->merges)
        return tool_fail(DCM_ERR_MEMORY, "no room for the files' names");
    for (char *at = run->merges, *end; at; at = end) {
        end = strchr(at, ',');
        if (end)
            *end++ = '\0';
        if (run->files == TABLES_FILES_MAX)
            return tool_fail(DCM_ERR_USAGE, "--merges: more than %d files", TABLES_FILES_MAX);
        const dcm_status status = dcm_merge_get_info(at, &run->info[run->files]);
        if (status != DCM_OK)
            return tool_fail_library(status);
        run->path[run->files++] = at;
    }
    if (run->number == 3 && run->files != 3)
        return tool_fail(DCM_ERR_USAGE, "table 3 takes three --merges: baseline, TAI, TAI + boundary; not %zu",
                         run->files);
    return 0;
}

/* Table 3's rows are told apart by how their files were trained, as far as they say. */
static int check_training(const tables_run *run)
{
    static const char *const modes[] = {"chunked", "tai", "tai"};
    for (size_t i = 0; i < run->files && run->number == 3; i++) {
        const dcm_merge_info *info = &run->info[i];
        const bool with = i == 2;
        if (*info->mode && strcmp(info->mode, modes[i]) != 0)
            return tool_fail(DCM_ERR_USAGE, "%s was trained with --mode %s, row %zu of table 3 is of --mode %s",
                             run->path[i], info->mode, i + 1, modes[i]);
        if (!isnan(info->boundary) && (info->boundary > 0) != with)
            return tool_fail(DCM_ERR_USAGE, "%s was trained with --boundary %g, row %zu of table 3 is %s that term",
                             run->path[i], info->boundary, i + 1, with ? "with" : "without");
    }
    return 0;
}

static int check_groups(tables_run *run, const args *a)
{
    static const arg_ints across = {{4, 8, 16, 32, 64, 128, 256, 512}, 8};
    arg_ints *groups = &run->o->groups;
    if (run->number == 2 && !args_seen(a, "group"))
        *groups = across;
    args_make_unique(groups);
    if (run->number != 2 && groups->count != 1)
        return tool_fail(DCM_ERR_USAGE, "table %d has one -L, not %zu", run->number, groups->count);
    if (groups->count > TABLES_GROUPS_MAX)
        return tool_fail(DCM_ERR_USAGE, "-L: more than %d group lengths", TABLES_GROUPS_MAX);
    run->groups = groups->count;
    return 0;
}

static int check_text(tables_run *run)
{
    const size_t count = run->text.count;
    run->first = run->o->skip ? (size_t)run->o->skip : 1;
    if (count <= run->first)
        return tool_fail(DCM_ERR_FILE, "nothing to predict: %zu tokens, --skip %lld", count, (long long)run->o->skip);
    for (size_t g = 0; g < run->groups; g++) {
        const size_t seen = 2 * (size_t)run->o->groups.item[g] - 1 + (size_t)run->o->common.cache.sinks;
        if (count <= seen)
            return tool_fail(DCM_ERR_USAGE, "%zu tokens are too few for -L %lld: nothing is merged before token %zu",
                             count, (long long)run->o->groups.item[g], seen + 1);
    }
    if (run->number == 3 && count > TOKENS_MAX)
        return tool_fail(DCM_ERR_USAGE, "%zu tokens, of which table 3 can measure at most %d: choose --tokens", count,
                         TOKENS_MAX);
    return 0;
}

static void add_options(args *a, tables_options *o)
{
    const arg_option options[] = {
        {"merges", 0, ARG_TEXT, &o->merges, "FILE,...",
         "Merge files: a row each; table 3 takes those of its three rows, in their order.", .required = true},
        {"group", 'L', ARG_INTS, &o->groups, "N,...",
         "Group length at test; in table 2 all of them, a column each (without it 4 to 512).", DCM_GROUP_MIN,
         DCM_GROUP_MAX, .power_of_two = true},
        {"sinks", 0, ARG_INT, &o->common.cache.sinks, "S", "First tokens that are never merged.", 0, 1 << 20,
         .show_zero = true},
        {"skip", 0, ARG_INT, &o->skip, "K", "Do not score the first K tokens that are read.", 0, INT64_C(1) << 40},
        options_log_r(&o->common.cache.log_r),
        options_far_limit(&o->common.cache.far_limit),
        options_kv(&o->common.cache.kv),
        {"plot", 0, ARG_TEXT, &o->plot, "OUT.svg",
         "Draw table 2 as curves: KL to the full cache against the group length at test, a line a merge file."},
        table_format_option(&o->common.format),
    };
    eval_add_model(a, &o->common);
    eval_add_source(a, &o->source);
    args_add(a, "Table", options, sizeof options / sizeof *options);
    options_add_device(a, &o->common.device);
    options_add_verbosity(a, &o->common.words);
}

static int print(tables_run *run)
{
    tables_print(run);
    if (run->plot.out)
        tables_plot(run, run->plot.out);
    return output_close(&run->plot, true);
}

static void close_run(tables_run *run)
{
    for (size_t i = 0; i < run->files * run->groups; i++)
        dcm_session_close(&run->cache[i].session);
    dcm_session_close(&run->full);
    free(run->logits);
    free(run->full_logits);
    free(run->text.ids);
    free(run->merges);
    eval_close(&run->e);
}

static int open_all(tables_run *run, const args *a)
{
    tables_options *o = run->o;
    int code = options_apply_verbosity(&o->common.words);
    if (code == 0 && o->plot && run->number != 2)
        code = tool_fail(DCM_ERR_USAGE, "--plot has no effect with table %d: curves are of table 2", run->number);
    run->far_limit = options_far_limit_param(a, o->common.cache.far_limit);
    if (code == 0)
        code = check_groups(run, a);
    if (code == 0)
        code = take_merges(run);
    if (code == 0)
        code = check_training(run);
    if (code == 0)
        code = eval_open_text(&run->e, a, &o->source, &run->text);
    return code ? code : check_text(run);
}

int eval_table(int argc, char **argv)
{
    tables_options o = {.common = EVAL_OPTIONS_DEFAULT, .groups = {{64}, 1}};
    args a = {.usage = "1|2|3 -m MODEL (-f FILE | -p TEXT | -) --merges FILE,... [options]",
              .stdin_dash = true,
              .about = "The paper's tables, of merge files on the model at hand: 1, by depth of the merge model; 2, "
                       "by the group length of training and of test; 3, by how it was trained: in chunks, as "
                       "inference, as inference with the boundary term."};
    tables_run *run = calloc(1, sizeof *run);
    int64_t number = 0;
    if (!run)
        return tool_fail(DCM_ERR_MEMORY, "no room for a table");
    run->o = &o;
    run->e.o = &o.common;
    add_options(&a, &o);
    const bool told = argc > 1 && args_read_int(argv[1], 1, 3, &number);
    run->number = (int)number;
    int code = args_parse(&a, argc - told, argv + told);
    if (code == ARGS_GO) {
        code = told ? open_all(run, &a) : tool_fail(DCM_ERR_USAGE, "which table? 1, 2 or 3");
        tool_catch(true); /* until the plot is whole or gone */
        if (code == 0)
            code = measure(run);
        if (code == 0)
            code = print(run);
        output_close(&run->plot, false);
        code = code ? code : tool_stopped();
        tool_catch(false);
    }
    close_run(run);
    free(run);
    return code;
}
