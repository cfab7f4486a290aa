#include "bench.h"
#include "check.h"
#include "progress.h"
#include "tool.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool works(const check_side *s) { return s->pid != 0; }

/* A side failed: without the baseline or a reference there is nothing to compare with. */
static void lost(check_run *run, check_side *s, uint64_t step)
{
    const size_t used = strlen(s->trouble);
    snprintf(s->trouble + used, sizeof s->trouble - used, ", at token %" PRIu64, step);
    run->stopped = run->stopped || s == run->side || s == &run->side[run->ref] || s == &run->side[run->with_floats];
}

/* ---- Logits ---- */

/*
 * A half in the cache takes the last bit of a sum for a whole rounding of its own, or not at all, as chance has it:
 * both references may agree at a step where a device does not. The bound is then that of the step where they differ
 * most.
 */
static bool rounds_halves(const check_run *run) { return run->job.cache.kv == DCM_KV_F16 && !run->job.device.strict; }

/* When the largest bound is known. */
static void judge_halves(check_run *run)
{
    for (size_t i = 1; i < run->sides; i++) {
        check_totals *t = &run->side[i].sum;
        t->bound = run->largest_bound;
        t->ratio = t->max_abs / t->bound;
        t->allowed = 2 * t->bound;
    }
}

/* One line of --steps-out; what is no number is null. */
static void write_step(FILE *out, const char *device, uint64_t step, const check_difference *d, double bound)
{
    json_t *line = json_pack("{s:o,s:I,s:o?,s:f,s:o?,s:o?,s:b}", "device", runtime_text(device), "step",
                             (json_int_t)step, "max_abs", json_real(d->max_abs), "bound", bound, "nmse",
                             json_real(d->nmse), "kl", json_real(d->kl), "same_top", d->top_a == d->top_b);
    if (line && json_dumpf(line, out, JSON_COMPACT) == 0)
        fputc('\n', out);
    json_decref(line);
}

/* Without a bound nothing is within it. */
static double ratio_of(double difference, double bound)
{
    return bound > 0 ? difference / bound : difference > 0 ? INFINITY : 0;
}

static void take_step(check_run *run, check_side *s, uint64_t step, const check_difference *d, double bound)
{
    check_totals *t = &s->sum;
    const double ratio = ratio_of(d->max_abs, bound);
    const bool further = rounds_halves(run) ? d->max_abs > t->max_abs : !(ratio <= t->ratio);
    if (d->max_abs > 0 && (!t->worst_step || further)) {
        t->max_abs = d->max_abs;
        t->bound = bound;
        t->ratio = ratio;
        t->worst_step = step;
    }
    t->steps = step;
    t->same_bits += d->same_bits;
    if (!d->same_bits && !t->other_bits)
        t->other_bits = step;
    t->nmse = fmax(t->nmse, isnan(d->nmse) ? INFINITY : d->nmse);
    t->kl = fmax(t->kl, isnan(d->kl) ? INFINITY : d->kl);
    if (d->top_a != d->top_b && !t->parted) {
        t->parted = step;
        t->margin = d->margin;
        t->allowed = 2 * bound;
    }
    if (run->steps_out.out && s->asked_for)
        write_step(run->steps_out.out, s->name, step, d, bound);
}

/* Compare the step whose logits are the `at`-th of those that came last. */
static void compare_step(check_run *run, uint64_t step, size_t at)
{
    const size_t vocab = run->side->model.vocab, from = at * vocab;
    const float *base = run->side->logits + from;
    const record_step *recorded = run->against ? &run->against->step[step - 1] : NULL;
    const double bound =
        run->job.device.strict ? 0
        : recorded             ? (double)recorded->bound
                   : check_bound(run->side[run->ref].logits + from, run->side[run->with_floats].logits + from, vocab);
    run->largest_bound = fmax(run->largest_bound, bound);
    run->side->sum.steps = step;
    if (run->save)
        check_record_step(run, step, run->ids[step - 1], base, bound);
    for (size_t i = 1; i < run->sides; i++) {
        check_side *s = &run->side[i];
        if (!works(s))
            continue;
        const check_difference d = recorded ? check_compare_sketch(recorded, s->logits + from, vocab)
                                            : check_compare(base, s->logits + from, vocab);
        take_step(run, s, step, &d, bound);
    }
}

/* Feed `count` tokens behind the first `done` to all sides, one side after the other, and compare. */
static void feed_all(check_run *run, uint64_t done, size_t count)
{
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        if (works(&run->side[i]) && !check_side_feed(&run->side[i], &run->job, run->ids + done, count))
            lost(run, &run->side[i], done + 1);
    if (!run->stopped && !run->against && !run->job.device.strict && !check_take_choices(run)) {
        check_side_end(&run->side[run->ref], "no room for what its merges chose");
        lost(run, &run->side[run->ref], done + count);
    }
    for (size_t at = 0; at < count && !run->stopped; at++)
        compare_step(run, done + at + 1, at);
}

/* ---- Caches ---- */

/* A difference found in a unit, keys or values. */
static void take_unit(check_side *s, size_t unit, uint32_t layer, size_t kind, uint64_t step, double max_abs,
                      double bound)
{
    check_totals *t = &s->sum;
    const double ratio = ratio_of(max_abs, bound);
    if (!(max_abs > 0) || (*t->cache_worst && ratio <= t->cache_ratio))
        return;
    const dcm_unit *u = &s->units[unit];
    t->cache_max_abs = max_abs;
    t->cache_ratio = ratio;
    snprintf(t->cache_worst, sizeof t->cache_worst, "after %" PRIu64 ": layer %u, %s of tokens %" PRIu64 " to %" PRIu64,
             step, layer, kind ? "values" : "keys", u->first, u->first + u->tokens - 1);
}

/* One unit, keys or values, beside the baseline's, head by head. */
static void compare_unit(const check_run *run, check_side *s, size_t unit, uint32_t layer, uint32_t kind, uint64_t step,
                         double noise)
{
    const size_t d = s->model.head_dim, n = s->model.kv_heads * d, at = (2 * unit + kind) * n;
    const float *a = run->side->values + at, *b = s->values + at;
    const double token = run->job.device.strict ? 0 : check_token_bound(run->job.cache.kv, noise, a, n);
    for (uint32_t h = 0; h < s->model.kv_heads; h++)
        take_unit(s, unit, layer, kind, step, check_max_abs(a + h * d, b + h * d, d),
                  check_unit_bound(run, &s->units[unit], layer, h, kind, token));
}

/* One unit's digest beside the record's. */
static void compare_digest(const check_run *run, check_side *s, size_t unit, uint32_t layer, size_t kind, uint64_t step)
{
    const record_cache *c = check_record_cache(run, step);
    const size_t n = (size_t)s->model.kv_heads * s->model.head_dim, row = 2 * (size_t)layer + kind;
    const float own = record_digest(s->values + (2 * unit + kind) * n, n);
    take_unit(s, unit, layer, kind, step, check_max_abs(&c->digest[row * c->units + unit], &own, 1),
              c->bound[row * c->units + unit]);
}

/* The same units in the same places? */
static bool same_units(const check_side *a, const check_side *b)
{
    if (a->n_units != b->n_units)
        return false;
    for (size_t i = 0; i < a->n_units; i++)
        if (a->units[i].first != b->units[i].first || a->units[i].level != b->units[i].level)
            return false;
    return true;
}

static void compare_layer(check_run *run, uint32_t layer, uint64_t step)
{
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        if (works(&run->side[i]) && !check_side_layer(&run->side[i], &run->job))
            lost(run, &run->side[i], step);
    if (run->save && !run->stopped)
        check_record_layer(run, step, layer);
    for (uint32_t kind = 0; kind < 2 && !run->stopped; kind++) {
        const double noise = run->against || run->job.device.strict ? 0 : check_layer_noise(run, kind);
        for (size_t i = 1; i < run->sides; i++)
            for (size_t u = 0; works(&run->side[i]) && u < run->side[i].n_units; u++)
                if (run->against)
                    compare_digest(run, &run->side[i], u, layer, kind, step);
                else
                    compare_unit(run, &run->side[i], u, layer, kind, step, noise);
    }
}

/* The baseline's units as a record has them. */
static void take_recorded_units(check_run *run, uint64_t step)
{
    const record_cache *c = check_record_cache(run, step);
    check_side *s = run->side;
    free(s->units);
    s->units = malloc(c->units * sizeof *s->units);
    s->n_units = s->units ? c->units : 0;
    for (size_t i = 0; i < s->n_units; i++)
        s->units[i] = (dcm_unit){.first = c->unit[i].first, .level = c->unit[i].level};
}

/* Compare all units after `step` tokens. */
static void compare_caches(check_run *run, uint64_t step)
{
    if (run->against)
        take_recorded_units(run, step);
    for (size_t i = 0; i < run->sides && !run->stopped; i++) {
        check_side *s = &run->side[i];
        if (!works(s))
            continue;
        if (!check_side_units(s, &run->job))
            lost(run, s, step);
        else if (!same_units(run->side, s)) {
            check_side_end(s, "its cache has other units than that of the baseline");
            lost(run, s, step);
        }
    }
    if (run->save && !run->stopped && !check_record_units(run, step)) {
        check_side_end(run->side, "no room for the record of its cache");
        lost(run, run->side, step);
    }
    for (uint32_t layer = 0; layer < run->side->model.layers && !run->stopped; layer++)
        compare_layer(run, layer, step);
}

/* ---- The stream ---- */

static bool is_time(const check_run *run, uint64_t step)
{
    for (size_t i = 0; i < run->cache_at.count; i++)
        if ((uint64_t)run->cache_at.item[i] == step)
            return true;
    return false;
}

/* Tokens of the next round: known ones, up to the next comparison of caches; else the baseline's choice. */
static size_t next_tokens(check_run *run, uint64_t done)
{
    size_t count = 0;
    while (count < CHECK_BLOCK && done + count < run->known && (!count || !is_time(run, done + count)))
        count++;
    return count ? count : 1;
}

static int open_sides(check_run *run)
{
    int code = 0;
    for (size_t i = run->against ? 1 : 0; i < run->sides && code == 0; i++) {
        check_side *s = &run->side[i];
        code = check_side_open(s, &run->job);
        if (code == 0 && run->against) {
            code = check_record_fits(run, &s->model);
            run->side->model = s->model;
        } else if (code == 0 && memcmp(&s->model, &run->side->model, sizeof s->model) != 0) {
            code = tool_fail(DCM_ERR_FILE, "%s: the model changed while it was opened", run->job.path);
        }
    }
    return code;
}

/* The tokens that random weights are fed. */
static void make_ids(check_run *run)
{
    for (uint64_t i = 0; i < run->steps; i++)
        run->ids[i] = bench_token(run->seed, i, run->side->model.vocab);
    run->known = (size_t)run->steps;
}

int check_all(check_run *run)
{
    progress line;
    int code = open_sides(run);
    if (code)
        return code;
    if (!*run->job.path && !run->against)
        make_ids(run);
    tool_catch(true);
    progress_begin(&line, run->quiet, run->steps);
    for (uint64_t done = 0; done < run->steps && !run->stopped && code == 0;) {
        const size_t count = next_tokens(run, done);
        if (done >= run->known)
            run->ids[done] = dcm_sample(run->greedy, run->side->model.vocab, NULL, NULL);
        feed_all(run, done, count);
        done += count;
        if (!run->stopped && is_time(run, done))
            compare_caches(run, done);
        if (!run->against)
            run->greedy = run->side->logits + (count - 1) * run->side->model.vocab;
        progress_at(&line, done);
        code = tool_stopped();
    }
    if (rounds_halves(run))
        judge_halves(run);
    progress_end(&line);
    tool_catch(false);
    return code;
}
