#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Counting ---- */

static bool same(const dcm_profile_entry *a, const dcm_profile_entry *b)
{
    return a->items == b->items && a->rows == b->rows && a->cols == b->cols && !strcmp(a->kernel, b->kernel) &&
           !strcmp(a->family, b->family);
}

void bench_profile_add(bench_profile *p, const dcm_profile *more, uint64_t tokens, uint64_t wall_ns)
{
    p->tokens += tokens;
    p->wall_ns += wall_ns;
    p->span_ns += more->span_ns;
    p->wait_ns += more->wait_ns;
    for (size_t i = 0; i < more->count; i++) {
        const dcm_profile_entry *e = &more->entries[i];
        size_t k = 0;
        while (k < p->count && !same(&p->kernel[k], e))
            k++;
        if (k == BENCH_KERNELS)
            p->kernel[--k] = (dcm_profile_entry){"other", "other", 0, 0, 0, p->kernel[k].launches, p->kernel[k].ns};
        else if (k == p->count)
            p->kernel[p->count++] = (dcm_profile_entry){e->family, e->kernel, e->rows, e->cols, e->items};
        p->kernel[k].launches += e->launches;
        p->kernel[k].ns += e->ns;
    }
}

static bool counts(const dcm_profile_entry *e, const char *family) { return !family || !strcmp(e->family, family); }

double bench_profile_ms(const bench_profile *p, const char *family)
{
    double ns = 0;
    for (size_t i = 0; p && i < p->count; i++)
        ns += counts(&p->kernel[i], family) ? (double)p->kernel[i].ns : 0;
    return p ? ns * 1e-6 / (double)p->tokens : NAN;
}

double bench_profile_launches(const bench_profile *p, const char *family)
{
    double launches = 0;
    for (size_t i = 0; p && i < p->count; i++) {
        const bool kernel = strcmp(p->kernel[i].family, "transfer") != 0;
        launches += counts(&p->kernel[i], family) && (kernel || family) ? (double)p->kernel[i].launches : 0;
    }
    return p ? launches / (double)p->tokens : NAN;
}

/* ---- The breakdown ---- */

static const table_column columns[] = {{"test", 0},  {"policy", 0},   {"part", 0}, {"kernel", 0}, {"weights", 0},
                                       {"items", 0}, {"launches", 1}, {"us", 2},   {"share", 3}};
enum { COLUMNS = sizeof columns / sizeof *columns };

static json_t *real(double x) { return isfinite(x) ? json_real(x) : json_null(); }

/* One row, of microseconds a token; `e` NULL for a part that is no single kernel. */
static void add_row(json_t *rows, const bench_case *c, const char *part, const dcm_profile_entry *e, double launches,
                    double us)
{
    char weights[32];
    snprintf(weights, sizeof weights, "%ux%u", e ? e->rows : 0, e ? e->cols : 0);
    json_array_append_new(rows,
                          json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o}", "test", c->test, "policy", c->name, "part",
                                    part, "kernel", e ? json_string(e->kernel) : json_null(), "weights",
                                    e && e->rows ? json_string(weights) : json_null(), "items",
                                    e && e->items ? json_integer((json_int_t)e->items) : json_null(), "launches",
                                    real(launches), "us", real(us), "share",
                                    real(us * (double)c->profile->tokens / ((double)c->profile->wall_ns * 1e-3))));
}

static int slower_first(const void *a, const void *b)
{
    const uint64_t x = ((const dcm_profile_entry *)a)->ns, y = ((const dcm_profile_entry *)b)->ns;
    return (x < y) - (x > y);
}

/* The family with most time among those not yet given; NULL for none. */
static const char *next_family(const bench_profile *p, const bool *given)
{
    const char *family = NULL;
    double most = -1;
    for (size_t i = 0; i < p->count; i++) {
        const double ms = bench_profile_ms(p, p->kernel[i].family);
        if (!given[i] && ms > most) {
            most = ms;
            family = p->kernel[i].family;
        }
    }
    return family;
}

/* Mean of the timed steps, of which the profiled ones are a later sample; of a prompt, a token's part. */
static double timed_us(const bench_case *c)
{
    double sum = 0, count = (double)c->steps;
    for (size_t i = 0; i < c->steps; i++)
        sum += (double)c->step[i].ns * 1e-3;
    for (uint32_t i = 0; !c->decode && i < c->repetitions; i++, count++)
        sum += 1e6 / c->rate[i];
    return sum / count;
}

static void add_case(json_t *rows, const bench_case *c)
{
    bench_profile *p = c->profile;
    bool given[BENCH_KERNELS] = {false};
    const double tokens = (double)p->tokens, busy = bench_profile_ms(p, NULL) * 1e3;
    const double span = (double)p->span_ns * 1e-3 / tokens, wall = (double)p->wall_ns * 1e-3 / tokens;
    const char *family;
    qsort(p->kernel, p->count, sizeof *p->kernel, slower_first);
    while ((family = next_family(p, given))) {
        add_row(rows, c, family, NULL, bench_profile_launches(p, family), bench_profile_ms(p, family) * 1e3);
        for (size_t i = 0; i < p->count; i++) {
            const dcm_profile_entry *e = &p->kernel[i];
            if (strcmp(e->family, family))
                continue;
            add_row(rows, c, family, e, (double)e->launches / tokens, (double)e->ns * 1e-3 / tokens);
            given[i] = true;
        }
    }
    add_row(rows, c, "idle", NULL, NAN, span - busy);
    add_row(rows, c, "outside", NULL, NAN, wall - span);
    add_row(rows, c, "step", NULL, bench_profile_launches(p, NULL), wall);
    add_row(rows, c, "timed step", NULL, NAN, timed_us(c));
    add_row(rows, c, "host at work", NULL, NAN, wall - (double)p->wait_ns * 1e-3 / tokens);
}

json_t *bench_breakdown(const bench *b)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < b->count; i++)
        if (b->cases[i].profile && b->cases[i].profile->tokens)
            add_case(rows, &b->cases[i]);
    return rows;
}

static table_cell cell_of(const json_t *value)
{
    return json_is_string(value)    ? cell_text(json_string_value(value))
           : json_is_integer(value) ? cell_int(json_integer_value(value))
           : json_is_real(value)    ? cell_real(json_real_value(value))
                                    : cell_none();
}

void bench_print_breakdown(const bench *b, table_format format)
{
    table t;
    size_t i;
    json_t *rows = bench_breakdown(b), *row;
    if (format == FORMAT_TEXT || format == FORMAT_MD)
        puts("\nTime a token by kernel, in microseconds: means of steps after the timed ones, on a queue that takes "
             "times. idle: the device\nbetween two launches; outside: before the first and after the last of a step; "
             "all of them are the step. timed step: the mean\nabove, without profiling; host at work: the step less "
             "the host's waits, beside the device's work.\n");
    else if (format == FORMAT_CSV)
        puts("");
    table_begin(&t, format, columns, COLUMNS, NULL);
    json_array_foreach(rows, i, row)
    {
        table_cell cells[COLUMNS];
        for (size_t k = 0; k < COLUMNS; k++)
            cells[k] = cell_of(json_object_get(row, columns[k].name));
        table_row(&t, cells);
    }
    table_end(&t);
    json_decref(rows);
}
