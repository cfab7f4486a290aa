/*
 * Every kernel launch of this program passes here: the linker is told to wrap clEnqueueNDRangeKernel. So the check that
 * no kernel goes untested, and the times of --bench, need nothing from the code under test.
 */
#include "harness.h"

#include <stdio.h>
#include <string.h>

enum { NAMES = 256, EVENTS = 64 };

static char names[NAMES][64];
static size_t n_names;
static cl_event events[EVENTS];
static size_t n_events;
static bool timing;

cl_int __real_clEnqueueNDRangeKernel(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *,
                                     const size_t *, cl_uint, const cl_event *, cl_event *);
cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *,
                                     const size_t *, cl_uint, const cl_event *, cl_event *);

static void record(cl_kernel kernel)
{
    char name[sizeof names[0]] = "";
    if (clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL) != CL_SUCCESS)
        return;
    for (size_t i = 0; i < n_names; i++)
        if (!strcmp(names[i], name))
            return;
    if (n_names < NAMES)
        strcpy(names[n_names++], name);
}

cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                                     const size_t *global, const size_t *local, cl_uint n_wait, const cl_event *wait,
                                     cl_event *event)
{
    record(kernel);
    const bool ours = timing && !event && n_events < EVENTS;
    const cl_int error = __real_clEnqueueNDRangeKernel(queue, kernel, dims, offset, global, local, n_wait, wait,
                                                       ours ? &events[n_events] : event);
    if (ours && error == CL_SUCCESS)
        n_events++;
    return error;
}

void ck_print_kernels(void)
{
    for (size_t i = 0; i < n_names; i++)
        printf("ck\tkernel\t%s\n", names[i]);
}

void ck_events_start(void)
{
    timing = true;
    n_events = 0;
}

double ck_events_us(size_t *launches)
{
    double us = 0;
    for (size_t i = 0; i < n_events; i++) {
        cl_ulong from = 0, to = 0;
        clGetEventProfilingInfo(events[i], CL_PROFILING_COMMAND_START, sizeof from, &from, NULL);
        clGetEventProfilingInfo(events[i], CL_PROFILING_COMMAND_END, sizeof to, &to, NULL);
        us += (double)(to - from) * 1e-3;
        clReleaseEvent(events[i]);
    }
    *launches = n_events;
    n_events = 0;
    timing = false;
    return us;
}
