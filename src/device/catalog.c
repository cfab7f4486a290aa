#include <dcm/device.h>

#include "base/memory.h"
#include "device/list.h"

#include <string.h>

const char *cldev_type_name(cl_device_type type)
{
    static const char *const names[] = {"custom", "cpu", "accelerator", "gpu"};
    return names[cldev_type_rank(type)];
}

static void fill_entry(dcm_device_entry *out, const cldev_entry *in)
{
    const cldev_limits *l = &in->limits;
    *out = (dcm_device_entry){
        .platform_index = in->platform,
        .device_index = in->index,
        .type = cldev_type_name(l->type),
        .compute_units = l->compute_units,
        .memory_bytes = l->memory,
        .max_alloc_bytes = l->max_alloc,
        .local_bytes = l->local_memory,
        .max_work_group = l->max_work_group,
        .unified = l->unified,
        .usable = l->usable,
    };
    memcpy(out->name, l->name, sizeof out->name);
    memcpy(out->platform, l->platform, sizeof out->platform);
    memcpy(out->vendor, l->vendor, sizeof out->vendor);
    memcpy(out->driver, l->driver, sizeof out->driver);
    memcpy(out->version, l->version, sizeof out->version);
    memcpy(out->c_version, l->c_version, sizeof out->c_version);
}

dcm_status dcm_device_list(dcm_device_entry **entries, size_t *count)
{
    dcm_status status = DCM_OK;
    cldev_entry *found = NULL;
    size_t n = 0;
    *entries = NULL;
    *count = 0;
    DCM_TRY(status, fail, cldev_list(&found, &n));
    if (n == 0)
        goto fail;
    DCM_TRY(status, fail, mem_new(entries, n, sizeof **entries, "device list"));
    for (size_t i = 0; i < n; i++)
        fill_entry(&(*entries)[i], &found[i]);
    *count = n;
fail:
    mem_free(&found);
    return status;
}

/* The device of that place in today's list: the numbers are the entry's identity, as they are for --device. */
static dcm_status find_entry(const dcm_device_entry *entry, cldev_entry *out)
{
    cldev_entry *found = NULL;
    size_t n = 0;
    dcm_status status = cldev_list(&found, &n);
    if (status != DCM_OK)
        return status;
    status = dcm_fail(DCM_ERR_DEVICE, "there is no OpenCL device %u.%u", entry->platform_index, entry->device_index);
    for (size_t i = 0; i < n; i++)
        if (found[i].platform == entry->platform_index && found[i].index == entry->device_index) {
            *out = found[i];
            status = DCM_OK;
        }
    mem_free(&found);
    return status;
}

dcm_status dcm_device_try(const dcm_device_entry *entry, unsigned what, dcm_device_probe *probe)
{
    dcm_status status = DCM_OK;
    cldev *device = NULL;
    cldev_entry found;
    cldev_probe measured;
    *probe = (dcm_device_probe){0};
    DCM_TRY(status, fail, find_entry(entry, &found));
    DCM_TRY(status, fail, cldev_open(&device, &found, false));
    if (what & DCM_PROBE_FEATURES) {
        DCM_TRY(status, fail, cldev_probe_tiers(device));
        probe->fp16 = cldev_has(device, CLDEV_FP16);
        probe->subgroups = cldev_has(device, CLDEV_SUBGROUPS);
        probe->dot4 = cldev_has(device, CLDEV_DOT4);
    }
    if (what & DCM_PROBE_SPEED) {
        DCM_TRY(status, fail, cldev_measure(device, &measured));
        probe->read_gb_s = measured.read_gb_s;
        probe->launch_us = measured.launch_us;
        probe->round_trip_us = measured.round_trip_us;
        probe->largest_alloc_bytes = measured.largest_alloc;
    }
fail:
    cldev_close(&device);
    return status;
}
