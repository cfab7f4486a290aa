/* What `dcm bench` is asked for: its options, and the policies and tests that they name. */
#include "bench.h"
#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 1 << 30, REPETITIONS_MAX = 1000 };

void bench_add_options(args *a, bench_options *o)
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
         1, 1 << 28},
        options_log_r(&o->log_r),
        options_far_limit(&o->far_limit),
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
                 "left of the step beside them; in csv behind an empty line, in jsonl lines of their own."},
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
static int add_policies(const args *a, policy_list *list, const bench_options *o, dcm_cache_kind kind)
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
            p->far_limit = options_far_limit_param(a, o->far_limit);
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
        const int code = add_policies(a, list, o, (dcm_cache_kind)kind);
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
                   {"log-r", dcm},
                   {"far-limit", dcm}};
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

/* ---- All of them ---- */

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

int bench_take_options(const args *a, bench_options *o, bench *b)
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
    if (o->steps && !largest(&o->tokens))
        return tool_fail(DCM_ERR_USAGE, "--steps-out has no effect without tests of decoding: set --tokens");
    arg_ints *const lists[] = {&o->prompts, &o->tokens, &o->depths, &o->groups};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        args_make_unique(lists[i]);
    qsort(o->depths.item, o->depths.count, sizeof *o->depths.item, compare_int);
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
