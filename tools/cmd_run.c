#define _GNU_SOURCE
#include "generate.h"
#include "input.h"
#include "tool.h"

#include <dcm/log.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <editline/readline.h>

typedef struct run_options {
    const char *model, *system;
    input_source input;
    int64_t tokens, seed, top_k, verify;
    double temperature, top_p;
    bool interactive, chat, ignore_eos, stats;
    arg_texts stops;
    cache_options cache;
    device_options device;
    verbosity_options words;
} run_options;

enum { MESSAGES_MAX = 4 };

/* Stands for an answer that was generated: what the template puts behind it is what has yet to be fed. */
static const char answer_mark[] = "@dcm-answer@";

/* What a chat template makes of one turn: the messages from the last one on, and the opening of the answer. The caller
 * frees *text with dcm_free(); *from points into it. */
static int render(const generator *g, const run_options *o, const char *user, bool begin, char **text,
                  const char **from)
{
    dcm_chat_message messages[MESSAGES_MAX];
    size_t count = 0, first = 0;
    if (o->system)
        messages[count++] = (dcm_chat_message){"system", o->system};
    if (!begin) {
        messages[count++] = (dcm_chat_message){"user", ""};
        first = count;
        messages[count++] = (dcm_chat_message){"assistant", answer_mark};
    }
    messages[count++] = (dcm_chat_message){"user", user};
    const dcm_status status = dcm_chat_render(g->r->tokenizer, messages, first, count, true, text);
    if (status != DCM_OK)
        return tool_fail_library(status);
    *from = begin ? *text : strstr(*text, answer_mark);
    if (!*from)
        return tool_fail(DCM_ERR_FILE, "the chat template does not show the assistant's answers");
    *from += begin ? 0 : strlen(answer_mark);
    return 0;
}

/* A template takes the text as a whole. */
static int feed_chat(generator *g, const run_options *o, text_reader *text)
{
    char *rendered = NULL;
    const char *user, *from;
    size_t size;
    const bool begin = !g->begun;
    int code = reader_all(text, &user, &size);
    if (code == 0)
        code = render(g, o, user, begin, &rendered, &from);
    reader_close(text);
    if (code == 0) {
        reader_open_text(text, from, strlen(from));
        code = generator_feed_text(g, text, begin);
        reader_close(text);
    }
    dcm_free(rendered);
    return code;
}

/* One turn from the user's text to the end of the answer. */
static int turn(generator *g, const run_options *o, bool chat, text_reader *text)
{
    const int code = chat ? feed_chat(g, o, text) : generator_feed_text(g, text, !g->begun);
    return code ? code : generator_turn(g);
}

/* One line from the terminal with editing, or from a pipe without; NULL at its end. The caller frees it. */
static char *read_line(bool terminal, bool *bad)
{
    if (terminal) {
        char *line = readline("> ");
        if (line && *line)
            add_history(line);
        return line;
    }
    char *line = NULL;
    size_t room = 0;
    const ssize_t size = getline(&line, &room, stdin);
    if (size < 0) {
        free(line);
        return NULL;
    }
    if (strlen(line) != (size_t)size) {
        tool_fail(DCM_ERR_FILE, "standard input: a NUL byte at offset %zu of a line: not a text", strlen(line));
        free(line);
        *bad = true;
        return NULL;
    }
    if (size && line[size - 1] == '\n')
        line[size - 1] = 0;
    return line;
}

static int converse(generator *g, const run_options *o, bool chat)
{
    const bool terminal = isatty(STDIN_FILENO);
    rl_outstream = stderr;
    for (;;) {
        bool bad = false;
        char *line = read_line(terminal, &bad);
        if (bad)
            return DCM_ERR_FILE;
        if (!line)
            break;
        int code = 0;
        if (*line) {
            text_reader text;
            reader_open_text(&text, line, strlen(line));
            code = turn(g, o, chat, &text);
            reader_close(&text);
        }
        free(line);
        if (code && code != DCM_ERR_INTERRUPTED) /* Ctrl-C ends a turn, not the conversation */
            return code;
    }
    if (terminal)
        fputc('\n', stderr);
    return 0;
}

static int check(const args *a, const run_options *o)
{
    if (o->interactive && (a->dash || (o->input.file && strcmp(o->input.file, "-") == 0)))
        return tool_fail(DCM_ERR_USAGE, "--interactive reads standard input itself: give the prompt by -p or -f FILE");
    if (o->system && !o->chat && !o->interactive)
        return tool_fail(DCM_ERR_USAGE, "--system has no effect without --chat");
    for (size_t i = 0; i < o->stops.count; i++)
        if (!*o->stops.item[i])
            return tool_fail(DCM_ERR_USAGE, "--stop: the text is empty");
    if (o->temperature == 0 && (args_seen(a, "top-k") || args_seen(a, "top-p")))
        dcm_log(DCM_LOG_WARN, "--top-k and --top-p have no effect with --temp 0 (greedy)");
    if (o->temperature == 0 && args_seen(a, "seed"))
        dcm_log(DCM_LOG_WARN, "--seed has no effect with --temp 0 (greedy)");
    return 0;
}

/* --verify-every: the model on the reference too. */
static int watch(generator *g, const run_options *o)
{
    char path[4096];
    const int code = input_model_path(o->model, path, sizeof path);
    g->watch.every = o->verify;
    return code ? code : verify_open(&g->watch, g->r, path, &o->device, g->params, g->session);
}

/* `prompt` may be NULL. */
static int run_session(const run_options *o, const runtime *r, const dcm_cache_params *params, text_reader *prompt)
{
    generator g = {.r = r,
                   .device = &o->device,
                   .params = params,
                   .quiet = o->words.quiet,
                   .interactive = o->interactive,
                   .sample = {(float)o->temperature, (uint32_t)o->top_k, (float)o->top_p},
                   .rng = (uint64_t)o->seed,
                   .tokens = o->tokens,
                   .ignore_end = o->ignore_eos,
                   .out = {.stops = &o->stops}};
    bool chat = o->chat;
    if (o->interactive && !chat) {
        chat = dcm_chat_template(r->tokenizer) != NULL;
        if (!chat && o->system)
            return tool_fail(DCM_ERR_USAGE,
                             "--system has no effect: the model has no chat template that is known here");
        if (!chat)
            dcm_log(DCM_LOG_WARN, "the model has no chat template that is known here: each line continues the text");
    }
    const dcm_status status = dcm_session_open(&g.session, r->model, params);
    int code = status == DCM_OK ? generator_open(&g) : tool_fail_library(status);
    if (code == 0 && o->verify)
        code = watch(&g, o);
    if (code == 0 && prompt)
        code = turn(&g, o, chat, prompt);
    if (o->interactive && (code == 0 || code == DCM_ERR_INTERRUPTED))
        code = converse(&g, o, chat);
    if (g.session && o->stats && (code == 0 || code > 128)) {
        runtime_print_stats(r, g.session, &g.times);
        verify_print_stats(&g.watch);
    }
    verify_close(&g.watch);
    generator_close(&g);
    dcm_session_close(&g.session);
    return code;
}

static void add_options(args *a, run_options *o)
{
    const arg_option options[] = {
        {"tokens", 'n', ARG_INT, &o->tokens, "N", "Most tokens to generate; the model may end sooner.", 0, INT32_MAX},
        {"chat", 0, ARG_FLAG, &o->chat, .help = "Put the prompt into the model's own chat template."},
        {"system", 0, ARG_TEXT, &o->system, "TEXT", "System message of the chat."},
        {"interactive", 'i', ARG_FLAG, &o->interactive,
         .help = "Turns at a prompt, by the chat template where the model has a known one. Ctrl-C ends a turn (what "
                 "was read of it stays), Ctrl-D the program."},
        {"stop", 0, ARG_TEXTS, &o->stops, "TEXT", "End before this text; may be given several times."},
        {"ignore-eos", 0, ARG_FLAG, &o->ignore_eos, .help = "Never choose a token that ends the text."},
        {"verify-every", 0, ARG_INT, &o->verify, "N",
         "Compute one step in N once more by the reference, from the device's own cache, and end with exit code 1 "
         "where the device is wrong. A step is a decoded token, or a piece of the prompt, of which the last 32 tokens "
         "are computed. Takes host memory for the model and two more caches.",
         1, INT64_MAX},
        {"stats", 0, ARG_FLAG, &o->stats,
         .help = "After the text, print tokens, speed, units and bytes on standard error."},
    };
    const arg_option sampling[] = {
        {"temp", 0, ARG_REAL, &o->temperature, "T", "Temperature; 0 always takes the most probable token.", 0, 100,
         .show_zero = true},
        {"top-k", 0, ARG_INT, &o->top_k, "K", "Sample among the K most probable tokens; 0: all.", 0, INT32_MAX},
        {"top-p", 0, ARG_REAL, &o->top_p, "P",
         "Sample among the fewest tokens whose probability reaches P; 0 or 1: all.", 0, 1},
        {"seed", 0, ARG_INT, &o->seed, "N", "Start of the random numbers; without it every run differs.", 0, INT64_MAX},
    };
    input_add_model(a, &o->model);
    input_add_options(a, &o->input);
    args_add(a, "Generation", options, sizeof options / sizeof *options);
    args_add(a, "Sampling", sampling, sizeof sampling / sizeof *sampling);
    options_add_cache(a, &o->cache);
    options_add_device(a, &o->device);
    options_add_strict(a, &o->device);
    options_add_verbosity(a, &o->words);
}

int cmd_run(int argc, char **argv)
{
    run_options o = {.tokens = 256, .cache = CACHE_OPTIONS_DEFAULT};
    args a = {
        .usage = "-m MODEL (-p TEXT | -f FILE | - | -i) [options]",
        .stdin_dash = true,
        .about =
            "Continue a text, or answer in a chat. The text streams to standard output; the prompt is not echoed."};
    dcm_cache_params params;
    runtime r = {0};
    text_reader prompt = {0};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.words);
    if (code == 0)
        code = check(&a, &o);
    if (code == 0)
        code = options_cache_params(&a, &o.cache, &params);
    const bool prompted = !o.interactive || input_given(&a, &o.input);
    if (code == 0 && prompted)
        code = reader_open(&prompt, &a, &o.input);
    if (code == 0)
        code = runtime_open(&r, &o.device, o.model);
    if (!args_seen(&a, "seed"))
        o.seed = (int64_t)(time(NULL) ^ (time_t)getpid() << 20);
    if (code == 0 && o.temperature > 0)
        dcm_log(DCM_LOG_INFO, "seed %lld", (long long)o.seed);
    if (code == 0)
        code = run_session(&o, &r, &params, prompted ? &prompt : NULL);
    reader_close(&prompt);
    runtime_close(&r);
    return code;
}
