/*
 * OpenCL calls that fail: put between the program and the ICD loader by LD_PRELOAD; passes every call on but those that
 * are to fail.
 *
 *     CL_FAULT_AT=K     the K-th call (from 1) fails: of all calls, or of those of $CL_FAULT_NAME
 *     CL_FAULT_NAME=F   count calls of the function F only, such as clCreateBuffer
 *     CL_FAULT_ALL=1    the K-th call and all later ones (a device lost); those that release are passed on
 *     CL_FAULT_SIZE=N   clCreateBuffer fails where the buffers living together would pass N bytes (memory runs out)
 *     CL_FAULT_COUNT=P  at the end of the process, the names and numbers of calls are written to the file P
 *     CL_FAULT_LEFT=P   the same of objects that were created or retained more often than released; a release that is
 *                       to fail counts as one
 */
#include <CL/cl.h>

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES = 64, BUFFERS = 4096 };

static struct {
    const char *name;
    long calls;
} seen[NAMES];
static long total, fail_at = -1;
static const char *only, *count_path, *left_path;
static int all;
static size_t room;
static atomic_flag busy = ATOMIC_FLAG_INIT;

/* What is created and released. */
enum { NOTHING, CONTEXT, QUEUE, PROGRAM, KERNEL, BUFFER, EVENT, KINDS };
static atomic_long left[KINDS];

/* Behind the libraries' own ends: theirs release what they kept. */
__attribute__((destructor)) static void write_left(void)
{
    static const char *const names[KINDS] = {"", "contexts", "queues", "programs", "kernels", "buffers", "events"};
    FILE *out = left_path ? fopen(left_path, "w") : NULL;
    for (int i = CONTEXT; out && i < KINDS; i++)
        if (left[i])
            fprintf(out, "%ld %s\n", left[i], names[i]);
    if (out)
        fclose(out);
}

static void write_counts(void)
{
    FILE *out = fopen(count_path, "w");
    for (int i = 0; out && i < NAMES && seen[i].name; i++)
        fprintf(out, "%s %ld\n", seen[i].name, seen[i].calls);
    if (out)
        fclose(out);
}

static void read_settings(void)
{
    const char *at = getenv("CL_FAULT_AT"), *size = getenv("CL_FAULT_SIZE");
    fail_at = at ? atol(at) : 0;
    only = getenv("CL_FAULT_NAME");
    all = getenv("CL_FAULT_ALL") != NULL;
    room = size ? strtoull(size, NULL, 10) : 0;
    count_path = getenv("CL_FAULT_COUNT");
    left_path = getenv("CL_FAULT_LEFT");
    if (count_path)
        atexit(write_counts);
}

/* Count a call; whether it fails. */
static int fails(const char *name)
{
    while (atomic_flag_test_and_set(&busy))
        ;
    if (fail_at < 0)
        read_settings();
    int i = 0;
    while (i < NAMES - 1 && seen[i].name && strcmp(seen[i].name, name))
        i++;
    seen[i].name = name;
    seen[i].calls++;
    total++;
    const long at = only ? strcmp(only, name) ? 0 : seen[i].calls : total;
    const int fault = fail_at > 0 && (at == fail_at || (all && at > fail_at && !strstr(name, "Release")));
    atomic_flag_clear(&busy);
    return fault;
}

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "fake_cl: no %s behind this\n", name);
        abort();
    }
    return found;
}

/* A function that returns a status. */
#define STATUS(name, params, args)                                                                                     \
    CL_API_ENTRY cl_int CL_API_CALL name params                                                                        \
    {                                                                                                                  \
        static cl_int(CL_API_CALL *real) params;                                                                       \
        if (!real)                                                                                                     \
            *(void **)&real = next(#name);                                                                             \
        return fails(#name) ? CL_OUT_OF_RESOURCES : real args;                                                         \
    }

/* One that retains (1) or releases (-1) an object of a kind. */
#define COUNTED(name, kind, step, params, args)                                                                        \
    CL_API_ENTRY cl_int CL_API_CALL name params                                                                        \
    {                                                                                                                  \
        static cl_int(CL_API_CALL *real) params;                                                                       \
        if (!real)                                                                                                     \
            *(void **)&real = next(#name);                                                                             \
        const cl_int status = fails(#name) ? CL_OUT_OF_RESOURCES : real args;                                          \
        if (status == CL_SUCCESS || step < 0)                                                                          \
            left[kind] += step;                                                                                        \
        return status;                                                                                                 \
    }

/* One that returns an object and puts its status into *error, which may be NULL. */
#define OBJECT(type, name, kind, code, params, args)                                                                   \
    CL_API_ENTRY type CL_API_CALL name params                                                                          \
    {                                                                                                                  \
        static type(CL_API_CALL *real) params;                                                                         \
        if (!real)                                                                                                     \
            *(void **)&real = next(#name);                                                                             \
        const bool fault = fails(#name);                                                                               \
        type made = fault ? NULL : real args;                                                                          \
        left[kind] += made != NULL;                                                                                    \
        if (fault && error)                                                                                            \
            *error = code;                                                                                             \
        return made;                                                                                                   \
    }

/* One that enqueues, and makes an event where one is asked for. */
#define ENQUEUE(name, params, args)                                                                                    \
    CL_API_ENTRY cl_int CL_API_CALL name params                                                                        \
    {                                                                                                                  \
        static cl_int(CL_API_CALL *real) params;                                                                       \
        if (!real)                                                                                                     \
            *(void **)&real = next(#name);                                                                             \
        const cl_int status = fails(#name) ? CL_OUT_OF_RESOURCES : real args;                                          \
        left[EVENT] += status == CL_SUCCESS && event;                                                                  \
        return status;                                                                                                 \
    }

#define WAITS cl_uint n_wait, const cl_event *wait, cl_event *event
#define WAIT n_wait, wait, event
#define ANSWER size_t size, void *value, size_t *size_out

STATUS(clGetPlatformIDs, (cl_uint n, cl_platform_id *ids, cl_uint *out), (n, ids, out))
STATUS(clGetPlatformInfo, (cl_platform_id id, cl_platform_info what, ANSWER), (id, what, size, value, size_out))
STATUS(clGetDeviceIDs, (cl_platform_id id, cl_device_type type, cl_uint n, cl_device_id *ids, cl_uint *out),
       (id, type, n, ids, out))
STATUS(clGetDeviceInfo, (cl_device_id id, cl_device_info what, ANSWER), (id, what, size, value, size_out))
STATUS(clCreateSubDevices,
       (cl_device_id id, const cl_device_partition_property *how, cl_uint n, cl_device_id *ids, cl_uint *out),
       (id, how, n, ids, out))
OBJECT(cl_context, clCreateContext, CONTEXT, CL_OUT_OF_HOST_MEMORY,
       (const cl_context_properties *how, cl_uint n, const cl_device_id *ids,
        void(CL_CALLBACK *notify)(const char *, const void *, size_t, void *), void *data, cl_int *error),
       (how, n, ids, notify, data, error))
COUNTED(clReleaseContext, CONTEXT, -1, (cl_context context), (context))
STATUS(clGetCommandQueueInfo, (cl_command_queue queue, cl_command_queue_info what, ANSWER),
       (queue, what, size, value, size_out))
OBJECT(cl_command_queue, clCreateCommandQueue, QUEUE, CL_OUT_OF_RESOURCES,
       (cl_context context, cl_device_id id, cl_command_queue_properties how, cl_int *error), (context, id, how, error))
COUNTED(clReleaseCommandQueue, QUEUE, -1, (cl_command_queue queue), (queue))
OBJECT(cl_program, clCreateProgramWithSource, PROGRAM, CL_OUT_OF_HOST_MEMORY,
       (cl_context context, cl_uint n, const char **texts, const size_t *sizes, cl_int *error),
       (context, n, texts, sizes, error))
OBJECT(cl_program, clCreateProgramWithBinary, PROGRAM, CL_INVALID_BINARY,
       (cl_context context, cl_uint n, const cl_device_id *ids, const size_t *sizes, const unsigned char **binaries,
        cl_int *status, cl_int *error),
       (context, n, ids, sizes, binaries, status, error))
STATUS(clBuildProgram,
       (cl_program program, cl_uint n, const cl_device_id *ids, const char *options,
        void(CL_CALLBACK *notify)(cl_program, void *), void *data),
       (program, n, ids, options, notify, data))
STATUS(clGetProgramInfo, (cl_program program, cl_program_info what, ANSWER), (program, what, size, value, size_out))
STATUS(clGetProgramBuildInfo, (cl_program program, cl_device_id id, cl_program_build_info what, ANSWER),
       (program, id, what, size, value, size_out))
COUNTED(clReleaseProgram, PROGRAM, -1, (cl_program program), (program))
OBJECT(cl_kernel, clCreateKernel, KERNEL, CL_OUT_OF_HOST_MEMORY, (cl_program program, const char *name, cl_int *error),
       (program, name, error))
STATUS(clGetKernelInfo, (cl_kernel kernel, cl_kernel_info what, ANSWER), (kernel, what, size, value, size_out))
STATUS(clGetKernelWorkGroupInfo, (cl_kernel kernel, cl_device_id id, cl_kernel_work_group_info what, ANSWER),
       (kernel, id, what, size, value, size_out))
STATUS(clSetKernelArg, (cl_kernel kernel, cl_uint i, size_t size, const void *value), (kernel, i, size, value))
COUNTED(clReleaseKernel, KERNEL, -1, (cl_kernel kernel), (kernel))
OBJECT(cl_mem, clCreateSubBuffer, BUFFER, CL_OUT_OF_RESOURCES,
       (cl_mem buffer, cl_mem_flags flags, cl_buffer_create_type type, const void *info, cl_int *error),
       (buffer, flags, type, info, error))
STATUS(clGetMemObjectInfo, (cl_mem buffer, cl_mem_info what, ANSWER), (buffer, what, size, value, size_out))
STATUS(clSetMemObjectDestructorCallback,
       (cl_mem buffer, void(CL_CALLBACK *released)(cl_mem, void *), void *user), (buffer, released, user))
ENQUEUE(clEnqueueReadBuffer,
       (cl_command_queue queue, cl_mem buffer, cl_bool block, size_t at, size_t size, void *to, WAITS),
       (queue, buffer, block, at, size, to, WAIT))
ENQUEUE(clEnqueueWriteBuffer,
       (cl_command_queue queue, cl_mem buffer, cl_bool block, size_t at, size_t size, const void *from, WAITS),
       (queue, buffer, block, at, size, from, WAIT))
ENQUEUE(clEnqueueCopyBuffer,
       (cl_command_queue queue, cl_mem from, cl_mem to, size_t from_at, size_t to_at, size_t size, WAITS),
       (queue, from, to, from_at, to_at, size, WAIT))
ENQUEUE(clEnqueueFillBuffer,
       (cl_command_queue queue, cl_mem buffer, const void *pattern, size_t n, size_t at, size_t size, WAITS),
       (queue, buffer, pattern, n, at, size, WAIT))
OBJECT(void *, clEnqueueMapBuffer, NOTHING, CL_MAP_FAILURE,
       (cl_command_queue queue, cl_mem buffer, cl_bool block, cl_map_flags flags, size_t at, size_t size, WAITS,
        cl_int *error),
       (queue, buffer, block, flags, at, size, WAIT, error))
ENQUEUE(clEnqueueUnmapMemObject, (cl_command_queue queue, cl_mem buffer, void *mapped, WAITS),
       (queue, buffer, mapped, WAIT))
ENQUEUE(clEnqueueMigrateMemObjects,
       (cl_command_queue queue, cl_uint n, const cl_mem *buffers, cl_mem_migration_flags flags, WAITS),
       (queue, n, buffers, flags, WAIT))
ENQUEUE(clEnqueueNDRangeKernel,
       (cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset, const size_t *global,
        const size_t *local, WAITS),
       (queue, kernel, dims, offset, global, local, WAIT))
STATUS(clGetEventProfilingInfo, (cl_event event, cl_profiling_info what, ANSWER), (event, what, size, value, size_out))
STATUS(clWaitForEvents, (cl_uint n, const cl_event *events), (n, events))
COUNTED(clRetainEvent, EVENT, 1, (cl_event event), (event))
COUNTED(clReleaseEvent, EVENT, -1, (cl_event event), (event))
STATUS(clFlush, (cl_command_queue queue), (queue))
STATUS(clFinish, (cl_command_queue queue), (queue))

/* ---- Buffers: with their sizes, so that memory can run out ---- */

static struct {
    cl_mem buffer;
    size_t size;
} living[BUFFERS];
static size_t used;

static void keep(cl_mem buffer, size_t size)
{
    int i = 0;
    left[BUFFER]++;
    while (i < BUFFERS - 1 && living[i].buffer)
        i++;
    living[i].buffer = buffer;
    living[i].size = size;
    used += size;
}

static void drop(cl_mem buffer)
{
    int i = 0;
    while (i < BUFFERS && living[i].buffer != buffer)
        i++;
    if (i == BUFFERS)
        return;
    used -= living[i].size;
    living[i].buffer = NULL;
}

CL_API_ENTRY cl_mem CL_API_CALL clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void *host,
                                               cl_int *error)
{
    static cl_mem(CL_API_CALL * real)(cl_context, cl_mem_flags, size_t, void *, cl_int *);
    cl_int status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
    cl_mem buffer = NULL;
    if (!real)
        *(void **)&real = next("clCreateBuffer");
    if (!fails("clCreateBuffer") && !(room && used + size > room))
        buffer = real(context, flags, size, host, &status);
    if (buffer)
        keep(buffer, size);
    if (error)
        *error = status;
    return buffer;
}

CL_API_ENTRY cl_int CL_API_CALL clReleaseMemObject(cl_mem buffer)
{
    static cl_int(CL_API_CALL * real)(cl_mem);
    if (!real)
        *(void **)&real = next("clReleaseMemObject");
    left[BUFFER]--;
    if (fails("clReleaseMemObject"))
        return CL_OUT_OF_RESOURCES;
    drop(buffer);
    return real(buffer);
}
