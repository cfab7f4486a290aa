/* kv_store: keys rotated at their anchors, and values, of one layer into the slots of new units. */

/*
 * One work-item per (token, KV head, RoPE pair), of `items`. qkv is (n, (heads + 2 kv_heads) * HEAD_DIM); `slots`
 * and `key_rot` are offsets in words into `data`.
 */
__kernel void kv_store(KV_PARAMS, const __global uint *data, const __global float *qkv, ulong slots, ulong key_rot,
                       uint layer, uint heads, uint kv_heads, ulong items)
{
    KV_TABLE(kv);
    const size_t item = get_global_id(0);
    if (item >= items)
        return;
    const uint i = item % (HEAD_DIM / 2), h = item / (HEAD_DIM / 2) % kv_heads;
    const size_t token = item / (HEAD_DIM / 2) / kv_heads;
    const uint slot = data[slots + token];
    const __global float *k = qkv + (token * (heads + 2 * kv_heads) + heads + h) * HEAD_DIM;
    const __global float *v = k + (size_t)kv_heads * HEAD_DIM;
    __global kv_t *to_k = kv_row(kv, (layer * 2 + 0) * kv_heads + h, slot);
    __global kv_t *to_v = kv_row(kv, (layer * 2 + 1) * kv_heads + h, slot);
    kv_put_pair(to_k, to_v, k, v, data + key_rot + token * HEAD_DIM, i);
}
