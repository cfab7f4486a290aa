/* Inside src/device: what a device claims, the order of device types, and the choice among devices already listed. */
#ifndef DEVICE_LIST_H
#define DEVICE_LIST_H

#include "device/device.h"

/* Whether the device names one of `extensions`, which NULL ends. */
bool cldev_claims(cl_device_id id, const char *const *extensions);

/* 3 for a GPU, 2 for an accelerator, 1 for a CPU, 0 for any other. */
int cldev_type_rank(cl_device_type type);

/* cldev_choose among `entries` of `platforms` platforms; *chosen points into them, and is NULL for "auto" without any
 * platform. */
dcm_status cldev_pick(const char *name, const cldev_entry *entries, size_t count, unsigned platforms,
                      const cldev_entry **chosen);

#endif
