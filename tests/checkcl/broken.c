/* Kernels with known faults: the harness must report every one of them, and not the sound one. Also children that hang
 * and die. */
#include "harness.h"

#include "base/file.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { N = 100 };

/* A kernel of broken.cl, and what the report must say; NULL: it must pass. */
typedef struct fault {
    const char *kernel, *report;
} fault;

static const fault faults[] = {
    {"sound", NULL},
    {"overrun_left", "y: device wrote past the left end"},
    {"overrun_right", "y: device wrote past the right end"},
    {"skipped_store", "y[50]: nan"},
    {"writes_nan", "y[99]: "},
    {"off_by_one", "y[0]: "},
    {"off_in_last_place", "y[33]: "},
    {"changes_input", "x[1]: "},
};

static dcm_status build(ck *c, cl_program *program)
{
    file_map source = {0};
    dcm_status status;
    cl_int error;
    DCM_TRY(status, fail, file_map_open(&source, CHECKCL_BROKEN));
    *program = clCreateProgramWithSource(c->device->context, 1, (const char *[]){(const char *)source.data},
                                         &source.size, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateProgramWithSource"));
    CL_TRY(status, fail, clBuildProgram(*program, 1, &c->device->id, "", NULL, NULL));
fail:
    file_map_close(&source);
    return status;
}

static dcm_status launch(ck *c, cl_program program, const char *name, const buffer *x, const buffer *y)
{
    const cl_int n = N;
    const size_t global = N;
    dcm_status status;
    cl_int error;
    cl_kernel kernel = clCreateKernel(program, name, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateKernel"));
    CL_TRY(status, fail, clSetKernelArg(kernel, 0, sizeof(cl_mem), &x->handle));
    CL_TRY(status, fail, clSetKernelArg(kernel, 1, sizeof(cl_mem), &y->handle));
    CL_TRY(status, fail, clSetKernelArg(kernel, 2, sizeof n, &n));
    CL_TRY(status, fail, clEnqueueNDRangeKernel(c->device->queue, kernel, 1, NULL, &global, NULL, 0, NULL, NULL));
    CL_TRY(status, fail, clFinish(c->device->queue));
fail:
    if (kernel)
        clReleaseKernel(kernel);
    return status;
}

static void one(ck *c, cl_program program, const fault *f)
{
    float x[N], y[N];
    char why[4096] = "", note[4200];
    double worst = 0;
    fx_fill(x, 1, N, FX_NORMAL, &c->rng);
    fx_pattern(y, sizeof y);
    float *ref = ck_buffer(c, CK_REF, "y", y, sizeof y, 4)->handle;
    const buffer *bx = ck_buffer(c, CK_CL, "x", x, sizeof x, 4), *by = ck_buffer(c, CK_CL, "y", y, sizeof y, 4);
    double *bound = ck_bound(c, "y");
    for (int i = 0; i < N; i++) {
        ref[i] = 2 * x[i];
        bound[i] = 2 * CK_U * fabsf(ref[i]) + FLT_MIN;
    }
    if (launch(c, program, f->kernel, bx, by) != DCM_OK || !ck_read_back(c, why, sizeof why)) {
        ck_fail(c, dcm_error());
    } else {
        const bool passed = ck_compare(c, &worst, why, sizeof why);
        snprintf(note, sizeof note, "%s: %s", passed ? "not noticed" : f->report ? "noticed" : "wrongly reported", why);
        if (f->report ? !passed && !strncmp(why, f->report, strlen(f->report)) : passed)
            ck_pass(c, worst, f->report ? note : "");
        else
            ck_fail(c, note);
    }
    ck_release(c);
}

void check_broken(ck *c)
{
    cl_program program = NULL;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (!ck_case(c, "broken/%s", faults[i].kernel))
            continue;
        if (!program && build(c, &program) != DCM_OK)
            ck_fail(c, dcm_error());
        else
            one(c, program, faults + i);
    }
    if (program)
        clReleaseProgram(program);
}

void check_hang(ck *c)
{
    if (ck_case(c, "hang/for_ever"))
        for (;;)
            pause();
}

void check_crash(ck *c)
{
    if (ck_case(c, "crash/abort"))
        abort();
}
