#include "corpus.h"
#include "input.h"
#include "journal.h"
#include "runtime.h"
#include "tool.h"

#include <dcm/train.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct train_options {
    const char *model, *out, *checkpoint, *resume, *from, *csv;
    arg_texts texts, held;
    arg_ints groups;
    int64_t tokens, steps, sequences, warmup, hidden, sinks, positions, seed, save_every, test_every;
    double rate, kl, il, magnitude, boundary;
    bool again;
    device_options device;
    verbosity_options words;
} train_options;

enum { MEASURED = 2 /* sequences of each source */, RISES_MAX = 3 };

typedef struct train_run {
    const train_options *o;
    runtime r;
    corpus texts, held;
    dcm_trainer *trainer;
    journal journal;
    char checkpoint[4096];
    int32_t *ids;           /* of one sequence */
    double *window;         /* (held-out sequences, groups): KL of the window */
    size_t held_sequences;
    uint64_t read;          /* number of the text that the trainer has read, from 1; 0: another one */
    double smooth;          /* of journal_row */
    double mean[ARG_LIST_MAX]; /* running KL of each group length */
    double best, first;     /* held-out ratios; 0: none yet */
    int rises;
    double began;
    uint64_t began_at;
} train_run;

static uint64_t draw(const train_run *run, uint64_t a, uint64_t b)
{
    return ((uint64_t)run->o->seed * 0x9e3779b97f4a7c15u + a) * 0xbf58476d1ce4e5b9u + b * 0x94d049bb133111ebu;
}

/* ---- Held-out texts ---- */

/* Sequence i of the held-out texts: the same each time. */
static int read_held(train_run *run, size_t i)
{
    corpus_draw(&run->held, i, 0x7e57 + i / run->held.count, run->ids, (size_t)run->o->tokens);
    const dcm_status status = dcm_trainer_read(run->trainer, run->ids, (size_t)run->o->tokens);
    run->read = 0;
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/* KL over all held-out sequences and group lengths: the mean, and the mean of its ratio to the window's. */
static int test(train_run *run, double *kl, double *ratio, dcm_train_gate *gate)
{
    const size_t groups = run->o->groups.count;
    double sum = 0, ratios = 0;
    for (size_t i = 0; i < run->held_sequences; i++) {
        int code = read_held(run, i);
        for (size_t g = 0; g < groups && code == 0; g++) {
            double *window = &run->window[i * groups + g], value = 0;
            dcm_status status = DCM_OK;
            if (isnan(*window))
                status = dcm_trainer_test_window(run->trainer, (uint32_t)run->o->groups.item[g], window);
            if (status == DCM_OK)
                status = dcm_trainer_test(run->trainer, (uint32_t)run->o->groups.item[g], &value);
            if (status != DCM_OK)
                return tool_fail_library(status);
            sum += value;
            ratios += value / *window;
            code = tool_stopped();
        }
        if (code)
            return code;
    }
    *kl = sum / (double)(run->held_sequences * groups);
    *ratio = ratios / (double)(run->held_sequences * groups);
    const dcm_status status = dcm_trainer_gate(run->trainer, gate);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/* The merge file, with its card. */
static int save(train_run *run, double ratio)
{
    char steps[32], seed[32], held[96];
    snprintf(steps, sizeof steps, "%" PRIu64, dcm_trainer_steps(run->trainer));
    snprintf(seed, sizeof seed, "%" PRId64, run->o->seed);
    snprintf(held, sizeof held, "%.4f of the KL of sink + window with as many units, held-out texts", ratio);
    json_t *meta = runtime_meta(&run->r);
    const char *commit = json_string_value(json_object_get(meta, "commit"));
    const dcm_train_note notes[] = {{"trained_by", tool_command_line()}, {"commit", commit ? commit : "unknown"},
                                    {"steps", steps},                    {"seed", seed},
                                    {"held_out", held}};
    const dcm_status status =
        dcm_trainer_save(run->trainer, run->o->out, notes, sizeof notes / sizeof *notes - (isnan(ratio) ? 1 : 0));
    json_decref(meta);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/*
 * Test, keep what is best so far, and stop what is not worth going on with: a gate that does not depend on its input,
 * or held-out losses that rise time after time.
 */
static int look(train_run *run, journal_row *row)
{
    dcm_train_gate gate;
    int code = test(run, &row->held_kl, &row->held_ratio, &gate);
    if (code)
        return code;
    row->gate_mean = gate.mean;
    row->gate_spread = gate.spread;
    if (!run->o->words.quiet)
        fprintf(stderr,
                "\r\033[Kstep %" PRIu64 ": held-out KL %.4f, %.3f of the window's; older unit's share %.2f, spread %.3f, "
                "%.0f %% decided\n" + (isatty(STDERR_FILENO) ? 0 : 4),
                row->step, row->held_kl, row->held_ratio, gate.mean, gate.spread, 100 * gate.sure);
    if (gate.spread < 1e-3)
        return tool_fail(1, "step %" PRIu64 ": the gate has collapsed: it gives %.3f to every older unit", row->step,
                         gate.mean);
    if (!(run->best > 0) || row->held_ratio < run->best) {
        run->best = row->held_ratio;
        run->rises = 0;
        return save(run, row->held_ratio);
    }
    run->rises = row->held_ratio > 1.1 * run->best ? run->rises + 1 : 0;
    if (run->rises >= RISES_MAX)
        return tool_fail(1, "step %" PRIu64 ": the held-out loss rose to %.3f of the window's, where it was %.3f: %s "
                            "has the best; a smaller --rate may help",
                         row->step, row->held_ratio, run->best, run->o->out);
    return 0;
}

/* ---- Steps ---- */

/* Mean and scale of the channels, from a few sequences of the training texts. */
static int measure(train_run *run)
{
    for (size_t i = 0; i < MEASURED * run->texts.count; i++) {
        corpus_draw(&run->texts, i, draw(run, UINT64_MAX, i), run->ids, (size_t)run->o->tokens);
        const dcm_status status = dcm_trainer_measure(run->trainer, run->ids, (size_t)run->o->tokens);
        if (status != DCM_OK)
            return tool_fail_library(status);
        if (tool_stopped())
            return tool_stopped();
    }
    return 0;
}

/* Text `number` of the training; it stays for all group lengths, so that the full cache reads it once. */
static int read_text(train_run *run, uint64_t number)
{
    if (run->read == number + 1)
        return 0;
    corpus_draw(&run->texts, number, draw(run, number, 0), run->ids, (size_t)run->o->tokens);
    const dcm_status status = dcm_trainer_read(run->trainer, run->ids, (size_t)run->o->tokens);
    run->read = status == DCM_OK ? number + 1 : 0;
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int learn(train_run *run, uint64_t step, journal_row *row)
{
    const train_options *o = run->o;
    const double share = 1.0 / (double)o->sequences;
    for (int64_t i = 0; i < o->sequences; i++) {
        const uint64_t number = step * (uint64_t)o->sequences + (uint64_t)i;
        const size_t g = number % o->groups.count;
        dcm_train_losses losses;
        const int code = read_text(run, number / o->groups.count);
        if (code)
            return code;
        const dcm_status status = dcm_trainer_learn(run->trainer, (uint32_t)o->groups.item[g],
                                                    draw(run, ~step, (uint64_t)i), &losses);
        if (status != DCM_OK)
            return tool_fail_library(status);
        run->mean[g] = run->mean[g] > 0 ? run->mean[g] : losses.kl;
        run->smooth = 0.95 * run->smooth + 0.05 * losses.kl / run->mean[g];
        row->losses.kl += share * losses.kl;
        row->losses.il += share * losses.il;
        row->losses.magnitude += share * losses.magnitude;
        if (tool_stopped())
            return tool_stopped();
    }
    row->kl_smooth = run->smooth;
    row->rate = dcm_train_rate(o->rate, step, (uint64_t)o->warmup, (uint64_t)o->steps);
    const dcm_status status = dcm_trainer_update(run->trainer, row->rate, &row->norm);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static void show_progress(const train_run *run, const journal_row *row)
{
    const double spent = runtime_seconds() - run->began;
    const double each = spent / (double)(row->step - run->began_at);
    const uint64_t left = (uint64_t)(each * (double)((uint64_t)run->o->steps - row->step));
    if (!run->o->words.quiet && isatty(STDERR_FILENO))
        fprintf(stderr,
                "\rstep %" PRIu64 " of %" PRId64 ", loss %.3f of the first, %.1f s a step, %" PRIu64 ":%02" PRIu64
                ":%02" PRIu64 " left\033[K",
                row->step, run->o->steps, row->kl_smooth, each, left / 3600, left / 60 % 60, left % 60);
}

/* With what the command itself goes on with. */
static int checkpoint(train_run *run)
{
    char state[64 + 32 * ARG_LIST_MAX];
    int used = snprintf(state, sizeof state, "%016" PRIx64 " %.17g %d %.17g", corpus_digest(&run->texts), run->best,
                        run->rises, run->smooth);
    for (size_t g = 0; g < run->o->groups.count; g++)
        used += snprintf(state + used, sizeof state - (size_t)used, " %.17g", run->mean[g]);
    const dcm_status status = dcm_trainer_checkpoint(run->trainer, run->checkpoint, state);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int step(train_run *run)
{
    const train_options *o = run->o;
    const double start = runtime_seconds();
    const uint64_t done = dcm_trainer_steps(run->trainer);
    journal_row row = {
        .step = done + 1, .held_kl = NAN, .held_ratio = NAN, .gate_mean = NAN, .gate_spread = NAN};
    int code = learn(run, done, &row);
    if (code)
        return code;
    row.seconds = runtime_seconds() - start;
    const bool last = row.step == (uint64_t)o->steps;
    if (run->held_sequences && (last || row.step % (uint64_t)o->test_every == 0))
        code = look(run, &row);
    else if (last)
        code = save(run, NAN);
    if (code == 0)
        code = journal_add(&run->journal, &row);
    if (code == 0 && (last || row.step % (uint64_t)o->save_every == 0))
        code = checkpoint(run);
    show_progress(run, &row);
    return code;
}

static int train(train_run *run)
{
    int code = 0;
    tool_catch(true);
    if (!run->o->resume && !run->o->from)
        code = measure(run);
    run->began = runtime_seconds();
    run->began_at = dcm_trainer_steps(run->trainer);
    while (code == 0 && dcm_trainer_steps(run->trainer) < (uint64_t)run->o->steps) {
        code = step(run);
        if (code == 0)
            code = tool_stopped();
    }
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    tool_catch(false);
    if (code == 130 || code == 143) {
        const int saved = dcm_trainer_steps(run->trainer) ? checkpoint(run) : 0;
        if (saved == 0)
            fprintf(stderr, "%s: stopped after %" PRIu64 " steps; --resume %s goes on\n", tool_name(),
                    dcm_trainer_steps(run->trainer), run->checkpoint);
    }
    return code;
}

/* ---- Set-up ---- */

static int resume(train_run *run)
{
    char state[64 + 32 * ARG_LIST_MAX];
    uint64_t digest;
    int used;
    const dcm_status status = dcm_trainer_resume(run->trainer, run->o->resume, state, sizeof state);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (sscanf(state, "%" SCNx64 " %lg %d %lg%n", &digest, &run->best, &run->rises, &run->smooth, &used) != 4)
        return tool_fail(DCM_ERR_FILE, "%s: not a checkpoint of dcm train", run->o->resume);
    if (digest != corpus_digest(&run->texts))
        return tool_fail(DCM_ERR_FILE, "%s: of a training on other texts", run->o->resume);
    char *at = state + used;
    for (size_t g = 0; g < run->o->groups.count; g++)
        run->mean[g] = strtod(at, &at);
    return 0;
}

static int open_trainer(train_run *run)
{
    const train_options *o = run->o;
    const dcm_train_params params = {.tokens = (uint32_t)o->tokens,
                                     .sinks = o->sinks ? (int32_t)o->sinks : -1,
                                     .hidden = (uint32_t)o->hidden,
                                     .seed = (uint64_t)o->seed,
                                     .from = o->from,
                                     .kl = o->kl > 0 ? (float)o->kl : -1,
                                     .il = (float)o->il,
                                     .magnitude = (float)o->magnitude,
                                     .boundary = (float)o->boundary,
                                     .positions = (uint32_t)o->positions,
                                     .again = o->again};
    const dcm_status status = dcm_trainer_open(&run->trainer, run->r.model, &params);
    if (status != DCM_OK)
        return tool_fail_library(status);
    return o->resume ? resume(run) : 0;
}

static int open_room(train_run *run)
{
    const train_options *o = run->o;
    run->held_sequences = run->held.count;
    const size_t windows = run->held_sequences * o->groups.count;
    run->ids = malloc((size_t)o->tokens * sizeof *run->ids);
    run->window = malloc((windows + 1) * sizeof *run->window);
    run->smooth = 1;
    if (!run->ids || !run->window)
        return tool_fail(DCM_ERR_MEMORY, "no room for a sequence");
    for (size_t i = 0; i < windows; i++)
        run->window[i] = NAN;
    const char *name = o->checkpoint ? o->checkpoint : o->out, *end = o->checkpoint ? "" : ".checkpoint";
    if ((size_t)snprintf(run->checkpoint, sizeof run->checkpoint, "%s%s", name, end) >= sizeof run->checkpoint)
        return tool_fail(DCM_ERR_USAGE, "the checkpoint's path is too long");
    return 0;
}

static int check_options(const train_options *o)
{
    int64_t longest = 0;
    for (size_t i = 0; i < o->groups.count; i++)
        longest = o->groups.item[i] > longest ? o->groups.item[i] : longest;
    for (size_t i = 0; i < o->groups.count; i++)
        if (o->groups.item[i] & (o->groups.item[i] - 1))
            return tool_fail(DCM_ERR_USAGE, "-L %" PRId64 " is no power of two", o->groups.item[i]);
    if (o->tokens <= 2 * longest + o->sinks)
        return tool_fail(DCM_ERR_USAGE, "sequences of %" PRId64 " tokens are too short for -L %" PRId64
                                        ": more than %" PRId64 " are needed",
                         o->tokens, longest, 2 * longest + o->sinks);
    if (!o->texts.count)
        return tool_fail(DCM_ERR_USAGE, "no text to train on: give -f FILE or -f FOLDER");
    if (o->from && o->resume)
        return tool_fail(DCM_ERR_USAGE, "--from and --resume exclude each other");
    if (!(o->kl > 0 || o->il > 0))
        return tool_fail(DCM_ERR_USAGE, "--kl 0 without --il leaves nothing to learn");
    return 0;
}

static void add_options(args *a, train_options *o)
{
    const arg_option files[] = {
        {"text", 'f', ARG_TEXTS, &o->texts, "PATH",
         "A text, or a folder of texts, to train on; several -f have equal shares whatever their sizes.",
         .required = true},
        {"held-out", 0, ARG_TEXTS, &o->held, "PATH", "Texts to test on: a sequence of each, never trained on."},
        {"output", 'o', ARG_TEXT, &o->out, "MERGE.safetensors",
         "The merge model, for --merge: the best of the tests, or the last without --held-out.", .required = true},
        {"checkpoint", 0, ARG_TEXT, &o->checkpoint, "FILE",
         "Where training can be resumed from; by default OUTPUT.checkpoint."},
        {"resume", 0, ARG_TEXT, &o->resume, "FILE", "Go on from a checkpoint, with the same options."},
        {"from", 0, ARG_TEXT, &o->from, "FILE", "Begin with a merge file instead of new weights."},
        {"csv", 0, ARG_TEXT, &o->csv, "FILE", "One row a step."},
    };
    const arg_option steps[] = {
        {"group", 'L', ARG_INTS, &o->groups, "N,...", "Group lengths, taken in turn; a text stays for all of them.", 2, 4096},
        {"tokens", 'n', ARG_INT, &o->tokens, "N", "Tokens of a sequence.", 8, 1 << 20},
        {"steps", 0, ARG_INT, &o->steps, "N", "Updates in all.", 1, INT64_C(1) << 40},
        {"sequences", 0, ARG_INT, &o->sequences, "N", "Passes (a text, a group length) of a step.", 1, 1 << 20},
        {"rate", 0, ARG_REAL, &o->rate, "R", "Highest learning rate.", 0, 1},
        {"warmup", 0, ARG_INT, &o->warmup, "N", "Steps until it is reached; then it falls by a cosine.", 0,
         INT64_C(1) << 40, .show_zero = true},
        {"sinks", 0, ARG_INT, &o->sinks, "S", "First tokens that are never merged.", 0, 1 << 20, .show_zero = true},
        {"hidden", 0, ARG_INT, &o->hidden, "N", "Hidden units of each network, a multiple of 16.", 16, 1024},
        {"seed", 0, ARG_INT, &o->seed, "N", "Of weights, places and positions.", 0, INT64_MAX, .show_zero = true},
        {"save-every", 0, ARG_INT, &o->save_every, "N", "Steps between checkpoints.", 1, INT64_C(1) << 40},
        {"test-every", 0, ARG_INT, &o->test_every, "N", "Steps between tests.", 1, INT64_C(1) << 40},
        {"again", 0, ARG_FLAG, &o->again, NULL,
         "Run layers a second time on the way back instead of keeping their activations: less memory."},
    };
    const arg_option losses[] = {
        {"kl", 0, ARG_REAL, &o->kl, "W", "Weight of KL(full || compressed), over its running mean.", 0, 1000,
         .show_zero = true},
        {"positions", 0, ARG_INT, &o->positions, "N", "Predictions compared in a sequence.", 1, 1 << 20},
        {"il", 0, ARG_REAL, &o->il, "W", "Weight of L_IL, the squared distance of attention's outputs.", 0, 1000},
        {"magnitude", 0, ARG_REAL, &o->magnitude, "W", "Weight of merged keys' change of length.", 0, 1000},
        {"boundary", 0, ARG_REAL, &o->boundary, "W", "Weight of BSD, the jump of attention between levels.", 0, 1000},
    };
    input_add_model(a, &o->model);
    args_add(a, "Files", files, sizeof files / sizeof *files);
    args_add(a, "Steps", steps, sizeof steps / sizeof *steps);
    args_add(a, "Loss", losses, sizeof losses / sizeof *losses);
    options_add_device(a, &o->device);
    options_add_verbosity(a, &o->words);
}

static int open_all(train_run *run)
{
    const train_options *o = run->o;
    int code = runtime_open(&run->r, &o->device, o->model);
    const size_t needed = (size_t)o->tokens;
    if (code == 0)
        code = corpus_open(&run->texts, run->r.tokenizer, &o->texts, needed);
    if (code == 0)
        code = corpus_open(&run->held, run->r.tokenizer, &o->held, needed);
    if (code == 0)
        code = open_room(run);
    if (code == 0)
        code = open_trainer(run);
    if (code == 0 && o->csv)
        code = journal_open(&run->journal, o->csv, dcm_trainer_steps(run->trainer));
    return code;
}

int cmd_train(int argc, char **argv)
{
    train_options o = {.groups = {{64, 128, 256}, 3},
                       .tokens = 2048,
                       .steps = 300,
                       .sequences = 1,
                       .rate = 2e-3,
                       .warmup = 10,
                       .hidden = 32,
                       .sinks = 4,
                       .positions = 512,
                       .save_every = 20,
                       .test_every = 50,
                       .kl = 1};
    args a = {.usage = "-m MODEL -f PATH [-f PATH...] -o MERGE.safetensors [options]",
              .about = "Train a merge model: the frozen model's predictions with the full cache are taught to the "
                       "compressed cache, by the very forward pass of inference."};
    train_run run = {.o = &o};
    add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.words);
    if (code == 0)
        code = check_options(&o);
    if (code == 0)
        code = open_all(&run);
    if (code == 0)
        code = train(&run);
    journal_close(&run.journal);
    dcm_trainer_close(&run.trainer);
    corpus_close(&run.texts);
    corpus_close(&run.held);
    free(run.ids);
    free(run.window);
    runtime_close(&run.r);
    return code;
}
