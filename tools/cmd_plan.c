#include "input.h"
#include "options.h"
#include "runtime.h"
#include "table.h"
#include "tool.h"

#include <dcm/model.h>
#include <dcm/plan.h>

#include <string.h>

typedef struct plan_options {
    arg_ints groups;
    int64_t tokens, sinks, steps;
    const char *model;
    int kv, format;
} plan_options;

/* One row a token: what was done before it, and the counts after it. */
static int print_steps(const plan_options *o)
{
    static const table_column columns[] = {{"token", 0}, {"action", 0}, {"level", 0},
                                           {"near", 0},  {"far", 0},    {"units", 0}};
    static const char *const names[] = {"append", "merge", "retire"};
    enum { COLUMNS = sizeof columns / sizeof *columns };
    dcm_plan plan;
    const dcm_status status = dcm_plan_init(&plan, (uint32_t)o->groups.item[0], (uint32_t)o->sinks);
    if (status != DCM_OK)
        return tool_fail_library(status);
    table t;
    table_begin(&t, (table_format)o->format, columns, COLUMNS,
                json_pack("{s:I,s:I}", "group", (json_int_t)o->groups.item[0], "sinks", (json_int_t)o->sinks));
    for (int64_t token = 1; token <= o->steps; token++) {
        const dcm_action action = dcm_plan_step(&plan);
        const table_cell row[COLUMNS] = {cell_int(token),
                                         cell_text(names[action.kind]),
                                         cell_int(action.level),
                                         cell_int((int64_t)dcm_plan_near(&plan)),
                                         cell_int((int64_t)plan.far),
                                         cell_int((int64_t)dcm_plan_units(&plan))};
        table_row(&t, row);
    }
    table_end(&t);
    return 0;
}

/*
 * Tokens that the near queue covers after n: those behind the sinks, less L a unit of the far queue. Far units: those
 * beyond the 2L - 1 of a full near queue.
 */
static void queues(uint32_t group, uint64_t sinks, uint64_t n, uint64_t *near, uint64_t *far, uint64_t *covered)
{
    const uint64_t kept = n < sinks ? n : sinks, units = dcm_units_after(group, (uint32_t)sinks, n) - kept;
    const uint64_t full = 2 * (uint64_t)group - 1;
    *far = units > full ? units - full : 0;
    *near = units - *far;
    *covered = n - kept - *far * group;
}

static int print_sizes(const plan_options *o, const dcm_model_info *model)
{
    static const table_column columns[] = {{"group", 0}, {"tokens", 0},      {"units", 0}, {"near", 0},
                                           {"far", 0},   {"near_tokens", 0}, {"C_M", 2},   {"unit_bytes", 0},
                                           {"bytes", 0}, {"full_bytes", 0}};
    enum { WITH_MODEL = sizeof columns / sizeof *columns, WITHOUT_MODEL = WITH_MODEL - 3 };
    json_t *meta = json_pack("{s:I}", "sinks", (json_int_t)o->sinks);
    if (model)
        json_object_set_new(meta, "model", runtime_text(o->model));
    table t;
    table_begin(&t, (table_format)o->format, columns, model ? WITH_MODEL : WITHOUT_MODEL, meta);
    for (size_t i = 0; i < o->groups.count; i++) {
        const uint32_t group = (uint32_t)o->groups.item[i];
        const uint64_t n = (uint64_t)o->tokens, units = dcm_units_after(group, (uint32_t)o->sinks, n);
        uint64_t near, far, covered;
        queues(group, (uint64_t)o->sinks, n, &near, &far, &covered);
        const int64_t element = o->kv == DCM_KV_F32 ? 4 : 2;
        const int64_t unit_bytes = model ? (int64_t)model->layers * model->kv_heads * 2 * model->head_dim * element : 0;
        const table_cell row[WITH_MODEL] = {cell_int(group),
                                            cell_int((int64_t)n),
                                            cell_int((int64_t)units),
                                            cell_int((int64_t)near),
                                            cell_int((int64_t)far),
                                            cell_int((int64_t)covered),
                                            n ? cell_real((double)n / (double)units) : cell_none(),
                                            cell_int(unit_bytes),
                                            cell_int((int64_t)units * unit_bytes),
                                            cell_int((int64_t)n * unit_bytes)};
        table_row(&t, row);
    }
    table_end(&t);
    return 0;
}

static int check(const args *a, const plan_options *o)
{
    if (!args_seen(a, "steps"))
        return args_seen(a, "kv") && !o->model ? tool_fail(DCM_ERR_USAGE, "--kv has no effect without --model") : 0;
    static const char *const without_effect[] = {"tokens", "model", "kv"};
    for (size_t i = 0; i < sizeof without_effect / sizeof *without_effect; i++)
        if (args_seen(a, without_effect[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --steps: leave one of them out",
                             without_effect[i]);
    if (o->groups.count > 1)
        return tool_fail(DCM_ERR_USAGE, "--steps takes one group length, not %zu", o->groups.count);
    return 0;
}

int cmd_plan(int argc, char **argv)
{
    plan_options o = {.tokens = 100000, .sinks = DCM_DEFAULT_SINKS};
    const arg_option options[] = {
        {"group", 'L', ARG_INTS, &o.groups, "N[,N...]", "Group length, or several for one row each; powers of two.",
         DCM_GROUP_MIN, DCM_GROUP_MAX, .power_of_two = true, .required = true},
        {"tokens", 'n', ARG_INT, &o.tokens, "TOKENS", "Tokens of the text.", 1, INT64_C(1) << 40},
        {"sinks", 0, ARG_INT, &o.sinks, "S", "First tokens that are never merged.", 0, 65536},
        {"model", 'm', ARG_TEXT, &o.model, "FILE|NAME",
         "Add bytes a unit and in all, and those of the full cache, for this model."},
        options_kv(&o.kv),
        {"steps", 0, ARG_INT, &o.steps, "K", "Print the schedule of the first K tokens instead, one row a token.", 1,
         INT64_C(1) << 32},
        table_format_option(&o.format),
    };
    args a = {.usage = "-L N[,N...] [options]",
              .about = "What a compressed cache holds after TOKENS tokens: units in all (sinks included), units of the "
                       "near and of the far\n"
                       "queue, tokens that the near queue covers, and the compression C_M = tokens / units."};
    args_add(&a, "Options", options, sizeof options / sizeof *options);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = check(&a, &o);
    if (code)
        return code;
    if (o.steps)
        return print_steps(&o);
    if (!o.model)
        return print_sizes(&o, NULL);
    char path[4096];
    code = input_model_path(o.model, path, sizeof path);
    if (code)
        return code;
    dcm_model_info info;
    const dcm_status status = dcm_model_info_read(path, &info);
    return status == DCM_OK ? print_sizes(&o, &info) : tool_fail_library(status);
}
