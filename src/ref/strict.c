#include "ref/strict.h"

#include "base/error.h"
#include "base/memory.h"
#include "ref/choice.h"
#include "ref/clones.h"
#include "ref/merge_row.h"
#include "ref/strict_math.h"

#include <math.h>

_Static_assert((int)STRICT_PLAIN == (int)REF_PLAIN && (int)STRICT_RMSNORM == (int)REF_RMSNORM &&
                   (int)STRICT_SWIGLU == (int)REF_SWIGLU,
               "inputs are passed through");

/* ---- Linear maps ---- */

static void input_row(const ref_linear_args *a, uint32_t t, float *out)
{
    const uint32_t cols = a->cols;
    const float *x = a->x + (size_t)t * cols * (a->input == REF_SWIGLU ? 2 : 1);
    const float norm = a->input == REF_RMSNORM ? strict_norm(x, cols, a->eps) : 0;
    for (uint32_t i = 0; i < cols; i++)
        out[i] = strict_input(x, a->gain, cols, i, a->input, norm);
}

/* Row r, w, of all tokens. */
CLONES_FMA static void linear_row(const ref_linear_args *a, const float *w, const float *input, uint32_t r)
{
    const uint32_t what = (a->bias ? STRICT_BIAS : 0) | (a->add ? STRICT_ADD : 0) | (a->elu ? STRICT_ELU : 0);
    for (uint32_t t = 0; t < a->n; t++) {
        float *y = a->y + t * a->ldy + r;
        const float sum = strict_dot(w, input + (size_t)t * a->cols, a->cols);
        *y = strict_result(sum, what, a->bias ? a->bias[r] : 0, a->add ? *y : 0);
    }
}

dcm_status ref_linear_strict(const ref_linear_args *a, int threads)
{
    const size_t row_bytes = quant_row_bytes(a->type, a->cols);
    const size_t products = (size_t)a->n * a->rows * a->cols;
    float *input = NULL, *row = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&input, a->n, (size_t)a->cols * sizeof *input, "a linear map's input"));
    DCM_TRY(status, fail, mem_new(&row, (size_t)threads, (size_t)a->cols * sizeof *row, "a matrix row a thread"));
#pragma omp parallel for num_threads(threads) if (a->n > 1 && products > REF_SHARED_MIN)
    for (uint32_t t = 0; t < a->n; t++)
        input_row(a, t, input + (size_t)t * a->cols);
#pragma omp parallel for num_threads(threads) if (products > REF_SHARED_MIN)
    for (uint32_t r = 0; r < a->rows; r++) {
        float *w = row + (size_t)ref_thread() * a->cols;
        quant_to_float(a->type, (const char *)a->w + r * row_bytes, w, a->cols);
        linear_row(a, w, input, r);
    }
fail:
    mem_free(&input);
    mem_free(&row);
    return status;
}

/* ---- The cache ---- */

static void save(const ref_pool *pool, void *at, const float *src)
{
    for (uint32_t c = 0; c < pool->head_dim; c++)
        if (pool->half)
            ((uint16_t *)at)[c] = float_to_half(src[c]);
        else
            ((float *)at)[c] = src[c];
}

/* Turn `x` in place: direction 1 forward, -1 back. */
static void rotate(const ref_pool *pool, float *x, const float *rotation, int direction)
{
    for (uint32_t i = 0; i < pool->head_dim / 2; i++) {
        float *first = x + pair_first(pool, i), *second = x + pair_second(pool, i);
        const float c = rotation[2 * i], s = (float)direction * rotation[2 * i + 1], a = *first, b = *second;
        *first = a * c - b * s;
        *second = a * s + b * c;
    }
}

void ref_kv_store_strict(const ref_pool *pool, uint32_t layer, const float *qkv, uint32_t heads, uint32_t n,
                         const uint32_t *slots, const float *key_rot, int threads)
{
    const size_t d = pool->head_dim, row = (heads + 2 * (size_t)pool->kv_heads) * d;
#pragma omp parallel for collapse(2) num_threads(threads) if (n * row > REF_SHARED_MIN)
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < 2 * pool->kv_heads; i++) {
            const int which = i < pool->kv_heads ? REF_KEYS : REF_VALUES;
            float x[REF_HEAD_MAX];
            memcpy(x, qkv + t * row + (heads + i) * d, d * sizeof *x);
            if (which == REF_KEYS)
                rotate(pool, x, key_rot + t * d, 1);
            save(pool, pool_at(pool, layer, which, i % pool->kv_heads, slots[t]), x);
        }
}

/* One query head and what it has summed up. */
typedef struct head_sums {
    const ref_pool *pool;
    uint32_t layer, kv_head;
    float scale, most, sum;
    float q[REF_HEAD_MAX], out[REF_HEAD_MAX];
} head_sums;

static void load_unit(const head_sums *a, const ref_range *range, int which, uint32_t j, float *x)
{
    const uint32_t slot = range->ring[(range->begin + j) & range->mask];
    pool_load(a->pool, pool_at(a->pool, a->layer, which, a->kv_head, slot), x);
}

/* `count` <= 16 units of a range, from its unit j on. */
CLONES_FMA static void attend_units(head_sums *a, const ref_range *range, uint32_t j, uint32_t count)
{
    const uint32_t d = a->pool->head_dim;
    float score[16], x[REF_HEAD_MAX];
    for (uint32_t k = 0; k < count; k++) {
        load_unit(a, range, REF_KEYS, j + k, x);
        score[k] = STRICT_FMA(strict_dot(a->q, x, d), a->scale, range->bias[a->kv_head]);
    }
    const float keep = strict_weights(score, count, &a->most, &a->sum);
    for (uint32_t c = 0; c < d; c++)
        a->out[c] = a->out[c] * keep;
    for (uint32_t k = 0; k < count; k++) {
        load_unit(a, range, REF_VALUES, j + k, x);
        for (uint32_t c = 0; c < d; c++)
            a->out[c] = STRICT_FMA(score[k], x[c], a->out[c]);
    }
}

static void attend(head_sums *a, const ref_range *ranges, uint32_t n_ranges, const float *q, float *out)
{
    const uint32_t d = a->pool->head_dim;
    a->most = -INFINITY;
    a->sum = 0;
    memset(a->out, 0, d * sizeof *a->out);
    for (uint32_t r = 0; r < n_ranges; r++) {
        memcpy(a->q, q, d * sizeof *q);
        rotate(a->pool, a->q, ranges[r].rotation, 1);
        for (uint32_t j = 0; j < ranges[r].count; j += 16)
            attend_units(a, ranges + r, j, ranges[r].count - j < 16 ? ranges[r].count - j : 16);
    }
    for (uint32_t c = 0; c < d; c++)
        out[c] = a->out[c] / a->sum;
}

dcm_status ref_attention_strict(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                                const float *q, uint32_t heads, float *out, int threads)
{
    const size_t d = pool->head_dim;
    size_t units = 0;
    for (uint32_t r = 0; r < n_ranges; r++)
        units += ranges[r].count;
#pragma omp parallel for num_threads(threads) if (heads * units * d > REF_SHARED_MIN)
    for (uint32_t h = 0; h < heads; h++) {
        head_sums sums = {.pool = pool, .layer = layer, .kv_head = h / (heads / pool->kv_heads)};
        sums.scale = (float)(1 / sqrt((double)d));
        attend(&sums, ranges, n_ranges, q + h * d, out + h * d);
    }
    return DCM_OK;
}

/* ---- Merges ---- */

/* Unit a (source 0) or b (1) of a row without its rotation. */
static void load_source(const ref_pool *pool, const merge_row *row, int source, float *x)
{
    merge_load(pool, row, source, x);
    if (row->which == REF_KEYS)
        rotate(pool, x, row->rotation + source * (size_t)pool->head_dim, -1);
}

void ref_merge_gather_strict(const ref_pool *pool, const ref_merges *merges, float *x, int threads)
{
    const size_t rows = merge_rows(pool, merges), d = pool->head_dim;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const merge_row row = merge_row_of(pool, merges, r);
        for (int source = 0; source < 2; source++) {
            float unit[REF_HEAD_MAX];
            load_source(pool, &row, source, unit);
            for (uint32_t c = 0; c < d; c++)
                x[(r * 2 + (size_t)source) * d + c] = unit[merge_channel(pool, row.which, c)];
        }
    }
}

/* Row r of the result, turned by its anchor. */
static void mix_row(const ref_pool *pool, const merge_row *row, size_t r, ref_merge_mode mode, float weight,
                    const float *head, float *a)
{
    const size_t d = pool->head_dim;
    const float w = mode == REF_GATE ? strict_sigmoid(head[r]) : weight;
    float b[REF_HEAD_MAX];
    if (mode == REF_DIRECT) {
        for (uint32_t c = 0; c < d; c++)
            a[merge_channel(pool, row->which, c)] = head[r * d + c];
    } else {
        load_source(pool, row, 0, a);
        load_source(pool, row, 1, b);
        for (uint32_t c = 0; c < d; c++)
            a[c] = w == 1 ? a[c] : w == 0 ? b[c] : w * a[c] + (1 - w) * b[c];
    }
    if (row->which == REF_KEYS)
        rotate(pool, a, row->rotation + 2 * d, 1);
}

void ref_merge_apply_strict(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                            const float *head, int threads)
{
    const size_t rows = merge_rows(pool, merges), d = pool->head_dim;
#pragma omp parallel for num_threads(threads) if (rows * d > REF_SHARED_MIN)
    for (size_t r = 0; r < rows; r++) {
        const merge_row row = merge_row_of(pool, merges, r);
        float a[REF_HEAD_MAX];
        if (mode == REF_COPY)
            merge_load(pool, &row, 0, a);
        else
            mix_row(pool, &row, r, mode, weight, head, a);
        save(pool, pool_at(pool, row.layer, row.which, row.head, row.merge->out), a);
    }
}

static void score_load(const ref_pool *pool, uint32_t layer, uint32_t head, uint32_t slot, const float *rotation,
                       float *x)
{
    pool_load(pool, pool_at(pool, layer, REF_KEYS, head, slot), x);
    pool_load(pool, pool_at(pool, layer, REF_VALUES, head, slot), x + pool->head_dim);
    rotate(pool, x, rotation, -1);
}

/* The parameters of row `row` for a merge of `level`. */
static strict_score score_of(const ref_score *s, uint32_t d, size_t row, uint32_t level)
{
    const size_t at = row * s->row, g = level < s->levels ? level : s->levels - 1;
    return (strict_score){.mean = s->mean + at,
                          .scale = s->scale + at,
                          .w1 = s->w1 + at,
                          .b1 = s->b1 + at + g * s->hidden,
                          .w2 = s->w2 + at,
                          .u = s->u + at,
                          .r = s->r + at + g * 2 * d,
                          .prior = s->prior[at + g],
                          .deviation = s->deviation[at],
                          .sharp_k = s->sharp_k[at],
                          .sharp_v = s->sharp_v[at]};
}

/* The result into a; returns the gap. */
CLONES_FMA static float score_one(const ref_pool *pool, const strict_score *p, uint32_t hidden, float *a,
                                  const float *b)
{
    const uint32_t d = pool->head_dim;
    float z[2 * REF_HEAD_MAX], ha[REF_HIDDEN_MAX], hb[REF_HIDDEN_MAX];
    const float sa = strict_score_unit(p, d, hidden, a, z, ha);
    const float sb = strict_score_unit(p, d, hidden, b, z, hb);
    const float gap = sa - sb + p->prior;
    strict_score_merge(p, d, hidden, gap, a, b, ha, hb);
    return gap;
}

void ref_merge_score_strict(const ref_pool *pool, const ref_merges *merges, const ref_score *score,
                            dcm_merge_choice *seen, int threads)
{
    const size_t d = pool->head_dim, heads = pool->kv_heads, rows = (size_t)merges->n * merges->layers * heads;
#pragma omp parallel for num_threads(threads) if (rows * score->hidden * d > REF_SHARED_MIN)
    for (size_t i = 0; i < rows; i++) {
        const size_t m = i / heads / merges->layers;
        const ref_merge *merge = merges->merge + m;
        const float *rotation = merges->rotations + m * 3 * d;
        const uint32_t layer = merges->layer + (uint32_t)(i / heads % merges->layers), head = (uint32_t)(i % heads);
        const strict_score p = score_of(score, (uint32_t)d, layer * heads + head, merge->level);
        float a[2 * REF_HEAD_MAX], b[2 * REF_HEAD_MAX];
        double apart[2 * REF_HEAD_MAX];
        score_load(pool, layer, head, merge->a, rotation, a);
        score_load(pool, layer, head, merge->b, rotation + d, b);
        for (size_t c = 0; c < 2 * d; c++)
            apart[c] = (double)a[c] - b[c];
        const float gap = score_one(pool, &p, score->hidden, a, b);
        if (seen)
            seen[i] = choice_of(pool, merge, gap, p.sharp_k, p.sharp_v, apart);
        rotate(pool, a, rotation + 2 * d, 1);
        save(pool, pool_at(pool, layer, REF_KEYS, head, merge->out), a);
        save(pool, pool_at(pool, layer, REF_VALUES, head, merge->out), a + d);
    }
}

/* ---- One at a time ---- */

float ref_strict_try(strict_try what, const float *a, const float *b, const float *c)
{
    switch (what) {
    case STRICT_TRY_MUL_ADD: return *a * *b + *c;
    case STRICT_TRY_FMA: return STRICT_FMA(*a, *b, *c);
    case STRICT_TRY_DIVIDE: return *a / *b;
    case STRICT_TRY_SQRT: return STRICT_SQRT(*a < 0 ? -*a : *a);
    case STRICT_TRY_HALF: return half_to_float(float_to_half(*a));
    case STRICT_TRY_EXP: return strict_exp(*a);
    case STRICT_TRY_SILU: return strict_silu(*a);
    case STRICT_TRY_ELU: return strict_elu(*a);
    case STRICT_TRY_SUM: return strict_dot(a, b, STRICT_TRY_READS);
    case STRICT_TRIES: break;
    }
    return 0;
}
