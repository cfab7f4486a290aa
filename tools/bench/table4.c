/* The paper's table of efficiency (its Table 4) with this machine's figures, and what to make of the paper's. */
#include "bench.h"
#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Rows in the order of the policies: uncompressed, L = 512, L = 256. METHOD: n = 100,000, an A100 80GB, BF16. */
enum { ROWS = 3 };
static const struct {
    double latency_ms, memory_gb, joules;
    int64_t units;
} paper[ROWS] = {{38.5, 46, 118, 100000}, {3.9, 6.1, 15, 1208}, {5.6, 8.7, 21, 1357}};

static const table_column columns[] = {
    {"policy", 0},          {"latency_ms", 2},   {"paper_latency_ms", 1}, {"memory_gb", 3},
    {"paper_memory_gb", 1}, {"j_per_1k", 1},     {"paper_j_per_1k", 0},   {"units", 0},
    {"paper_units", 0},     {"s_latency", 3},    {"s_memory", 3},         {"s_energy", 3},
    {"s_units", 4},         {"attention_ms", 3}, {"cache_gb", 4},         {"s_attention", 3},
    {"s_cache", 4},         {"needed_bytes", 0}, {"status", 0},
};
enum { COLUMNS = sizeof columns / sizeof *columns };

int bench_table4_check(const args *a)
{
    static const char *const set[] = {"prompt", "cache", "group", "window", "compare"};
    for (size_t i = 0; i < sizeof set / sizeof *set; i++)
        if (args_seen(a, set[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --table4: its rows are what the paper's are",
                             set[i]);
    return 0;
}

/* ---- Rows ---- */

/* Of one row; NAN or 0 where it was not measured. */
typedef struct figures {
    double latency, memory, joules, units, attention, cache;
} figures;

static figures figures_of(const bench *b, const bench_case *c)
{
    figures f = {.joules = bench_joules_per_1k(b, c),
                 .memory = c->peak_bytes ? (double)c->peak_bytes * 1e-9 : NAN,
                 .cache = c->cache_bytes ? (double)c->cache_bytes * 1e-9 : NAN,
                 .units = c->units ? (double)c->units : NAN,
                 .attention = bench_profile_ms(c->profile, "attention") + bench_profile_ms(c->profile, "merge") +
                              bench_profile_ms(c->profile, "dense")};
    double p99;
    bench_step_times(b, c, &f.latency, &p99);
    return f;
}

static void print_row(const bench *b, table *t, size_t i)
{
    const bench_case *c = &b->cases[i];
    const figures f = figures_of(b, c), base = figures_of(b, &b->cases[0]);
    const table_cell cells[COLUMNS] = {
        cell_text(c->name),
        cell_real(f.latency),
        cell_real(paper[i].latency_ms),
        cell_real(f.memory),
        cell_real(paper[i].memory_gb),
        cell_real(f.joules),
        cell_real(paper[i].joules),
        c->units ? cell_int((int64_t)c->units) : cell_none(),
        cell_int(paper[i].units),
        cell_real(f.latency / base.latency),
        cell_real(f.memory / base.memory),
        cell_real(f.joules / base.joules),
        cell_real(f.units / base.units),
        cell_real(f.attention),
        cell_real(f.cache),
        cell_real(f.attention / base.attention),
        cell_real(f.cache / base.cache),
        c->needed ? cell_int((int64_t)c->needed) : cell_none(),
        cell_text(bench_state_name(c->state)),
    };
    table_row(t, cells);
}

/* ---- Notes ---- */

static const char *const about_paper[] = {
    "paper_*: Shen and Hu, Table 4: an 8B model in BF16 on an A100 80GB, n = 100,000. What is wrong with it:",
    "units: its own formula gives 893 for L = 256, fewer than the 1,209 for L = 512; 1,357 is neither (and 1,208 is "
    "1,209 not rounded up). The order of its two compressed rows is reversed.",
    "latency, memory: 3.9 ms and 6.1 GB leave no room for the model's weights, 16 GB that take 8 ms to be read once at "
    "that card's 2 TB/s. Hold them against attention_ms and cache_gb, not against latency_ms and memory_gb.",
    "energy: 118, 15 and 21 J for 1,000 tokens of 38.5, 3.9 and 5.6 ms are 3.1, 3.8 and 3.8 W; no such card draws so "
    "little.",
    "memory: the 82.8 times less that it claims is the ratio of the units; that of its bytes is 7.5.",
};

static json_t *notes(const bench *b)
{
    const bench_case *c = &b->cases[0], *last = &b->cases[ROWS - 1];
    const uint64_t n = c->depth + c->size;
    json_t *list = json_array();
    json_array_append_new(
        list, json_sprintf("n = %" PRIu64 " tokens, of which the last %" PRIu64 " are decoded and measured; those "
                           "before are random units put into the cache at once, not read%s",
                           n, c->size, n == BENCH_TABLE4_TOKENS ? "" : ". The paper's figures are for n = 100,000"));
    json_array_append_new(
        list,
        json_sprintf("latency_ms (p50), memory_gb (peak on the device) and j_per_1k are of the whole model; "
                     "attention_ms (with merges) and cache_gb are what compression changes. s_* is the value over "
                     "that of the uncompressed row. %s, weights of %.2f GB; compressed with %d sinks, merging by "
                     "%s, where the paper has none and an MLP of 9 layers",
                     b->r.info.name, (double)b->r.info.weight_bytes * 1e-9,
                     last->policy->params.sinks < 0 ? 0 : (int)last->policy->params.sinks,
                     last->policy->params.merge ? last->policy->params.merge : "auto"));
    for (size_t i = 0; i < sizeof about_paper / sizeof *about_paper; i++)
        json_array_append_new(list, json_string(about_paper[i]));
    return list;
}

void bench_print_table4(const bench *b, table_format format, json_t *meta)
{
    json_t *list = notes(b), *note;
    size_t i;
    table t;
    json_object_set(meta, "notes", list);
    json_object_set_new(meta, "n", json_integer((json_int_t)(b->cases[0].depth + b->cases[0].size)));
    table_begin(&t, format, columns, COLUMNS, meta);
    for (i = 0; i < ROWS; i++)
        if (b->cases[i].state != BENCH_WAITING)
            print_row(b, &t, i);
    table_end(&t);
    json_array_foreach(list, i, note) table_note(format, json_string_value(note));
    json_decref(list);
    bench_meter_note(b, format);
}
