#include "options.h"
#include "runtime.h"
#include "table.h"
#include "tool.h"

#include <dcm/device.h>
#include <dcm/tokenizer.h>

#include <stdio.h>

typedef struct tune_options {
    device_options device;
    bool show, engines;
    int format;
    verbosity_options verbosity;
} tune_options;

enum { MEASURED_COLUMNS = 7, SHOWN_COLUMNS = 4 };

static json_t *meta_of(dcm_device *device)
{
    json_t *meta = runtime_host_meta();
    runtime_add_device(meta, device);
    return meta;
}

static void show(dcm_device *device, table_format format)
{
    static const table_column columns[SHOWN_COLUMNS] = {{"choice", 0}, {"value", 0}, {"origin", 0}, {"about", 0}};
    dcm_tuning_choice choice[DCM_TUNING_CHOICES];
    const size_t count = dcm_device_tuning(device, choice);
    table t;
    table_begin(&t, format, columns, SHOWN_COLUMNS, meta_of(device));
    for (size_t i = 0; i < count; i++) {
        const table_cell row[SHOWN_COLUMNS] = {cell_text(choice[i].choice), cell_text(choice[i].value),
                                               cell_text(choice[i].origin), cell_text(choice[i].about)};
        table_row(&t, row);
    }
    table_end(&t);
}

/* Why there are no rows. */
static void say_nothing_measured(dcm_device *device, bool engines)
{
    dcm_tuning_choice choice[DCM_TUNING_CHOICES];
    const bool hint = !engines && dcm_device_tuning(device, choice) > 0;
    fprintf(stderr, "%s: there is nothing to choose on this device%s\n", tool_name(),
            hint ? " that changes no bit; --engines measures the engines of prompts, whose choice may" : "");
}

static int measure(dcm_device *device, bool engines, table_format format)
{
    static const table_column columns[MEASURED_COLUMNS] = {{"choice", 0}, {"value", 0},  {"what", 0},  {"us", 1},
                                                           {"error", 3},  {"status", 0}, {"chosen", 0}};
    dcm_tuning_row *rows = NULL;
    size_t count = 0;
    const dcm_status status = dcm_device_tune(device, engines, &rows, &count);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (!count)
        say_nothing_measured(device, engines);
    table t;
    table_begin(&t, format, columns, MEASURED_COLUMNS, meta_of(device));
    for (size_t i = 0; i < count; i++) {
        const dcm_tuning_row *r = &rows[i];
        const table_cell row[MEASURED_COLUMNS] = {cell_text(r->choice),
                                                  cell_text(r->value),
                                                  cell_text(r->what),
                                                  r->us > 0 ? cell_real(r->us) : cell_none(),
                                                  r->us > 0 ? cell_real(r->error) : cell_none(),
                                                  cell_text(r->status),
                                                  cell_bool(r->chosen)};
        table_row(&t, row);
    }
    table_end(&t);
    dcm_free(rows);
    return 0;
}

int cmd_tune(int argc, char **argv)
{
    tune_options o = {0};
    const arg_option options[] = {
        {"engines", 0, ARG_FLAG, &o.engines, NULL,
         "Measure the engines of products with many vectors (prompts), too, which GPUs have several of, and keep the "
         "fastest. The engine decides the order of sums: a prompt's results may have other last bits afterwards."},
        {"show", 0, ARG_FLAG, &o.show, NULL, "Measure nothing; show what is chosen, and why: default or file."},
        table_format_option(&o.format),
    };
    args a = {
        .usage = "[options]",
        .about = "Measure on one device what there is to choose, at most 20 seconds, and keep it in the cache folder\n"
                 "for this device, its driver and this version's kernels, until it is not used for 90 days. Each\n"
                 "candidate's results are checked before it can be chosen; error is the largest found, as a part of\n"
                 "what sums of floats may lose.\n"
                 "No result changes by it but with --engines. What was never measured here is the default of the\n"
                 "device's family."};
    args_add(&a, "Options", options, sizeof options / sizeof *options);
    options_add_device(&a, &o.device);
    options_add_verbosity(&a, &o.verbosity);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.verbosity);
    if (code)
        return code;
    if (o.device.no_tuning && !o.show)
        return tool_fail(DCM_ERR_USAGE, "--no-tuning has no effect without --show");
    if (o.engines && o.show)
        return tool_fail(DCM_ERR_USAGE, "--engines has no effect with --show");
    dcm_device *device = NULL;
    code = options_open_device(&o.device, &device);
    if (!code && o.show)
        show(device, (table_format)o.format);
    else if (!code)
        code = measure(device, o.engines, (table_format)o.format);
    dcm_device_close(&device);
    return code;
}
