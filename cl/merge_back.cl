/*
 * Gradients of merges of one layer; rows as in cl/merge.cl, which is before this. dunits is (units, 2, kv_heads,
 * HEAD_DIM): keys without rotation, channels as in the cache. No two merges of a level share a unit.
 */

/* Words of grad_unit in src/ops/grad.h. */
enum { UNIT_A = 6, UNIT_B = 7, UNIT_WORDS = 8 };

/* A row of the result's gradient and of its sources'. */
typedef struct back_row {
    const __global float *result;
    __global float *a, *b;
    bool key;
} back_row;

static inline back_row back_row_at(const __global uint *units, uint first, uint kv_heads, size_t row,
                                   __global float *dunits)
{
    const uint parts = 2 * kv_heads, part = row % parts;
    const size_t unit = first + row / parts;
    const __global uint *of = units + unit * UNIT_WORDS;
    return (back_row){.result = dunits + (unit * parts + part) * HEAD_DIM,
                      .a = dunits + ((size_t)of[UNIT_A] * parts + part) * HEAD_DIM,
                      .b = dunits + ((size_t)of[UNIT_B] * parts + part) * HEAD_DIM,
                      .key = part < kv_heads};
}

/* Channel in the cache of place c of a row. */
static inline uint back_channel(bool key, uint c)
{
    if (!key)
        return c;
    return c < HEAD_DIM / 2 ? ROPE_FIRST(c) : ROPE_SECOND(c - HEAD_DIM / 2);
}

/* A work-item a row; `head` and `dhead` as in merge_apply. */
__kernel void merge_apply_back(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint layer,
                               uint layers, uint kv_heads, ulong rows, uint mode, float weight,
                               const __global float *head, const __global uint *units, uint first,
                               __global float *dhead, __global float *dunits)
{
    KV_TABLE(kv);
    const size_t row = get_global_id(0);
    if (row >= rows)
        return;
    const back_row at = back_row_at(units, first, kv_heads, row, dunits);
    if (mode == MERGE_DIRECT) {
        for (uint c = 0; c < HEAD_DIM; c++)
            dhead[row * HEAD_DIM + c] = at.result[back_channel(at.key, c)];
        return;
    }
    const bool gate = mode == MERGE_GATE;
    const float open = gate ? 1.0f / (1.0f + exp(-head[row])) : weight;
    const float shut = gate ? 1.0f / (1.0f + exp(head[row])) : 1.0f - weight;
    float sum = 0;
    if (gate)
        for (uint i = 0; i < HEAD_DIM / 2; i++) {
            const size_t item = row * (HEAD_DIM / 2) + i;
            const merge_item it = merge_read(kv, data, merges, merge_rot, layer, layers, kv_heads, item, true);
            const float2 apart = it.a - it.b;
            sum = fma(at.result[it.first], apart.x, sum);
            sum = fma(at.result[it.second], apart.y, sum);
        }
    for (uint c = 0; c < HEAD_DIM; c++) {
        at.a[c] += open * at.result[c];
        at.b[c] += shut * at.result[c];
    }
    if (gate)
        dhead[row] = open * shut * sum;
}

/* A work-item a place of a row; dx (rows, 2 HEAD_DIM). */
__kernel void merge_gather_back(const __global uint *units, uint first, uint kv_heads, ulong items,
                                const __global float *dx, __global float *dunits)
{
    const size_t item = get_global_id(0), row = item / HEAD_DIM;
    const uint c = item % HEAD_DIM;
    if (item >= items)
        return;
    const back_row at = back_row_at(units, first, kv_heads, row, dunits);
    const uint channel = back_channel(at.key, c);
    at.a[channel] += dx[row * 2 * HEAD_DIM + c];
    at.b[channel] += dx[(row * 2 + 1) * HEAD_DIM + c];
}
