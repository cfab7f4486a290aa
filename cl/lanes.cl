/*
 * Sums over neighbouring work-items of a group by sub-group shuffles: no local memory and no barrier, in an order that
 * kernels without them can keep, so that both give the same bits. A device without them has SUBGROUPS 0, where only
 * SUBGROUP_KERNEL is to be used.
 */
#ifndef SUBGROUPS
#define SUBGROUPS 0 /* 1: the device has sub-groups whose work-items can be shuffled */
#endif

/* Before a kernel that uses what follows. */
#if SUBGROUPS && defined(cl_intel_required_subgroup_size)
#define SUBGROUP_KERNEL __attribute__((intel_reqd_sub_group_size(LANE_WINDOW)))
#else
#define SUBGROUP_KERNEL
#endif

#if SUBGROUPS
#define LANE_WINDOW 16 /* work-items, from each multiple of it on, that are in one sub-group */

/* The x of the work-item whose number differs from this one's in the bits of `mask`. All of a group call it. */
#if defined(cl_khr_subgroup_shuffle)
#pragma OPENCL EXTENSION cl_khr_subgroup_shuffle : enable
static inline float lane_xor(float x, uint mask) { return sub_group_shuffle_xor(x, mask); }
#elif defined(cl_intel_subgroups)
#pragma OPENCL EXTENSION cl_intel_subgroups : enable
static inline float lane_xor(float x, uint mask) { return intel_sub_group_shuffle_xor(x, mask); }
#else /* NVIDIA */
static inline float lane_xor(float x, uint mask)
{
    float y;
    __asm__ volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(y) : "f"(x), "r"(mask));
    return y;
}
#endif

/*
 * Sums of n values over the work-items whose numbers differ in the bits from `first` to below `end`; n, first and end
 * are powers of two, and n at most the number of those work-items. Among these, counted by those bits, each n-th part
 * has the sum of one value: the first of v[0], the next of v[1], and so on; which v holds them is lost. The order is
 * that of sum4, sum8 or sum16 over those work-items.
 */
static inline float lane_sums(float *v, uint n, uint first, uint end)
{
    UNROLL_GROUP
    for (uint mask = end / 2; mask >= first; mask /= 2) {
        const bool second = get_local_id(0) & mask;
        if (n == 1) {
            v[0] += lane_xor(v[0], mask);
            continue;
        }
        n /= 2;
        UNROLL_GROUP
        for (uint i = 0; i < n; i++) {
            const float x = v[i], y = v[n + i]; /* chosen as values: an array that is pointed into is in memory */
            v[i] = (second ? y : x) + lane_xor(second ? x : y, mask);
        }
    }
    return v[0];
}
#endif
