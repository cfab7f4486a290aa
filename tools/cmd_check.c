#include "bench.h"
#include "check.h"
#include "input.h"
#include "reader.h"
#include "tool.h"

#include <dcm/log.h>

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 1 << 24, DEFAULT_STEPS = 256, DEFAULT_GROUP = 32, DEFAULT_SECONDS = 120 };

typedef struct check_options {
    const char *model, *devices, *steps_out, *against;
    input_source input;
    int64_t steps, seed;
    int weights, format;
    cache_options cache;
    verbosity_options words;
} check_options;

/* What is continued where no text is given. */
static const char default_text[] = "The first thing to know about the weather is";

static void add_options(args *a, check_options *o, check_run *run)
{
    const arg_option what[] = {
        {"model", 'm', ARG_TEXT, &o->model, "FILE|NAME|shape:NAME",
         "A GGUF file, a model's short name, or random weights of a shape as in `dcm bench`, for a card without the "
         "model.",
         .required = true},
        {"weights", 0, ARG_CHOICE, &o->weights, .choices = "f16|q8_0|q4_1",
         .help = "How a shape's weights are stored."},
        {"devices", 0, ARG_TEXT, &o->devices, "A,B[,C...]",
         "At most 14 devices as --device of other commands takes them; the first is the baseline. ref is the C "
         "reference, ref-float the same with its sums in float.",
         .required = true},
        {"steps", 'n', ARG_INT, &o->steps, "N",
         "Tokens to feed one by one: those of the text, then what the baseline chooses greedily; for a shape random "
         "ones.",
         1, STEPS_MAX},
        {"cache-at", 0, ARG_INTS, &run->cache_at, "N[,N...]",
         "Compare the caches after so many tokens; without it after half of them, after all, and after the 512 that "
         "are read as a prompt. What is read of a prompt until then is compared there too.",
         1, STEPS_MAX},
        {"seed", 0, ARG_INT, &o->seed, "N", "Of a shape's random tokens.", 0, INT64_MAX},
        {"save", 0, ARG_TEXT, &run->save, "FILE",
         "Record what the baseline computes: its largest logits, digests of its cache, and the bounds. Prompts are "
         "held against it too."},
        {"against", 0, ARG_TEXT, &o->against, "FILE",
         "Take a record of another machine as the baseline, with its tokens, its number of them and its bounds: the "
         "reference is not computed again."},
        {"timeout", 0, ARG_INT, &run->job.seconds, "SECONDS",
         "Most time for one answer of a device: opening the model, a token (of the reference 16), or a prompt.", 1,
         86400},
    };
    const arg_option result[] = {
        table_format_option(&o->format),
        {"steps-out", 0, ARG_TEXT, &o->steps_out, "FILE.jsonl",
         "Write one line a step and device, prompts aside: max_abs, bound, nmse, kl, same_top."},
    };
    args_add(a, "Test", what, sizeof what / sizeof *what);
    input_add_options(a, &o->input);
    options_add_cache(a, &o->cache);
    args_add(a, "Result", result, sizeof result / sizeof *result);
    options_add_limits(a, &run->job.device);
    options_add_strict(a, &run->job.device);
    options_add_verbosity(a, &o->words);
}

/* ---- Set-up ---- */

static void add_side(check_run *run, const char *name, bool asked_for)
{
    run->side[run->sides++] = (check_side){.name = name, .asked_for = asked_for, .socket = -1};
}

/* Index of a side by its name; one that is not there is added. */
static size_t need_side(check_run *run, const char *name)
{
    for (size_t i = 0; i < run->sides; i++)
        if (strcmp(run->side[i].name, name) == 0)
            return i;
    add_side(run, name, false);
    return run->sides - 1;
}

/* The devices' names, cut out of `list`, and what the bounds come from. */
static int take_devices(check_run *run, char *list)
{
    size_t count = 0;
    for (char *name; (name = strsep(&list, ",")) != NULL; add_side(run, name, true)) {
        if (!*name)
            return tool_fail(DCM_ERR_USAGE, "--devices: a name is empty");
        if (++count > CHECK_DEVICES)
            return tool_fail(DCM_ERR_USAGE, "--devices: more than %d devices", CHECK_DEVICES);
    }
    if (run->against)
        return 0;
    if (run->sides < 2 && !run->save)
        return tool_fail(DCM_ERR_USAGE, "--devices: name two devices at least, the baseline first");
    if (run->job.device.strict)
        return 0; /* equality needs no bound */
    run->ref = need_side(run, "ref");
    run->with_floats = need_side(run, "ref-float");
    if (run->job.cache.kv == DCM_KV_F16) {
        add_side(run, "ref-f32", false);
        run->side[run->sides - 1].in_f32 = true;
    }
    return 0;
}

/* A record instead of a baseline, of a text and of steps. */
static int take_record(const args *a, const check_options *o, check_run *run, record *r)
{
    static const char *const excluded[] = {"save", "prompt", "file", "seed", "cache-at"};
    if (!o->against)
        return 0;
    for (size_t i = 0; i < sizeof excluded / sizeof *excluded; i++)
        if (args_seen(a, excluded[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --against: leave one of them out", excluded[i]);
    if (a->dash)
        return tool_fail(DCM_ERR_USAGE, "a text has no effect with --against: its tokens are in the record");
    const int code = record_read(r, o->against);
    run->steps = args_seen(a, "steps") ? run->steps : 0;
    run->against = r;
    add_side(run, o->against, false);
    return code;
}

/* A record's caches may all be of later tokens than are asked for. */
static int take_recorded_times(check_run *run)
{
    const int code = check_record_take(run);
    size_t within = 0;
    for (size_t i = 0; code == 0 && i < run->cache_at.count; i++)
        within += (uint64_t)run->cache_at.item[i] <= run->steps;
    if (code == 0 && !within)
        dcm_log(DCM_LOG_WARN, "no cache is compared: the record has none after at most %llu tokens",
                (unsigned long long)run->steps);
    return code;
}

static int take_times(const args *a, check_run *run)
{
    arg_ints *at = &run->cache_at;
    if (run->against)
        return take_recorded_times(run);
    if (!args_seen(a, "cache-at")) {
        at->item[at->count++] = (int64_t)run->steps;
        if (run->steps > 1)
            at->item[at->count++] = (int64_t)(run->steps / 2);
        if (run->steps > CHECK_PROMPT_TOKENS && run->steps / 2 != CHECK_PROMPT_TOKENS)
            at->item[at->count++] = CHECK_PROMPT_TOKENS;
    }
    for (size_t i = 0; i < at->count; i++)
        if ((uint64_t)at->item[i] > run->steps)
            return tool_fail(DCM_ERR_USAGE, "--cache-at: %lld is past the last of %llu tokens", (long long)at->item[i],
                             (unsigned long long)run->steps);
    return 0;
}

/* The first tokens of the text, with BOS before them where the model asks for one. */
static int take_text(const args *a, const check_options *o, check_run *run)
{
    dcm_tokenizer *tokenizer = NULL;
    text_reader text = {.file = -1};
    int code = 0;
    if (dcm_tokenizer_open(&tokenizer, run->job.path) != DCM_OK)
        return tool_fail_library(DCM_ERR_FILE);
    if (input_given(a, &o->input))
        code = reader_open(&text, a, &o->input);
    else
        reader_open_text(&text, default_text, sizeof default_text - 1);
    if (dcm_bos_token(tokenizer) >= 0)
        run->ids[run->known++] = dcm_bos_token(tokenizer);
    for (size_t count = 1; code == 0 && count && run->known < run->steps;) {
        int32_t *ids = NULL;
        code = reader_next(&text, tokenizer, 0, &ids, &count);
        for (size_t i = 0; code == 0 && i < count && run->known < run->steps; i++)
            run->ids[run->known++] = ids[i];
        dcm_free(ids);
    }
    if (code == 0 && !run->known)
        code = tool_fail(DCM_ERR_FILE, "%s: no tokens", text.name);
    reader_close(&text);
    dcm_tokenizer_close(&tokenizer);
    return code;
}

static int take_model(const args *a, const check_options *o, check_run *run)
{
    const bool synthetic = bench_is_shape(o->model);
    run->job.weights = (dcm_weights)o->weights;
    if (!synthetic && (args_seen(a, "weights") || args_seen(a, "seed")))
        return tool_fail(DCM_ERR_USAGE, "--weights and --seed have no effect without a shape");
    if (synthetic && input_given(a, &o->input))
        return tool_fail(DCM_ERR_USAGE, "a text has no effect with a shape, which has no tokenizer");
    if (!run->against)
        run->ids = malloc(run->steps * sizeof *run->ids);
    if (!run->ids)
        return tool_fail(DCM_ERR_MEMORY, "no room for %llu tokens", (unsigned long long)run->steps);
    if (synthetic)
        return bench_shape_read(o->model, &run->job.shape);
    const int code = input_model_path(o->model, run->job.path, sizeof run->job.path);
    return code || run->against ? code : take_text(a, o, run);
}

static json_t *meta_of(const check_options *o, const check_run *run)
{
    json_t *meta = runtime_host_meta(), *options = check_record_options(run, &run->side->model);
    json_object_update(meta, options);
    json_decref(options);
    json_object_set_new(meta, "model", runtime_text(o->model));
    json_object_set_new(meta, "factor", json_integer(CHECK_FACTOR));
    return meta;
}

/* Facts for people: who made a record. */
static json_t *facts_of(const check_options *o, const check_run *run)
{
    json_t *facts = runtime_host_meta();
    json_object_update(facts, run->side->facts);
    json_object_set_new(facts, "model", runtime_text(o->model));
    return facts;
}

static void release(check_run *run)
{
    for (size_t i = 0; i < run->sides; i++)
        check_side_close(&run->side[i]);
    if (run->against)
        record_release(run->against);
    record_release(&run->made);
    check_free_choices(run);
    free(run->kept);
    free(run->ids);
}

/* Everything that can be refused before work begins. */
static int take_all(const args *a, const check_options *o, check_run *run, char *devices, record *r)
{
    int code = options_apply_verbosity(&o->words);
    run->steps = (uint64_t)o->steps;
    run->seed = (uint64_t)o->seed;
    run->quiet = o->words.quiet;
    if (code == 0)
        code = output_check_apart((output_name[]){{"--save", run->save}, {"--steps-out", o->steps_out}}, 2);
    if (code == 0)
        code = options_cache_params(a, &o->cache, &run->job.cache);
    if (code == 0)
        code = take_record(a, o, run, r);
    if (code == 0)
        code = take_devices(run, devices);
    for (size_t i = run->against ? 2 : 1; i < run->sides; i++)
        run->side[i].quiet = !o->words.verbose;
    if (code == 0)
        code = take_times(a, run);
    return code ? code : take_model(a, o, run);
}

static int check(const args *a, const check_options *o, check_run *run, char *devices)
{
    record against = {0};
    output_file saved = {0};
    int code = take_all(a, o, run, devices, &against);
    if (code == 0 && o->steps_out)
        code = output_open(&run->steps_out, o->steps_out);
    if (code == 0 && run->save)
        code = output_open(&saved, run->save);
    if (code == 0 && run->save)
        code = check_record_begin(run);
    if (code == 0)
        code = check_all(run);
    const bool whole = code == 0 && !run->stopped;
    if (whole && run->save)
        code = check_record_write(run, facts_of(o, run), saved.out);
    const int kept = output_close(&saved, whole && code == 0), written = output_close(&run->steps_out, code == 0);
    if (code == 0) {
        check_print(run, (table_format)o->format, meta_of(o, run));
        code = check_code(run);
    }
    release(run);
    return code ? code : kept ? kept : written;
}

int cmd_check(int argc, char **argv)
{
    static check_run run;
    check_options o = {.steps = DEFAULT_STEPS, .seed = 1, .cache = CACHE_OPTIONS_DEFAULT};
    args a = {.usage = "-m MODEL --devices A,B[,C...] [-n STEPS] [-L N] [-f FILE]",
              .about = "Do devices compute the same? One stream of tokens goes through each of them, each in a process "
                       "of its own, token by token, and its first 512 twice more: as a prompt, and with the logits "
                       "after each; logits, caches and greedy choices are compared with the first one's, or with a "
                       "record made on another machine. Exit code 1 when a bound is passed, 4 when a device crashes "
                       "or hangs.",
              .stdin_dash = true};
    o.cache.group = DEFAULT_GROUP;
    o.cache.kv = DCM_KV_F32;
    run.job.seconds = DEFAULT_SECONDS;
    add_options(&a, &o, &run);
    const int parsed = args_parse(&a, argc, argv);
    if (parsed != ARGS_GO)
        return parsed;
    char *devices = strdup(o.devices);
    const int code = devices ? check(&a, &o, &run, devices) : tool_fail(DCM_ERR_MEMORY, "no room for the devices");
    free(devices);
    return code;
}
