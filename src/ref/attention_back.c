#include "ref/pool.h"

#include "base/error.h"
#include "base/memory.h"

#include <math.h>

/*
 * Sums of a KV head: dk and dv of unit u are sum[u * 2 d ..], keys turned as they are stored, keys first; those of its
 * scores' gradients are total[u]. A query's
 * units stand one after another in score, slope and seen, in the order of its ranges.
 */
typedef struct back {
    const ref_pool *pool;
    const ref_attention_back_args *a;
    const uint32_t *base;   /* of each block: its first entry of `number` */
    const uint32_t *number; /* of the unit in a slot */
    uint32_t kv_head;
    double *sum, *total, *score, *ds;
    uint32_t *seen; /* numbers */
} back;

static uint32_t slot_number(const back *b, uint32_t slot)
{
    return b->number[b->base[slot >> REF_SLOT_BITS] + (slot & ((1u << REF_SLOT_BITS) - 1))];
}

static void load_unit(const back *b, uint32_t unit, int which, float *to)
{
    pool_load(b->pool, pool_at(b->pool, b->a->layer, which, b->kv_head, b->a->unit[unit].slot), to);
}

/* A query head turned for a range, in its keys' frame. */
static void turn_query(const back *b, const float *q, const ref_range *range, double *to)
{
    for (uint32_t c = 0; c < b->pool->head_dim; c++)
        to[c] = q[c];
    pool_rotate(b->pool, to, range->rotation, 1);
}

/* Scores and numbers of what a query sees; returns the log of the sum of their exponentials. */
static double score_query(const back *b, const ref_query *query, const float *q)
{
    const uint32_t d = b->pool->head_dim;
    double most = -INFINITY, total = 0;
    uint32_t at = 0;
    for (uint32_t r = 0; r < query->n_ranges; r++) {
        const ref_range *range = &query->range[r];
        double turned[REF_HEAD_MAX];
        turn_query(b, q, range, turned);
        for (uint32_t j = 0; j < range->count; j++, at++) {
            float key[REF_HEAD_MAX];
            b->seen[at] = slot_number(b, range->ring[(range->begin + j) & range->mask]);
            load_unit(b, b->seen[at], REF_KEYS, key);
            b->score[at] = ref_dot(key, turned, d) / sqrt(d) + range->bias[b->kv_head];
            most = fmax(most, b->score[at]);
        }
    }
    for (uint32_t j = 0; j < at; j++)
        total += exp(b->score[j] - most);
    return most + log(total);
}

/* The boundary term's gradients of the scores, added to ds. */
static void add_boundaries(const back *b, const ref_query *query)
{
    const uint32_t first = b->a->sinks;
    uint32_t newer = first ? query->range[0].count : 0; /* place of the newer range's oldest unit */
    for (uint32_t r = first; r + 1 < query->n_ranges; r++) {
        newer += query->range[r].count;
        const double step = b->score[newer - 1] - b->score[newer], ratio = exp(step);
        if (ratio > 1e3 || ratio < 1e-3 || step == 0)
            continue;
        const double up = (step > 0 ? 1 : -1) * (double)b->a->boundary * ratio;
        b->ds[newer - 1] += up;
        b->ds[newer] -= up;
    }
}

/* From ds: the query's gradient and what it adds to the keys. */
static void add_keys(const back *b, const ref_query *query, const float *q, float *dq)
{
    const uint32_t d = b->pool->head_dim;
    double total[REF_HEAD_MAX] = {0};
    uint32_t at = 0;
    for (uint32_t r = 0; r < query->n_ranges; r++) {
        const ref_range *range = &query->range[r];
        double turned[REF_HEAD_MAX], sum[REF_HEAD_MAX] = {0};
        turn_query(b, q, range, turned);
        for (uint32_t j = 0; j < range->count; j++, at++) {
            double *dk = b->sum + (size_t)b->seen[at] * 2 * d;
            b->total[b->seen[at]] += b->ds[at];
            float key[REF_HEAD_MAX];
            load_unit(b, b->seen[at], REF_KEYS, key);
            for (uint32_t c = 0; c < d; c++) {
                sum[c] += b->ds[at] * key[c] / sqrt(d);
                dk[c] += b->ds[at] * turned[c] / sqrt(d);
            }
        }
        pool_rotate(b->pool, sum, range->rotation, -1);
        for (uint32_t c = 0; c < d; c++)
            total[c] += sum[c];
    }
    for (uint32_t c = 0; c < d; c++)
        dq[c] = (float)total[c];
}

static void back_head(const back *b, uint32_t t, uint32_t h)
{
    const ref_attention_back_args *a = b->a;
    const size_t d = b->pool->head_dim, at = ((size_t)t * (a->heads + 2 * b->pool->kv_heads) + h) * d;
    const size_t head = (size_t)t * a->heads + h;
    const ref_query *query = &a->query[t];
    const float *dout = a->dout + head * d;
    const double lse = score_query(b, query, a->qkv + at);
    double wide[REF_HEAD_MAX];
    uint32_t units = 0;
    for (uint32_t r = 0; r < query->n_ranges; r++)
        units += query->range[r].count;
    for (uint32_t c = 0; c < d; c++)
        wide[c] = dout[c];
    const double delta = ref_dot(a->out + head * d, wide, d);
    for (uint32_t j = 0; j < units; j++) {
        const double p = exp(b->score[j] - lse);
        double *dv = b->sum + ((size_t)b->seen[j] * 2 + 1) * d;
        float value[REF_HEAD_MAX];
        load_unit(b, b->seen[j], REF_VALUES, value);
        b->ds[j] = p * (ref_dot(value, wide, d) - delta);
        for (uint32_t c = 0; c < d; c++)
            dv[c] += p * wide[c];
    }
    if (a->boundary != 0)
        add_boundaries(b, query);
    add_keys(b, query, a->qkv + at, a->dqkv + at);
    a->lse[2 * head] = (float)lse;
    a->lse[2 * head + 1] = (float)delta;
}

/* All queries and units of one KV head. */
static dcm_status back_kv_head(back b, size_t most)
{
    const ref_attention_back_args *a = b.a;
    const size_t d = b.pool->head_dim, group = a->heads / b.pool->kv_heads;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&b.sum, (size_t)a->units * 2 * d, sizeof *b.sum, "gradients of units"));
    DCM_TRY(status, done, mem_new(&b.total, a->units, sizeof *b.total, "gradients of scores"));
    DCM_TRY(status, done, mem_new(&b.score, most, sizeof *b.score, "scores"));
    DCM_TRY(status, done, mem_new(&b.ds, most, sizeof *b.ds, "gradients of scores"));
    DCM_TRY(status, done, mem_new(&b.seen, most, sizeof *b.seen, "units of a view"));
    for (uint32_t t = 0; t < a->n; t++)
        for (size_t g = 0; g < group; g++)
            back_head(&b, t, (uint32_t)(b.kv_head * group + g));
    for (uint32_t u = 0; u < a->units; u++) {
        double *dk = b.sum + (size_t)u * 2 * d;
        float *to = a->dunits + ((size_t)u * 2 * b.pool->kv_heads + b.kv_head) * d;
        pool_rotate(b.pool, dk, a->unit[u].rotation, -1);
        a->dscores[(size_t)u * b.pool->kv_heads + b.kv_head] = (float)b.total[u];
        for (size_t c = 0; c < d; c++) {
            to[c] = (float)dk[c];
            to[b.pool->kv_heads * d + c] = (float)dk[d + c];
        }
    }
done:
    mem_free(&b.sum);
    mem_free(&b.total);
    mem_free(&b.score);
    mem_free(&b.ds);
    mem_free(&b.seen);
    return status;
}

/* base[b]: slots of the blocks before b that units are in; *slots: of all. */
static void number_blocks(const ref_pool *pool, const ref_attention_back_args *a, uint32_t *base, size_t *slots)
{
    uint32_t blocks = 0;
    for (uint32_t u = 0; u < a->units; u++)
        if (a->unit[u].slot >> REF_SLOT_BITS >= blocks)
            blocks = (a->unit[u].slot >> REF_SLOT_BITS) + 1;
    *slots = 0;
    for (uint32_t b = 0; b < blocks; b++) {
        base[b] = (uint32_t)*slots;
        *slots += pool->block_units[b];
    }
}

dcm_status ref_attention_back(const ref_pool *pool, const ref_attention_back_args *a, int threads)
{
    uint32_t base[1 << (32 - REF_SLOT_BITS)], *number = NULL;
    size_t slots, most = 0;
    dcm_status status;
    number_blocks(pool, a, base, &slots);
    DCM_TRY(status, done, mem_new(&number, slots, sizeof *number, "numbers of units"));
    for (uint32_t u = 0; u < a->units; u++)
        number[base[a->unit[u].slot >> REF_SLOT_BITS] + (a->unit[u].slot & ((1u << REF_SLOT_BITS) - 1))] = u;
    for (uint32_t t = 0; t < a->n; t++) {
        size_t units = 0;
        for (uint32_t r = 0; r < a->query[t].n_ranges; r++)
            units += a->query[t].range[r].count;
        most = units > most ? units : most;
    }
#pragma omp parallel for num_threads(threads)
    for (uint32_t h = 0; h < pool->kv_heads; h++) {
        const dcm_status one = back_kv_head((back){pool, a, base, number, h}, most);
        if (one != DCM_OK) {
#pragma omp critical
            status = one;
        }
    }
done:
    mem_free(&number);
    return status;
}
