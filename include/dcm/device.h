/* Devices: where the arithmetic runs. An OpenCL device, or the C reference. */
#ifndef DCM_DEVICE_H
#define DCM_DEVICE_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One opened device. Used by one thread at a time; several devices may be used by several threads. */
typedef struct dcm_device dcm_device;

/* Zero-initialise, then set what differs from the default. */
typedef struct dcm_device_params {
    /*
     * "auto" or NULL: a GPU before an accelerator before a CPU; the reference where there is no OpenCL platform
     * at all (logged). "ref": the C reference. "P.D": platform and device number. Else a case-insensitive part
     * of a device's or platform's name, which must fit exactly one device.
     */
    const char *name;
    int threads;       /* threads of the reference back end; 0: all processors */
    size_t max_memory; /* most bytes this device may hold in all; 0: no limit but the device's own */
} dcm_device_params;

/* What an opened device is. Strings are owned by the device. */
typedef struct dcm_device_info {
    const char *name;
    const char *platform; /* "C reference" for ref */
    const char *driver;
    bool is_ref;
    size_t memory_bytes;    /* global memory */
    size_t max_alloc_bytes; /* largest single buffer, as queried */
} dcm_device_info;

/*
 * Open a device. On success *device is set and the caller must close it after everything opened on it; on
 * failure *device is NULL. Errors: DCM_ERR_USAGE (a name that fits several devices: the message lists them),
 * DCM_ERR_DEVICE (none fits, or it fails), DCM_ERR_MEMORY. `params` may be NULL.
 */
DCM_API dcm_status dcm_device_open(dcm_device **device, const dcm_device_params *params);

/* Close and set *device to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_device_close(dcm_device **device);

DCM_API void dcm_device_get_info(const dcm_device *device, dcm_device_info *info);

#ifdef __cplusplus
}
#endif

#endif
