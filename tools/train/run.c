#include "run.h"

#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

enum { MEASURED = 2 /* sequences of each source */, RISES_MAX = 3 };

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
    char steps[32], seed[32], held[96], groups[512] = "";
    for (size_t i = 0, at = 0; i < run->o->groups.count && at < sizeof groups; i++)
        at += (size_t)snprintf(groups + at, sizeof groups - at, "%s%" PRId64, i ? "," : "", run->o->groups.item[i]);
    snprintf(steps, sizeof steps, "%" PRIu64, dcm_trainer_steps(run->trainer));
    snprintf(seed, sizeof seed, "%" PRId64, run->o->seed);
    snprintf(held, sizeof held, "%.4f of the KL of sink + window with as many units, held-out texts", ratio);
    json_t *meta = runtime_meta(&run->r);
    const char *commit = json_string_value(json_object_get(meta, "commit"));
    const dcm_train_note notes[] = {{"trained_by", tool_command_line()},
                                    {"commit", commit ? commit : "unknown"},
                                    {"steps", steps},
                                    {"seed", seed},
                                    {"groups", groups},
                                    {"mode", run->o->mode ? "chunked" : "tai"},
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
                "%sstep %" PRIu64 ": held-out KL %.4f, %.3f of the window's; older unit's share %.2f, spread %.3f, "
                "%.0f %% decided\n",
                isatty(STDERR_FILENO) ? "\r\033[K" : "", row->step, row->held_kl, row->held_ratio, gate.mean,
                gate.spread, 100 * gate.sure);
    if (!isfinite(row->held_ratio))
        return tool_fail(1, "step %" PRIu64 ": the held-out loss is not finite", row->step);
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
        return tool_fail(1,
                         "step %" PRIu64 ": the held-out loss rose to %.3f of the window's, where it was %.3f: %s "
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
        const dcm_status status =
            dcm_trainer_learn(run->trainer, (uint32_t)o->groups.item[g], draw(run, ~step, (uint64_t)i), &losses);
        if (status != DCM_OK)
            return tool_fail_library(status);
        row->losses.kl += share * losses.kl;
        row->losses.il += share * losses.il;
        row->losses.magnitude += share * losses.magnitude;
        if (tool_stopped())
            return tool_stopped();
    }
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
                "\rstep %" PRIu64 " of %" PRId64 ", KL %.4f, %.1f s a step, %" PRIu64 ":%02" PRIu64 ":%02" PRIu64
                " left\033[K",
                row->step, run->o->steps, row->losses.kl, each, left / 3600, left / 60 % 60, left % 60);
}

/* With what the command itself goes on with. */
static int checkpoint(train_run *run)
{
    char state[96];
    snprintf(state, sizeof state, "%016" PRIx64 " %.17g %d", corpus_digest(&run->texts), run->best, run->rises);
    const dcm_status status = dcm_trainer_checkpoint(run->trainer, run->checkpoint, state);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

static int step(train_run *run)
{
    const train_options *o = run->o;
    const double start = runtime_seconds();
    const uint64_t done = dcm_trainer_steps(run->trainer);
    journal_row row = {.step = done + 1, .held_kl = NAN, .held_ratio = NAN, .gate_mean = NAN, .gate_spread = NAN};
    int code = learn(run, done, &row);
    if (code)
        return code;
    row.seconds = runtime_seconds() - start;
    const bool last = row.step == (uint64_t)o->steps;
    if (run->held_sequences && (last || row.step % (uint64_t)o->test_every == 0))
        code = look(run, &row);
    else if (last)
        code = save(run, NAN);
    const int kept = journal_add(&run->journal, &row); /* also the row that ends it */
    code = code ? code : kept;
    if (code == 0 && (last || row.step % (uint64_t)o->save_every == 0))
        code = checkpoint(run);
    show_progress(run, &row);
    return code;
}

int train_loop(train_run *run)
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

int train_resume(train_run *run)
{
    char state[96];
    uint64_t digest;
    const dcm_status status = dcm_trainer_resume(run->trainer, run->o->resume, state, sizeof state);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (sscanf(state, "%" SCNx64 " %lg %d", &digest, &run->best, &run->rises) != 3)
        return tool_fail(DCM_ERR_FILE, "%s: not a checkpoint of dcm train", run->o->resume);
    if (digest != corpus_digest(&run->texts))
        return tool_fail(DCM_ERR_FILE, "%s: of a training on other texts", run->o->resume);
    return 0;
}
