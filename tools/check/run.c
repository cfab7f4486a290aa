#include "bench.h"
#include "check.h"
#include "progress.h"
#include "tool.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

bool check_carries(const check_run *run, const check_side *s)
{
    const size_t i = (size_t)(s - run->side);
    return i == 0 || i == run->ref || i == run->with_floats || s->in_f32;
}

void check_lost(check_run *run, check_side *s, const char *format, ...)
{
    const size_t used = strlen(s->trouble);
    const int comma = snprintf(s->trouble + used, sizeof s->trouble - used, ", ");
    const size_t at = used + (size_t)comma < sizeof s->trouble ? used + (size_t)comma : sizeof s->trouble - 1;
    va_list args;
    va_start(args, format);
    vsnprintf(s->trouble + at, sizeof s->trouble - at, format, args);
    va_end(args);
    run->stopped = run->stopped || check_carries(run, s);
}

/* ---- Logits ---- */

/*
 * A half in the cache takes the last bit of a sum for a whole rounding of its own, or not at all, as chance has it, and
 * stays: what a turned half does to a later step is not told by what storing halves does to that step, in whose logits
 * the many may cancel. The bound is that of the step where the references differ most.
 */
static bool rounds_halves(const check_run *run) { return run->job.cache.kv == DCM_KV_F16 && !run->job.device.strict; }

/* When the largest bound is known. */
static void judge_halves(check_run *run)
{
    for (size_t i = 0; i < run->sides; i++)
        for (check_form form = CHECK_DECODE; form < CHECK_FORMS; form++) {
            check_totals *t = &run->side[i].sum[form];
            t->bound = run->largest_bound;
            t->ratio = check_ratio(t->max_abs, t->bound);
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

double check_ratio(double difference, double bound)
{
    return bound > 0 ? difference / bound : difference > 0 ? INFINITY : 0;
}

static void take_step(const check_run *run, check_totals *t, uint64_t step, const check_difference *d, double bound)
{
    const double ratio = check_ratio(d->max_abs, bound);
    const bool further = rounds_halves(run) ? d->max_abs > t->max_abs : !(ratio <= t->ratio);
    if (d->max_abs > 0 && (!t->worst_step || further)) {
        t->max_abs = d->max_abs;
        t->bound = bound;
        t->ratio = ratio;
        t->worst_step = step;
    }
    t->steps++;
    t->same_bits += d->same_bits;
    if (d->no_number && !t->no_number)
        t->no_number = step;
    if (!d->same_bits && !t->other_bits)
        t->other_bits = step;
    t->nmse = fmax(t->nmse, isnan(d->nmse) ? INFINITY : d->nmse);
    t->kl = fmax(t->kl, isnan(d->kl) ? INFINITY : d->kl);
    if (d->top_a != d->top_b && !t->parted) {
        t->parted = step;
        t->margin = d->margin;
        t->allowed = 2 * bound;
    }
}

/* check_apart: of the logits that are the `at`-th of those that came last. */
static double logits_apart(const check_run *run, size_t other, size_t at)
{
    const size_t vocab = run->side->model.vocab, from = at * vocab;
    return check_max_abs(run->side[run->ref].logits + from, run->side[other].logits + from, vocab);
}

/* The bound of the step whose logits are the `at`-th of those that came last. */
static double step_bound(const check_run *run, uint64_t step, size_t at)
{
    const size_t vocab = run->side->model.vocab;
    if (run->job.device.strict)
        return 0;
    if (run->against)
        return run->against->step[step - 1].bound;
    const float *ref = run->side[run->ref].logits + at * vocab;
    return check_bound(DCM_KV_F32, check_allowed(run, logits_apart, at), ref, vocab);
}

/* Logits of a device beside the baseline's of that step, which are the `at`-th of `rows`. */
static check_difference difference(const check_run *run, uint64_t step, const float *rows, size_t at,
                                   const float *logits)
{
    const size_t vocab = run->side->model.vocab;
    return run->against ? check_compare_sketch(&run->against->step[step - 1], logits, vocab)
                        : check_compare(rows + at * vocab, logits, vocab);
}

/* Keep a step's bound and the baseline's logits, the `at`-th of those that came last, for those who read it again. */
static void keep(check_run *run, uint64_t step, size_t at, double bound)
{
    const size_t vocab = run->side->model.vocab, row = (step - 1) % CHECK_ROWS;
    run->kept_bound[row] = bound;
    if (run->kept && step <= CHECK_PROMPT_TOKENS)
        memcpy(run->kept + row * vocab, run->side->logits + at * vocab, vocab * sizeof *run->kept);
}

/* Compare the step whose logits are the `at`-th of those that came last. */
static void compare_step(check_run *run, uint64_t step, size_t at)
{
    const size_t vocab = run->side->model.vocab, from = at * vocab;
    const double bound = step_bound(run, step, at);
    check_totals *base = run->side->sum;
    run->largest_bound = fmax(run->largest_bound, bound);
    base->steps++;
    if (!run->against && !base->no_number && !check_all_numbers(run->side->logits + from, vocab))
        base->no_number = step;
    if (run->save)
        check_record_step(run, step, run->ids[step - 1], run->side->logits + from, bound);
    keep(run, step, at, bound);
    for (size_t i = 1; i < run->sides; i++) {
        check_side *s = &run->side[i];
        if (at >= s->n_logits)
            continue;
        const check_difference d = difference(run, step, run->side->logits, at, s->logits + from);
        take_step(run, s->sum, step, &d, bound);
        if (run->steps_out.out && s->asked_for)
            write_step(run->steps_out.out, s->name, step, &d, bound);
    }
}

/*
 * Feed `count` tokens behind the first `done` to all sides, one side after the other, and compare, what a side computed
 * before it failed too. Returns for how many the baseline and the references are there.
 */
static size_t feed_all(check_run *run, uint64_t done, size_t count)
{
    for (size_t i = 0; i < run->sides; i++) {
        check_side *s = &run->side[i];
        s->n_logits = 0;
        if (!check_works(s) || !count)
            continue;
        s->n_logits = check_side_feed(s, &run->job, run->ids + done, count);
        if (check_works(s))
            continue;
        check_lost(run, s, "at token %" PRIu64, done + s->n_logits + 1);
        count = check_carries(run, s) ? s->n_logits : count;
    }
    if (!run->stopped && !run->against && !run->job.device.strict && !check_take_choices(run)) {
        check_side_end(&run->side[run->ref], DCM_ERR_MEMORY, "no room for what its merges chose");
        check_lost(run, &run->side[run->ref], "at token %" PRIu64, done + count);
    }
    for (size_t at = 0; at < count; at++)
        compare_step(run, done + at + 1, at);
    return count;
}

/* ---- Prompts ---- */

uint64_t check_prompt_tokens(const check_run *run)
{
    const uint64_t most = run->steps < CHECK_PROMPT_TOKENS ? run->steps : CHECK_PROMPT_TOKENS;
    return most > 1 ? most : 0;
}

/*
 * Let devices read, in a form other than decoding, what was fed up to `step` and not read there yet, and compare the
 * logits after the last, or after each, with those that the baseline has when decoding.
 */
static void read_on(check_run *run, check_form form, uint64_t step)
{
    const uint64_t first = run->read[form];
    run->read[form] = step;
    for (size_t i = 0; i < run->sides && !run->stopped; i++) {
        check_side *s = &run->side[i];
        if (!check_works(s) || !s->prompts)
            continue;
        uint64_t at = form == CHECK_EACH ? first : step - 1;
        bool there = check_side_read(s, form, run->ids + first, (size_t)(step - first));
        for (const float *logits; there && at < step && (logits = check_side_row(s, &run->job)) != NULL; at++) {
            const size_t row = at % CHECK_ROWS;
            const check_difference d = difference(run, at + 1, run->kept, row, logits);
            take_step(run, &s->sum[form], at + 1, &d, run->kept_bound[row]);
        }
        if (at < step)
            check_lost(run, s, "in a prompt%s, at one of tokens %" PRIu64 " to %" PRIu64,
                       form == CHECK_EACH ? " with the logits after each" : "", first + 1, step);
    }
}

/* As a prompt, whose caches are compared too. */
static void read_prompts(check_run *run, uint64_t step)
{
    read_on(run, CHECK_PROMPT, step);
    if (!run->against || check_record_cache(run, step))
        check_caches(run, CHECK_PROMPT, step);
}

/* ---- The stream ---- */

static bool is_time(const check_run *run, uint64_t step)
{
    for (size_t i = 0; i < run->cache_at.count; i++)
        if ((uint64_t)run->cache_at.item[i] == step)
            return true;
    return false;
}

/* Is a prompt read up to here: where caches are compared, and at last to its end? */
static bool is_prompt_time(const check_run *run, uint64_t step)
{
    const uint64_t most = check_prompt_tokens(run);
    return step == most || (step < most && is_time(run, step));
}

/* Are the logits after each token up to here read? */
static bool is_each_time(const check_run *run, uint64_t step)
{
    const uint64_t most = check_prompt_tokens(run);
    return step == most || (step < most && step % CHECK_ROWS == 0);
}

/* Do other comparisons follow this step? */
static bool is_end(const check_run *run, uint64_t step)
{
    return is_time(run, step) || is_prompt_time(run, step) || is_each_time(run, step);
}

/* Tokens of the next round: known ones, up to the next other comparison; else the baseline's choice. */
static size_t next_tokens(const check_run *run, uint64_t done)
{
    size_t count = 0;
    while (count < CHECK_BLOCK && done + count < run->known && (!count || !is_end(run, done + count)))
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

/* Room for what the other forms are held against, where a device is compared in them and no record tells it. */
static int make_room(check_run *run)
{
    bool needed = false;
    for (size_t i = 0; i < run->sides; i++)
        needed = needed || run->side[i].prompts;
    if (!needed || run->against)
        return 0;
    run->kept = malloc(CHECK_ROWS * (size_t)run->side->model.vocab * sizeof *run->kept);
    return run->kept ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for the logits of %d tokens", CHECK_ROWS);
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
    if (code == 0)
        code = make_room(run);
    if (code)
        return code;
    if (!*run->job.path && !run->against)
        make_ids(run);
    tool_catch(true);
    progress_begin(&line, run->quiet, run->steps);
    for (uint64_t done = 0; done < run->steps && !run->stopped && code == 0;) {
        if (done >= run->known)
            run->ids[done] = dcm_sample(run->greedy, run->side->model.vocab, NULL, NULL);
        const size_t count = feed_all(run, done, next_tokens(run, done));
        done += count;
        if (!run->stopped && is_time(run, done))
            check_caches(run, CHECK_DECODE, done);
        if (!run->stopped && is_prompt_time(run, done))
            read_prompts(run, done);
        if (!run->stopped && is_each_time(run, done))
            read_on(run, CHECK_EACH, done);
        if (!run->stopped && !run->against)
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
