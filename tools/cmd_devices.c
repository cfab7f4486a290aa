#include "options.h"
#include "runtime.h"
#include "table.h"
#include "tool.h"

#include <dcm/device.h>
#include <dcm/tokenizer.h>

#include <stdio.h>
#include <string.h>

typedef struct devices_options {
    bool probe, tiers;
    device_options device; /* its tiers */
    int format;
    verbosity_options verbosity;
} devices_options;

static const table_column columns[] = {{"device", 0},    {"name", 0},          {"platform", 0},     {"driver", 0},
                                       {"type", 0},      {"compute_units", 0}, {"memory", 0},       {"max_alloc", 0},
                                       {"c_version", 0}, {"features", 0},      {"status", 0},       {"read_gb_s", 1},
                                       {"launch_us", 2}, {"round_trip_us", 1}, {"largest_alloc", 0}};
enum { WITH_PROBE = sizeof columns / sizeof *columns, WITHOUT_PROBE = WITH_PROBE - 4 };

/* Bytes; MiB where people read them. */
static table_cell cell_bytes(size_t bytes, bool exact, char *text, size_t size)
{
    if (exact)
        return cell_int((int64_t)bytes);
    snprintf(text, size, "%zu MiB", bytes >> 20);
    return cell_text(text);
}

/* "fp16 subgroups dot4 unified": all but the last found by trying. */
static void feature_text(const dcm_device_entry *entry, const dcm_device_probe *probe, char *out, size_t size)
{
    const char *const names[] = {probe->fp16 ? "fp16" : NULL, probe->subgroups ? "subgroups" : NULL,
                                 probe->dot4 ? "dot4" : NULL, entry->unified ? "unified" : NULL};
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i] && used < size)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? " " : "", names[i]);
}

/* Try one device and write its row; a device that fails has a row too. */
static dcm_status print_device(table *t, const dcm_device_entry *entry, bool measure)
{
    char number[32], features[128], memory[32], max_alloc[32], largest[32];
    const bool exact = t->format != FORMAT_TEXT && t->format != FORMAT_MD;
    dcm_device_probe probe;
    const dcm_status status =
        dcm_device_try(entry, measure ? DCM_PROBE_FEATURES | DCM_PROBE_SPEED : DCM_PROBE_FEATURES, &probe);
    const bool good = status == DCM_OK;
    snprintf(number, sizeof number, "%u.%u", entry->platform_index, entry->device_index);
    feature_text(entry, &probe, features, sizeof features);
    const bool measured = good && measure;
    const table_cell row[WITH_PROBE] = {
        cell_text(number),
        cell_text(entry->name),
        cell_text(entry->platform),
        cell_text(entry->driver),
        cell_text(entry->type),
        cell_int(entry->compute_units),
        cell_bytes(entry->memory_bytes, exact, memory, sizeof memory),
        cell_bytes(entry->max_alloc_bytes, exact, max_alloc, sizeof max_alloc),
        cell_text(entry->c_version),
        cell_text(features),
        cell_text(good ? "ok" : "failed"),
        measured ? cell_real(probe.read_gb_s) : cell_none(),
        measured ? cell_real(probe.launch_us) : cell_none(),
        measured ? cell_real(probe.round_trip_us) : cell_none(),
        measured ? cell_bytes(probe.largest_alloc_bytes, exact, largest, sizeof largest) : cell_none(),
    };
    if (!good)
        tool_fail_library(status);
    table_row(t, row);
    return status;
}

static const table_column tier_columns[] = {{"device", 0}, {"name", 0}, {"tier", 0},  {"works", 0},
                                            {"used", 0},   {"why", 0},  {"needs", 0}, {"used_by", 0}};

/* A row for each tier of one device. 0, or the exit code after a message. */
static int print_tiers(table *t, const dcm_device_entry *entry, device_options *options)
{
    char number[32];
    dcm_device *device = NULL;
    dcm_device_tier tier[DCM_DEVICE_TIERS];
    snprintf(number, sizeof number, "%u.%u", entry->platform_index, entry->device_index);
    options->device = number;
    const int code = options_open_device(options, &device);
    const size_t count = code ? 0 : dcm_device_tiers(device, tier);
    for (size_t i = 0; i < count; i++) {
        const table_cell row[] = {
            cell_text(number),
            cell_text(entry->name),
            cell_text(tier[i].name),
            cell_text(tier[i].works ? "yes" : "no"),
            cell_text(tier[i].used ? "yes" : "no"),
            cell_text(tier[i].why),
            cell_text(tier[i].needs),
            cell_text(tier[i].used_by),
        };
        table_row(t, row);
    }
    dcm_device_close(&device);
    return code;
}

int cmd_devices(int argc, char **argv)
{
    devices_options o = {0};
    const arg_option options[] = {
        {"probe", 0, ARG_FLAG, &o.probe, NULL,
         "Measure too: read bandwidth (GB = 10^9 bytes), microseconds of a launch and of a round trip, largest buffer "
         "that worked."},
        {"tiers", 0, ARG_FLAG, &o.tiers, NULL,
         "A row for each tier of each device instead: what it may have beyond OpenCL 1.2, whether it works, is used, "
         "and "
         "why not."},
        table_format_option(&o.format),
    };
    args a = {
        .usage = "[options]",
        .about =
            "The OpenCL devices of this machine, with the number that --device takes. Features: fp16 (halves as a\n"
            "type), subgroups (sub-group shuffles) and dot4 (sums of four byte products, x86), found by trying;\n"
            "unified (memory shared with the host). --device ref, the C reference, needs no device."};
    args_add(&a, "Options", options, sizeof options / sizeof *options);
    options_add_tiers(&a, &o.device);
    options_add_verbosity(&a, &o.verbosity);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = options_apply_verbosity(&o.verbosity);
    if (code)
        return code;
    if (o.probe && o.tiers)
        return tool_fail(DCM_ERR_USAGE, "--probe has no effect with --tiers");
    if (args_seen(&a, "tier") && !o.tiers)
        return tool_fail(DCM_ERR_USAGE, "--tier has no effect without --tiers");
    dcm_device_entry *entries = NULL;
    size_t count = 0;
    const dcm_status status = dcm_device_list(&entries, &count);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (!count)
        fprintf(stderr, "%s: no OpenCL device on this machine; --device ref computes without one\n", tool_name());
    table t;
    if (o.tiers)
        table_begin(&t, (table_format)o.format, tier_columns, sizeof tier_columns / sizeof *tier_columns,
                    runtime_host_meta());
    else
        table_begin(&t, (table_format)o.format, columns, o.probe ? WITH_PROBE : WITHOUT_PROBE, runtime_host_meta());
    for (size_t i = 0; i < count; i++) {
        const int tried =
            o.tiers ? print_tiers(&t, &entries[i], &o.device) : (int)print_device(&t, &entries[i], o.probe);
        if (tried)
            code = tried;
    }
    table_end(&t);
    dcm_free(entries);
    return code;
}
