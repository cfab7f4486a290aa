#include "device/device.h"

#include "base/clock.h"
#include "base/memory.h"
#include "device/run.h"

#include <string.h>

enum {
    READ_REPEATS = 5,
    WINDOWS = 64,    /* most launches at a time */
    LAUNCHES = 1000, /* a full queue */
    LAUNCH_REPEATS = 3,
    ROUND_TRIPS = 200,
    ALLOC_PLACES = 17, /* where a large buffer is written and read back */
    ALLOC_MIN = 1 << 20
};

static double seconds(uint64_t from, uint64_t to) { return (double)(to - from) * 1e-9; }

/* Work-items, their group, and what they read: windows of a buffer, one a launch, in turn. */
typedef struct read_shape {
    const char *kernel;
    size_t items, group;
    size_t bytes;     /* of a window: one launch reads it */
    size_t buffer;    /* of all windows */
    cl_ulong vectors; /* of the kernel's type in a window */
} read_shape;

/*
 * The buffer: several times the caches, and long enough to hide a launch; at most 1 GiB, a quarter of the memory and
 * `room`. A window of it has about `bytes` (0: all of it), so that what a launch reads has left the caches by its turn.
 */
static read_shape choose_shape(const cldev_limits *l, size_t bytes, size_t room)
{
    read_shape s;
    size_t buffer = (size_t)1 << 30, unit, vector;
    if (l->wide_items)
        buffer = l->cache < (size_t)64 << 20 ? (size_t)256 << 20 : l->cache < (size_t)256 << 20 ? 4 * l->cache : buffer;
    buffer = buffer < l->max_alloc ? buffer : l->max_alloc;
    buffer = buffer < l->memory / 4 ? buffer : l->memory / 4;
    buffer = buffer < room ? buffer : room;
    if (l->wide_items) {
        s.kernel = "probe_read_slices";
        s.group = 1;
        s.items = 4 * (size_t)l->compute_units;
        vector = sizeof(cl_float16);
        unit = s.items * 4 * vector;
    } else {
        s.kernel = "probe_read_strided";
        s.group = l->max_work_group < 256 ? 1 : 256;
        s.items = 2048 * (size_t)l->compute_units;
        vector = sizeof(cl_float4);
        unit = s.items * vector;
    }
    const size_t most = buffer / unit, wanted = bytes ? bytes / unit + (bytes % unit > 0) : most;
    s.bytes = (wanted < most ? wanted : most) * unit;
    s.buffer = s.bytes ? buffer / s.bytes * s.bytes : 0;
    s.vectors = s.bytes / vector;
    return s;
}

/* All inputs are 1: the partial sums are whole numbers below 2^24 and must add up to the count. */
static dcm_status check_sum(cldev *device, const probe_run *run, const read_shape *shape)
{
    dcm_status status = DCM_OK;
    float *out = NULL;
    double sum = 0;
    DCM_TRY(status, fail, mem_new(&out, shape->items, sizeof *out, "partial sums"));
    CL_TRY(status, fail,
           clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, shape->items * sizeof *out, out, 0, NULL, NULL));
    for (size_t i = 0; i < shape->items; i++)
        sum += out[i];
    if (sum != (double)(shape->bytes / sizeof(float)))
        status = dcm_fail(DCM_ERR_DEVICE, "%s: %s summed %.0f ones to %.0f", device->limits.name, shape->kernel,
                          (double)(shape->bytes / sizeof(float)), sum);
fail:
    mem_free(&out);
    return status;
}

/* Windows first .. first + count - 1, counted on when the buffer ends, read by a launch each: seconds of all. */
static dcm_status read_windows(cldev *device, probe_run *run, const read_shape *shape, size_t first, size_t count,
                               double *lasted)
{
    const size_t all = shape->buffer / shape->bytes;
    cl_mem window[WINDOWS] = {0};
    dcm_status status;
    cl_int error;
    for (size_t i = 0; i < count; i++) {
        const cl_buffer_region region = {(first + i) % all * shape->bytes, shape->bytes};
        window[i] = clCreateSubBuffer(run->in, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &error);
        DCM_TRY(status, fail, cldev_check(error, "clCreateSubBuffer(...)"));
    }
    CL_TRY(status, fail, clFinish(device->queue));
    const uint64_t begin = clock_ns();
    for (size_t i = 0; i < count; i++) {
        CL_TRY(status, fail, clSetKernelArg(run->kernel, 0, sizeof window[i], &window[i]));
        DCM_TRY(status, fail, probe_run_enqueue(run, device, shape->items, shape->group));
    }
    CL_TRY(status, fail, clFinish(device->queue));
    *lasted = seconds(begin, clock_ns());
fail:
    for (size_t i = 0; i < count; i++)
        if (window[i])
            clReleaseMemObject(window[i]);
    return status;
}

dcm_status cldev_measure_read(cldev *device, size_t bytes, size_t room, double *gb_s)
{
    dcm_status status = DCM_OK;
    probe_run run = {0};
    const read_shape shape = choose_shape(&device->limits, bytes, room);
    const size_t all = shape.bytes ? shape.buffer / shape.bytes : 0, count = all < WINDOWS ? all : WINDOWS;
    float ones[16]; /* a wide pattern: drivers fill by copies of it */
    double best = 0;
    if (!count)
        return dcm_fail(DCM_ERR_MEMORY, "%s: too little memory to measure", device->limits.name);
    for (int i = 0; i < 16; i++)
        ones[i] = 1.0f;
    DCM_TRY(status, fail, probe_run_kernel(&run, device, "", shape.kernel, false));
    DCM_TRY(status, fail, probe_run_buffers(&run, device, shape.buffer, NULL, shape.items * sizeof(float)));
    CL_TRY(status, fail, clSetKernelArg(run.kernel, 2, sizeof shape.vectors, &shape.vectors));
    CL_TRY(status, fail, clEnqueueFillBuffer(device->queue, run.in, ones, sizeof ones, 0, shape.buffer, 0, NULL, NULL));
    for (size_t i = 0; i <= READ_REPEATS; i++) { /* the first warms up */
        double lasted = 0;
        DCM_TRY(status, fail, read_windows(device, &run, &shape, i * count, count, &lasted));
        const double rate = (double)shape.bytes * (double)count / lasted;
        if (i > 0 && rate > best)
            best = rate;
    }
    DCM_TRY(status, fail, check_sum(device, &run, &shape));
    *gb_s = best * 1e-9;
fail:
    probe_run_close(&run);
    return status;
}

dcm_status cldev_measure_launch(cldev *device, double *launch_us, double *round_trip_us)
{
    dcm_status status = DCM_OK;
    probe_run run = {0};
    double launch = 0, trip = 0;
    DCM_TRY(status, fail, probe_run_kernel(&run, device, "", "probe_empty", false));
    for (int i = 0; i <= LAUNCH_REPEATS; i++) {
        const uint64_t begin = clock_ns();
        for (int k = 0; k < LAUNCHES; k++)
            DCM_TRY(status, fail, probe_run_enqueue(&run, device, 1, 1));
        CL_TRY(status, fail, clFinish(device->queue));
        const double each = seconds(begin, clock_ns()) / LAUNCHES;
        if (i == 1 || (i > 1 && each < launch))
            launch = each;
    }
    for (int i = 0; i < ROUND_TRIPS; i++) {
        const uint64_t begin = clock_ns();
        DCM_TRY(status, fail, probe_run_enqueue(&run, device, 1, 1));
        CL_TRY(status, fail, clFinish(device->queue));
        const double each = seconds(begin, clock_ns());
        if (i == 0 || each < trip)
            trip = each;
    }
    *launch_us = launch * 1e6;
    *round_trip_us = trip * 1e6;
fail:
    probe_run_close(&run);
    return status;
}

/* Memory may be given only when it is touched: write different numbers at places over the whole buffer, then read them
 * back. */
static bool allocation_works(cldev *device, size_t bytes)
{
    cl_int error;
    bool good = true;
    cl_mem buffer = clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, NULL, &error);
    if (error != CL_SUCCESS)
        return false;
    const size_t stride = (bytes - sizeof(uint64_t)) / (ALLOC_PLACES - 1);
    for (uint64_t i = 0; good && i < ALLOC_PLACES; i++) {
        const uint64_t written = 0x5bd1e995u * (i + 1);
        good = clEnqueueWriteBuffer(device->queue, buffer, CL_TRUE, i * stride, sizeof written, &written, 0, NULL,
                                    NULL) == CL_SUCCESS;
    }
    for (uint64_t i = 0; good && i < ALLOC_PLACES; i++) {
        uint64_t read = 0;
        good = clEnqueueReadBuffer(device->queue, buffer, CL_TRUE, i * stride, sizeof read, &read, 0, NULL, NULL) ==
                   CL_SUCCESS &&
               read == 0x5bd1e995u * (i + 1);
    }
    clReleaseMemObject(buffer);
    return clFinish(device->queue) == CL_SUCCESS && good;
}

/* From the queried limit down in steps of an eighth. */
static size_t measure_alloc(cldev *device)
{
    for (size_t bytes = device->limits.max_alloc; bytes >= ALLOC_MIN; bytes = bytes / 8 * 7)
        if (allocation_works(device, bytes))
            return bytes;
    return 0;
}

dcm_status cldev_measure(cldev *device, cldev_probe *probe)
{
    dcm_status status = DCM_OK;
    memset(probe, 0, sizeof *probe);
    DCM_TRY(status, fail, cldev_measure_read(device, 0, SIZE_MAX, &probe->read_gb_s));
    DCM_TRY(status, fail, cldev_measure_launch(device, &probe->launch_us, &probe->round_trip_us));
    probe->largest_alloc = measure_alloc(device);
fail:
    return status;
}
