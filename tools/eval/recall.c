/* `dcm eval recall`: how well a passage is predicted that was read before, some distance back. */
#include "eval.h"

#include "output.h"
#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct recall_options {
    eval_options common;
    eval_source source;
    const char *logprobs;
    arg_ints distances;
    int64_t passage, lead, repeat;
} recall_options;

/* Columns of the sums of a repetition: the first and the second copy of the passage, mean negative log-probabilities of
 * its tokens, for every policy. One stratum a distance. */
enum { COUNT_COLUMN, FIRST_COLUMN };
enum { FIRST_COPY, SECOND_COPY, EACH };

enum { NLL_FIRST, NLL_SECOND, GAIN, GAIN_KEPT, VALUES };

typedef struct recall_run {
    const recall_options *o;
    eval e;
    eval_text text;
    size_t policies, full, columns, repeats;
    int32_t *ids;      /* of a sequence */
    double *logprob;   /* (passage) */
    double *sums;      /* (distances, repeats, columns) */
    eval_cache *cache; /* (distances, policies) */
    output_file csv;
    progress line;
    uint64_t done;
} recall_run;

/* ---- The run ---- */

static bool has_bos(const recall_run *run) { return run->text.count > run->text.tokens; }

/* Tokens of the text that a sequence of a distance takes. */
static size_t taken(const recall_run *run, int64_t distance)
{
    return (size_t)(run->o->lead + run->o->passage + distance);
}

static size_t longest(const recall_run *run)
{
    int64_t most = 0;
    for (size_t i = 0; i < run->o->distances.count; i++)
        most = run->o->distances.item[i] > most ? run->o->distances.item[i] : most;
    return taken(run, most);
}

/* BOS, text up to the second copy, and the passage again. */
static size_t make_sequence(const recall_run *run, size_t repeat, int64_t distance)
{
    const size_t bos = has_bos(run), passage = (size_t)run->o->passage, count = taken(run, distance);
    const size_t spare = run->text.tokens - longest(run);
    const size_t start = run->repeats > 1 ? spare * repeat / (run->repeats - 1) : 0;
    const int32_t *from = run->text.ids + bos + start;
    run->ids[0] = run->text.ids[0];
    memcpy(run->ids + bos, from, count * sizeof *from);
    memcpy(run->ids + bos + count, from + run->o->lead, passage * sizeof *from);
    return bos + count + passage;
}

static int score_copy(recall_run *run, eval_sequence *s, const char *about, int copy, size_t first, double *nll)
{
    const size_t passage = (size_t)run->o->passage;
    const int code = eval_sequence_score(s, first, passage, run->logprob);
    *nll = 0;
    for (size_t i = 0; i < passage && code == 0; i++) {
        *nll -= run->logprob[i] / (double)passage;
        if (run->csv.out)
            fprintf(run->csv.out, "%s,%d,%zu,%d,%.9g\n", about, copy, first + i, s->ids[first + i], run->logprob[i]);
    }
    return code;
}

/* One policy reads the sequence; its last token is only predicted. */
static int read_sequence(recall_run *run, size_t count, size_t distance, size_t repeat, size_t i)
{
    const dcm_cache_params *params = &run->e.policies.item[i].params;
    const size_t passage = (size_t)run->o->passage, first = has_bos(run) + (size_t)run->o->lead;
    double *own = run->sums + (distance * run->repeats + repeat) * run->columns + FIRST_COLUMN + i * EACH;
    eval_cache *cache = &run->cache[distance * run->policies + i];
    eval_sequence s = {.ids = run->ids, .count = count - 1, .line = &run->line, .done = &run->done};
    char about[POLICY_TEXT + 64];
    int code = eval_sequence_open(&s, &run->e, i);
    if (code == 0) {
        eval_cache_note(cache, params, s.session);
        snprintf(about, sizeof about, "%s,%" PRId64 ",%zu", cache->name, run->o->distances.item[distance], repeat);
        code = score_copy(run, &s, about, 1, first, &own[FIRST_COPY]);
    }
    if (code == 0)
        code = score_copy(run, &s, about, 2, count - passage, &own[SECOND_COPY]);
    if (code == 0)
        eval_cache_note(cache, params, s.session);
    eval_sequence_close(&s);
    return code;
}

static int read_distance(recall_run *run, size_t distance, size_t repeat)
{
    const size_t count = make_sequence(run, repeat, run->o->distances.item[distance]);
    int code = policies_resolve(&run->e.policies, count - 1);
    run->sums[(distance * run->repeats + repeat) * run->columns + COUNT_COLUMN] = 1;
    for (size_t i = 0; i < run->policies && code == 0; i++)
        code = read_sequence(run, count, distance, repeat, i);
    return code;
}

static int read_all(recall_run *run)
{
    const arg_ints *distances = &run->o->distances;
    uint64_t total = 0;
    int code = 0;
    for (size_t d = 0; d < distances->count; d++)
        total += (has_bos(run) + taken(run, distances->item[d]) + (size_t)run->o->passage - 1) * run->repeats *
                 run->policies;
    tool_catch(true);
    if (run->o->logprobs)
        code = output_open(&run->csv, run->o->logprobs);
    if (run->csv.out)
        fputs("policy,distance,repeat,copy,index,token,logprob\n", run->csv.out);
    progress_begin(&run->line, run->o->common.words.quiet, total);
    for (size_t repeat = 0; repeat < run->repeats && code == 0; repeat++)
        for (size_t d = 0; d < distances->count && code == 0; d++)
            code = read_distance(run, d, repeat);
    progress_end(&run->line);
    const int closed = output_close(&run->csv, code == 0);
    tool_catch(false);
    return code ? code : closed;
}

/* ---- Results ---- */

static void statistic(const void *context, const double *sums, double *out)
{
    const recall_run *run = context;
    for (size_t i = 0; i < run->policies; i++) {
        const double *own = sums + FIRST_COLUMN + i * EACH;
        double *value = out + i * VALUES;
        value[NLL_FIRST] = own[FIRST_COPY] / sums[COUNT_COLUMN];
        value[NLL_SECOND] = own[SECOND_COPY] / sums[COUNT_COLUMN];
        value[GAIN] = value[NLL_FIRST] - value[NLL_SECOND];
    }
    for (size_t i = 0; i < run->policies; i++)
        out[i * VALUES + GAIN_KEPT] = out[i * VALUES + GAIN] / out[run->full * VALUES + GAIN];
}

static const table_column columns[] = {
    {"distance", 0},        {"policy", 0},        {"units", 0},          {"kv_bytes", 0},   {"repeats", 0},
    {"nll_first", 4},       {"nll_first_low", 4}, {"nll_first_high", 4}, {"nll_second", 4}, {"nll_second_low", 4},
    {"nll_second_high", 4}, {"gain", 4},          {"gain_low", 4},       {"gain_high", 4},  {"gain_kept", 4},
    {"gain_kept_low", 4},   {"gain_kept_high", 4}};
enum { COLUMNS = sizeof columns / sizeof *columns };

static int print_distance(table *t, const recall_run *run, size_t distance)
{
    const size_t outputs = run->policies * VALUES;
    const bootstrap_stratum stratum = {run->sums + distance * run->repeats * run->columns, run->repeats};
    bootstrap_interval interval[POLICIES_MAX * VALUES];
    double sums[FIRST_COLUMN + POLICIES_MAX * EACH], value[POLICIES_MAX * VALUES];
    bootstrap_total(&stratum, run->columns, sums);
    statistic(run, sums, value);
    const int code = bootstrap(&run->o->common.intervals, &stratum, 1, run->columns, statistic, run, outputs, interval);
    for (size_t i = 0; i < run->policies && code == 0; i++) {
        const eval_cache *cache = &run->cache[distance * run->policies + i];
        table_cell cells[COLUMNS] = {cell_int(run->o->distances.item[distance]), cell_text(cache->name),
                                     eval_cache_units(cache), eval_cache_bytes(cache), cell_int((int64_t)run->repeats)};
        for (size_t v = 0; v < VALUES; v++)
            eval_cells(cells + COLUMNS - 3 * (VALUES - v), value[i * VALUES + v], interval[i * VALUES + v]);
        table_row(t, cells);
    }
    return code;
}

static int print_rows(const recall_run *run)
{
    const table_format format = (table_format)run->o->common.format;
    json_t *meta = eval_meta(&run->e, "recall");
    eval_source_meta(meta, &run->o->source, &run->text);
    json_object_set_new(meta, "passage", json_integer(run->o->passage));
    json_object_set_new(meta, "lead", json_integer(run->o->lead));
    table t;
    int code = 0;
    table_begin(&t, format, columns, COLUMNS, meta);
    for (size_t d = 0; d < run->o->distances.count && code == 0; d++)
        code = print_distance(&t, run, d);
    table_end(&t);
    eval_note(&run->e, format, "the repetitions.");
    return code;
}

/* ---- Set-up ---- */

/* Enough text for passages that do not overlap. */
static int make_room(recall_run *run)
{
    const size_t passage = (size_t)run->o->passage, distances = run->o->distances.count, most = longest(run);
    const size_t needed = most + (run->repeats - 1) * passage;
    if (run->text.tokens < needed)
        return tool_fail(DCM_ERR_FILE,
                         "the text has %zu tokens, but %zu passages with %zu tokens each around them take %zu: shorten "
                         "--distances or lower --repeat",
                         run->text.tokens, run->repeats, most - passage, needed);
    run->ids = malloc((1 + most + passage) * sizeof *run->ids);
    run->logprob = malloc(passage * sizeof *run->logprob);
    run->sums = calloc(distances * run->repeats, run->columns * sizeof *run->sums);
    run->cache = calloc(distances * run->policies, sizeof *run->cache);
    return run->ids && run->logprob && run->sums && run->cache
               ? 0
               : tool_fail(DCM_ERR_MEMORY, "no room for sequences of %zu tokens", most + passage);
}

static void close_run(recall_run *run)
{
    free(run->text.ids);
    free(run->ids);
    free(run->logprob);
    free(run->sums);
    free(run->cache);
    eval_close(&run->e);
}

static void add_options(args *a, recall_options *o)
{
    const arg_option options[] = {
        {"distances", 0, ARG_INTS, &o->distances, "D,D,...", "Tokens between the two copies.", 0, INT64_C(1) << 40},
        {"passage", 0, ARG_INT, &o->passage, "TOKENS", "Length of the passage.", 1, 65536},
        {"lead", 0, ARG_INT, &o->lead, "TOKENS", "Tokens of the text before the first copy.", 1, INT64_C(1) << 40},
        {"repeat", 0, ARG_INT, &o->repeat, "K", "Different passages, spread over the text.", 1, 100000},
        {"logprobs", 0, ARG_TEXT, &o->logprobs, "OUT.csv",
         "Write policy,distance,repeat,copy,index,token,logprob of every token of both copies."},
    };
    eval_add_model(a, &o->common);
    eval_add_source(a, &o->source);
    args_add(a, "Recall", options, sizeof options / sizeof *options);
    eval_add_options(a, &o->common);
}

int eval_recall(int argc, char **argv)
{
    recall_options o = {
        .common = EVAL_OPTIONS_DEFAULT, .distances = {{256, 512, 1024}, 3}, .passage = 64, .lead = 64, .repeat = 8};
    args a = {.usage = "-m MODEL (-f FILE | -p TEXT | -) [options]",
              .stdin_dash = true,
              .about = "Recall of a passage: a piece of the text is read whose end repeats a passage from before. "
                       "nll_first and nll_second are the mean negative log-probabilities of the passage's tokens, gain "
                       "is what the second copy is easier, gain_kept its share of the full cache's gain."};
    recall_run run = {.o = &o, .e.o = &o.common};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = eval_take_options(&run.e, &a);
    if (code == 0)
        code = eval_add_full(&run.e, &run.full);
    run.policies = run.e.policies.count;
    run.columns = FIRST_COLUMN + run.policies * EACH;
    run.repeats = (size_t)o.repeat;
    if (code == 0)
        code = eval_open_text(&run.e, &a, &o.source, &run.text);
    if (code == 0)
        code = make_room(&run);
    if (code == 0)
        code = read_all(&run);
    if (code == 0)
        code = print_rows(&run);
    close_run(&run);
    return code;
}
