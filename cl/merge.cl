/*
 * Merges of pairs of units, `layers` layers from `layer` on and all heads in one launch: the rows of the merge MLP's
 * input, and the merge itself in place. Row ((m * layers + l) * 2 + w) * kv_heads + h is KV head h of the keys (w = 0)
 * or values (w = 1) of layer `layer` + l of merge m. One work-item per (row, i), i < HEAD_DIM / 2: of keys RoPE pair i,
 * which is channels i and i + HEAD_DIM/2 in half-split order; of values channels 2i and 2i+1.
 */

enum { MERGE_CONSTANT, MERGE_GATE, MERGE_DIRECT, MERGE_COPY };

/* What a work-item reads: two channels of both units. */
typedef struct merge_item {
    size_t row, m;
    uint i, plane;
    bool key;
    uint first, second; /* the two channels in the cache */
    float2 a, b;
} merge_item;

static inline float2 merge_load(const __global kv_t *row, const merge_item *it)
{
    return (float2)(kv_load(row + it->first), kv_load(row + it->second));
}

/* With `turned`, keys without rotation; else as stored. */
static merge_item merge_read(const __local kv_table *kv, const __global uint *data, ulong merges, ulong merge_rot,
                             uint layer, uint layers, uint kv_heads, size_t item, bool turned)
{
    merge_item it;
    it.i = item % (HEAD_DIM / 2);
    it.row = item / (HEAD_DIM / 2);
    it.m = it.row / (layers * 2 * kv_heads);
    it.plane = layer * 2 * kv_heads + it.row % (layers * 2 * kv_heads);
    it.key = it.plane / kv_heads % 2 == 0;
    it.first = it.key ? ROPE_FIRST(it.i) : 2 * it.i;
    it.second = it.key ? ROPE_SECOND(it.i) : 2 * it.i + 1;
    const __global uint *pair = data + merges + it.m * MERGE_WORDS;
    it.a = merge_load(kv_row(kv, it.plane, pair[0]), &it);
    it.b = merge_load(kv_row(kv, it.plane, pair[1]), &it);
    if (it.key && turned) {
        const __global uint *rot = data + merge_rot + it.m * 3 * HEAD_DIM + 2 * it.i;
        it.a = rope_unturn(it.a, as_float2(vload2(0, rot)));
        it.b = rope_unturn(it.b, as_float2(vload2(0, rot + HEAD_DIM)));
    }
    return it;
}

/* x is (rows, 2 * HEAD_DIM): [a ; b]. */
__kernel void merge_gather(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint layer,
                           uint layers, uint kv_heads, ulong items, __global float *x)
{
    KV_TABLE(kv);
    if (get_global_id(0) >= items)
        return;
    const merge_item it = merge_read(kv, data, merges, merge_rot, layer, layers, kv_heads, get_global_id(0), true);
    const uint first = it.key ? it.i : it.first, second = it.key ? it.i + HEAD_DIM / 2 : it.second;
    __global float *row = x + it.row * 2 * HEAD_DIM;
    row[first] = it.a.x;
    row[second] = it.a.y;
    row[HEAD_DIM + first] = it.b.x;
    row[HEAD_DIM + second] = it.b.y;
}

/* w a + (1 - w) b; where one counts alone, it is kept bit for bit. */
static inline float2 merge_mix(float2 a, float2 b, float w)
{
    return w == 1.0f ? a : w == 0.0f ? b : w * a + (1.0f - w) * b;
}

/* `head` is (rows) for MERGE_GATE, (rows, HEAD_DIM) for MERGE_DIRECT, and not read for the others. */
__kernel void merge_apply(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint layer,
                          uint layers, uint kv_heads, ulong items, uint mode, float weight, const __global float *head)
{
    KV_TABLE(kv);
    if (get_global_id(0) >= items)
        return;
    const merge_item it =
        merge_read(kv, data, merges, merge_rot, layer, layers, kv_heads, get_global_id(0), mode != MERGE_COPY);
    float2 x;
    if (mode == MERGE_COPY) {
        x = it.a;
    } else if (mode == MERGE_DIRECT) {
        const __global float *row = head + it.row * HEAD_DIM;
        x = it.key ? (float2)(row[it.i], row[it.i + HEAD_DIM / 2]) : (float2)(row[it.first], row[it.second]);
    } else {
        x = merge_mix(it.a, it.b, mode == MERGE_GATE ? 1.0f / (1.0f + EXP(-head[it.row])) : weight);
    }
    if (it.key && mode != MERGE_COPY)
        x = rope_turn(x, as_float2(vload2(0, data + merge_rot + (it.m * 3 + 2) * HEAD_DIM + 2 * it.i)));
    __global kv_t *out = kv_row(kv, it.plane, data[merges + it.m * MERGE_WORDS + 2]);
    kv_put(out + it.first, x.x);
    kv_put(out + it.second, x.y);
}
