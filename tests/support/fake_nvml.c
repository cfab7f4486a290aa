/* The functions of libnvidia-ml.so.1 that dcm calls, as NVIDIA's documentation has them; 0 is success. */
#include "fake_nvml.h"

#include <stdio.h>
#include <string.h>

enum { UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

__attribute__((visibility("default"))) fake_nvml_state fake_nvml;

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetCount_v2(unsigned *count);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, fake_board **device);
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, fake_board **device);
int nvmlDeviceGetName(fake_board *device, char *name, unsigned size);
int nvmlDeviceGetTotalEnergyConsumption(fake_board *device, unsigned long long *millijoules);
int nvmlDeviceGetPowerUsage(fake_board *device, unsigned *milliwatts);

int nvmlInit_v2(void)
{
    fake_nvml.started += !fake_nvml.broken;
    return fake_nvml.broken ? UNINITIALIZED : 0;
}

int nvmlShutdown(void)
{
    fake_nvml.started--;
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = fake_nvml.boards;
    return fake_nvml.started > 0 ? 0 : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, fake_board **device)
{
    if (index >= fake_nvml.boards)
        return INVALID;
    *device = &fake_nvml.board[index];
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, fake_board **device)
{
    for (unsigned i = 0; i < fake_nvml.boards; i++)
        if (strcmp(fake_nvml.board[i].pci, id) == 0)
            return nvmlDeviceGetHandleByIndex_v2(i, device);
    return NOT_FOUND;
}

int nvmlDeviceGetName(fake_board *device, char *name, unsigned size)
{
    snprintf(name, size, "%s", device->name);
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(fake_board *device, unsigned long long *millijoules)
{
    fake_nvml.energies++;
    fake_nvml.asked = (unsigned)(device - fake_nvml.board);
    *millijoules = device->millijoules;
    return device->counts ? 0 : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(fake_board *device, unsigned *milliwatts)
{
    fake_nvml.powers++;
    fake_nvml.asked = (unsigned)(device - fake_nvml.board);
    *milliwatts = __atomic_load_n(&device->milliwatts, __ATOMIC_RELAXED);
    return device->tells_power ? 0 : NOT_SUPPORTED;
}
