/*
 * Products of one vector and attention of one query that follow each other, in one launch, on CPUs. Built behind
 * cl/linear.cl and cl/attention_wide.cl.
 *
 * A launch costs a CPU some 50 to 90 microseconds until all its processors are awake, as much as a small product or
 * attention to a short history. Here each work-item goes through all stages, and waits before each until the one before
 * it is whole. The pieces of a stage (tiles of a matrix; splits of all KV heads) are cut into one region an item; an
 * item takes those of its own region, a share at a time, then those that are left of the others', by counters. So
 * nobody waits but for shares that some running item has taken, and work-items may run one after another, too: the
 * first then does everything. Where a wait is long, the item waited for has lost its processor to somebody else: the
 * one that waits ends, which gives its own back, and leaves the rest to that one.
 */
#define CHAIN_STAGES 64   /* as in src/ops/chain_cl.c */
#define CHAIN_BUFFERS 96  /* too: OpenCL grants a kernel's arguments 1,024 bytes */
#define SHARE_BYTES 49152 /* of weights at least: some microseconds, so that waits are short */
#define PATIENCE 30000    /* looks at a counter, 2 ns each, and one more for each byte of a share */
#define APART 16          /* words between two counters: each has its cache line */

/* A linear map, or attention to `layer` from queries, keys and values x into y. w .. y: numbers of buffers. */
typedef struct chain_stage {
    uint rows, cols, x_offset, y_offset, layer;
    float eps;
    uchar w, x, gain, bias, y, input, flags, attends;
} chain_stage;

/* Of one launch; the pool's blocks are the first buffers. */
typedef struct chain_plan {
    uint count, kv_heads, block_units[KV_BLOCKS];
    chain_stage stage[CHAIN_STAGES];
} chain_plan;

/* How a stage is cut. */
typedef struct chain_cut {
    uint pieces, share;
    ulong share_bytes; /* that are read for a share */
} chain_cut;

static inline chain_cut cut_matrix(const chain_stage *s)
{
    const ulong bytes = (ulong)(s->cols / (BLOCK * SUPER)) * SUPER_BYTES;
    const uint share = (uint)max((ulong)1, SHARE_BYTES / bytes);
    return (chain_cut){(s->rows + TILE - 1) / TILE, share, share * bytes};
}

static inline uint splits_used(const wide_args *a)
{
    const uint units = a->data[a->views + VIEW_UNITS];
    return (units + SPLIT(units) - 1) / SPLIT(units);
}

static inline chain_cut cut_attention(const wide_args *a)
{
    const ulong units = SPLIT(a->data[a->views + VIEW_UNITS]);
    return (chain_cut){a->kv_heads * splits_used(a), 1, units * HEAD_DIM * 2 * sizeof(kv_t)};
}

/* Counters: of each stage one for the pieces that are done, and one a region for those that are taken. */
static inline volatile __global uint *chain_done(volatile __global uint *marks, uint stage, uint items)
{
    return marks + stage * (items + 1) * APART;
}

static inline volatile __global uint *chain_taken(volatile __global uint *marks, uint stage, uint items, uint region)
{
    return marks + (stage * (items + 1) + 1 + region) * APART;
}

/* True once all pieces of a stage are done; false where that takes long. */
static inline bool chain_wait(volatile __global uint *done, const chain_cut *cut)
{
    const ulong turns = PATIENCE + cut->share_bytes;
    for (ulong turn = 0; turn < turns; turn++)
        if (*done >= cut->pieces) {
            atomic_add(done, 0); /* what was written before it was counted can be read: PoCL's mem_fence is empty */
            return true;
        }
    return false;
}

#define CHAIN_EACH(X, SEP)                                                                                     \
    KV_EACH(X, SEP) SEP() KV_EIGHT(X, 10, SEP) SEP() KV_EIGHT(X, 11, SEP) SEP() KV_EIGHT(X, 12, SEP) SEP()     \
    KV_EIGHT(X, 13, SEP)
#define BUFFER_PARAM(n) __global uchar *buffer_##n
#define BUFFER_SET(n) buffer[0##n] = buffer_##n
#define FLOATS(N) ((__global float *)buffer[N])

/* The last work-item to end sets all counters back. */
static inline void chain_leave(volatile __global uint *marks, uint stages, uint items)
{
    volatile __global uint *gone = chain_done(marks, CHAIN_STAGES, items);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    if (atomic_inc(gone) + 1 < items)
        return;
    for (uint i = 0; i < stages * (items + 1); i++)
        marks[i * APART] = 0;
    *gone = 0;
}

/*
 * plans[number] is done. views .. partial, ended and splits: as in attention_wide, of all attentions. `work`:
 * work_stride floats an item. `marks`: CHAIN_STAGES * (items + 1) + 1 counters, zeros before and after.
 */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
chain(CHAIN_EACH(BUFFER_PARAM, KV_COMMA), const __global chain_plan *plans, uint number, const __global uint *table,
      const __global uint *data, ulong views, ulong query_rot, ulong slots, ulong key_rot, __global float *partial,
      volatile __global uint *ended, uint splits, __global float *work, uint work_stride, volatile __global uint *marks)
{
    __local kv_table kv;
    __global uchar *buffer[CHAIN_BUFFERS];
    const __global chain_plan *plan = plans + number;
    const uint item = (uint)get_global_id(0), items = (uint)get_global_size(0);
    CHAIN_EACH(BUFFER_SET, KV_SEMICOLON);
    for (uint i = 0; i < KV_BLOCKS; i++) {
        kv.base[i] = (__global kv_t *)buffer[i];
        kv.units[i] = plan->block_units[i];
    }
    wide_args wide = {.kv = &kv, .table = table, .data = data, .views = views, .query_rot = query_rot, .slots = slots,
                      .key_rot = key_rot, .partial = partial, .ended = ended, .splits = splits,
                      .kv_heads = plan->kv_heads};
    chain_cut cut = {0, 0, 0};
    work += item * work_stride;
    for (uint i = 0; i < plan->count; i++) {
        const chain_stage s = plan->stage[i];
        volatile __global uint *done = chain_done(marks, i, items);
        __global const float *x = 0;
        if (i && !chain_wait(chain_done(marks, i - 1, items), &cut))
            break;
        mem_fence(CLK_GLOBAL_MEM_FENCE);
        cut = s.attends ? cut_attention(&wide) : cut_matrix(&s);
        wide.layer = s.layer;
        wide.qkv = FLOATS(s.x);
        wide.out = FLOATS(s.y);
        for (uint k = 0; k < items; k++) {
            const uint region = (item + k) % items, first = (uint)((ulong)region * cut.pieces / items);
            const uint size = (uint)((region + 1ul) * cut.pieces / items) - first;
            volatile __global uint *taken = chain_taken(marks, i, items, region);
            while (*taken < size) { /* reading costs less than counting where nothing is left */
                const uint begin = atomic_add(taken, cut.share), end = min(begin + cut.share, size);
                if (begin >= size)
                    break;
                if (s.attends) {
                    const uint used = splits_used(&wide);
                    for (uint piece = first + begin; piece < first + end; piece++)
                        wide_split(&wide, piece % used, piece / used, 0);
                } else {
                    if (!x)
                        x = prepare(s.input, FLOATS(s.x) + s.x_offset, FLOATS(s.gain), s.eps, s.cols, work);
                    linear_tiles(buffer[s.w], cut.share_bytes / cut.share, 0, first + begin, first + end, s.cols,
                                 s.rows, x, work, FLOATS(s.bias), FLOATS(s.y) + s.y_offset, s.flags);
                }
                mem_fence(CLK_GLOBAL_MEM_FENCE);
                atomic_add(done, end - begin);
            }
        }
    }
    chain_leave(marks, plan->count, items);
}
