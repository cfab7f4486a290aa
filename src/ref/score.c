#include "ref/choice.h"
#include "ref/score_net.h"

static dcm_merge_choice choose(const ref_pool *pool, const ref_merge *merge, const ref_score *p, uint32_t level,
                               const score_unit *a, const score_unit *b)
{
    double apart[2 * REF_HEAD_MAX];
    for (uint32_t c = 0; c < 2 * pool->head_dim; c++)
        apart[c] = a->x[c] - b->x[c];
    return choice_of(pool, merge, score_gap(p, level, a, b), *p->sharp_k, *p->sharp_v, apart);
}

void ref_merge_score(const ref_pool *pool, const ref_merges *merges, const ref_score *score, dcm_merge_choice *seen,
                     int threads)
{
    const size_t d = pool->head_dim, heads = pool->kv_heads, rows = (size_t)merges->n * merges->layers * heads;
#pragma omp parallel for num_threads(threads) if (rows * score->hidden * d > REF_SHARED_MIN)
    for (size_t i = 0; i < rows; i++) {
        const size_t m = i / heads / merges->layers;
        const ref_merge *merge = merges->merge + m;
        const float *rotation = merges->rotations + m * 3 * d;
        const uint32_t layer = merges->layer + (uint32_t)(i / heads % merges->layers), head = (uint32_t)(i % heads);
        const ref_score p = score_at(score, layer * heads + head);
        const uint32_t level = score_level(score, merge->level);
        score_unit a, b;
        double y[2 * REF_HEAD_MAX];
        score_load(pool, layer, head, merge->a, rotation, &a);
        score_load(pool, layer, head, merge->b, rotation + d, &b);
        score_run(&p, (uint32_t)d, level, &a);
        score_run(&p, (uint32_t)d, level, &b);
        if (seen)
            seen[i] = choose(pool, merge, &p, level, &a, &b);
        score_merge(&p, (uint32_t)d, level, &a, &b, y);
        pool_rotate(pool, y, rotation + 2 * d, 1);
        pool_save(pool, pool_at(pool, layer, REF_KEYS, head, merge->out), y);
        pool_save(pool, pool_at(pool, layer, REF_VALUES, head, merge->out), y + d);
    }
}
