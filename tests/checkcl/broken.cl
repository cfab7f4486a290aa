/* y[i] = 2 x[i] for i < n, right and wrong in the ways that checkcl has to notice. */
__kernel void sound(__global const float *x, __global float *y, int n)
{
    y[get_global_id(0)] = 2.0f * x[get_global_id(0)];
}

__kernel void overrun_left(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = 2.0f * x[i];
    if (i == 0)
        y[-1] = 1.0f;
}

__kernel void overrun_right(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = 2.0f * x[i];
    if (i == 0)
        y[n] = 1.0f;
}

__kernel void skipped_store(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    if (i != n / 2)
        y[i] = 2.0f * x[i];
}

__kernel void writes_nan(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = i == n - 1 ? nan(0u) : 2.0f * x[i];
}

__kernel void off_by_one(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = 2.0f * x[i + 1 < n ? i + 1 : i];
}

__kernel void off_in_last_place(__global const float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = i == n / 3 ? 2.0f * x[i] * (1.0f + 0x1p-20f) : 2.0f * x[i];
}

__kernel void changes_input(__global float *x, __global float *y, int n)
{
    const int i = get_global_id(0);
    y[i] = 2.0f * x[i];
    if (i == 1)
        x[i] = y[i];
}
