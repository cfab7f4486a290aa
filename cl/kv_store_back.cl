/* The keys' and values' part of dqkv from the tokens' own units; `items` floats, `row` of a token, from `at` on. */
__kernel void kv_store_back(const __global float *dunits, __global float *dqkv, ulong dqkv_row, ulong at, ulong row,
                            ulong items)
{
    const size_t item = get_global_id(0);
    if (item < items)
        dqkv[item / row * dqkv_row + at + item % row] = dunits[item];
}
