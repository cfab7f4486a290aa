#include "device/run.h"

#include "device/build.h"

dcm_status probe_run_kernel(probe_run *run, cldev *device, const char *options, const char *name, bool quiet)
{
    dcm_status status = DCM_OK;
    cl_int error;
    program_source source;
    DCM_TRY(status, fail, program_source_init(&source, device, "lanes+probe", options));
    DCM_TRY(status, fail, program_build(device, &source, quiet, &run->program));
    run->kernel = clCreateKernel(run->program, name, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateKernel(...)"));
fail:
    return status;
}

dcm_status probe_run_buffers(probe_run *run, cldev *device, size_t in_bytes, const void *data, size_t out_bytes)
{
    dcm_status status = DCM_OK;
    DCM_TRY(status, fail, cldev_buffer_new(device, in_bytes, false, &run->in));
    DCM_TRY(status, fail, cldev_buffer_new(device, out_bytes, false, &run->out));
    CL_TRY(status, fail, clSetKernelArg(run->kernel, 0, sizeof run->in, &run->in));
    CL_TRY(status, fail, clSetKernelArg(run->kernel, 1, sizeof run->out, &run->out));
    if (data)
        CL_TRY(status, fail, clEnqueueWriteBuffer(device->queue, run->in, CL_TRUE, 0, in_bytes, data, 0, NULL, NULL));
fail:
    return status;
}

dcm_status probe_run_enqueue(probe_run *run, cldev *device, size_t items, size_t group)
{
    return cldev_check(clEnqueueNDRangeKernel(device->queue, run->kernel, 1, NULL, &items, &group, 0, NULL, NULL),
                       "clEnqueueNDRangeKernel(...)");
}

void probe_run_close(probe_run *run)
{
    if (run->in)
        clReleaseMemObject(run->in);
    if (run->out)
        clReleaseMemObject(run->out);
    if (run->kernel)
        clReleaseKernel(run->kernel);
    if (run->program)
        clReleaseProgram(run->program);
    *run = (probe_run){0};
}
