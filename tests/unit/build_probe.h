/* The probe program, built and run, and the folder that keeps its binary. For cases of apart.h; included once. */
#ifndef BUILD_PROBE_H
#define BUILD_PROBE_H

#include "apart.h"

#include <dirent.h>

/* Files of the case's folder; the name of the last one. */
static size_t count_files(char *name, size_t size)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    if (!d)
        return 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            n++;
            snprintf(name, size, "%s/%s", folder, e->d_name);
        }
    closedir(d);
    return n;
}

static void clear_folder(void)
{
    char path[1024];
    while (count_files(path, sizeof path))
        assert_int_equal(unlink(path), 0);
}

/* OpenCL keeps the source of a program only when it was made from source. */
static bool from_source(cl_program program)
{
    size_t size = 0;
    char *text = NULL;
    assert_int_equal(clGetProgramInfo(program, CL_PROGRAM_SOURCE, 0, NULL, &size), CL_SUCCESS);
    if (size <= 1)
        return false;
    assert_int_equal(mem_new(&text, size, 1, "source"), DCM_OK);
    assert_int_equal(clGetProgramInfo(program, CL_PROGRAM_SOURCE, size, text, NULL), CL_SUCCESS);
    const bool found = strstr(text, "probe_empty") != NULL;
    mem_free(&text);
    return found;
}

/* Build the probe family and run its empty kernel; true when it was built from source. */
static bool build_and_run(cldev *device)
{
    cl_program program = NULL;
    assert_int_equal(cldev_build(device, "probe", NULL, &program), DCM_OK);
    const bool source = from_source(program);
    cl_int error;
    cl_kernel kernel = clCreateKernel(program, "probe_empty", &error);
    assert_int_equal(error, CL_SUCCESS);
    const size_t one = 1;
    assert_int_equal(clEnqueueNDRangeKernel(device->queue, kernel, 1, NULL, &one, &one, 0, NULL, NULL), CL_SUCCESS);
    assert_int_equal(clFinish(device->queue), CL_SUCCESS);
    clReleaseKernel(kernel);
    clReleaseProgram(program);
    return source;
}

#endif
