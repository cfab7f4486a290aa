/* Merges by the scorer, strictly: behind score.cl, whose layout of parameters it uses, and strict_pool.cl. */

static inline strict_score strict_score_at(const __global float *p, uint level)
{
    strict_score s;
    s.mean = p + SCORE_MEAN;
    s.scale = p + SCORE_SCALE;
    s.w1 = p + SCORE_W1;
    s.b1 = p + SCORE_B1 + level * HIDDEN;
    s.w2 = p + SCORE_W2;
    s.u = p + SCORE_U;
    s.r = p + SCORE_R + level * SCORE_X;
    s.prior = p[SCORE_PRIOR + level];
    s.deviation = p[SCORE_DEVIATION];
    s.sharp_k = p[SCORE_SHARP_K];
    s.sharp_v = p[SCORE_SHARP_V];
    return s;
}

static inline void unit_row(float *x, __global kv_t *const *rows, const __global uint *rot)
{
    pool_row(x, rows[0]);
    pool_row(x + HEAD_DIM, rows[1]);
    key_rotate(x, rot, true);
}

/* One work-item per (merge, KV head, layer). */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
strict_merge_score(KV_PARAMS, const __global uint *data, ulong merges, ulong merge_rot, uint n_merges, uint layer,
                   uint kv_heads, const __global float *params)
{
    KV_TABLE(kv);
    const score_item it = score_find(kv, data, merges, merge_rot, n_merges, layer, kv_heads, get_global_id(0), params);
    const strict_score p = strict_score_at(it.p, it.level);
    float a[SCORE_X], b[SCORE_X], z[SCORE_X], ha[HIDDEN], hb[HIDDEN];
    unit_row(a, it.a, it.rot);
    unit_row(b, it.b, it.rot + HEAD_DIM);
    const float sa = strict_score_unit(&p, HEAD_DIM, HIDDEN, a, z, ha);
    const float sb = strict_score_unit(&p, HEAD_DIM, HIDDEN, b, z, hb);
    strict_score_merge(&p, HEAD_DIM, HIDDEN, sa - sb + p.prior, a, b, ha, hb);
    key_rotate(a, it.rot + 2 * HEAD_DIM, false);
    for (uint c = 0; c < HEAD_DIM; c++) {
        kv_put(it.out[0] + c, a[c]);
        kv_put(it.out[1] + c, a[HEAD_DIM + c]);
    }
}
