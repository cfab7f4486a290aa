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
static bool rounds_halves(const check_run *run) { return run->job.cache.kv == DCM_KV_F16; }

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

static void take_step(check_run *run, check_side *s, uint64_t step, size_t at, double bound)
{
    const size_t vocab = s->model.vocab;
    check_totals *t = &s->sum;
    const check_difference d = check_compare(run->side->logits + at * vocab, s->logits + at * vocab, vocab);
    const double ratio = d.max_abs / bound;
    const bool further = rounds_halves(run) ? d.max_abs > t->max_abs : !(ratio <= t->ratio);
    if (d.max_abs > 0 && (!t->worst_step || further)) {
        t->max_abs = d.max_abs;
        t->bound = bound;
        t->ratio = ratio;
        t->worst_step = step;
    }
    t->steps = step;
    run->side->sum.steps = step;
    t->nmse = fmax(t->nmse, isnan(d.nmse) ? INFINITY : d.nmse);
    t->kl = fmax(t->kl, isnan(d.kl) ? INFINITY : d.kl);
    if (d.top_a != d.top_b && !t->parted) {
        t->parted = step;
        t->margin = d.margin;
        t->allowed = 2 * bound;
    }
    if (run->steps_out.out && s->asked_for)
        write_step(run->steps_out.out, s->name, step, &d, bound);
}

/* Feed `count` tokens behind the first `done` to all sides, one side after the other, and compare. */
static void feed_all(check_run *run, uint64_t done, size_t count)
{
    const size_t vocab = run->side->model.vocab;
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        if (works(&run->side[i]) && !check_side_feed(&run->side[i], &run->job, run->ids + done, count))
            lost(run, &run->side[i], done + 1);
    for (size_t at = 0; at < count && !run->stopped; at++) {
        const double bound = check_bound(run->side[run->ref].logits + at * vocab,
                                         run->side[run->with_floats].logits + at * vocab, vocab);
        run->largest_bound = fmax(run->largest_bound, bound);
        for (size_t i = 1; i < run->sides; i++)
            if (works(&run->side[i]))
                take_step(run, &run->side[i], done + at + 1, at, bound);
    }
}

/* ---- Caches ---- */

/* Differences of one unit, keys or values, from the baseline's. */
static void take_unit(check_run *run, check_side *s, size_t unit, uint32_t layer, int values, uint64_t step,
                      double noise)
{
    const check_model *m = &s->model;
    const size_t n = (size_t)m->kv_heads * m->head_dim, at = (2 * unit + (size_t)values) * n;
    const float *a = run->side->values + at, *b = s->values + at;
    const double max_abs = check_max_abs(a, b, n);
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(a[i]));
    const double place = largest * (run->job.cache.kv == DCM_KV_F32 ? FLT_EPSILON : ldexp(1, -10));
    const double bound = fmax(CHECK_FACTOR * noise, place), ratio = max_abs / bound;
    check_totals *t = &s->sum;
    if (!(max_abs > 0) || (*t->cache_worst && ratio <= t->cache_ratio))
        return;
    const dcm_unit *u = &s->units[unit];
    t->cache_max_abs = max_abs;
    t->cache_bound = bound;
    t->cache_ratio = ratio;
    snprintf(t->cache_worst, sizeof t->cache_worst, "after %" PRIu64 ": layer %u, %s of tokens %" PRIu64 " to %" PRIu64,
             step, layer, values ? "values" : "keys", u->first, u->first + u->tokens - 1);
}

/* Largest difference of the two references in one layer's keys or values. */
static double noise_of(const check_run *run, int values)
{
    const check_side *ref = &run->side[run->ref], *other = &run->side[run->with_floats];
    const size_t n = (size_t)ref->model.kv_heads * ref->model.head_dim;
    double noise = 0;
    for (size_t u = 0; u < ref->n_units; u++) {
        const size_t at = (2 * u + (size_t)values) * n;
        noise = fmax(noise, check_max_abs(ref->values + at, other->values + at, n));
    }
    return noise;
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
    for (int values = 0; values < 2 && !run->stopped; values++) {
        const double noise = noise_of(run, values);
        for (size_t i = 1; i < run->sides; i++)
            for (size_t u = 0; works(&run->side[i]) && u < run->side->n_units; u++)
                take_unit(run, &run->side[i], u, layer, values, step, noise);
    }
}

/* Compare all units after `step` tokens. */
static void compare_caches(check_run *run, uint64_t step)
{
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
    for (size_t i = 0; i < run->sides && code == 0; i++) {
        check_side *s = &run->side[i];
        code = check_side_open(s, &run->job);
        if (code == 0 && memcmp(&s->model, &run->side->model, sizeof s->model) != 0)
            code = tool_fail(DCM_ERR_FILE, "%s: the model changed while it was opened", run->job.path);
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
    if (!*run->job.path)
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
