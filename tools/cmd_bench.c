#include "bench.h"
#include "input.h"
#include "output.h"
#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 1, TOKENS_MAX = 1 << 30, REPETITIONS_MAX = 1000 };

typedef struct bench_options {
    const char *model, *caches, *merge, *steps, *plot, *compare;
    arg_ints prompts, tokens, depths, groups;
    int64_t sinks, window, chunk, repetitions, warmup, seed;
    double log_r;
    int kv, weights, format;
    bool table4, breakdown, fill;
    device_options device;
    verbosity_options words;
} bench_options;

static void add_options(args *a, bench_options *o)
{
    const arg_option what[] = {
        {"model", 'm', ARG_TEXT, &o->model, "FILE|NAME|shape:NAME",
         "A GGUF file, a model's short name, or random weights of a shape: shape:smollm2-135m, shape:llama-1b, "
         "shape:llama-8b or shape:layers=N,hidden=N,heads=N,kv=N,ffn=N,vocab=N (then tied=0 for an output matrix of "
         "its own).",
         .required = true},
        {"weights", 0, ARG_CHOICE, &o->weights, .choices = "f16|q8_0|q4_1",
         .help = "How a shape's weights are stored."},
        {"prompt", 'p', ARG_INTS, &o->prompts, "N[,N...]", "Prompt lengths, a test ppN each; 0: none.", 0, TOKENS_MAX},
        {"tokens", 'n', ARG_INTS, &o->tokens, "N[,N...]", "Tokens to decode one by one, a test tgN each; 0: none.", 0,
         TOKENS_MAX},
        {"depth", 'd', ARG_INTS, &o->depths, "N[,N...]",
         "Tokens in the cache before the test; one prompt serves all depths, in rising order.", 0, TOKENS_MAX,
         .show_zero = true},
        {"fill", 0, ARG_FLAG, &o->fill,
         .help = "Put the cache straight into the state of the depth, with random units, without reading up to it."},
        {"repetitions", 'r', ARG_INT, &o->repetitions, "N", "Repetitions, each from an empty cache.", 1,
         REPETITIONS_MAX},
        {"warmup", 0, ARG_INT, &o->warmup, "N", "Prompt tokens read before anything is timed; 0: no warm-up.", 0,
         TOKENS_MAX},
        {"seed", 0, ARG_INT, &o->seed, "N", "Of the pseudo-random token ids that are fed.", 0, INT64_MAX},
    };
    const arg_option cache[] = {
        {"cache", 0, ARG_TEXT, &o->caches, "dcm|full|window[,...]", "Policies, one after the other."},
        {"group", 'L', ARG_INTS, &o->groups, "N[,N...]", "dcm: group lengths, powers of two.", DCM_GROUP_MIN,
         DCM_GROUP_MAX, .power_of_two = true},
        {"sinks", 0, ARG_INT, &o->sinks, "S", "dcm, window: first tokens that are never merged nor evicted.", 0, 65536},
        {"merge", 0, ARG_TEXT, &o->merge, "FILE|mean|newer|auto", "dcm: how two units become one."},
        {"window", 0, ARG_INT, &o->window, "W",
         "window: units in all; without it as many as dcm with the first of the group lengths has at the end of the "
         "deepest test.",
         1, UINT32_MAX},
        {"log-r", 0, ARG_REAL, &o->log_r, "X", "dcm: weight of the logarithm of a unit's tokens in its score.", -100,
         100, .show_zero = true},
        options_kv(&o->kv),
        {"chunk", 0, ARG_INT, &o->chunk, "N",
         "Most tokens read in one step of a prompt; without it what suits the device.", 1, 65536},
    };
    const arg_option result[] = {
        table_format_option(&o->format),
        {"steps-out", 0, ARG_TEXT, &o->steps, "FILE.jsonl",
         "Write one line a decoded token: token, ns, units after it, action of the cache."},
        {"table4", 0, ARG_FLAG, &o->table4,
         .help = "Make the paper's table instead: uncompressed, L = 512 and L = 256 after 100,000 tokens (or the one "
                 "--depth), filled at once, with its figures beside."},
        {"breakdown", 0, ARG_FLAG, &o->breakdown,
         .help = "Add a table of the time a token by kernel, from a pass of its own after each test, and of what is "
                 "left of the step beside them."},
        {"plot", 0, ARG_TEXT, &o->plot, "FILE.svg",
         "Draw step time against context: p50 and p99 of every depth, one pair of lines a policy."},
        {"compare", 0, ARG_TEXT, &o->compare, "OLD.json",
         "Add ratios to an earlier run's result (--format json): this run's figures over the old ones."},
    };
    args_add(a, "Tests", what, sizeof what / sizeof *what);
    args_add(a, "Cache", cache, sizeof cache / sizeof *cache);
    args_add(a, "Result", result, sizeof result / sizeof *result);
    options_add_device(a, &o->device);
    options_add_strict(a, &o->device);
    options_add_verbosity(a, &o->words);
}

/* ---- Policies ---- */

static bool has_kind(const policy_list *list, dcm_cache_kind kind)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->item[i].params.kind == kind)
            return true;
    return false;
}

static int64_t largest(const arg_ints *list)
{
    int64_t most = 0;
    for (size_t i = 0; i < list->count; i++)
        most = list->item[i] > most ? list->item[i] : most;
    return most;
}

/* Every group length is a policy of its own. */
static int add_policies(policy_list *list, const bench_options *o, dcm_cache_kind kind)
{
    const size_t count = kind == DCM_CACHE_DCM ? o->groups.count : 1;
    for (size_t i = 0; i < count; i++) {
        if (list->count == POLICIES_MAX)
            return tool_fail(DCM_ERR_USAGE, "--cache: more than %d policies", POLICIES_MAX);
        dcm_cache_params *p = &list->item[list->count++].params;
        *p = (dcm_cache_params){.kind = kind, .kv = (dcm_kv_type)o->kv, .chunk = (uint32_t)o->chunk};
        if (kind != DCM_CACHE_FULL)
            p->sinks = o->sinks ? (int32_t)o->sinks : -1;
        if (kind == DCM_CACHE_DCM) {
            p->group = (uint32_t)o->groups.item[i];
            p->log_r = (float)o->log_r;
            p->merge = strcmp(o->merge, "auto") == 0 ? NULL : o->merge;
        } else if (kind == DCM_CACHE_WINDOW) {
            const int64_t size =
                largest(&o->prompts) > largest(&o->tokens) ? largest(&o->prompts) : largest(&o->tokens);
            const uint64_t n = (uint64_t)(largest(&o->depths) + size);
            p->window = o->window ? (uint32_t)o->window
                                  : (uint32_t)dcm_units_after((uint32_t)o->groups.item[0], (uint32_t)o->sinks, n);
            if (p->window <= o->sinks)
                return tool_fail(DCM_ERR_USAGE, "--window: %u units must exceed the %lld sinks", p->window,
                                 (long long)o->sinks);
        }
    }
    return 0;
}

static int take_policies(const args *a, const bench_options *o, policy_list *list)
{
    static const char kinds[] = "dcm|full|window";
    for (const char *at = o->caches;;) {
        char name[16];
        const size_t size = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)size, at);
        const int kind = size < sizeof name ? args_choice(kinds, name) : -1;
        if (kind < 0)
            return tool_fail(DCM_ERR_USAGE, "--cache: \"%.*s\" is none of %s", (int)size, at, kinds);
        if (has_kind(list, (dcm_cache_kind)kind))
            return tool_fail(DCM_ERR_USAGE, "--cache: %s is named twice", name);
        const int code = add_policies(list, o, (dcm_cache_kind)kind);
        if (code)
            return code;
        if (!at[size])
            break;
        at += size + 1;
    }
    const bool dcm = has_kind(list, DCM_CACHE_DCM), window = has_kind(list, DCM_CACHE_WINDOW);
    const struct {
        const char *option;
        bool has_effect;
    } effects[] = {{"group", dcm || (window && !o->window)},
                   {"sinks", dcm || window},
                   {"merge", dcm},
                   {"window", window},
                   {"log-r", dcm}};
    for (size_t i = 0; i < sizeof effects / sizeof *effects; i++)
        if (args_seen(a, effects[i].option) && !effects[i].has_effect)
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --cache %s: leave one of them out",
                             effects[i].option, o->caches);
    return 0;
}

/* ---- Cases ---- */

static int compare_int(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Rising, each value once. */
static void sort_unique(arg_ints *list)
{
    size_t n = 0;
    qsort(list->item, list->count, sizeof *list->item, compare_int);
    for (size_t i = 0; i < list->count; i++)
        if (!n || list->item[n - 1] != list->item[i])
            list->item[n++] = list->item[i];
    list->count = n;
}

static bool make_case(bench_case *c, const policy *one, bool decode, int64_t size, int64_t depth, uint32_t repetitions)
{
    *c = (bench_case){.policy = one, .decode = decode, .size = (uint64_t)size, .depth = (uint64_t)depth};
    const int used = snprintf(c->test, sizeof c->test, "%s%" PRId64, decode ? "tg" : "pp", size);
    if (depth)
        snprintf(c->test + used, sizeof c->test - (size_t)used, " @ d%" PRId64, depth);
    policy_text(&one->params, "auto", c->name, sizeof c->name);
    c->rate = calloc(repetitions, sizeof *c->rate);
    c->prefill_rate = calloc(repetitions, sizeof *c->prefill_rate);
    c->step = decode ? calloc((size_t)size * repetitions, sizeof *c->step) : NULL;
    return c->rate && c->prefill_rate && (c->step || !decode);
}

static int make_cases(bench *b, const bench_options *o)
{
    size_t tests = 0;
    for (size_t i = 0; i < o->prompts.count; i++)
        tests += o->prompts.item[i] > 0;
    for (size_t i = 0; i < o->tokens.count; i++)
        tests += o->tokens.item[i] > 0;
    if (!tests)
        return tool_fail(DCM_ERR_USAGE, "nothing to measure: --prompt and --tokens are both 0");
    b->depths = o->depths.count;
    b->per_policy = tests * b->depths;
    b->cases = calloc(b->policies.count * b->per_policy, sizeof *b->cases);
    bool made = b->cases != NULL;
    for (size_t i = 0; made && i < b->policies.count; i++)
        for (int decode = 0; decode < 2; decode++) {
            const arg_ints *sizes = decode ? &o->tokens : &o->prompts;
            for (size_t k = 0; k < sizes->count; k++)
                for (size_t d = 0; made && sizes->item[k] && d < b->depths; d++)
                    made = make_case(&b->cases[b->count++], &b->policies.item[i], decode, sizes->item[k],
                                     o->depths.item[d], b->repetitions);
        }
    return made ? 0 : tool_fail(DCM_ERR_MEMORY, "no room on the host to keep the time of every step");
}

static void release(bench *b)
{
    for (size_t i = 0; i < b->count; i++) {
        free(b->cases[i].rate);
        free(b->cases[i].prefill_rate);
        free(b->cases[i].step);
        free(b->cases[i].profile);
    }
    free(b->cases);
    free(b->logits);
    policies_release(&b->policies);
    energy_close(&b->meter);
    runtime_close(&b->r);
}

/* ---- Set-up ---- */

/* What the model will take, into `shape` too, with what else must be known of one that is not opened. */
static size_t weight_bytes(const bench_options *o, dcm_model_info *shape)
{
    if (bench_is_shape(o->model)) {
        shape->weight_bytes = bench_shape_weight_bytes(shape, (dcm_weights)o->weights);
        shape->head_dim = shape->hidden / shape->heads;
    }
    return shape->weight_bytes;
}

/* Device and model; the bandwidth is measured between, on a device that is still empty. */
static int open_model(bench *b, const bench_options *o)
{
    char path[4096];
    dcm_model_info shape;
    const bool synthetic = bench_is_shape(o->model);
    int code = synthetic ? bench_shape_read(o->model, &shape) : input_model_path(o->model, path, sizeof path);
    if (code)
        return code;
    dcm_status status = synthetic ? DCM_OK : dcm_model_info_read(path, &shape);
    if (status != DCM_OK)
        return tool_fail_library(status);
    code = options_open_device(&o->device, &b->r.device);
    if (code)
        return code;
    bench_meter_open(b);
    b->memory_limit = options_memory_limit(&o->device, b->r.device);
    if (o->table4 && b->memory_limit && weight_bytes(o, &shape) > b->memory_limit) {
        b->r.info = shape;
        bench_refuse_all(b);
        return 0;
    }
    status = dcm_device_read_speed(b->r.device, 0, &b->read_start);
    if (status == DCM_OK)
        status = dcm_device_launch_time(b->r.device, &b->launch_us, &b->round_trip_us);
    if (status == DCM_OK)
        status = synthetic ? dcm_model_synthetic(&b->r.model, b->r.device, &shape, (dcm_weights)o->weights)
                           : dcm_model_open(&b->r.model, b->r.device, path);
    if (status != DCM_OK)
        return tool_fail_library(status);
    dcm_model_get_info(b->r.model, &b->r.info);
    b->logits = malloc(b->r.info.vocab * sizeof *b->logits);
    return b->logits ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for %u logits", b->r.info.vocab);
}

static json_t *meta_of(const bench *b, const bench_options *o)
{
    const dcm_model_info *m = &b->r.info;
    json_t *meta = runtime_meta(&b->r);
    json_t *own =
        json_pack("{s:b,s:b,s:s*,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "filled", b->fill, "synthetic",
                  bench_is_shape(o->model), "weights",
                  bench_is_shape(o->model) ? (const char *[]){"f16", "q8_0", "q4_1"}[o->weights] : NULL, "layers",
                  (json_int_t)m->layers, "hidden", (json_int_t)m->hidden, "heads", (json_int_t)m->heads, "kv_heads",
                  (json_int_t)m->kv_heads, "ffn", (json_int_t)m->ffn, "vocab", (json_int_t)m->vocab, "weight_bytes",
                  (json_int_t)m->weight_bytes, "step_weight_bytes", (json_int_t)m->step_bytes, "warmup",
                  (json_int_t)b->warmup, "seed", (json_int_t)b->seed, "repetitions", (json_int_t)b->repetitions,
                  "read_gb_s_start", b->read_start > 0 ? json_real(b->read_start) : json_null(), "read_gb_s_end",
                  b->read_end > 0 ? json_real(b->read_end) : json_null());
    json_object_update(meta, own);
    json_decref(own);
    own = bench_meter_meta(b);
    json_object_update(meta, own);
    json_decref(own);
    return meta;
}

/* Ratios mean little across devices or models. */
static void warn_of_difference(const bench_options *o, const json_t *old, const json_t *now)
{
    static const char *const names[] = {"device", "model_digest", "warmup", "seed"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !o->words.quiet; i++)
        if (!json_equal(json_object_get(old, names[i]), json_object_get(now, names[i])))
            fprintf(stderr, "%s: %s has another %s: the ratios compare different things\n", tool_name(), o->compare,
                    names[i]);
}

/* Nothing measured because nothing fitted: 5. */
static int result_code(const bench *b)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->cases[i].state != BENCH_NO_MEMORY)
            return 0;
    return DCM_ERR_MEMORY;
}

typedef struct bench_files {
    output_file steps, plot;
} bench_files;

/* Those asked for: before the work, so that it is not in vain. */
static int open_files(bench_files *files, const bench_options *o)
{
    int code = o->steps ? output_open(&files->steps, o->steps) : 0;
    if (code == 0 && o->plot)
        code = output_open(&files->plot, o->plot);
    return code;
}

static int run(bench *b, const bench_options *o, bench_files *files, const json_t *old)
{
    int code = open_model(b, o);
    if (code)
        return code;
    if (b->r.model)
        code = bench_run(b);
    bench_judge(b);
    json_t *meta = meta_of(b, o);
    if (old)
        warn_of_difference(o, old, meta);
    if (o->breakdown && o->format == FORMAT_JSON)
        json_object_set_new(meta, "breakdown", bench_breakdown(b));
    if (o->table4)
        bench_print_table4(b, (table_format)o->format, meta);
    else
        bench_print(b, (table_format)o->format, meta, old ? json_object_get(old, "rows") : NULL);
    if (o->breakdown && o->format != FORMAT_JSON)
        bench_print_breakdown(b, (table_format)o->format);
    if (files->steps.out)
        bench_write_steps(b, files->steps.out);
    if (files->plot.out)
        bench_plot(b, files->plot.out);
    const int steps = output_close(&files->steps, true), plot = output_close(&files->plot, true);
    return code ? code : steps ? steps : plot ? plot : result_code(b);
}

/* The depth that is asked for is that of the last token. */
static int set_table4(const args *a, bench_options *o)
{
    const int code = bench_table4_check(a);
    const int64_t size = o->tokens.item[0], n = args_seen(a, "depth") ? o->depths.item[0] : BENCH_TABLE4_TOKENS;
    if (code)
        return code;
    if (o->tokens.count > 1 || o->depths.count > 1 || !size || n <= size)
        return tool_fail(DCM_ERR_USAGE, "--table4: one --tokens, and one --depth above it");
    o->caches = "full,dcm";
    o->groups = (arg_ints){{512, 256}, 2};
    o->prompts = (arg_ints){{0}, 1};
    o->depths = (arg_ints){{n - size}, 1};
    o->sinks = args_seen(a, "sinks") ? o->sinks : 0; /* the paper has none */
    o->fill = true;
    return 0;
}

static int check(const args *a, bench_options *o, bench *b)
{
    const int table4 = o->table4 ? set_table4(a, o) : 0;
    if (table4)
        return table4;
    if (args_seen(a, "weights") && !bench_is_shape(o->model))
        return tool_fail(DCM_ERR_USAGE, "--weights has no effect with a model's file: its weights are as they are");
    if (o->fill && !largest(&o->depths))
        return tool_fail(DCM_ERR_USAGE, "--fill has no effect without a depth: set --depth");
    if (o->plot && !largest(&o->tokens))
        return tool_fail(DCM_ERR_USAGE, "--plot has no effect without tests of decoding: set --tokens");
    sort_unique(&o->depths);
    *b = (bench){.repetitions = (uint32_t)o->repetitions,
                 .warmup = (uint64_t)o->warmup,
                 .seed = (uint64_t)o->seed,
                 .quiet = o->words.quiet,
                 .breakdown = o->breakdown,
                 .fill = o->fill};
    int code = options_apply_verbosity(&o->words);
    if (code == 0)
        code = take_policies(a, o, &b->policies);
    return code ? code : make_cases(b, o);
}

int cmd_bench(int argc, char **argv)
{
    bench_options o = {.caches = "dcm",
                       .merge = "auto",
                       .prompts = {{512}, 1},
                       .tokens = {{128}, 1},
                       .depths = {{0}, 1},
                       .groups = {{256}, 1},
                       .sinks = 4,
                       .repetitions = 3,
                       .warmup = 512,
                       .seed = SEED};
    args a = {.usage = "-m FILE|NAME|shape:NAME [options]",
              .about = "Measure: ppN reads a prompt of N tokens, tgN decodes N tokens one by one, each \"@ dD\" with D "
                       "tokens in the cache\nalready. Times are of the model alone: no tokenizer, no sampling; the "
                       "tokens fed are pseudo-random. p50, p90, p99\nand max are times of one decoded token, for ppN "
                       "of the whole prompt. step_bytes is what one token must read (weights,\nand units times bytes a "
                       "unit), gb_s that over p50, share that over the read bandwidth measured in the same run."};
    bench b = {0};
    bench_files files = {0};
    json_t *old = NULL;
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = check(&a, &o, &b);
    if (code == 0 && o.compare)
        code = bench_read_old(o.compare, &old);
    if (code == 0)
        code = open_files(&files, &o);
    if (code == 0)
        code = run(&b, &o, &files, old);
    output_close(&files.steps, false);
    output_close(&files.plot, false);
    json_decref(old);
    release(&b);
    return code;
}
