/* Inside src/device: ordering and naming of device types. */
#ifndef DEVICE_LIST_H
#define DEVICE_LIST_H

#include "device/device.h"

/* 3 for a GPU, 2 for an accelerator, 1 for a CPU, 0 for any other. */
int cldev_type_rank(cl_device_type type);

#endif
