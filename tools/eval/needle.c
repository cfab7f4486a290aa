/* `dcm eval needle`: a sentence hidden in a text, asked for at its end, at every depth and length of a grid. */
#include "needle.h"

#include "output.h"
#include "score.h"
#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct needle_options {
    eval_options common;
    eval_source source;
    const char *answers;
    arg_ints lengths, depths;
    int64_t candidates, repeat;
} needle_options;

/* Columns of the sums of a repetition, for every policy: answered right, log-probability of the value less the mean of
 * the others', log-probability of the value among the candidates. One stratum a cell of the grid. */
enum { RIGHT, MARGIN, LOGPROB, EACH };

typedef struct needle_run {
    const needle_options *o;
    eval e;
    eval_text text;
    needle_parts parts;
    size_t policies, columns, repeats, cells; /* cells: of the grid, lengths times depths */
    int32_t *ids;                             /* of a sequence */
    double *sums;                             /* (cells, repeats, columns) */
    eval_cache *cache;                        /* (cells, policies) */
    output_file csv;
    progress line;
    uint64_t done;
} needle_run;

/* ---- The run ---- */

static int64_t length_of(const needle_run *run, size_t cell)
{
    return run->o->lengths.item[cell / run->o->depths.count];
}

static int64_t depth_of(const needle_run *run, size_t cell) { return run->o->depths.item[cell % run->o->depths.count]; }

static int64_t most_of(const arg_ints *list)
{
    int64_t most = 0;
    for (size_t i = 0; i < list->count; i++)
        most = list->item[i] > most ? list->item[i] : most;
    return most;
}

static size_t bos_of(const needle_run *run) { return run->text.count > run->text.tokens; }

/* Tokens of the sequence that are none of the text's. */
static size_t beside(const needle_run *run)
{
    return bos_of(run) + needle_size(&run->parts, false) + needle_size(&run->parts, true);
}

/* The repetition's part of the text. */
static const int32_t *filler_of(const needle_run *run, size_t repeat)
{
    const size_t spare = run->text.tokens - ((size_t)most_of(&run->o->lengths) - beside(run));
    return run->text.ids + bos_of(run) + (run->repeats > 1 ? spare * repeat / (run->repeats - 1) : 0);
}

/* Filler with the needle behind `depth` percent of it, and the question. */
static void make_sequence(const needle_run *run, size_t cell, size_t repeat, const needle *n)
{
    const size_t filler = (size_t)length_of(run, cell) - beside(run);
    const size_t before = filler * (size_t)depth_of(run, cell) / 100;
    const int32_t *from = filler_of(run, repeat);
    size_t at = bos_of(run);
    run->ids[0] = run->text.ids[0];
    memcpy(run->ids + at, from, before * sizeof *from);
    at += before;
    at += needle_append(&run->parts, n, false, run->ids + at);
    memcpy(run->ids + at, from + before, (filler - before) * sizeof *from);
    at += filler - before;
    needle_append(&run->parts, n, true, run->ids + at);
}

static void score(const needle_run *run, const float *logits, const needle *n, const char *about, double *own)
{
    const size_t candidates = (size_t)run->o->candidates;
    const double sum = score_log_sum(logits, run->e.r.info.vocab), value = logits[n->candidate[0]];
    double others = 0, most = -INFINITY, among = 0;
    for (size_t i = 0; i < candidates; i++) {
        const double logit = logits[n->candidate[i]];
        among += exp(logit - value);
        others += i ? logit : 0;
        most = i ? fmax(most, logit) : most;
        if (run->csv.out)
            fprintf(run->csv.out, "%s,%zu,%d,%.9g\n", about, i, n->candidate[i], logit - sum);
    }
    own[RIGHT] = value > most;
    own[MARGIN] = value - others / (double)(candidates - 1);
    own[LOGPROB] = -log(among);
}

static int read_sequence(needle_run *run, size_t cell, size_t repeat, const needle *n, size_t i)
{
    const dcm_cache_params *params = &run->e.policies.item[i].params;
    eval_cache *cache = &run->cache[cell * run->policies + i];
    eval_sequence s = {.ids = run->ids, .count = (size_t)length_of(run, cell), .line = &run->line, .done = &run->done};
    char about[POLICY_TEXT + 96];
    int code = eval_sequence_open(&s, &run->e, i);
    if (code == 0)
        code = eval_sequence_end(&s);
    if (code == 0) {
        eval_cache_note(cache, params, s.session);
        snprintf(about, sizeof about, "%s,%" PRId64 ",%" PRId64 ",%zu,%d", cache->name, length_of(run, cell),
                 depth_of(run, cell), repeat, n->key);
        score(run, s.logits, n, about, run->sums + (cell * run->repeats + repeat) * run->columns + i * EACH);
    }
    eval_sequence_close(&s);
    return code;
}

/* The same part of the text for all cells, and a needle for each. */
static int read_repetition(needle_run *run, size_t repeat, eval_random *random)
{
    const size_t most = (size_t)most_of(&run->o->lengths) - beside(run);
    int code = 0;
    for (size_t cell = 0; cell < run->cells && code == 0; cell++) {
        needle n;
        code = needle_draw(&n, (size_t)run->o->candidates, &run->e, &run->parts, filler_of(run, repeat), most, random);
        if (code == 0)
            code = policies_resolve(&run->e.policies, (uint64_t)length_of(run, cell));
        if (code == 0)
            make_sequence(run, cell, repeat, &n);
        for (size_t i = 0; i < run->policies && code == 0; i++)
            code = read_sequence(run, cell, repeat, &n, i);
    }
    return code;
}

static int read_all(needle_run *run)
{
    eval_random random = random_begin((uint64_t)run->o->common.intervals.seed);
    uint64_t total = 0;
    int code = 0;
    for (size_t cell = 0; cell < run->cells; cell++)
        total += (uint64_t)length_of(run, cell) * run->policies * run->repeats;
    tool_catch(true);
    if (run->o->answers)
        code = output_open(&run->csv, run->o->answers);
    if (run->csv.out)
        fputs("policy,length,depth,repeat,key,candidate,token,logprob\n", run->csv.out);
    progress_begin(&run->line, run->o->common.words.quiet, total);
    for (size_t repeat = 0; repeat < run->repeats && code == 0; repeat++)
        code = read_repetition(run, repeat, &random);
    progress_end(&run->line);
    const int closed = output_close(&run->csv, code == 0);
    tool_catch(false);
    return code ? code : closed;
}

/* ---- Results ---- */

/* Means of all columns but the last, which counts the trials. */
static void statistic(const void *context, const double *sums, double *out)
{
    (void)context;
    for (size_t i = 0; i < EACH; i++)
        out[i] = sums[i] / sums[EACH];
}

static const table_column columns[] = {
    {"policy", 0},      {"length", 0},   {"depth", 0},        {"units", 0},         {"kv_bytes", 0}, {"trials", 0},
    {"chance", 4},      {"accuracy", 4}, {"accuracy_low", 4}, {"accuracy_high", 4}, {"margin", 4},   {"margin_low", 4},
    {"margin_high", 4}, {"logprob", 4},  {"logprob_low", 4},  {"logprob_high", 4}};
enum { COLUMNS = sizeof columns / sizeof *columns };

/* A policy's row of `cells` cells from `first` on: one, or the whole grid. Its repetitions are drawn with all cells. */
static int print_row(table *t, const needle_run *run, size_t policy, size_t first, size_t cells)
{
    const bootstrap_options *o = &run->o->common.intervals;
    double *sums = calloc(run->repeats, (EACH + 1) * sizeof *sums), total[EACH + 1], value[EACH];
    const bootstrap_stratum stratum = {sums, run->repeats};
    bootstrap_interval interval[EACH];
    eval_cache cache = {0};
    int code = sums ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for the results of %zu needles", run->repeats);
    for (size_t i = first; i < first + cells && code == 0; i++) {
        for (size_t repeat = 0; repeat < run->repeats; repeat++) {
            const double *own = run->sums + (i * run->repeats + repeat) * run->columns + policy * EACH;
            for (size_t c = 0; c < EACH; c++)
                sums[repeat * (EACH + 1) + c] += own[c];
            sums[repeat * (EACH + 1) + EACH]++;
        }
        eval_cache_join(&cache, &run->cache[i * run->policies + policy]);
    }
    if (code == 0) {
        bootstrap_total(&stratum, EACH + 1, total);
        statistic(NULL, total, value);
        code = bootstrap(o, &stratum, 1, EACH + 1, statistic, NULL, EACH, interval);
    }
    free(sums);
    if (code)
        return code;
    interval[RIGHT] = interval_of_share(o->percent, total[RIGHT], total[EACH]);
    table_cell row[COLUMNS] = {cell_text(cache.name),
                               cells == 1 ? cell_int(length_of(run, first)) : cell_none(),
                               cells == 1 ? cell_int(depth_of(run, first)) : cell_none(),
                               eval_cache_units(&cache),
                               eval_cache_bytes(&cache),
                               cell_int((int64_t)total[EACH]),
                               cell_real(1 / (double)run->o->candidates)};
    for (size_t c = 0; c < EACH; c++)
        eval_cells(row + COLUMNS - 3 * (EACH - c), value[c], interval[c]);
    table_row(t, row);
    return 0;
}

static int print_rows(const needle_run *run)
{
    const table_format format = (table_format)run->o->common.format;
    json_t *meta = eval_meta(&run->e, "needle");
    eval_source_meta(meta, &run->o->source, &run->text);
    json_object_set_new(meta, "candidates", json_integer(run->o->candidates));
    table t;
    int code = 0;
    table_begin(&t, format, columns, COLUMNS, meta);
    for (size_t cell = 0; cell < run->cells && code == 0; cell++)
        for (size_t i = 0; i < run->policies && code == 0; i++)
            code = print_row(&t, run, i, cell, 1);
    for (size_t i = 0; i < run->policies && code == 0 && run->cells > 1; i++)
        code = print_row(&t, run, i, 0, run->cells);
    table_end(&t);
    eval_note(&run->e, format,
              "the repetitions; accuracy's are Wilson's. A row without length and depth is of the whole grid.");
    return code;
}

/* ---- Set-up ---- */

static int make_room(needle_run *run)
{
    const size_t most = (size_t)most_of(&run->o->lengths);
    for (size_t i = 0; i < run->o->lengths.count; i++)
        if ((size_t)run->o->lengths.item[i] < beside(run))
            return tool_fail(DCM_ERR_USAGE,
                             "--lengths: %" PRId64 " tokens have no room for the needle and the question, "
                             "which take %zu",
                             run->o->lengths.item[i], beside(run));
    if (run->text.tokens < most - beside(run))
        return tool_fail(DCM_ERR_FILE, "the text has %zu tokens, not the %zu that fill the longest of --lengths",
                         run->text.tokens, most - beside(run));
    run->ids = malloc(most * sizeof *run->ids);
    run->sums = calloc(run->cells * run->repeats, run->columns * sizeof *run->sums);
    run->cache = calloc(run->cells * run->policies, sizeof *run->cache);
    return run->ids && run->sums && run->cache
               ? 0
               : tool_fail(DCM_ERR_MEMORY, "no room for %zu repetitions of %zu tokens", run->repeats, most);
}

static void close_run(needle_run *run)
{
    needle_parts_release(&run->parts);
    free(run->text.ids);
    free(run->ids);
    free(run->sums);
    free(run->cache);
    eval_close(&run->e);
}

static void add_options(args *a, needle_options *o)
{
    const arg_option options[] = {
        {"lengths", 0, ARG_INTS, &o->lengths, "N,N,...", "Tokens of the whole, needle and question included.", 1,
         INT64_C(1) << 40},
        {"depths", 0, ARG_INTS, &o->depths, "P,P,...", "Percents of the text before the needle.", 0, 100},
        {"candidates", 0, ARG_INT, &o->candidates, "N", "Words to choose from, the right one and distractors.", 2,
         NEEDLE_CANDIDATES_MAX},
        {"repeat", 0, ARG_INT, &o->repeat, "K", "Needles, each in another part of the text.", 1, 100000},
        {"answers", 0, ARG_TEXT, &o->answers, "OUT.csv",
         "Write policy,length,depth,repeat,key,candidate,token,logprob of every candidate; 0 is the right one."},
    };
    eval_add_model(a, &o->common);
    eval_add_source(a, &o->source);
    args_add(a, "Needle", options, sizeof options / sizeof *options);
    eval_add_options(a, &o->common);
}

static int evaluate(needle_run *run)
{
    int code = needle_parts_make(&run->parts, run->e.r.tokenizer);
    if (code == 0)
        code = make_room(run);
    if (code == 0)
        code = read_all(run);
    return code ? code : print_rows(run);
}

int eval_needle(int argc, char **argv)
{
    needle_options o = {.common = EVAL_OPTIONS_DEFAULT,
                        .lengths = {{512, 1024, 2048}, 3},
                        .depths = {{0, 25, 50, 75, 100}, 5},
                        .candidates = 16,
                        .repeat = 8};
    args a = {.usage = "-m MODEL (-f FILE | -p TEXT | -) [options]",
              .stdin_dash = true,
              .about = "A needle in a text: \"The secret word of KEY is VALUE.\" stands at a depth of it, and \"The "
                       "secret word of KEY is\" at its end. The answer is right where VALUE is more probable than each "
                       "of the other candidates, all words of one token that the text has not. margin is its "
                       "log-probability less the mean of the others', logprob that among the candidates alone. No "
                       "answer in words is needed, so that small models can be measured."};
    needle_run run = {.o = &o, .e.o = &o.common};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = eval_take_options(&run.e, &a);
    run.policies = run.e.policies.count;
    run.columns = run.policies * EACH;
    run.repeats = (size_t)o.repeat;
    run.cells = o.lengths.count * o.depths.count;
    if (code == 0)
        code = eval_open_text(&run.e, &a, &o.source, &run.text);
    if (code == 0)
        code = evaluate(&run);
    close_run(&run);
    return code;
}
