/* Body of cache.c, for sums in REAL; OF(name) names what belongs to it. */

/* Scores of all units; returns the largest. */
static REAL OF(score_head)(const head_args *a, REAL *scores)
{
    const uint32_t d = a->pool->head_dim;
    REAL most = -INFINITY;
    for (uint32_t r = 0; r < a->n_ranges; r++) {
        const ref_range *range = a->ranges + r;
        double turned[REF_HEAD_MAX];
        REAL q[REF_HEAD_MAX];
        for (uint32_t c = 0; c < d; c++)
            turned[c] = a->q[c];
        pool_rotate(a->pool, turned, range->rotation, 1);
        for (uint32_t c = 0; c < d; c++)
            q[c] = (REAL)turned[c];
        for (uint32_t j = 0; j < range->count; j++) {
            float key[REF_HEAD_MAX];
            pool_load(a->pool, pool_at(a->pool, a->layer, REF_KEYS, a->kv_head, slot_of(range, j)), key);
            const REAL score = (REAL)(OF(ref_dot)(key, q, d) / sqrt(d) + range->bias[a->kv_head]);
            *scores++ = score;
            if (score > most)
                most = score;
        }
    }
    return most;
}

static void OF(attend_head)(const head_args *a, REAL *scores, float *out)
{
    const uint32_t d = a->pool->head_dim;
    const REAL most = OF(score_head)(a, scores);
    REAL sum = 0, acc[REF_HEAD_MAX] = {0};
    for (uint32_t r = 0; r < a->n_ranges; r++) {
        const ref_range *range = a->ranges + r;
        for (uint32_t j = 0; j < range->count; j++) {
            float value[REF_HEAD_MAX];
            const REAL weight = (REAL)exp(*scores++ - most);
            pool_load(a->pool, pool_at(a->pool, a->layer, REF_VALUES, a->kv_head, slot_of(range, j)), value);
            sum += weight;
            for (uint32_t c = 0; c < d; c++)
                acc[c] += weight * value[c];
        }
    }
    for (uint32_t c = 0; c < d; c++)
        out[c] = (float)(acc[c] / sum);
}

dcm_status OF(ref_attention)(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                             const float *q, uint32_t heads, float *out, int threads)
{
    const size_t d = pool->head_dim;
    size_t units = 0;
    for (uint32_t r = 0; r < n_ranges; r++)
        units += ranges[r].count;
    REAL *scores = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&scores, (size_t)threads, units * sizeof *scores, "attention scores"));
#pragma omp parallel for num_threads(threads) if (heads * units * d > REF_SHARED_MIN)
    for (uint32_t h = 0; h < heads; h++) {
        const head_args head = {pool, layer, h / (heads / pool->kv_heads), ranges, n_ranges, q + h * d};
        OF(attend_head)(&head, scores + (size_t)ref_thread() * units, out + h * d);
    }
fail:
    mem_free(&scores);
    return status;
}
