#include "device/features.h"

#include <dcm/log.h>

#include "base/half.h"
#include "device/list.h"
#include "device/run.h"

#include <math.h>
#include <string.h>

enum { ITEMS = 256, GROUP = 64 };

static size_t group_size(const cldev *device) { return device->limits.max_work_group < GROUP ? 1 : GROUP; }

dcm_status check_fp16(cldev *device, probe_run *run)
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

dcm_status check_subgroups(cldev *device, probe_run *run)
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

dcm_status check_dot4(cldev *device, probe_run *run)
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
dcm_status check_mma(cldev *device, probe_run *run)
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

/* x holds 256 of the 65,536 halves, of every exponent and both signs. */
dcm_status check_half16(cldev *device, probe_run *run)
{
    dcm_status status = DCM_OK;
    uint16_t x[ITEMS];
    float out[ITEMS];
    for (uint32_t i = 0; i < ITEMS; i++)
        x[i] = (uint16_t)(i * 257 + i % 16 * 64);
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_HALF16", "probe_half16", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS / 16, 1));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < ITEMS; i++) {
        const float expected = half_to_float(x[i]);
        if (out[i] != expected && !(isnan(out[i]) && isnan(expected)))
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %g for %g", out[i], expected);
    }
fail:
    return status;
}

dcm_status feature_claimed(const cldev *device, const char *const *extensions)
{
    if (cldev_claims(device->id, extensions))
        return DCM_OK;
    return dcm_fail(DCM_ERR_DEVICE, "its driver does not claim %s", extensions[0]);
}

static bool has_feature(cldev *device, const char *name, const char *const *extensions,
                        dcm_status (*check)(cldev *, probe_run *))
{
    probe_run run = {0};
    /* Some compilers complain on stderr, past the build log, about what the device does not claim. */
    dcm_status status = feature_claimed(device, extensions);
    if (status == DCM_OK)
        status = check(device, &run);
    probe_run_close(&run);
    if (status != DCM_OK)
        dcm_log(DCM_LOG_DEBUG, "%s: no %s: %s", device->limits.name, name, dcm_error());
    return status == DCM_OK;
}

/*
 * Shown, and used by no kernel: halves are only stored, sums are floats; a fold by sub-group reductions took 1.6 to 7.5
 * times as long as one in local memory on Intel's CPU runtime (rows of gradients). Command buffers are not asked for:
 * 150 small kernels replayed by cl_khr_command_buffer (0.9, provisional) took 1.1 times as long on PoCL 3.1 as enqueued
 * one by one with their arguments set anew, and 0.7 to 0.9 times as long on Intel's runtime, 1 to 5 us less for each.
 */
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
    for (int tier = 0; tier < CLDEV_TIERS; tier++)
        cldev_has(device, (cldev_tier)tier);
fail:
    probe_run_close(&run);
    return status;
}
