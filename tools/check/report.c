#include "check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool within(double ratio) { return ratio <= 1; }

/* "WHAT from token N on", and where in the cache. */
static const char *from_token(char *room, const char *what, uint64_t token, const char *cache)
{
    snprintf(room, CHECK_TEXT, "%s from token %" PRIu64 " on%s%s", what, token, *cache ? "; its cache " : "", cache);
    return room;
}

/* "ok", or what is wrong; `room` holds CHECK_TEXT characters. */
static const char *verdict(const check_run *run, const check_side *s, check_form form, char room[CHECK_TEXT])
{
    const check_totals *t = &s->sum[form];
    if (*s->trouble)
        return s->trouble;
    if (t->no_number)
        return from_token(room, "logits are no numbers", t->no_number, "");
    if (run->job.device.strict && t->other_bits)
        return from_token(room, "other bits", t->other_bits, t->cache_worst);
    if (!within(t->ratio))
        return "logits differ";
    if (!within(t->cache_ratio))
        return "cache differs";
    return !t->steps ? "not compared" : run->stopped ? "not compared to the end" : "ok";
}

static bool differs(const check_run *run, const check_side *s)
{
    bool found = false;
    for (check_form form = CHECK_DECODE; form < CHECK_FORMS; form++) {
        const check_totals *t = &s->sum[form];
        const bool held = s->asked_for && (s != run->side || form != CHECK_DECODE);
        found = found || t->no_number ||
                (held && ((run->job.device.strict && t->other_bits) || !within(t->ratio) || !within(t->cache_ratio)));
    }
    return found;
}

int check_code(const check_run *run)
{
    int code = 0;
    for (size_t i = 0; i < run->sides; i++) {
        const check_side *s = &run->side[i];
        if (*s->trouble)
            return s->code ? s->code : DCM_ERR_DEVICE;
        if (differs(run, s))
            code = 1;
    }
    return code;
}

static table_cell step_cell(uint64_t step) { return step ? cell_int((int64_t)step) : cell_none(); }

static table_cell real_if(bool known, double x) { return known ? cell_real(x) : cell_none(); }

static const char *const form_names[CHECK_FORMS] = {"decode", "prompt", "each"};

static void print_side(table *t, const check_run *run, const check_side *s, check_form form)
{
    const check_totals *sum = &s->sum[form];
    const bool held = s != run->side || form != CHECK_DECODE, some = held && sum->steps;
    const bool bounded = !run->job.device.strict, caches = held && (sum->caches || *sum->cache_worst);
    char room[CHECK_TEXT];
    const table_cell cells[] = {
        cell_text(s->name),
        cell_text(form_names[form]),
        cell_int((int64_t)sum->steps),
        real_if(some, sum->max_abs),
        real_if(some && bounded, sum->bound),
        real_if(some && bounded, sum->ratio),
        step_cell(sum->worst_step),
        some ? cell_int((int64_t)sum->same_bits) : cell_none(),
        real_if(some, sum->nmse),
        real_if(some, sum->kl),
        step_cell(sum->parted),
        real_if(sum->parted, sum->margin),
        sum->parted ? cell_bool(sum->margin <= sum->allowed) : cell_none(),
        real_if(caches, sum->cache_max_abs),
        real_if(caches && bounded, sum->cache_ratio),
        caches ? cell_text(sum->cache_worst) : cell_none(),
        cell_text(verdict(run, s, form, room)),
    };
    table_row(t, cells);
}

/* The devices' facts in the order of their names. */
static json_t *facts_of(const check_run *run)
{
    json_t *all = json_array();
    for (size_t i = 0; i < run->sides; i++)
        if (run->side[i].facts)
            json_array_append(all, run->side[i].facts);
    return all;
}

/* Which devices the names stand for. */
static void print_devices(const check_run *run, table_format format)
{
    char note[CHECK_SIDES * CHECK_TEXT];
    size_t size = 0;
    for (size_t i = 0; size < sizeof note && i < run->sides; i++) {
        const json_t *facts = run->side[i].facts ? run->side[i].facts : run->against->header;
        const char *device = json_string_value(json_object_get(facts, "device"));
        const char *driver = json_string_value(json_object_get(facts, "driver"));
        const char *platform = json_string_value(json_object_get(facts, "platform"));
        size += (size_t)snprintf(note + size, sizeof note - size, "%s%s is %s (%s, driver %s)", i ? "; " : "",
                                 run->side[i].name, device ? device : "unknown", platform ? platform : "unknown",
                                 driver ? driver : "unknown");
    }
    table_note(format, note);
}

static void print_note(const check_run *run, table_format format)
{
    const bool halves = run->job.cache.kv == DCM_KV_F16, strict = run->job.device.strict;
    char note[1536];
    if (strict)
        snprintf(note, sizeof note,
                 "Strict: the logits after each of %" PRIu64 " tokens and the caches have to have the bits of %s.",
                 run->side->sum->steps, run->side->name);
    else
        snprintf(note, sizeof note,
                 "Differences from %s over %" PRIu64 " tokens%s. A bound is %d times what ref differs by between sums "
                 "in double and in float (ref-float)%s, %s for logits and in that layer for the cache, one rounding at "
                 "least; a unit merged by a scorer may also move by its choice, whose gap is known that well. "
                 "max_abs and bound are of the step with the largest %s. same_bits: steps with the same logits bit "
                 "for bit. parted: the first token where the greedy choice is another, margin: the baseline's between "
                 "both; a tie where it is within twice the bound.",
                 run->side->name, run->side->sum->steps,
                 run->against ? ", of its largest logits and of digests of its cache" : "", CHECK_FACTOR,
                 halves ? " and twice what it differs by from units in f32 (ref-f32)" : "",
                 halves ? "at the step where that is most (a last bit turns a stored half or not, as chance has it)"
                        : "at that step",
                 halves ? "difference" : "ratio");
    table_note(format, note);
    if (run->read[CHECK_PROMPT]) {
        snprintf(note, sizeof note,
                 "prompt: the first %" PRIu64 " tokens once more, read in steps of --chunk tokens, and compared with "
                 "what %s computes one by one, where caches are compared and after the last. each: once more, %d at a "
                 "time at most, and the logits after each compared.",
                 run->read[CHECK_PROMPT], run->side->name, CHECK_ROWS);
        table_note(format, note);
    }
    print_devices(run, format);
}

void check_print(const check_run *run, table_format format, json_t *meta)
{
    static const table_column columns[] = {
        {"device", 0}, {"form", 0},           {"steps", 0},        {"max_abs", -3},    {"bound", -3}, {"ratio", -3},
        {"step", 0},   {"same_bits", 0},      {"nmse", -3},        {"kl", -3},         {"parted", 0}, {"margin", -3},
        {"tie", 0},    {"cache_max_abs", -3}, {"cache_ratio", -3}, {"cache_worst", 0}, {"status", 0}};
    enum { COLUMNS = sizeof columns / sizeof *columns };
    table t;
    json_object_set_new(meta, "devices", facts_of(run));
    json_object_set_new(meta, "prompt_tokens", json_integer((json_int_t)run->read[CHECK_PROMPT]));
    if (run->against)
        json_object_set(meta, "record", run->against->header);
    table_begin(&t, format, columns, COLUMNS, meta);
    for (check_form form = CHECK_DECODE; form < CHECK_FORMS; form++)
        for (size_t i = 0; i < run->sides; i++)
            if (form == CHECK_DECODE || (run->side[i].prompts && check_prompt_tokens(run)))
                print_side(&t, run, &run->side[i], form);
    table_end(&t);
    print_note(run, format);
}
