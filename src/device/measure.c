#include "device/device.h"

#include "base/clock.h"
#include "base/memory.h"
#include "device/run.h"

#include <string.h>

enum {
    READ_REPEATS = 5,
    LAUNCHES = 1000, /* a full queue */
    LAUNCH_REPEATS = 3,
    ROUND_TRIPS = 200,
    ALLOC_PLACES = 17, /* where a large buffer is written and read back */
    ALLOC_MIN = 1 << 20
};

static double seconds(uint64_t from, uint64_t to) { return (double)(to - from) * 1e-9; }

/* Work-items, their group and the bytes they read together. */
typedef struct read_shape {
    const char *kernel;
    size_t items, group, bytes;
    cl_ulong vectors; /* of the kernel's type in `bytes` */
} read_shape;

/* Several times the caches, and long enough to hide a launch; at most 1 GiB and a quarter of the memory. */
static read_shape choose_shape(const cldev_limits *l)
{
    read_shape s;
    size_t bytes = (size_t)1 << 30, unit;
    if (l->wide_items)
        bytes = l->cache < (size_t)64 << 20 ? (size_t)256 << 20 : l->cache < (size_t)256 << 20 ? 4 * l->cache : bytes;
    if (bytes > l->max_alloc)
        bytes = l->max_alloc;
    if (bytes > l->memory / 4)
        bytes = l->memory / 4;
    if (l->wide_items) {
        s.kernel = "probe_read_slices";
        s.group = 1;
        s.items = 4 * (size_t)l->compute_units;
        unit = s.items * 4 * sizeof(cl_float16);
        s.bytes = bytes / unit * unit;
        s.vectors = s.bytes / sizeof(cl_float16);
    } else {
        s.kernel = "probe_read_strided";
        s.group = l->max_work_group < 256 ? 1 : 256;
        s.items = 2048 * (size_t)l->compute_units;
        unit = s.items * sizeof(cl_float4);
        s.bytes = bytes / unit * unit;
        s.vectors = s.bytes / sizeof(cl_float4);
    }
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

dcm_status cldev_measure_read(cldev *device, double *gb_s)
{
    dcm_status status = DCM_OK;
    probe_run run = {0};
    const read_shape shape = choose_shape(&device->limits);
    float ones[16]; /* a wide pattern: drivers fill by copies of it */
    double best = 0;
    if (shape.bytes == 0)
        return dcm_fail(DCM_ERR_DEVICE, "%s: too little memory to measure", device->limits.name);
    for (int i = 0; i < 16; i++)
        ones[i] = 1.0f;
    DCM_TRY(status, fail, probe_run_kernel(&run, device, "", shape.kernel, false));
    DCM_TRY(status, fail, probe_run_buffers(&run, device, shape.bytes, NULL, shape.items * sizeof(float)));
    CL_TRY(status, fail, clSetKernelArg(run.kernel, 2, sizeof shape.vectors, &shape.vectors));
    CL_TRY(status, fail, clEnqueueFillBuffer(device->queue, run.in, ones, sizeof ones, 0, shape.bytes, 0, NULL, NULL));
    for (int i = 0; i <= READ_REPEATS; i++) { /* the first warms up */
        CL_TRY(status, fail, clFinish(device->queue));
        const uint64_t begin = clock_ns();
        DCM_TRY(status, fail, probe_run_enqueue(&run, device, shape.items, shape.group));
        CL_TRY(status, fail, clFinish(device->queue));
        const double rate = (double)shape.bytes / seconds(begin, clock_ns());
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
    DCM_TRY(status, fail, cldev_measure_read(device, &probe->read_gb_s));
    DCM_TRY(status, fail, cldev_measure_launch(device, &probe->launch_us, &probe->round_trip_us));
    probe->largest_alloc = measure_alloc(device);
fail:
    return status;
}
