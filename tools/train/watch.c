#include "watch.h"

#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { WATCHED_MAX = 2 /* sequences of training texts */, RISES_MAX = 3, FLAT_MAX = 3 };

/* Below it a gate or a direct head is constant. Nets of 15 and more maps begin there, for some 100 steps. */
static const double LEAST_SPREAD = 1e-3;

static const corpus *tested(const train_run *run) { return run->held.count ? &run->held : &run->texts; }

size_t watch_sequences(const train_run *run)
{
    const size_t count = run->texts.count;
    return run->held.count ? run->held.count : count < WATCHED_MAX ? count : WATCHED_MAX;
}

/* Sequence i: the same each time. */
static int read_sequence(train_run *run, size_t i)
{
    corpus_draw(tested(run), i, 0x7e57, run->ids, (size_t)run->o->tokens);
    const dcm_status status = dcm_trainer_read(run->trainer, run->ids, (size_t)run->o->tokens);
    run->read = 0;
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/* KL over all sequences and group lengths: the mean, and the mean of its ratio to the window's. */
static int test(train_run *run, double *kl, double *ratio, dcm_train_gate *gate)
{
    const size_t groups = run->o->groups.count, sequences = watch_sequences(run);
    double sum = 0, ratios = 0;
    for (size_t i = 0; i < sequences; i++) {
        int code = read_sequence(run, i);
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
            ratios += value == *window ? 1 : value / *window; /* both may be 0 */
            code = tool_stopped();
        }
        if (code)
            return code;
    }
    *kl = sum / (double)(sequences * groups);
    *ratio = ratios / (double)(sequences * groups);
    const dcm_status status = dcm_trainer_gate(run->trainer, gate);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

int watch_save(train_run *run, double ratio)
{
    const train_options *o = run->o;
    const double weight[] = {o->kl, o->il, o->magnitude, o->boundary};
    char steps[32], seed[32], held[96], groups[512], weights[4][32];
    train_groups(o, groups, sizeof groups);
    for (size_t i = 0; i < 4; i++)
        snprintf(weights[i], sizeof weights[i], "%.9g", weight[i]);
    snprintf(steps, sizeof steps, "%" PRIu64, dcm_trainer_steps(run->trainer));
    snprintf(seed, sizeof seed, "%" PRId64, o->seed);
    snprintf(held, sizeof held, "%.4f of the KL of sink + window with as many units, held-out texts", ratio);
    json_t *meta = runtime_meta(&run->r);
    const char *commit = json_string_value(json_object_get(meta, "commit"));
    const dcm_train_note notes[] = {{"trained_by", tool_command_line()},
                                    {"commit", commit ? commit : "unknown"},
                                    {"steps", steps},
                                    {"seed", seed},
                                    {"groups", groups},
                                    {"mode", o->mode ? "chunked" : "tai"},
                                    {"kl", weights[0]},
                                    {"il", weights[1]},
                                    {"magnitude", weights[2]},
                                    {"boundary", weights[3]},
                                    {"held_out", held}};
    const dcm_status status =
        dcm_trainer_save(run->trainer, o->out, notes, sizeof notes / sizeof *notes - (isnan(ratio) ? 1 : 0));
    json_decref(meta);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

/* One that gives the same to all pairs, or a direct head that makes the same of them. */
static bool is_flat(const dcm_train_gate *gate)
{
    return (isnan(gate->spread) ? gate->variety : gate->spread) < LEAST_SPREAD;
}

static void tell(const train_run *run, uint64_t step, double kl, double ratio, const dcm_train_gate *gate)
{
    char merge[96], flat[32] = "";
    if (isnan(gate->spread))
        snprintf(merge, sizeof merge, "merged keys' variety %.3f", gate->variety);
    else
        snprintf(merge, sizeof merge, "older unit's share %.2f, spread %.3f, %.0f %% decided", gate->mean, gate->spread,
                 100 * gate->sure);
    if (run->flat)
        snprintf(flat, sizeof flat, ", constant (%d of %d)", run->flat, FLAT_MAX);
    if (!run->o->words.quiet)
        fprintf(stderr, "%sstep %" PRIu64 ": %s KL %.4f, %.3f of the window's; %s%s\n",
                isatty(STDERR_FILENO) ? "\r\033[K" : "", step, run->held.count ? "held-out" : "training texts'", kl,
                ratio, merge, flat);
}

static int fail_flat(uint64_t step, const dcm_train_gate *gate)
{
    if (isnan(gate->spread))
        return tool_fail(1, "step %" PRIu64 ": the merge has collapsed: in %d tests it made the same unit of every "
                            "pair",
                         step, FLAT_MAX);
    return tool_fail(1, "step %" PRIu64 ": the gate has collapsed: in %d tests it gave the same to every older unit, "
                        "now %.3f",
                     step, FLAT_MAX, gate->mean);
}

/* Keep what is best so far; what is far above it time after time has gone wrong. */
static int check_ratio(train_run *run, uint64_t step, double ratio)
{
    const bool held = run->held.count;
    if (!(run->best > 0) || ratio < run->best) {
        run->best = ratio;
        run->rises = 0;
        return held ? watch_save(run, ratio) : 0;
    }
    run->rises = ratio > 1.1 * run->best ? run->rises + 1 : 0;
    if (run->rises < RISES_MAX)
        return 0;
    if (!held)
        return tool_fail(1, "step %" PRIu64 ": the loss on training texts rose to %.3f of the window's, where it was "
                            "%.3f: no merge file was written; a smaller --rate may help",
                         step, ratio, run->best);
    return tool_fail(1, "step %" PRIu64 ": the held-out loss rose to %.3f of the window's, where it was %.3f: %s has "
                        "the best; a smaller --rate may help",
                     step, ratio, run->best, run->o->out);
}

int watch_test(train_run *run, journal_row *row)
{
    dcm_train_gate gate;
    double kl = 0, ratio = 0;
    int code = test(run, &kl, &ratio, &gate);
    if (code)
        return code;
    if (run->held.count) {
        row->held_kl = kl;
        row->held_ratio = ratio;
    }
    row->gate_mean = gate.mean;
    row->gate_spread = gate.spread;
    const bool flat = is_flat(&gate);
    run->flat = flat ? run->flat + 1 : 0;
    tell(run, row->step, kl, ratio, &gate);
    if (!isfinite(ratio))
        return tool_fail(1, "step %" PRIu64 ": the %s loss is not finite", row->step,
                         run->held.count ? "held-out" : "training texts'");
    if (run->flat >= FLAT_MAX)
        return fail_flat(row->step, &gate);
    return flat ? 0 : check_ratio(run, row->step, ratio);
}
