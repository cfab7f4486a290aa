#include "device/features.h"

#include "base/half.h"
#include "device/run.h"

#include <math.h>

enum { ITEMS = 256, GROUP = 64, LANE_WINDOW = 16 /* as in cl/lanes.cl */ };

/*
 * Of each item of x: that of the neighbour whose number differs in bit 0, 1, 2, 3; then sums over four neighbours, and
 * one of four sums over sixteen.
 */
static dcm_status compare_lanes(const float *x, const float (*out)[6])
{
    for (int i = 0; i < ITEMS; i++) {
        const int window = i / LANE_WINDOW * LANE_WINDOW, value = i % LANE_WINDOW / 4;
        float sum[LANE_WINDOW], expected[6];
        for (int k = 0; k < 4; k++)
            expected[k] = x[i ^ 1 << k];
        expected[4] = (x[i & ~3] + x[(i & ~3) + 2]) + (x[(i & ~3) + 1] + x[(i & ~3) + 3]);
        for (int k = 0; k < LANE_WINDOW; k++)
            sum[k] = x[window + k] * (float)(value + 1);
        for (int half = LANE_WINDOW / 2; half >= 1; half /= 2)
            for (int k = 0; k < half; k++)
                sum[k] += sum[k + half];
        expected[5] = sum[0];
        for (int k = 0; k < 6; k++)
            if (out[i][k] != expected[k])
                return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %g for %g", out[i][k], expected[k]);
    }
    return DCM_OK;
}

dcm_status check_subgroups(cldev *device, probe_run *run)
{
    dcm_status status = DCM_OK;
    float x[ITEMS], out[ITEMS][6];
    for (int i = 0; i < ITEMS; i++)
        x[i] = 1.0f / (float)(1 + i * i % 101);
    DCM_TRY(status, fail, probe_run_kernel(run, device, "-DPROBE_SUBGROUPS -DSUBGROUPS=1", "probe_subgroups", true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS, GROUP));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    status = compare_lanes(x, (const float(*)[6])out);
fail:
    return status;
}

/* By `kernel`, whose items take `each` words: x + the products of its bytes' bits `mask` with the bytes of x[0]. */
static dcm_status check_bytes(cldev *device, probe_run *run, const char *options, const char *kernel, size_t each,
                              uint8_t mask)
{
    dcm_status status = DCM_OK;
    int32_t x[ITEMS], out[ITEMS];
    for (uint32_t i = 0; i < ITEMS; i++)
        x[i] = (int32_t)((i + 1) * 0x9e3779b1u);
    DCM_TRY(status, fail, probe_run_kernel(run, device, options, kernel, true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS / each, 1));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < ITEMS; i++) {
        int32_t expected = x[i];
        for (int k = 0; k < 32; k += 8)
            expected += (x[i] >> k & mask) * (int8_t)(x[0] >> k);
        if (out[i] != expected)
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %d for %d", out[i], expected);
    }
fail:
    return status;
}

dcm_status check_dot4(cldev *device, probe_run *run)
{
    return check_bytes(device, run, "-DPROBE_DOT4", "probe_dot4", 16, 255);
}

dcm_status check_dot2(cldev *device, probe_run *run)
{
    return check_bytes(device, run, "-DPROBE_DOT2", "probe_dot2", 8, 15);
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

/* By `kernel`, whose items convert `each` halves: x holds 256 of the 65,536, of every exponent and both signs. */
static dcm_status check_halves(cldev *device, probe_run *run, const char *options, const char *kernel, size_t each)
{
    dcm_status status = DCM_OK;
    uint16_t x[ITEMS];
    float out[ITEMS];
    for (uint32_t i = 0; i < ITEMS; i++)
        x[i] = (uint16_t)(i * 257 + i % 16 * 64);
    DCM_TRY(status, fail, probe_run_kernel(run, device, options, kernel, true));
    DCM_TRY(status, fail, probe_run_buffers(run, device, sizeof x, x, sizeof out));
    DCM_TRY(status, fail, probe_run_enqueue(run, device, ITEMS / each, 1));
    CL_TRY(status, fail, clEnqueueReadBuffer(device->queue, run->out, CL_TRUE, 0, sizeof out, out, 0, NULL, NULL));
    for (int i = 0; i < ITEMS; i++) {
        const float expected = half_to_float(x[i]);
        if (out[i] != expected && !(isnan(out[i]) && isnan(expected)))
            return dcm_fail(DCM_ERR_DEVICE, "wrong numbers: %g for %g", out[i], expected);
    }
fail:
    return status;
}

dcm_status check_half16(cldev *device, probe_run *run)
{
    return check_halves(device, run, "-DPROBE_HALF16", "probe_half16", 16);
}

dcm_status check_fp16(cldev *device, probe_run *run)
{
    return check_halves(device, run, "-DPROBE_FP16 -DFP16=1", "probe_fp16", 8);
}
