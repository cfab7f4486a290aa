#include "ref/merge_row.h"

#include <math.h>

/* Unit a (source 0) or b (1) of a row. */
static void load_stored(const ref_pool *pool, const merge_row *row, int source, double *x)
{
    float stored[REF_HEAD_MAX];
    merge_load(pool, row, source, stored);
    for (uint32_t c = 0; c < pool->head_dim; c++)
        x[c] = stored[c];
}

/* The same without its rotation, channels as stored. */
static void load_source(const ref_pool *pool, const merge_row *row, int source, double *x)
{
    load_stored(pool, row, source, x);
    if (row->which == REF_KEYS)
        pool_rotate(pool, x, row->rotation + source * (size_t)pool->head_dim, -1);
}

void ref_merge_gather(const ref_pool *pool, const ref_merges *merges, float *x, int threads)
{
    const size_t rows = merge_rows(pool, merges), d = pool->head_dim;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const merge_row row = merge_row_of(pool, merges, r);
        for (int source = 0; source < 2; source++) {
            double unit[REF_HEAD_MAX];
            load_source(pool, &row, source, unit);
            for (uint32_t c = 0; c < d; c++)
                x[(r * 2 + (size_t)source) * d + c] = (float)unit[merge_channel(pool, row.which, c)];
        }
    }
}

/* Row r of the result, turned by its anchor. */
static void merge_row_at(const ref_pool *pool, const merge_row *row, size_t r, ref_merge_mode mode, float weight,
                         const float *head, double *a)
{
    const size_t d = pool->head_dim;
    const double wa = mode == REF_GATE ? 1 / (1 + exp(-(double)head[r])) : weight;
    double b[REF_HEAD_MAX];
    if (mode == REF_DIRECT) {
        for (uint32_t c = 0; c < d; c++)
            a[merge_channel(pool, row->which, c)] = head[r * d + c];
    } else {
        load_source(pool, row, 0, a);
        load_source(pool, row, 1, b);
        for (uint32_t c = 0; c < d; c++)
            a[c] = wa * a[c] + (1 - wa) * b[c];
    }
    if (row->which == REF_KEYS)
        pool_rotate(pool, a, row->rotation + 2 * d, 1);
}

void ref_merge_apply(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                     const float *head, int threads)
{
    const size_t rows = merge_rows(pool, merges), d = pool->head_dim;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const merge_row row = merge_row_of(pool, merges, r);
        double a[REF_HEAD_MAX];
        if (mode == REF_COPY)
            load_stored(pool, &row, 0, a);
        else
            merge_row_at(pool, &row, r, mode, weight, head, a);
        pool_save(pool, pool_at(pool, row.layer, row.which, row.head, row.merge->out), a);
    }
}

/* ---- Gradients ---- */

/* Row r, of rows of one layer, of the unit's gradient. */
static float *grad_at(const ref_pool *pool, const ref_merge_grads *grads, uint32_t unit, size_t r)
{
    const size_t parts = 2 * (size_t)pool->kv_heads;
    return grads->dunits + (unit * parts + r % parts) * pool->head_dim;
}

/* The weight's gradient by the result's. */
static double back_mixed(const ref_pool *pool, const merge_row *row, double weight, const float *result, float *da,
                         float *db)
{
    double a[REF_HEAD_MAX], b[REF_HEAD_MAX], sum = 0;
    load_source(pool, row, 0, a);
    load_source(pool, row, 1, b);
    for (uint32_t c = 0; c < pool->head_dim; c++) {
        sum += result[c] * (a[c] - b[c]);
        da[c] = (float)(da[c] + weight * result[c]);
        db[c] = (float)(db[c] + (1 - weight) * result[c]);
    }
    return sum;
}

void ref_merge_apply_back(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                          const float *head, float *dhead, const ref_merge_grads *grads, int threads)
{
    const size_t rows = merge_rows(pool, merges), d = pool->head_dim, parts = 2 * (size_t)pool->kv_heads;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const merge_row row = merge_row_of(pool, merges, r);
        const ref_sources *source = grads->source + r / parts;
        const float *result = grad_at(pool, grads, grads->first + (uint32_t)(r / parts), r);
        float *da = grad_at(pool, grads, source->a, r), *db = grad_at(pool, grads, source->b, r);
        for (uint32_t c = 0; mode == REF_DIRECT && c < d; c++)
            dhead[r * d + c] = result[merge_channel(pool, row.which, c)];
        if (mode == REF_GATE) {
            const double open = 1 / (1 + exp(-(double)head[r])), shut = 1 / (1 + exp((double)head[r]));
            dhead[r] = (float)(open * shut * back_mixed(pool, &row, open, result, da, db));
        } else if (mode == REF_CONSTANT) {
            back_mixed(pool, &row, weight, result, da, db);
        }
    }
}

void ref_merge_gather_back(const ref_pool *pool, uint32_t n, const float *dx, const ref_merge_grads *grads, int threads)
{
    const size_t parts = 2 * (size_t)pool->kv_heads, rows = n * parts, d = pool->head_dim;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const ref_sources *source = grads->source + r / parts;
        const int which = (int)(r / pool->kv_heads % 2);
        float *da = grad_at(pool, grads, source->a, r), *db = grad_at(pool, grads, source->b, r);
        for (uint32_t c = 0; c < d; c++) {
            da[merge_channel(pool, which, c)] += dx[r * 2 * d + c];
            db[merge_channel(pool, which, c)] += dx[(r * 2 + 1) * d + c];
        }
    }
}
