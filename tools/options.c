#include "options.h"

#include "tool.h"

#include <dcm/log.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(ARRAY) (sizeof(ARRAY) / sizeof *(ARRAY))

enum { CHUNK_MAX = 65536 };

/* ---- Device ---- */

/* --threads, --max-memory, --no-tuning and --tier, behind `device` where it is not NULL. */
static void add_device(args *a, device_options *o, const arg_option *device)
{
    const arg_option options[] = {
        {"threads", 0, ARG_INT, &o->threads, "N", "Threads of the reference and of CPU devices; 0: all processors.", 0,
         4096},
        {"max-memory", 0, ARG_MEMORY, &o->max_memory, "BYTES|N%",
         "Most memory to take on the device: bytes (a K, M or G, of 1024, may follow) or a share of the "
         "device's; what would pass it ends with exit code 5."},
        {"no-tuning", 0, ARG_FLAG, &o->no_tuning, NULL,
         "Ignore what `dcm tune` has kept: compute as the device's family does by default. Results differ from those "
         "without it only where `dcm tune --engines` was run: in the last bits, after a prompt. DCM_TUNING=off does "
         "the same."},
    };
    if (device)
        args_add(a, "Device", device, 1);
    args_add(a, device ? NULL : "Device", options, COUNT(options));
    options_add_tiers(a, o);
}

void options_add_tiers(args *a, device_options *o)
{
    const arg_option option = {
        "tier",
        0,
        ARG_TEXTS,
        &o->tiers,
        "NAME=on|off",
        "Force what some devices have beyond OpenCL 1.2 on (an error on a device where it does not work; of the "
        "reference, which has no tiers, only the name is checked) or off; several times for several. `dcm devices "
        "--tiers` lists the names. $DCM_TIERS is taken first, with commas between."};
    args_add(a, NULL, &option, 1);
}

void options_add_device(args *a, device_options *o)
{
    const arg_option device = {
        "device",
        0,
        ARG_TEXT,
        &o->device,
        "auto|ref|NAME|P.D",
        "Where to compute: ref is the C reference, NAME a part of a device's or platform's name, P.D the numbers of "
        "`dcm devices`. $DCM_DEVICE sets the default, else auto: a GPU before an accelerator before a CPU, ref where "
        "there is no OpenCL platform at all."};
    add_device(a, o, &device);
}

void options_add_limits(args *a, device_options *o) { add_device(a, o, NULL); }

void options_add_strict(args *a, device_options *o)
{
    const arg_option option = {
        "strict",
        0,
        ARG_FLAG,
        &o->strict,
        NULL,
        "Compute with own arithmetic in one order, so that every device that does so has the same bits, ref included: "
        "several times slower, with weights as floats. A device that cannot is refused, with the operation."};
    args_add(a, NULL, &option, 1);
}

static size_t share_of(size_t bytes, double percent) { return (size_t)((double)bytes * percent / 100); }

/* $DCM_TIERS and the options in one text. */
static int join_tiers(const device_options *o, char *out, size_t size)
{
    const char *set = getenv("DCM_TIERS");
    size_t used = (size_t)snprintf(out, size, "%s", set ? set : "");
    for (size_t i = 0; i < o->tiers.count && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? "," : "", o->tiers.item[i]);
    return used < size ? 0 : tool_fail(DCM_ERR_USAGE, "--tier: too many");
}

int options_open_device(const device_options *o, dcm_device **device)
{
    char tiers[1024];
    const int wrong = join_tiers(o, tiers, sizeof tiers);
    if (wrong)
        return wrong;
    const char *preset = getenv("DCM_DEVICE"), *name = o->device ? o->device : preset, *tuning = getenv("DCM_TUNING");
    dcm_device_params params = {.name = name && *name ? name : "auto",
                                .threads = (int)o->threads,
                                .max_memory = o->max_memory.bytes,
                                .strict = o->strict,
                                .tiers = tiers,
                                .no_tuning = o->no_tuning || (tuning && !strcmp(tuning, "off"))};
    if (o->device && !*o->device)
        return tool_fail(DCM_ERR_USAGE, "--device: the name is empty");
    if (o->strict && *tiers && !o->tiers.count)
        return tool_fail(DCM_ERR_USAGE, "DCM_TIERS has no effect with --strict, which uses none: unset it");
    if (tuning && *tuning && strcmp(tuning, "off") && strcmp(tuning, "on"))
        return tool_fail(DCM_ERR_USAGE, "DCM_TUNING is \"%s\", neither on nor off", tuning);
    dcm_status status = dcm_device_open(device, &params);
    if (status == DCM_OK && o->max_memory.percent > 0) {
        dcm_device_info info;
        dcm_device_get_info(*device, &info);
        params.max_memory = share_of(info.memory_bytes, o->max_memory.percent);
        dcm_device_close(device);
        status = dcm_device_open(device, &params);
    }
    if (status == DCM_ERR_DEVICE && !o->device && preset && *preset)
        return tool_fail((int)status, "$DCM_DEVICE: %s", dcm_error());
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

size_t options_memory_limit(const device_options *o, const dcm_device *device)
{
    dcm_device_info info;
    dcm_device_get_info(device, &info);
    if (o->max_memory.percent > 0)
        return share_of(info.memory_bytes, o->max_memory.percent);
    const size_t given = (size_t)o->max_memory.bytes;
    return given && (!info.memory_bytes || given < info.memory_bytes) ? given : info.memory_bytes;
}

/* ---- Words ---- */

void options_add_verbosity(args *a, verbosity_options *o)
{
    const arg_option options[] = {
        {"verbose", 'v', ARG_FLAG, &o->verbose, .help = "Say more on standard error."},
        {"quiet", 'q', ARG_FLAG, &o->quiet, .help = "Say nothing but errors on standard error."},
    };
    args_add(a, "Messages", options, COUNT(options));
}

int options_apply_verbosity(const verbosity_options *o)
{
    if (o->verbose && o->quiet)
        return tool_fail(DCM_ERR_USAGE, "--verbose and --quiet exclude each other");
    dcm_log_set_level(o->verbose ? DCM_LOG_DEBUG : o->quiet ? DCM_LOG_QUIET : DCM_LOG_WARN);
    return 0;
}

/* ---- Cache policy ---- */

arg_option options_kv(int *kv)
{
    return (arg_option){"kv", 0, ARG_CHOICE, kv, .choices = "f16|f32", .help = "How keys and values are stored."};
}

arg_option options_log_r(double *log_r)
{
    return (arg_option){"log-r", 0,   ARG_REAL,
                        log_r,   "X", "dcm: weight of the logarithm of a unit's tokens in its score.",
                        -100,    100, .show_zero = true};
}

arg_option options_far_limit(int64_t *far_limit)
{
    return (arg_option){"far-limit",
                        0,
                        ARG_INT,
                        far_limit,
                        "N",
                        "dcm: units of L tokens, however many, weigh together in attention as N of them at most; 0: no "
                        "limit, as in the paper; without it the larger of 16 and L / 8.",
                        0,
                        INT32_MAX};
}

int32_t options_far_limit_param(const args *a, int64_t far_limit)
{
    return !args_seen(a, "far-limit") ? 0 : far_limit ? (int32_t)far_limit : -1;
}

void options_add_cache(args *a, cache_options *o)
{
    const arg_option options[] = {
        {"cache", 0, ARG_CHOICE, &o->kind, .choices = "dcm|full|window",
         .help = "Policy: dcm merges the older tokens, full keeps every token, window keeps sinks and the most recent "
                 "tokens."},
        {"group", 'L', ARG_INT, &o->group, "N",
         "dcm: group length, a power of two; a larger one keeps more of the recent past sharp.", DCM_GROUP_MIN,
         DCM_GROUP_MAX, .power_of_two = true},
        {"sinks", 0, ARG_INT, &o->sinks, "S", "dcm, window: first tokens that are never merged nor evicted.", 0, 65536},
        {"merge", 0, ARG_TEXT, &o->merge, "FILE|mean|newer|auto",
         "dcm: how two units become one; FILE is a safetensors file of a trained merge model; auto takes the weights "
         "shipped for this "
         "very model, else newer."},
        {"window", 0, ARG_INT, &o->window, "W",
         "window: units in all, sinks and the current token included; must exceed the sinks.", 1, 1 << 28},
        options_log_r(&o->log_r),
        options_far_limit(&o->far_limit),
        options_kv(&o->kv),
        {"chunk", 0, ARG_INT, &o->chunk, "N",
         "Most tokens read in one step of a prompt, and most cache units more than it needs afterwards (with dcm a "
         "merge takes two, so that steps come to N/2 tokens); without it what suits the device, or less where memory "
         "is short. The results are the same.",
         1, CHUNK_MAX},
    };
    args_add(a, "Cache", options, COUNT(options));
}

int options_cache_params(const args *a, const cache_options *o, dcm_cache_params *params)
{
    static const char *const kinds[] = {"dcm", "full", "window"};
    static const struct {
        const char *option;
        bool has_effect[3];
    } effects[] = {{"group", {true, false, false}}, {"sinks", {true, false, true}},
                   {"merge", {true, false, false}}, {"window", {false, false, true}},
                   {"log-r", {true, false, false}}, {"far-limit", {true, false, false}}};
    for (size_t i = 0; i < COUNT(effects); i++)
        if (args_seen(a, effects[i].option) && !effects[i].has_effect[o->kind])
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --cache %s: leave one of them out",
                             effects[i].option, kinds[o->kind]);
    if (o->kind == DCM_CACHE_WINDOW && !args_seen(a, "window"))
        return tool_fail(DCM_ERR_USAGE, "--cache window needs --window W (units, sinks included)");
    if (o->kind == DCM_CACHE_WINDOW && o->window <= o->sinks)
        return tool_fail(DCM_ERR_USAGE, "--window: %lld units must exceed the %lld sinks", (long long)o->window,
                         (long long)o->sinks);
    *params =
        (dcm_cache_params){.kind = (dcm_cache_kind)o->kind, .kv = (dcm_kv_type)o->kv, .chunk = (uint32_t)o->chunk};
    if (o->kind != DCM_CACHE_FULL)
        params->sinks = o->sinks ? (int32_t)o->sinks : -1;
    if (o->kind == DCM_CACHE_WINDOW)
        params->window = (uint32_t)o->window;
    if (o->kind != DCM_CACHE_DCM)
        return 0;
    params->group = (uint32_t)o->group;
    params->log_r = (float)o->log_r;
    params->far_limit = options_far_limit_param(a, o->far_limit);
    params->merge = strcmp(o->merge, "auto") == 0 ? NULL : o->merge;
    return 0;
}
