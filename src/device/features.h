/* Inside src/device: what is found by trying, a small kernel of the probe family each. */
#ifndef DEVICE_FEATURES_H
#define DEVICE_FEATURES_H

#include "device/run.h"

/*
 * Build, run and compare: DCM_OK where the numbers are right. `run` is closed by the caller. For check_dot4,
 * check_dot2 and check_half16 the device has to compile for this process's processor, and that to have the instruction.
 */
dcm_status check_dot4(cldev *device, probe_run *run);
dcm_status check_dot2(cldev *device, probe_run *run);
dcm_status check_half16(cldev *device, probe_run *run);
dcm_status check_fp16(cldev *device, probe_run *run);
dcm_status check_subgroups(cldev *device, probe_run *run);
dcm_status check_mma(cldev *device, probe_run *run);

#endif
