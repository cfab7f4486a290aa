/* NVIDIA's management library, loaded when it is needed: a counter of the board's energy, or its power. */
#define _GNU_SOURCE
#include "energy.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* As the library's header declares them; every call returns 0 when it worked. */
typedef void *nvml_device;
typedef int call_void(void), call_count(unsigned *count), call_by_index(unsigned index, nvml_device *device),
    call_by_pci(const char *id, nvml_device *device), call_name(nvml_device device, char *name, unsigned size),
    call_energy(nvml_device device, unsigned long long *millijoules),
    call_power(nvml_device device, unsigned *milliwatts);

static void *function(const energy_source *s, const char *name) { return dlsym(s->library, name); }

/* ---- Reading ---- */

static bool read_counter(energy_source *s, double *joules)
{
    call_energy *get = (call_energy *)function(s, "nvmlDeviceGetTotalEnergyConsumption");
    unsigned long long now;
    if (!get || get(s->device, &now) != 0 || now < s->last)
        return false;
    *joules = (double)(now - s->last) * 1e-3;
    s->last = now;
    return true;
}

static bool read_power(energy_source *s, double *watts)
{
    call_power *get = (call_power *)function(s, "nvmlDeviceGetPowerUsage");
    unsigned now;
    if (!get || get(s->device, &now) != 0)
        return false;
    *watts = now * 1e-3;
    return true;
}

static void release(energy_source *s)
{
    call_void *shutdown = s->library ? (call_void *)function(s, "nvmlShutdown") : NULL;
    if (shutdown)
        shutdown();
    if (s->library)
        dlclose(s->library);
    s->library = NULL;
}

/* ---- Which board ---- */

static bool name_of(const energy_source *s, nvml_device device, char *out, unsigned size)
{
    call_name *get = (call_name *)function(s, "nvmlDeviceGetName");
    return get && get(device, out, size) == 0;
}

/*
 * By its place on the bus. Where that is not told: the only board of the device's name; else, for a device that is
 * said to be NVIDIA's, the only board.
 */
static bool find_board(energy_source *s, const dcm_device_info *wanted)
{
    call_by_pci *by_pci = (call_by_pci *)function(s, "nvmlDeviceGetHandleByPciBusId_v2");
    call_count *get_count = (call_count *)function(s, "nvmlDeviceGetCount_v2");
    call_by_index *by_index = (call_by_index *)function(s, "nvmlDeviceGetHandleByIndex_v2");
    nvml_device device, named = NULL, any = NULL;
    unsigned count = 0, same = 0;
    if (*wanted->pci)
        return by_pci && by_pci(wanted->pci, &s->device) == 0;
    if (!get_count || !by_index || get_count(&count) != 0)
        return false;
    for (unsigned i = 0; i < count; i++) {
        char name[128];
        if (by_index(i, &device) != 0)
            continue;
        any = device;
        if (name_of(s, device, name, sizeof name) && strcmp(name, wanted->name) == 0) {
            named = device;
            same++;
        }
    }
    const bool nvidia = strcasestr(wanted->platform, "NVIDIA") || strcasestr(wanted->name, "NVIDIA");
    s->device = same == 1 ? named : same == 0 && count == 1 && nvidia ? any : NULL;
    return s->device != NULL;
}

bool energy_open_nvml(energy_source *s, const dcm_device_info *device, char *missing, size_t size)
{
    double ignored;
    *s = (energy_source){.scope = "whole GPU board", .least = 1, .close = release};
    s->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!s->library) {
        snprintf(missing, size, "NVML: libnvidia-ml.so.1 cannot be loaded");
        return false;
    }
    call_void *init = (call_void *)function(s, "nvmlInit_v2");
    if (!init || init() != 0) {
        snprintf(missing, size, "NVML: libnvidia-ml.so.1 does not start");
        dlclose(s->library);
        s->library = NULL;
        return false;
    }
    if (!find_board(s, device)) {
        snprintf(missing, size, "NVML: none of its boards can be told to be %.200s", device->name);
    } else {
        if (!name_of(s, s->device, s->name, sizeof s->name))
            snprintf(s->name, sizeof s->name, "%.100s", device->name);
        s->read = read_counter;
        s->method = "NVML energy counter";
        if (s->read(s, &ignored))
            return true;
        s->read = read_power;
        s->method = "NVML power, sampled";
        s->is_power = true;
        s->period = 0.02;
        if (s->read(s, &ignored))
            return true;
        snprintf(missing, size, "NVML: %.100s tells neither energy nor power", s->name);
    }
    release(s);
    return false;
}
