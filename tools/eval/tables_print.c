#include "tables.h"

#include <math.h>

enum { NAME_SIZE = 24 };

static double per_token(const tables_run *run, double sum) { return sum / (double)(run->text.count - run->first); }

double tables_kl(const tables_run *run, size_t cache) { return per_token(run, run->cache[cache].kl); }
double tables_ppl(const tables_run *run, size_t cache) { return exp(per_token(run, run->cache[cache].nll)); }
double tables_full_ppl(const tables_run *run) { return exp(per_token(run, run->full_nll)); }

#define NO_TASKS "Accuracy is null: the paper's tasks (LongBench) are data sets that do not come with this program. "

/* Accuracy by depth, as printed in the paper. */
static void print_depths(const tables_run *run, table_format format, json_t *meta)
{
    static const table_column columns[] = {{"depth", 0},
                                           {"arch", 0},
                                           {"merge", 0},
                                           {"qasper", 1},
                                           {"multifieldqa_en", 1},
                                           {"2wikimultihopqa", 1},
                                           {"kl", 4},
                                           {"ppl", 3},
                                           {"ppl_full", 3},
                                           {"paper_qasper", 1},
                                           {"paper_multifieldqa_en", 1},
                                           {"paper_2wikimultihopqa", 1}};
    static const double paper[][3] = {{38.5, 28.5, 42.0}, {44.0, 34.0, 48.5}, {46.5, 35.5, 50.0},
                                      {47.0, 37.0, 51.5}, {48.5, 38.5, 53.0}, {47.0, 39.0, 52.0}};
    const size_t known = sizeof paper / sizeof *paper;
    table t;
    table_begin(&t, format, columns, sizeof columns / sizeof *columns, meta);
    for (size_t i = 0; i < run->files; i++) {
        const size_t depth = run->info[i].depth, row = depth / 3 - 1;
        const double *p = depth && depth % 3 == 0 && row < known ? paper[row] : NULL;
        const table_cell cells[] = {depth ? cell_int((int64_t)depth) : cell_none(),
                                    cell_text(run->info[i].arch),
                                    cell_text(run->path[i]),
                                    cell_none(),
                                    cell_none(),
                                    cell_none(),
                                    cell_real(tables_kl(run, i)),
                                    cell_real(tables_ppl(run, i)),
                                    cell_real(tables_full_ppl(run)),
                                    p ? cell_real(p[0]) : cell_none(),
                                    p ? cell_real(p[1]) : cell_none(),
                                    p ? cell_real(p[2]) : cell_none()};
        table_row(&t, cells);
    }
    table_end(&t);
    table_note(format, NO_TASKS "kl: mean divergence from the full cache in nats; the paper's model is another one: "
                                "compare orders, not figures.");
}

/* Training L down, test L across. */
static void print_groups(const tables_run *run, table_format format, json_t *meta)
{
    static const char *const kinds[] = {"accuracy", "kl", "ppl"};
    const size_t groups = run->groups, n = 2 + 3 * groups + 1;
    char name[3 * TABLES_GROUPS_MAX][NAME_SIZE];
    table_column columns[TABLE_COLUMNS_MAX] = {{"train_l", 0}, {"merge", 0}};
    for (size_t i = 0; i < 3 * groups; i++) {
        snprintf(name[i], NAME_SIZE, "%s_%lld", kinds[i / groups], (long long)run->o->groups.item[i % groups]);
        columns[2 + i] = (table_column){name[i], i / groups == 2 ? 3 : 4};
    }
    columns[n - 1] = (table_column){"ppl_full", 3};
    table t;
    table_begin(&t, format, columns, n, meta);
    for (size_t f = 0; f < run->files; f++) {
        table_cell cells[TABLE_COLUMNS_MAX] = {*run->info[f].groups ? cell_text(run->info[f].groups) : cell_none(),
                                               cell_text(run->path[f])};
        for (size_t g = 0; g < groups; g++) {
            cells[2 + g] = cell_none();
            cells[2 + groups + g] = cell_real(tables_kl(run, f * groups + g));
            cells[2 + 2 * groups + g] = cell_real(tables_ppl(run, f * groups + g));
        }
        cells[n - 1] = cell_real(tables_full_ppl(run));
        table_row(&t, cells);
    }
    table_end(&t);
    table_note(format, NO_TASKS "Columns: test L; train_l: what the file says of its training; kl: mean divergence "
                                "from the full cache in nats.");
}

static void print_methods(const tables_run *run, table_format format, json_t *meta)
{
    static const table_column columns[] = {{"method", 0},   {"merge", 0},     {"mode", 0},    {"boundary", 2},
                                           {"il", -4},      {"sdi", 4},       {"bsd", 4},     {"bsd_log", 4},
                                           {"kl", 4},       {"ppl", 3},       {"ppl_full", 3}, {"paper_il", 2},
                                           {"paper_sdi", 2}, {"paper_bsd", 3}};
    static const struct {
        const char *name;
        double il, sdi, bsd;
    } paper[] = {{"baseline", .13, .10, .065}, {"TAI", .12, .10, .048}, {"TAI + boundary", .11, .08, .041}};
    table t;
    table_begin(&t, format, columns, sizeof columns / sizeof *columns, meta);
    for (size_t i = 0; i < run->files; i++) {
        const dcm_attention_metrics *m = &run->metrics[i];
        const table_cell cells[] = {cell_text(paper[i].name),
                                    cell_text(run->path[i]),
                                    *run->info[i].mode ? cell_text(run->info[i].mode) : cell_none(),
                                    isnan(run->info[i].boundary) ? cell_none() : cell_real(run->info[i].boundary),
                                    cell_real(m->il),
                                    cell_real(m->sdi),
                                    m->boundaries ? cell_real(m->bsd) : cell_none(),
                                    m->boundaries ? cell_real(m->bsd_log) : cell_none(),
                                    cell_real(tables_kl(run, i)),
                                    cell_real(tables_ppl(run, i)),
                                    cell_real(tables_full_ppl(run)),
                                    cell_real(paper[i].il),
                                    cell_real(paper[i].sdi),
                                    cell_real(paper[i].bsd)};
        table_row(&t, cells);
    }
    table_end(&t);
    table_note(format,
               "boundary: weight of that term in training, as the file says; il, sdi, bsd, bsd_log: as `dcm eval "
               "metrics` has them, in the mean over layers; the paper's are of another model at L = 512 and in scales "
               "of its own: compare orders, not figures.");
}

void tables_print(const tables_run *run)
{
    static void (*const print[])(const tables_run *, table_format, json_t *) = {print_depths, print_groups,
                                                                                print_methods};
    json_t *meta = runtime_meta(&run->e.r), *groups = json_array();
    for (size_t g = 0; g < run->groups; g++)
        json_array_append_new(groups, json_integer(run->o->groups.item[g]));
    json_object_set_new(meta, "test", json_string("table"));
    json_object_set_new(meta, "table", json_integer(run->number));
    eval_source_meta(meta, &run->o->source, &run->text);
    json_object_set_new(meta, "skip", json_integer(run->o->skip));
    json_object_set_new(meta, "groups", groups);
    json_object_set_new(meta, "sinks", json_integer(run->o->common.cache.sinks));
    json_object_set_new(meta, "log_r", json_real(run->o->common.cache.log_r));
    json_object_set_new(meta, "far_limit",
                        run->far_limit ? json_integer(run->far_limit > 0 ? run->far_limit : 0) : json_null());
    if (run->number < 3)
        json_object_set_new(meta, "accuracy", json_string(NO_TASKS));
    print[run->number - 1](run, (table_format)run->o->common.format, meta);
}
