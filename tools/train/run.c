#include "run.h"

#include "tool.h"
#include "watch.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MEASURED = 2 /* sequences of each source */, STATE_SIZE = 320 };

static uint64_t draw(const train_run *run, uint64_t a, uint64_t b)
{
    return ((uint64_t)run->o->seed * 0x9e3779b97f4a7c15u + a) * 0xbf58476d1ce4e5b9u + b * 0x94d049bb133111ebu;
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

/* The group lengths that the step's passes have. */
static void name_groups(const train_options *o, uint64_t step, journal_row *row)
{
    const uint64_t count = o->groups.count, first = step * (uint64_t)o->sequences;
    for (uint64_t i = 0, at = 0; i < count && i < (uint64_t)o->sequences && at < sizeof row->group; i++)
        at += (uint64_t)snprintf(row->group + at, sizeof row->group - at, "%s%" PRId64, i ? "/" : "",
                                 o->groups.item[(first + i) % count]);
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
        row->losses.boundary += share * losses.boundary;
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
    const journal_row *r = &run->untested;
    const dcm_train_losses *l = &r->losses;
    char state[STATE_SIZE];
    snprintf(state, sizeof state, "%.17g %d %d %" PRIu64 " %.17g %.17g %.17g %.17g %.17g %.17g %.17g", run->best,
             run->rises, run->flat, r->step, r->rate, r->norm, l->kl, l->il, l->magnitude, l->boundary, r->seconds);
    const dcm_status status = dcm_trainer_checkpoint(run->trainer, run->checkpoint, state);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/* Have held-out texts chosen the output? Else it is the last weights. */
static bool is_chosen(const train_run *run) { return run->held.count && run->best > 0; }

/* What follows the update of a step: test, files. */
static int finish(train_run *run, journal_row row)
{
    const train_options *o = run->o;
    const bool last = row.step == (uint64_t)o->steps;
    int code = 0;
    run->untested = row;
    row.held_kl = row.held_ratio = row.gate_mean = row.gate_spread = NAN;
    name_groups(o, row.step - 1, &row);
    if (last || row.step % (uint64_t)o->test_every == 0)
        code = watch_test(run, &row);
    if (code && code == tool_stopped())
        return code;
    run->untested.step = 0;
    if (code == 0 && last && !is_chosen(run))
        code = watch_save(run, NAN);
    const int kept = journal_add(&run->journal, &row); /* also the row that ends it */
    code = code ? code : kept;
    if (code == 0 && (last || row.step % (uint64_t)o->save_every == 0))
        code = checkpoint(run);
    show_progress(run, &row);
    return code;
}

static int step(train_run *run)
{
    const double start = runtime_seconds();
    const uint64_t done = dcm_trainer_steps(run->trainer);
    journal_row row = {.step = done + 1};
    const int code = learn(run, done, &row);
    row.seconds = runtime_seconds() - start;
    return code ? code : finish(run, row);
}

/* What was learnt until a signal came. */
static void keep_stopped(train_run *run)
{
    const uint64_t steps = dcm_trainer_steps(run->trainer);
    if (!steps)
        fprintf(stderr, "%s: stopped before the first step: nothing was saved\n", tool_name());
    else if (checkpoint(run) == 0)
        fprintf(stderr, "%s: stopped after %" PRIu64 " steps; --resume %s goes on\n", tool_name(), steps,
                run->checkpoint);
}

int train_loop(train_run *run)
{
    int code = 0;
    tool_catch(true);
    if (!run->o->resume && !run->o->from)
        code = measure(run);
    run->began = runtime_seconds();
    run->began_at = dcm_trainer_steps(run->trainer) - (run->untested.step > 0);
    if (code == 0 && run->untested.step)
        code = finish(run, run->untested);
    else if (code == 0 && run->began_at == (uint64_t)run->o->steps && !is_chosen(run))
        code = watch_save(run, NAN); /* resumed behind its end: the output may be another */
    while (code == 0 && dcm_trainer_steps(run->trainer) < (uint64_t)run->o->steps) {
        code = step(run);
        if (code == 0)
            code = tool_stopped();
    }
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    tool_catch(false);
    if (code == 130 || code == 143)
        keep_stopped(run);
    return code;
}

/* ---- Checkpoints ---- */

void train_groups(const train_options *o, char *text, size_t size)
{
    *text = 0;
    for (size_t i = 0, at = 0; i < o->groups.count && at < size; i++)
        at += (size_t)snprintf(text + at, size - at, "%s%" PRId64, i ? "," : "", o->groups.item[i]);
}

void train_tell_options(train_run *run)
{
    const train_options *o = run->o;
    char groups[512];
    train_groups(o, groups, sizeof groups);
    snprintf(run->options, sizeof run->options,
             "text=digest:%016" PRIx64 " held-out=digest:%016" PRIx64 " group=%s sequences=%" PRId64 " steps=%" PRId64
             " rate=%.9g warmup=%" PRId64 " seed=%" PRId64 " test-every=%" PRId64,
             corpus_digest(&run->texts), corpus_digest(&run->held), groups, o->sequences, o->steps, o->rate, o->warmup,
             o->seed, o->test_every);
}

int train_resume(train_run *run)
{
    const train_options *o = run->o;
    journal_row *r = &run->untested;
    dcm_train_losses *l = &r->losses;
    char state[STATE_SIZE];
    const dcm_status status = dcm_trainer_resume(run->trainer, o->resume, state, sizeof state);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (sscanf(state, "%lg %d %d %" SCNu64 " %lg %lg %lg %lg %lg %lg %lg", &run->best, &run->rises, &run->flat,
               &r->step, &r->rate, &r->norm, &l->kl, &l->il, &l->magnitude, &l->boundary, &r->seconds) != 11)
        return tool_fail(DCM_ERR_FILE, "%s: not a checkpoint of dcm train", o->resume);
    if (o->held.count && run->best > 0 && access(o->out, R_OK) != 0)
        return tool_fail(DCM_ERR_FILE, "%s: %s; the best weights up to this checkpoint were written to its -o", o->out,
                         strerror(errno));
    return 0;
}
