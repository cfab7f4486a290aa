#include "device/device.h"

#include <dcm/log.h>

#include "base/memory.h"

#include <pthread.h>

/* Drivers say here what an error code cannot; from any thread. */
static void CL_CALLBACK notify(const char *text, const void *data, size_t size, void *user)
{
    (void)data, (void)size, (void)user;
    dcm_log(DCM_LOG_DEBUG, "OpenCL: %s", text);
}

/*
 * The part of a CPU with `units` compute units: made once and kept until the process ends. PoCL 3.1 frees a part that
 * is released while its worker still reads it (event->queue->device), after clFinish and all other releases.
 */
static cl_int part_of(cl_device_id whole, uint32_t units, cl_device_id *part)
{
    enum { PARTS = 64 };
    static struct {
        cl_device_id whole, part;
        uint32_t units;
    } parts[PARTS];
    static size_t count;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const cl_device_partition_property how[] = {CL_DEVICE_PARTITION_BY_COUNTS, units,
                                                CL_DEVICE_PARTITION_BY_COUNTS_LIST_END, 0};
    cl_int error = CL_SUCCESS;
    size_t i = 0;
    pthread_mutex_lock(&lock);
    while (i < count && !(parts[i].whole == whole && parts[i].units == units))
        i++;
    if (i == PARTS)
        error = CL_OUT_OF_HOST_MEMORY;
    else if (i == count)
        error = clCreateSubDevices(whole, how, 1, &parts[i].part, NULL);
    if (error == CL_SUCCESS && i == count) {
        parts[i].whole = whole;
        parts[i].units = units;
        count++;
    }
    *part = error == CL_SUCCESS ? parts[i].part : NULL;
    pthread_mutex_unlock(&lock);
    return error;
}

/* Use `units` of a CPU's compute units, by a sub-device of that size. */
static void divide(cldev *device, uint32_t units)
{
    cl_device_id part;
    const cl_int error = part_of(device->id, units, &part);
    if (error != CL_SUCCESS) {
        dcm_log(DCM_LOG_WARN, "%s: all %u processors are used: it cannot be divided (%s)", device->limits.name,
                device->limits.compute_units, cldev_error_name(error));
        return;
    }
    device->id = part;
    device->limits.compute_units = units;
}

static dcm_status queue_open(const cldev *device, bool profiling, cl_command_queue *queue)
{
    cl_int error;
    *queue = clCreateCommandQueue(device->context, device->id, profiling ? CL_QUEUE_PROFILING_ENABLE : 0, &error);
    return cldev_check(error, "clCreateCommandQueue(...)");
}

dcm_status cldev_profile(cldev *device, bool on)
{
    dcm_status status = DCM_OK;
    if (device->profiling == on)
        return DCM_OK;
    CL_TRY(status, fail, clFinish(device->queue));
    if (!device->other)
        DCM_TRY(status, fail, queue_open(device, on, &device->other));
    cl_command_queue queue = device->other;
    device->other = device->queue;
    device->queue = queue;
    device->profiling = on;
fail:
    return status;
}

dcm_status cldev_open(cldev **out, const cldev_entry *entry, bool profiling)
{
    dcm_status status = DCM_OK;
    cldev *device = NULL;
    cl_int error;
    *out = NULL;
    if (!entry->limits.usable) {
        status = dcm_fail(DCM_ERR_DEVICE,
                          "not available, without a compiler, older than OpenCL 1.2 (%s), with groups of fewer than "
                          "%d work-items, or its driver does not say what it is",
                          entry->limits.version, CLDEV_GROUP_LEAST);
        goto fail;
    }
    DCM_TRY(status, fail, mem_new(&device, 1, sizeof *device, "device"));
    device->limits = entry->limits;
    device->platform_id = entry->platform_id;
    device->id = entry->id;
    device->profiling = profiling;
    if (entry->threads && entry->limits.type & CL_DEVICE_TYPE_CPU && entry->threads < entry->limits.compute_units)
        divide(device, entry->threads);
    const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, (cl_context_properties)entry->platform_id, 0};
    device->context = clCreateContext(properties, 1, &device->id, notify, NULL, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateContext(...)"));
    DCM_TRY(status, fail, queue_open(device, profiling, &device->queue));
    *out = device;
    return DCM_OK;
fail:
    cldev_close(&device);
    return dcm_fail_in(status, "device %u.%u %s", entry->platform, entry->index, entry->limits.name);
}

void cldev_close(cldev **device)
{
    if (!device || !*device)
        return;
    cldev *d = *device;
    if (d->queue) {
        clFinish(d->queue);
        clReleaseCommandQueue(d->queue);
    }
    if (d->other)
        clReleaseCommandQueue(d->other);
    cldev_buffers_close(d);
    if (d->context)
        clReleaseContext(d->context);
    mem_free(device);
}
