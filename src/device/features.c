#include "device/device.h"

#include <dcm/log.h>

#include "base/half.h"
#include "base/memory.h"
#include "device/run.h"

#include <string.h>

enum { ITEMS = 256, GROUP = 64 };

static size_t group_size(const cldev *device) { return device->limits.max_work_group < GROUP ? 1 : GROUP; }

static dcm_status check_fp16(cldev *device, probe_run *run)
{
    dcm_status status = DCM_OK;
    uint16_t x[ITEMS], out[ITEMS];
    for (int i = 0; i < ITEMS; i++)
        x[i] = float_to_half((float)(i % 17 - 8));
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_FP16", "probe_fp16", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS, group_size(device)));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < ITEMS; i++) {
        const float v = (float)(i % 17 - 8), expected = v * v + v / 4 - 0.5f; /* exact in f16 */
        if (out[i] != float_to_half(expected))
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %g for %g", half_to_float(out[i]), expected);
    }
fail:
    return status;
}

/* Every item must have been given the size of its sub-group and the sum over it. */
static dcm_status compare_subgroups(const int *x, const int (*out)[3], int group)
{
    for (int i = 0; i < ITEMS; i++) {
        const int begin = i / group * group;
        int size = 0, sum = 0;
        for (int k = begin; k < begin + group; k++)
            if (out[k][0] == out[i][0]) {
                size++;
                sum += x[k];
            }
        if (out[i][1] != size || out[i][2] != sum)
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: size %d for %d, sum %d for %d", out[i][1], size, out[i][2],
                            sum);
    }
    return DCM_OK;
}

static dcm_status check_subgroups(cldev *device, probe_run *run)
{
    dcm_status status = DCM_OK;
    int x[ITEMS], out[ITEMS][3];
    for (int i = 0; i < ITEMS; i++)
        x[i] = 1 + i * i % 101;
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_SUBGROUPS", "probe_subgroups", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS, group_size(device)));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    status = compare_subgroups(x, (const int(*)[3])out, (int)group_size(device));
fail:
    return status;
}

static dcm_status check_dot4(cldev *device, probe_run *run)
{
    dcm_status status = DCM_OK;
    int32_t x[ITEMS], out[ITEMS];
    for (uint32_t i = 0; i < ITEMS; i++)
        x[i] = (int32_t)((i + 1) * 0x9e3779b1u);
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_DOT4", "probe_dot4", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS / 16, 1));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < ITEMS; i++) {
        int32_t expected = x[i];
        for (int k = 0; k < 32; k += 8)
            expected += (uint8_t)(x[i] >> k) * (int8_t)(x[0] >> k);
        if (out[i] != expected)
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %d for %d", out[i], expected);
    }
fail:
    return status;
}

/* x holds a (16, 8), then b (8, 8). Products of small integers are exact. */
static dcm_status check_mma(cldev *device, probe_run *run)
{
    enum { M = 16, N = 8, K = 8, LANES = 32 };
    dcm_status status = DCM_OK;
    float x[M * K + K * N], out[M * N];
    for (int i = 0; i < M * K + K * N; i++)
        x[i] = (float)(i * i % 23 - 11);
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_MMA", "probe_mma", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, LANES, LANES));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < M * N; i++) {
        float expected = 0;
        for (int k = 0; k < K; k++)
            expected += x[i / N * K + k] * x[M * K + k * N + i % N];
        if (out[i] != expected)
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %g for %g", out[i], expected);
    }
fail:
    return status;
}

/* Whether this process may run the instruction at all: where it may not, trying would end the program. */
static bool host_has_dot4(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
#else
    return false;
#endif
}

void cldev_probe_dot4(cldev *device)
{
    probe_run run = {0};
    const bool here =
        device->limits.type & CL_DEVICE_TYPE_CPU && !strcmp(device->limits.platform, "Portable Computing Language");
    device->limits.dot4 = here && host_has_dot4() && check_dot4(device, &run) == DCM_OK;
    probe_run_close(&run);
}

/*
 * Some compilers complain on stderr, past the build log, about what the device does not claim; so only what it claims
 * by one of `extensions` is tried.
 */
static bool claims(const cldev *device, const char *const *extensions)
{
    size_t size = 0;
    char *text = NULL;
    bool claimed = false;
    if (clGetDeviceInfo(device->id, CL_DEVICE_EXTENSIONS, 0, NULL, &size) != CL_SUCCESS ||
        mem_new(&text, size + 1, 1, "extensions") != DCM_OK)
        return false;
    if (clGetDeviceInfo(device->id, CL_DEVICE_EXTENSIONS, size, text, NULL) == CL_SUCCESS) {
        char *rest = text;
        for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
            for (const char *const *e = extensions; *e; e++)
                claimed = claimed || strcmp(word, *e) == 0;
    }
    mem_free(&text);
    return claimed;
}

static bool has_feature(cldev *device, const char *name, const char *const *extensions,
                        dcm_status (*check)(cldev *, probe_run *))
{
    probe_run run = {0};
    if (!claims(device, extensions)) {
        dcm_log(DCM_LOG_DEBUG, "%s: no %s: not claimed", device->limits.name, name);
        return false;
    }
    const dcm_status status = check(device, &run);
    probe_run_close(&run);
    if (status != DCM_OK)
        dcm_log(DCM_LOG_DEBUG, "%s: no %s: %s", device->limits.name, name, dcm_error());
    return status == DCM_OK;
}

void cldev_probe_mma(cldev *device)
{
    static const char *const nvidia[] = {"cl_nv_compiler_options", NULL};
    device->limits.mma = has_feature(device, "matrix units", nvidia, check_mma);
}

dcm_status cldev_probe_features(cldev *device)
{
    static const char *const fp16[] = {"cl_khr_fp16", NULL};
    static const char *const subgroups[] = {"cl_khr_subgroups", "cl_intel_subgroups", NULL};
    probe_run run = {0};
    dcm_status status = DCM_OK;
    /* A device on which nothing builds is broken, not without features. */
    DCM_TRY(status, fail, probe_run_kernel(&run, device, "", "probe_empty", false));
    DCM_TRY(status, fail, probe_run_enqueue(&run, device, 1, 1));
    CL_TRY(status, fail, clFinish(device->queue));
    device->limits.fp16 = has_feature(device, "fp16", fp16, check_fp16);
    device->limits.subgroups = has_feature(device, "subgroups", subgroups, check_subgroups);
    cldev_probe_dot4(device);
fail:
    probe_run_close(&run);
    return status;
}
