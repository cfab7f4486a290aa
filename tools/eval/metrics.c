/* `dcm eval metrics`: how a cache's attention differs from the full one's, layer by layer. */
#include "eval.h"
#include "numbers.h"
#include "tool.h"

#include <math.h>
#include <stdlib.h>

/* Two of a session's units a token, at most 65536: dcm_cache_params.chunk. */
enum { TOKENS_MAX = 32768 };

typedef struct metrics_options {
    eval_options common;
    eval_source source;
    int64_t skip, queries;
} metrics_options;

typedef struct metrics_run {
    const metrics_options *o;
    eval e;
    eval_text text;
    dcm_attention_metrics *layer; /* (policies, layers) */
    eval_cache *cache;            /* (policies) */
} metrics_run;

static int check_layers(const metrics_run *run, size_t i, const dcm_session *session, const dcm_cache_params *params)
{
    const size_t layers = run->e.r.info.layers;
    for (size_t l = 0; l < layers; l++) {
        const dcm_attention_metrics *m = &run->layer[i * layers + l];
        if (!isfinite(m->il) || !isfinite(m->cosine) || !isfinite(m->js))
            return numbers_fail("layer", l, session, params);
    }
    return 0;
}

static int measure_policy(metrics_run *run, size_t i)
{
    const metrics_options *o = run->o;
    dcm_cache_params params = run->e.policies.item[i].params;
    dcm_session *session = NULL;
    params.chunk = (uint32_t)run->text.count * (params.kind == DCM_CACHE_DCM ? 2 : 1);
    dcm_status status = dcm_session_open(&session, run->e.r.model, &params);
    if (status == DCM_OK) {
        policies_settle_merge(&run->e.policies, &params, session);
        status = dcm_session_measure(session, run->text.ids, run->text.count, (size_t)o->skip, (size_t)o->queries,
                                     run->layer + i * run->e.r.info.layers);
    }
    int code = status == DCM_OK ? check_layers(run, i, session, &params) : tool_fail_library(status);
    if (code == 0)
        eval_cache_note(&run->cache[i], &params, session);
    dcm_session_close(&session);
    return code;
}

static int measure_all(metrics_run *run)
{
    const size_t policies = run->e.policies.count, layers = run->e.r.info.layers;
    progress line;
    int code = policies_resolve(&run->e.policies, run->text.count);
    run->layer = calloc(policies * layers, sizeof *run->layer);
    run->cache = calloc(policies, sizeof *run->cache);
    if (code == 0 && (!run->layer || !run->cache))
        code = tool_fail(DCM_ERR_MEMORY, "no room for the metrics of %zu policies", policies);
    tool_catch(true);
    progress_begin(&line, run->o->common.words.quiet, policies);
    for (size_t i = 0; i < policies && code == 0; i++) {
        code = measure_policy(run, i);
        progress_at(&line, i + 1);
        code = code ? code : tool_stopped();
    }
    progress_end(&line);
    tool_catch(false);
    return code;
}

/* ---- Rows ---- */

static const table_column columns[] = {{"policy", 0},   {"layer", 0}, {"units", 0},       {"c_m", 3},       {"b_kv", 0},
                                       {"kv_bytes", 0}, {"il", -5},   {"il_relative", 5}, {"cosine", 5},    {"js", 5},
                                       {"sdi", 5},      {"bsd", 4},   {"bsd_log", 4},     {"boundaries", 0}};
enum { COLUMNS = sizeof columns / sizeof *columns };

static void print_row(table *t, const metrics_run *run, size_t i, table_cell layer, const dcm_attention_metrics *m)
{
    const eval_cache *cache = &run->cache[i];
    const table_cell cells[COLUMNS] = {cell_text(cache->name),
                                       layer,
                                       cell_int((int64_t)cache->units),
                                       cell_real((double)run->text.count / (double)cache->units),
                                       cell_int((int64_t)(cache->bytes / cache->units)),
                                       cell_int((int64_t)cache->bytes),
                                       cell_real(m->il),
                                       cell_real(m->il / m->attention),
                                       cell_real(m->cosine),
                                       cell_real(m->js),
                                       cell_real(m->sdi),
                                       m->boundaries ? cell_real(m->bsd) : cell_none(),
                                       m->boundaries ? cell_real(m->bsd_log) : cell_none(),
                                       cell_int((int64_t)m->boundaries)};
    table_row(t, cells);
}

dcm_attention_metrics eval_mean_metrics(const dcm_attention_metrics *layer, size_t layers)
{
    dcm_attention_metrics mean = {0};
    for (size_t l = 0; l < layers; l++) {
        const dcm_attention_metrics *m = &layer[l];
        mean.il += m->il / (double)layers;
        mean.attention += m->attention / (double)layers;
        mean.cosine += m->cosine / (double)layers;
        mean.js += m->js / (double)layers;
        mean.sdi += m->sdi / (double)layers;
        mean.bsd += m->bsd * (double)m->boundaries;
        mean.bsd_log += m->bsd_log * (double)m->boundaries;
        mean.boundaries += m->boundaries;
    }
    mean.bsd /= mean.boundaries ? (double)mean.boundaries : 1;
    mean.bsd_log /= mean.boundaries ? (double)mean.boundaries : 1;
    return mean;
}

/* Every layer, then their mean. */
static void print_policy(table *t, const metrics_run *run, size_t i)
{
    const size_t layers = run->e.r.info.layers;
    const dcm_attention_metrics *layer = run->layer + i * layers, mean = eval_mean_metrics(layer, layers);
    for (size_t l = 0; l < layers; l++)
        print_row(t, run, i, cell_int((int64_t)l), &layer[l]);
    print_row(t, run, i, cell_text("mean"), &mean);
}

static void print_rows(const metrics_run *run)
{
    const table_format format = (table_format)run->o->common.format;
    const size_t left = run->text.count - (size_t)run->o->skip, asked = (size_t)run->o->queries;
    json_t *meta = runtime_meta(&run->e.r);
    json_object_set_new(meta, "test", json_string("metrics"));
    eval_source_meta(meta, &run->o->source, &run->text);
    json_object_set_new(meta, "skip", json_integer(run->o->skip));
    json_object_set_new(meta, "queries", json_integer((json_int_t)(asked && asked < left ? asked : left)));
    table t;
    table_begin(&t, format, columns, COLUMNS, meta);
    for (size_t i = 0; i < run->e.policies.count; i++)
        print_policy(&t, run, i);
    table_end(&t);
    table_note(format,
               "The queries are those of the policy's own pass, put to its units and to the keys and values of all "
               "tokens before as that pass made them; means over queries and heads. il: |out - full|^2; il_relative: "
               "its mean by that of |full|^2; js: of the weights, on blocks: the full ones summed over each unit's "
               "tokens, and over all that no unit stands for; sdi = (1 - cosine) / 2 + js / 2; bsd: |older / newer - "
               "1| of the weights on both sides of a boundary of levels, sinks left out; bsd_log: |ln(older / newer)|; "
               "c_m: tokens by units; b_kv: bytes of a unit.");
}

/* ---- Set-up ---- */

static int check_text(const metrics_run *run)
{
    if (run->text.count > TOKENS_MAX)
        return tool_fail(DCM_ERR_USAGE, "%zu tokens, of which at most %d can be measured: choose --tokens",
                         run->text.count, TOKENS_MAX);
    if (run->text.count <= (size_t)run->o->skip)
        return tool_fail(DCM_ERR_FILE, "nothing to measure: %zu tokens, --skip %lld", run->text.count,
                         (long long)run->o->skip);
    return 0;
}

static void close_run(metrics_run *run)
{
    free(run->text.ids);
    free(run->layer);
    free(run->cache);
    eval_close(&run->e);
}

static void add_options(args *a, metrics_options *o)
{
    const arg_option options[] = {
        {"skip", 0, ARG_INT, &o->skip, "K", "No query of the first K tokens.", 0, TOKENS_MAX},
        {"queries", 0, ARG_INT, &o->queries, "N", "Queries spread evenly over the other tokens; 0: each one.", 0,
         TOKENS_MAX},
    };
    eval_add_model(a, &o->common);
    eval_add_source(a, &o->source);
    args_add(a, "Metrics", options, sizeof options / sizeof *options);
    eval_add_plain_options(a, &o->common);
}

int eval_metrics(int argc, char **argv)
{
    metrics_options o = {.common = EVAL_OPTIONS_DEFAULT, .queries = 64};
    args a = {.usage = "-m MODEL (-f FILE | -p TEXT | -) [options]",
              .stdin_dash = true,
              .about = "How far a cache's attention is from the full one's, layer by layer: L_IL, SDI, BSD, and what "
                       "a unit takes. The text is read in one step."};
    metrics_run run = {.o = &o, .e.o = &o.common};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = eval_take_options(&run.e, &a);
    if (code == 0 && args_seen(&a, "chunk"))
        code = tool_fail(DCM_ERR_USAGE, "--chunk has no effect: the text is read in one step");
    if (code == 0)
        code = eval_open_text(&run.e, &a, &o.source, &run.text);
    if (code == 0)
        code = check_text(&run);
    if (code == 0)
        code = measure_all(&run);
    if (code == 0)
        print_rows(&run);
    close_run(&run);
    return code;
}
