/* Inside src/device: one kernel of the probe family with its arguments, for features and measurements. */
#ifndef DEVICE_RUN_H
#define DEVICE_RUN_H

#include "device/device.h"

/* A kernel and the buffers it reads and writes; zeroed: nothing held. */
typedef struct probe_run {
    cl_program program;
    cl_kernel kernel;
    cl_mem in, out;
} probe_run;

/* Build the probe family with `options` and make kernel `name` of it; `quiet` as in program_build. */
dcm_status probe_run_kernel(probe_run *run, cldev *device, const char *options, const char *name, bool quiet);

/* Make both buffers; `data` (in_bytes), where not NULL, is written to `in`. */
dcm_status probe_run_buffers(probe_run *run, cldev *device, size_t in_bytes, const void *data, size_t out_bytes);

/* Enqueue over `items` work-items in groups of `group`. */
dcm_status probe_run_enqueue(probe_run *run, cldev *device, size_t items, size_t group);

/* Release what the run holds, and zero it. */
void probe_run_close(probe_run *run);

#endif
