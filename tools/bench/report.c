#define _GNU_SOURCE
#include "bench.h"
#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Statistics ---- */

static int compare_real(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(const double *sorted, size_t count, double share)
{
    const double rank = ceil(share * (double)count);
    return count ? sorted[rank < 1 ? 0 : (size_t)rank - 1] : NAN;
}

/* Median of a few unsorted values: of two in the middle, their mean. */
static double median(const double *values, size_t count)
{
    double sorted[1024];
    if (!count || count > sizeof sorted / sizeof *sorted)
        return NAN;
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, compare_real);
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

/* Slowest to fastest repetition as a share of the median; NAN for one. */
static double spread(const bench_case *c)
{
    double low = INFINITY, high = 0;
    for (uint32_t i = 0; i < c->repetitions; i++) {
        low = fmin(low, c->rate[i]);
        high = fmax(high, c->rate[i]);
    }
    return c->repetitions > 1 ? (high - low) / median(c->rate, c->repetitions) : NAN;
}

void bench_judge(bench *b)
{
    const double bound = BENCH_BUSY_PERCENT / 100.0;
    const bool changed = b->read_start > 0 && b->read_end > 0 && fabs(b->read_end / b->read_start - 1) > bound;
    size_t busy = 0;
    for (size_t i = 0; i < b->count; i++) {
        bench_case *c = &b->cases[i];
        if (c->state == BENCH_OK && (changed || spread(c) > bound)) {
            c->state = BENCH_BUSY;
            busy++;
        }
    }
    if (b->quiet || !busy)
        return;
    if (changed)
        fprintf(stderr,
                "%s: the read bandwidth was %.2f GB/s at the start and %.2f at the end: a busy or throttled "
                "machine, the figures are not to be relied on\n",
                tool_name(), b->read_start, b->read_end);
    else
        fprintf(stderr,
                "%s: the repetitions of %zu of %zu tests lie more than %d %% apart: a busy machine, their "
                "figures are not to be relied on\n",
                tool_name(), busy, b->count, BENCH_BUSY_PERCENT);
}

/* ---- Rows ---- */

/* What stands in a row beside the case's own fields. Times in ms: of a step of tg, of a whole prompt of pp. */
typedef struct figures {
    double rate, prefill_rate, p50, p90, p99, max, spread;
    double step_bytes, gb_s, share; /* NAN for pp */
} figures;

/* Of a first repetition that was cut short. */
static double partial_rate(const bench_case *c)
{
    double ns = 0;
    for (size_t i = 0; i < c->steps; i++)
        ns += (double)c->step[i].ns;
    return c->steps ? (double)c->steps / (ns * 1e-9) : NAN;
}

static figures figures_of(const bench *b, const bench_case *c)
{
    figures f = {.rate = c->repetitions ? median(c->rate, c->repetitions) : partial_rate(c),
                 .prefill_rate =
                     c->repetitions && c->prefill_rate[0] > 0 ? median(c->prefill_rate, c->repetitions) : NAN,
                 .spread = spread(c),
                 .p50 = NAN,
                 .p90 = NAN,
                 .p99 = NAN,
                 .max = NAN,
                 .step_bytes = NAN,
                 .gb_s = NAN,
                 .share = NAN};
    const size_t count = c->decode ? c->steps : c->repetitions;
    double units = 0, *ms = malloc((count ? count : 1) * sizeof *ms);
    if (!count || !ms)
        goto done;
    for (size_t i = 0; i < count; i++) {
        ms[i] = c->decode ? (double)c->step[i].ns * 1e-6 : (double)c->size / c->rate[i] * 1e3;
        units += c->decode ? (double)c->step[i].units / (double)count : 0;
    }
    qsort(ms, count, sizeof *ms, compare_real);
    f.p50 = bench_quantile(ms, count, 0.5);
    f.p90 = bench_quantile(ms, count, 0.9);
    f.p99 = bench_quantile(ms, count, 0.99);
    f.max = ms[count - 1];
    if (c->decode) {
        const double best = c->read_gb_s > 0 ? c->read_gb_s : fmax(b->read_start, b->read_end);
        f.step_bytes = round((double)b->r.info.step_bytes + units * (double)c->unit_bytes);
        f.gb_s = f.step_bytes / (f.p50 * 1e6);
        f.share = best > 0 ? f.gb_s / best : NAN;
    }
done:
    free(ms);
    return f;
}

const char *bench_state_name(bench_state state)
{
    static const char *const names[] = {"", "ok", "busy", "no memory", "interrupted"};
    return names[state];
}

void bench_step_times(const bench *b, const bench_case *c, double *p50, double *p99)
{
    const figures f = figures_of(b, c);
    *p50 = f.p50;
    *p99 = f.p99;
}

/* When a column is shown in text and Markdown; the other formats have all but NARROW ones, which say what others say in
 * fewer digits, and those of --compare without it. */
typedef enum column_use { WIDE, NARROW, ALWAYS, REFUSED, COMPARED, WIDE_COMPARED } column_use;

static const struct {
    table_column column;
    column_use use;
} all_columns[] = {
    {{"test", 0}, ALWAYS},
    {{"policy", 0}, ALWAYS},
    {{"tokens_per_s", 2}, ALWAYS},
    {{"p50_ms", 3}, ALWAYS},
    {{"p90_ms", 3}, ALWAYS},
    {{"p99_ms", 3}, ALWAYS},
    {{"max_ms", 3}, ALWAYS},
    {{"attention_ms", 3}, ALWAYS},
    {{"merge_ms", 3}, ALWAYS},
    {{"launches", 1}, WIDE},
    {{"profiled_steps", 0}, WIDE},
    {{"spread", 3}, WIDE},
    {{"units", 0}, ALWAYS},
    {{"cache_bytes", 0}, WIDE},
    {{"cache_mb", 2}, NARROW},
    {{"peak_bytes", 0}, WIDE},
    {{"peak_mb", 1}, NARROW},
    {{"host_peak_bytes", 0}, WIDE},
    {{"host_mb", 1}, NARROW},
    {{"step_bytes", 0}, WIDE},
    {{"step_mb", 2}, NARROW},
    {{"gb_s", 2}, ALWAYS},
    {{"share", 3}, ALWAYS},
    {{"read_gb_s", 2}, WIDE},
    {{"j_per_1k", 2}, ALWAYS},
    {{"watts", 2}, WIDE},
    {{"idle_watts", 2}, WIDE},
    {{"energy_source", 0}, WIDE},
    {{"prefill_tokens_per_s", 2}, WIDE},
    {{"repetitions", 0}, WIDE},
    {{"needed_bytes", 0}, REFUSED},
    {{"status", 0}, ALWAYS},
    {{"old_tokens_per_s", 2}, WIDE_COMPARED},
    {{"old_p50_ms", 3}, WIDE_COMPARED},
    {{"ratio", 3}, COMPARED},
    {{"p50_ratio", 3}, COMPARED},
};
enum { COLUMNS = sizeof all_columns / sizeof *all_columns };

static bool shown(const bench *b, size_t column, table_format format, bool compare)
{
    const bool narrow = format == FORMAT_TEXT || format == FORMAT_MD;
    switch (all_columns[column].use) {
    case ALWAYS: return true;
    case WIDE: return !narrow;
    case NARROW: return narrow;
    case COMPARED: return compare;
    case WIDE_COMPARED: return compare && !narrow;
    case REFUSED: break;
    }
    for (size_t i = 0; narrow && i < b->count; i++)
        if (b->cases[i].state == BENCH_NO_MEMORY)
            return true;
    return !narrow;
}

/* The row of an earlier run with the same test and policy, or NULL. */
static const json_t *find_old(const json_t *old, const bench_case *c)
{
    size_t i;
    json_t *row;
    json_array_foreach(old, i, row)
    {
        const char *test = json_string_value(json_object_get(row, "test"));
        const char *policy = json_string_value(json_object_get(row, "policy"));
        if (test && policy && !strcmp(test, c->test) && !strcmp(policy, c->name))
            return row;
    }
    return NULL;
}

static double old_number(const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, name);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static table_cell bytes_cell(size_t bytes) { return bytes ? cell_int((int64_t)bytes) : cell_none(); }
static table_cell megabytes_cell(size_t bytes) { return bytes ? cell_real((double)bytes * 1e-6) : cell_none(); }

/* Those of all cells that the format shows. */
static void print_row(const bench *b, table *t, const table_cell *cells, bool compare)
{
    table_cell row[COLUMNS];
    size_t n = 0;
    for (size_t i = 0; i < COLUMNS; i++)
        if (shown(b, i, t->format, compare))
            row[n++] = cells[i];
    table_row(t, row);
}

static void print_case(const bench *b, table *t, const bench_case *c, const json_t *old)
{
    const figures f = figures_of(b, c);
    char source[ENERGY_TEXT];
    energy_text(&b->meter, source, sizeof source);
    const bench_profile *steps = c->decode ? c->profile : NULL;
    const json_t *before = old ? find_old(old, c) : NULL;
    const double old_rate = old_number(before, "tokens_per_s"), old_p50 = old_number(before, "p50_ms");
    const table_cell cells[COLUMNS] = {
        cell_text(c->test),
        cell_text(c->name),
        cell_real(f.rate),
        cell_real(f.p50),
        cell_real(f.p90),
        cell_real(f.p99),
        cell_real(f.max),
        cell_real(bench_profile_ms(steps, "attention")),
        cell_real(bench_profile_ms(steps, "merge") + bench_profile_ms(steps, "dense")),
        cell_real(bench_profile_launches(steps, NULL)),
        steps ? cell_int((int64_t)steps->tokens) : cell_none(),
        cell_real(f.spread),
        bytes_cell(c->units),
        bytes_cell(c->cache_bytes),
        megabytes_cell(c->cache_bytes),
        bytes_cell(c->peak_bytes),
        megabytes_cell(c->peak_bytes),
        bytes_cell(c->host_peak_bytes),
        megabytes_cell(c->host_peak_bytes),
        isfinite(f.step_bytes) ? cell_int((int64_t)f.step_bytes) : cell_none(),
        cell_real(f.step_bytes * 1e-6),
        cell_real(f.gb_s),
        cell_real(f.share),
        c->read_gb_s > 0 ? cell_real(c->read_gb_s) : cell_none(),
        cell_real(bench_joules_per_1k(b, c)),
        cell_real(bench_watts(b, c)),
        *source && c->decode ? cell_real(b->meter.idle_watts) : cell_none(),
        *source && c->decode ? cell_text(source) : cell_none(),
        cell_real(f.prefill_rate),
        cell_int(c->repetitions),
        bytes_cell(c->needed),
        cell_text(bench_state_name(c->state)),
        cell_real(old_rate),
        cell_real(old_p50),
        cell_real(f.rate / old_rate),
        cell_real(f.p50 / old_p50),
    };
    print_row(b, t, cells, old != NULL);
}

/* What an empty kernel costs, in milliseconds: a row of its own. */
static void print_launch(const bench *b, table *t, const char *test, double us, bool compare)
{
    table_cell cells[COLUMNS] = {cell_text(test), cell_text("")};
    for (size_t i = 2; i < COLUMNS; i++) {
        const char *name = all_columns[i].column.name;
        cells[i] = !strcmp(name, "p50_ms")   ? cell_real(us * 1e-3)
                   : !strcmp(name, "status") ? cell_text("ok")
                                             : cell_none();
    }
    if (us > 0)
        print_row(b, t, cells, compare);
}

void bench_print(const bench *b, table_format format, json_t *meta, const json_t *old)
{
    table_column columns[COLUMNS];
    size_t n = 0;
    table t;
    for (size_t i = 0; i < COLUMNS; i++)
        if (shown(b, i, format, old != NULL))
            columns[n++] = all_columns[i].column;
    table_begin(&t, format, columns, n, meta);
    bool found = false;
    for (size_t i = 0; i < b->count; i++) {
        if (b->cases[i].state != BENCH_WAITING)
            print_case(b, &t, &b->cases[i], old);
        found = found || (old && find_old(old, &b->cases[i]));
    }
    print_launch(b, &t, "launch", b->launch_us, old != NULL);
    print_launch(b, &t, "round trip", b->round_trip_us, old != NULL);
    table_end(&t);
    if (old && !found && !b->quiet)
        fprintf(stderr, "%s: --compare: none of these tests is in the earlier result\n", tool_name());
    if (old)
        table_note(format,
                   "ratio, p50_ratio: this run's tokens_per_s and p50_ms over those of the earlier run (--compare): "
                   "faster is above 1 in the one and below 1 in the other");
    if (b->fill)
        table_note(format,
                   "depths are filled at once with random units as the policy would have them, not read (--fill)");
    bench_meter_note(b, format);
}

/* ---- Files ---- */

void bench_write_steps(const bench *b, FILE *out)
{
    for (size_t i = 0; i < b->count; i++) {
        const bench_case *c = &b->cases[i];
        for (size_t k = 0; k < c->steps; k++) {
            const bench_step *s = &c->step[k];
            json_t *line =
                json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:s,s:i}", "test", c->test, "policy", c->name, "repetition",
                          (json_int_t)s->repetition, "token", (json_int_t)s->token, "ns", (json_int_t)s->ns, "units",
                          (json_int_t)s->units, "action", s->action, "level", s->level);
            json_dumpf(line, out, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_ENSURE_ASCII);
            fputc('\n', out);
            json_decref(line);
        }
    }
}
