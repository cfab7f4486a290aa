/* An opened dcm_device, for the model and session layers: which back end computes, and how it was chosen. */
#ifndef OPS_OPEN_H
#define OPS_OPEN_H

#include <dcm/device.h>

#include "ops/ops.h"

struct cldev;

struct dcm_device {
    backend *ops;     /* where ops run: device->ops->ops->linear(device->ops, ...) */
    struct cldev *cl; /* NULL for the reference */
    bool strict;
    dcm_device_info info;
    struct device_profile *profile; /* NULL: never asked for */
};

#endif
