/*
 * Weight matrices: products of one vector that follow each other, in one launch, on CPUs. Built behind cl/linear.cl.
 *
 * A launch costs a CPU some 8 microseconds of waking and waiting, as much as a small product. Here each work-item goes
 * through all products, and waits before each until the one before it is whole. The tiles of a product are cut into one
 * region an item; an item takes the tiles of its own region, a share at a time, then those that are left of the
 * others', by counters. So nobody waits but for shares that some running item has taken, and work-items may run one
 * after another, too: the first then does everything. Where a wait is long, the item waited for has lost its processor
 * to somebody else: the one that waits ends, which gives its own back, and leaves the rest to that one.
 */
#define CHAIN_MAX 4       /* as in src/ops/linear_chain_cl.c */
#define SHARE_BYTES 49152 /* of weights at least: some microseconds, so that waits are short */
#define PATIENCE 30000    /* looks at a counter, 2 ns each, and one more for each byte of a share */
#define APART 16          /* words between two counters: each has its cache line */

typedef struct chain_stage {
    ulong tile_bytes, x_offset, y_offset;
    uint tiles, cols, rows, input, flags;
    float eps;
} chain_stage;

typedef struct chain_stages {
    chain_stage stage[CHAIN_MAX];
} chain_stages;

typedef struct chain_buffers {
    __global const uchar *w[CHAIN_MAX];
    __global const float *x[CHAIN_MAX], *gain[CHAIN_MAX], *bias[CHAIN_MAX];
    __global float *y[CHAIN_MAX];
} chain_buffers;

/* Counters: of each stage one for the tiles that are done, and one a region for those that are taken. */
static inline volatile __global uint *chain_done(volatile __global uint *marks, uint stage, uint items)
{
    return marks + stage * (items + 1) * APART;
}

static inline volatile __global uint *chain_taken(volatile __global uint *marks, uint stage, uint items, uint region)
{
    return marks + (stage * (items + 1) + 1 + region) * APART;
}

/* Tiles of a share. */
static inline uint share_tiles(const chain_stage *s) { return (uint)max((ulong)1, SHARE_BYTES / s->tile_bytes); }

/* True once all tiles of a stage are done; false where that takes long. */
static inline bool chain_wait(volatile __global uint *done, const chain_stage *s)
{
    const ulong turns = PATIENCE + share_tiles(s) * s->tile_bytes;
    for (ulong turn = 0; turn < turns; turn++)
        if (*done >= s->tiles)
            return true;
    return false;
}

#define STAGE_BUFFERS(N)                                                                                          \
    __global const uchar *w##N, __global const float *x##N, __global const float *gain##N,                        \
        __global const float *bias##N, __global float *y##N

/*
 * `count` products; x, gain, bias as in linear_wide. `work`: work_stride floats an item. `marks`: CHAIN_MAX * (items +
 * 1) + 1 counters, zeros before and after.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
linear_chain(const chain_stages stages, uint count, STAGE_BUFFERS(0), STAGE_BUFFERS(1), STAGE_BUFFERS(2),
             STAGE_BUFFERS(3), __global float *work, ulong work_stride, volatile __global uint *marks)
{
    const chain_buffers b = {{w0, w1, w2, w3}, {x0, x1, x2, x3}, {gain0, gain1, gain2, gain3},
                             {bias0, bias1, bias2, bias3}, {y0, y1, y2, y3}};
    const uint item = (uint)get_global_id(0), items = (uint)get_global_size(0);
    work += item * work_stride;
    for (uint i = 0; i < count; i++) {
        const chain_stage s = stages.stage[i];
        volatile __global uint *done = chain_done(marks, i, items);
        __global const float *x = 0;
        if (i && !chain_wait(chain_done(marks, i - 1, items), &stages.stage[i - 1]))
            break;
        mem_fence(CLK_GLOBAL_MEM_FENCE);
        for (uint k = 0; k < items; k++) {
            const uint region = (item + k) % items, share = share_tiles(&s);
            const uint first = (uint)((ulong)region * s.tiles / items);
            const uint size = (uint)((region + 1ul) * s.tiles / items) - first;
            volatile __global uint *taken = chain_taken(marks, i, items, region);
            while (*taken < size) { /* reading costs less than counting where nothing is left */
                const uint begin = atomic_add(taken, share), end = min(begin + share, size);
                if (begin >= size)
                    break;
                if (!x)
                    x = prepare(s.input, b.x[i] + s.x_offset, b.gain[i], s.eps, s.cols, work);
                linear_tiles(b.w[i], s.tile_bytes, 0, first + begin, first + end, s.cols, s.rows, x, work, b.bias[i],
                             b.y[i] + s.y_offset, s.flags);
                mem_fence(CLK_GLOBAL_MEM_FENCE);
                atomic_add(done, end - begin);
            }
        }
    }
    volatile __global uint *ended = chain_done(marks, CHAIN_MAX, items);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    if (atomic_inc(ended) + 1 < items)
        return;
    for (uint i = 0; i < count * (items + 1); i++)
        marks[i * APART] = 0;
    *ended = 0;
}
