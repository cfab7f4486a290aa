/* The sum or the largest of the items' x; `shared` has a float an item, a power of two. All of a group call it. */
static inline float group_fold(__local float *shared, float x, bool largest)
{
    const uint item = get_local_id(0);
    shared[item] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint n = get_local_size(0) / 2; n; n /= 2) {
        if (item < n)
            shared[item] = largest ? fmax(shared[item], shared[item + n]) : shared[item] + shared[item + n];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float all = shared[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return all;
}
