#include "ops/open.h"

#include <dcm/log.h>

#include "base/error.h"
#include "base/memory.h"
#include "device/device.h"
#include "ops/profile.h"
#include "ops/tune_cl.h"

#include <string.h>

static dcm_status open_ref(dcm_device *device, const dcm_device_params *params, bool float_sums)
{
    uint32_t on, off;
    dcm_status status = cldev_tiers_parse(params->tiers, &on, &off);
    if (status == DCM_OK)
        status = backend_ref_open(&device->ops, params->threads, params->max_memory);
    if (status != DCM_OK)
        return status;
    if (float_sums)
        backend_ref_sum_floats(device->ops, true);
    if (params->strict)
        backend_ref_strict(device->ops);
    device->info = (dcm_device_info){
        .name = float_sums ? "ref-float" : "ref",
        .platform = "C reference",
        .driver = "OpenMP",
        .is_ref = true,
        .type = "cpu",
        .pci = "",
        .memory_bytes = mem_host_bytes(),
        .max_alloc_bytes = device->ops->max_alloc,
    };
    return DCM_OK;
}

static dcm_status open_cl(dcm_device *device, const cldev_entry *entry, const dcm_device_params *params)
{
    uint32_t on, off;
    dcm_status status = cldev_tiers_parse(params->tiers, &on, &off);
    if (status == DCM_OK)
        status = cldev_open(&device->cl, entry, false);
    if (status == DCM_OK)
        status = cldev_tiers_force(device->cl, on, off);
    if (status == DCM_OK)
        status = backend_cl_open(&device->ops, device->cl, params->max_memory);
    if (status == DCM_OK && params->strict)
        status = backend_cl_strict(device->ops);
    if (status != DCM_OK)
        return status;
    const cldev_limits *l = &device->cl->limits;
    if (!params->no_tuning && !params->strict)
        tuning_load(l, &clop_tuned_of(device->ops)->tuning);
    device->info = (dcm_device_info){
        .name = l->name,
        .platform = l->platform,
        .driver = l->driver,
        .type = cldev_type_name(l->type),
        .pci = l->pci,
        .memory_bytes = l->memory,
        .max_alloc_bytes = l->max_alloc,
    };
    return DCM_OK;
}

dcm_status dcm_device_open(dcm_device **out, const dcm_device_params *given)
{
    static const dcm_device_params defaults;
    const dcm_device_params *params = given ? given : &defaults;
    dcm_status status = DCM_OK;
    dcm_device *device = NULL;
    cldev_entry entry;
    bool found = false;
    *out = NULL;
    if (params->threads < 0)
        return dcm_fail(DCM_ERR_USAGE, "threads: %d is less than 0", params->threads);
    const bool float_sums = params->name && strcmp(params->name, "ref-float") == 0;
    if (float_sums && params->strict)
        return dcm_fail(DCM_ERR_USAGE, "ref-float shows what the order of sums does, which strict fixes: take ref");
    if (params->strict && params->tiers && *params->tiers)
        return dcm_fail(DCM_ERR_USAGE, "tiers have no effect with strict, which uses none: leave one of them out");
    DCM_TRY(status, fail, mem_new(&device, 1, sizeof *device, "device"));
    device->strict = params->strict;
    if (float_sums || (params->name && strcmp(params->name, "ref") == 0)) {
        DCM_TRY(status, fail, open_ref(device, params, float_sums));
    } else {
        DCM_TRY(status, fail, cldev_choose(params->name, &entry, &found));
        if (found) {
            entry.threads = (uint32_t)params->threads;
            DCM_TRY(status, fail, open_cl(device, &entry, params));
        } else {
            dcm_log(DCM_LOG_WARN, "no OpenCL platform on this machine: computing with the C reference");
            DCM_TRY(status, fail, open_ref(device, params, false));
        }
    }
    *out = device;
    return DCM_OK;
fail:
    dcm_device_close(&device);
    return status;
}

void dcm_device_close(dcm_device **device)
{
    if (!device || !*device)
        return;
    backend_close(&(*device)->ops);
    mem_free(&(*device)->profile);
    cldev_close(&(*device)->cl);
    mem_free(device);
}

void dcm_device_get_info(const dcm_device *device, dcm_device_info *info) { *info = device->info; }

dcm_status dcm_device_sum_floats(dcm_device *device, bool on)
{
    if (device->cl || device->strict)
        return dcm_fail(DCM_ERR_USAGE, "%s: only the reference can choose how it adds, and not when it is strict",
                        device->info.name);
    backend_ref_sum_floats(device->ops, on);
    return DCM_OK;
}

dcm_status dcm_device_read_speed(dcm_device *device, size_t bytes, double *gb_s)
{
    *gb_s = 0;
    const backend *ops = device->ops;
    const size_t room = ops->max_memory > ops->memory.total ? ops->max_memory - ops->memory.total : 0;
    return device->cl ? cldev_measure_read(device->cl, bytes, room, gb_s) : DCM_OK;
}

/* Two in turn: one is counted into while the caller has the other. */
struct device_profile {
    profile half[2];
    size_t next;
};

dcm_status dcm_device_profile(dcm_device *device, bool on, dcm_profile *counted)
{
    dcm_status status;
    if (!device->profile)
        DCM_TRY(status, fail, mem_new(&device->profile, 1, sizeof *device->profile, "a device's profile"));
    struct device_profile *p = device->profile;
    profile *done = device->ops->profile, *to = &p->half[p->next];
    *to = (profile){0};
    DCM_TRY(status, fail, device->ops->ops->profile(device->ops, on ? to : NULL));
    p->next ^= 1;
    if (counted)
        *counted = done ? (dcm_profile){done->entry, done->count, done->last_ns - done->first_ns, done->wait_ns}
                        : (dcm_profile){0};
    return DCM_OK;
fail:
    return status;
}

dcm_status dcm_device_launch_time(dcm_device *device, double *launch_us, double *round_trip_us)
{
    *launch_us = *round_trip_us = 0;
    return device->cl ? cldev_measure_launch(device->cl, launch_us, round_trip_us) : DCM_OK;
}

void dcm_device_reset_peak(dcm_device *device) { device->ops->memory.peak = device->ops->memory.total; }

dcm_status dcm_device_tune(dcm_device *device, bool engines, dcm_tuning_row **rows, size_t *count)
{
    *rows = NULL;
    *count = 0;
    return device->cl && !device->strict ? tune_measure(device->ops, engines, rows, count) : DCM_OK;
}

size_t dcm_device_tuning(const dcm_device *device, dcm_tuning_choice out[DCM_TUNING_CHOICES])
{
    return device->cl && !device->strict ? tune_list(device->ops, out) : 0;
}

/* Why a tier is not used: its probe, what was forced, the kernels that the device takes; "" where it is used. */
static const char *tier_unused(const dcm_device *device, cldev_tier tier)
{
    if (!cldev_tier_probe(device->cl, tier)->works)
        return device->cl->tier[tier].why;
    if (device->cl->limits.tiers_off & 1u << tier)
        return "forced off";
    if (device->strict)
        return "strict uses none";
    if (tier == CLDEV_DOT2 && clop_tier(device->ops, CLDEV_DOT4))
        return "dot4 takes its place";
    if (clop_tier(device->ops, tier))
        return "";
    return cldev_tier_get(tier)->wide ? "it is for the kernels of CPUs" : "it is for the kernels of GPUs";
}

size_t dcm_device_tiers(dcm_device *device, dcm_device_tier out[DCM_DEVICE_TIERS])
{
    _Static_assert((int)CLDEV_TIERS <= (int)DCM_DEVICE_TIERS, "all tiers have a place");
    for (int t = 0; device->cl && t < CLDEV_TIERS; t++) {
        const cldev_tier_text *text = cldev_tier_get((cldev_tier)t);
        const char *why = tier_unused(device, (cldev_tier)t);
        out[t] = (dcm_device_tier){.name = text->name,
                                   .needs = text->needs,
                                   .used_by = text->used_by,
                                   .works = device->cl->tier[t].works,
                                   .used = !*why,
                                   .why = why};
    }
    return device->cl ? CLDEV_TIERS : 0;
}
