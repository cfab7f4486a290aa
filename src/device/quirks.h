/* What drivers do that the OpenCL queries do not tell: the one place that looks at a platform's name. */
#ifndef DEVICE_QUIRKS_H
#define DEVICE_QUIRKS_H

#include "device/device.h"

/* Correct `limits` by what is known of the device's platform. */
void cldev_apply_quirks(cldev_limits *limits);

#endif
