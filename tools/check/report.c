#include "check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool within(double ratio) { return ratio <= 1; }

const char *check_verdict(const check_run *run, const check_side *s, char *room)
{
    if (*s->trouble)
        return s->trouble;
    if (run->job.device.strict && s->sum.other_bits) {
        snprintf(room, CHECK_TEXT, "other bits from token %" PRIu64 " on", s->sum.other_bits);
        return room;
    }
    if (!within(s->sum.ratio))
        return "logits differ";
    return within(s->sum.cache_ratio) ? "ok" : "cache differs";
}

int check_code(const check_run *run)
{
    int code = 0;
    for (size_t i = 0; i < run->sides; i++) {
        const check_side *s = &run->side[i];
        if (*s->trouble)
            return s->code ? s->code : DCM_ERR_DEVICE;
        if (s->asked_for && i && run->job.device.strict && s->sum.other_bits)
            code = 1;
        if (s->asked_for && i && (!within(s->sum.ratio) || !within(s->sum.cache_ratio)))
            code = 1;
    }
    return code;
}

static table_cell step_cell(uint64_t step) { return step ? cell_int((int64_t)step) : cell_none(); }

static void print_side(table *t, const check_run *run, size_t index)
{
    const check_side *s = &run->side[index];
    const check_totals *sum = &s->sum;
    const bool bounded = !run->job.device.strict;
    char room[CHECK_TEXT];
    if (index == 0) {
        const table_cell cells[] = {cell_text(s->name),
                                    cell_int((int64_t)sum->steps), [15] = cell_text(check_verdict(run, s, room))};
        table_row(t, cells);
        return;
    }
    const table_cell cells[] = {
        cell_text(s->name),
        cell_int((int64_t)sum->steps),
        cell_real(sum->max_abs),
        bounded ? cell_real(sum->bound) : cell_none(),
        bounded ? cell_real(sum->ratio) : cell_none(),
        step_cell(sum->worst_step),
        cell_int((int64_t)sum->same_bits),
        cell_real(sum->nmse),
        cell_real(sum->kl),
        step_cell(sum->parted),
        sum->parted ? cell_real(sum->margin) : cell_none(),
        sum->parted ? cell_bool(sum->margin <= sum->allowed) : cell_none(),
        cell_real(sum->cache_max_abs),
        bounded ? cell_real(sum->cache_ratio) : cell_none(),
        cell_text(sum->cache_worst),
        cell_text(check_verdict(run, s, room)),
    };
    table_row(t, cells);
}

/* The devices' facts in the order of the rows. */
static json_t *facts_of(const check_run *run)
{
    json_t *all = json_array();
    for (size_t i = 0; i < run->sides; i++)
        if (run->side[i].facts)
            json_array_append(all, run->side[i].facts);
    return all;
}

static void print_note(const check_run *run, table_format format)
{
    const bool halves = run->job.cache.kv == DCM_KV_F16;
    char note[1024];
    if (run->job.device.strict) {
        snprintf(note, sizeof note,
                 "Strict: the logits after each of %" PRIu64 " tokens and the caches have to have the bits of %s.",
                 run->side->sum.steps, run->side->name);
        table_note(format, note);
        return;
    }
    snprintf(note, sizeof note,
             "Differences from %s over %" PRIu64 " tokens%s. A bound is %d times what ref differs by between sums in "
             "double and in float (ref-float), %s for logits and in that layer for the cache, one rounding at least; a "
             "unit merged by a scorer may also move by its choice, whose gap is known that well. "
             "max_abs and bound are of the step with the largest %s. same_bits: steps with the same logits bit for "
             "bit. parted: the first token where the greedy choice is another, margin: the baseline's between both; a "
             "tie where it is within twice the bound.",
             run->side->name, run->side->sum.steps,
             run->against ? ", of its largest logits and of digests of its cache" : "", CHECK_FACTOR,
             halves ? "at the step where that is most (f16 storage makes it a matter of chance)" : "at that step",
             halves ? "difference" : "ratio");
    table_note(format, note);
}

void check_print(const check_run *run, table_format format, json_t *meta)
{
    static const table_column columns[] = {
        {"device", 0},         {"steps", 0},        {"max_abs", -3},    {"bound", -3}, {"ratio", -3},  {"step", 0},
        {"same_bits", 0},      {"nmse", -3},        {"kl", -3},         {"parted", 0}, {"margin", -3}, {"tie", 0},
        {"cache_max_abs", -3}, {"cache_ratio", -3}, {"cache_worst", 0}, {"status", 0}};
    enum { COLUMNS = sizeof columns / sizeof *columns };
    table t;
    json_object_set_new(meta, "devices", facts_of(run));
    if (run->against)
        json_object_set(meta, "record", run->against->header);
    table_begin(&t, format, columns, COLUMNS, meta);
    for (size_t i = 0; i < run->sides; i++)
        print_side(&t, run, i);
    table_end(&t);
    print_note(run, format);
}
