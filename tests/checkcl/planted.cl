/*
 * One fault a kernel, of each kind that Oclgrind is asked for: oclgrind.py must see every one. Eight work-items in
 * groups of four.
 */
__kernel void sound(__global const float *x, __global float *y)
{
    __local float shared[4];
    shared[get_local_id(0)] = x[get_global_id(0)];
    barrier(CLK_LOCAL_MEM_FENCE);
    y[get_global_id(0)] = shared[3 - get_local_id(0)];
}

__kernel void reads_past_the_end(__global const float *x, __global float *y)
{
    y[get_global_id(0)] = x[get_global_id(0) + 1];
}

__kernel void writes_before_the_start(__global const float *x, __global float *y)
{
    y[(int)get_global_id(0) - 1] = x[get_global_id(0)];
}

__kernel void leaves_out_the_barrier(__global const float *x, __global float *y)
{
    __local float shared[4];
    shared[get_local_id(0)] = x[get_global_id(0)];
    y[get_global_id(0)] = shared[3 - get_local_id(0)];
}

__kernel void shares_between_groups(__global const float *x, __global float *y)
{
    y[get_global_id(0) % 4] = x[get_global_id(0)];
}

__kernel void reads_what_none_wrote(__global const float *x, __global float *y)
{
    __local float shared[4];
    if (get_local_id(0) < 3)
        shared[get_local_id(0)] = x[get_global_id(0)];
    barrier(CLK_LOCAL_MEM_FENCE);
    y[get_global_id(0)] = shared[3 - get_local_id(0)];
}
