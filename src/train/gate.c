#include "train/trainer.h"

#include "base/error.h"
#include "ops/host_pool.h"
#include "ref/score_net.h"

#include <math.h>

/* Merges looked at, spread over the sequence's. */
enum { GATE_MERGES = 512 };

/* Sums over the merges looked at of one layer and KV head. */
typedef struct row_sums {
    double share, square, sure;
    double out[REF_HEAD_MAX], newer[REF_HEAD_MAX]; /* of keys */
    double out_square, newer_square;
} row_sums;

static double add_key(double *sum, const double *key, uint32_t d)
{
    double square = 0;
    for (uint32_t c = 0; c < d; c++) {
        sum[c] += key[c];
        square += key[c] * key[c];
    }
    return square;
}

/* Merge m of row `row` of layers and KV heads. */
static void add_merge(const dcm_trainer *t, const ref_pool *pool, uint32_t m, uint32_t row, row_sums *sums)
{
    const cache *c = &t->sequence.packed;
    const uint32_t d = pool->head_dim;
    done_merge merge = {.pool = pool,
                        .rotation = (const float *)(c->words + c->step.merge_rot) + (size_t)m * 3 * d,
                        .layer = row / pool->kv_heads,
                        .head = row % pool->kv_heads};
    score_unit newer, out;
    memcpy(&merge.pair, c->words + c->step.merges + (size_t)m * MERGE_WORDS, sizeof merge.pair);
    score_load(pool, merge.layer, merge.head, merge.pair.b, merge.rotation + d, &newer);
    score_load(pool, merge.layer, merge.head, merge.pair.out, merge.rotation + 2 * (size_t)d, &out);
    sums->newer_square += add_key(sums->newer, newer.x, d);
    sums->out_square += add_key(sums->out, out.x, d);
    const double share = t->learner.arch->share ? t->learner.arch->share(&t->learner, &merge) : NAN;
    sums->share += share;
    sums->square += share * share;
    sums->sure += share < 0.1 || share > 0.9;
}

/* The variance of `n` values, or vectors of d channels, from their sums. */
static double variance(const double *sum, uint32_t d, double square, uint32_t n)
{
    for (uint32_t c = 0; c < d; c++)
        square -= sum[c] * sum[c] / n;
    return square < 0 ? 0 : square / n; /* NAN stays */
}

static void add_row(dcm_train_gate *gate, const row_sums *s, uint32_t d, uint32_t looked, uint32_t rows)
{
    const double from = variance(s->newer, d, s->newer_square, looked), to = variance(s->out, d, s->out_square, looked);
    gate->mean += s->share / looked / rows;
    gate->spread += sqrt(variance(&s->share, 1, s->square, looked)) / rows;
    gate->sure += isnan(s->share) ? NAN : s->sure / looked / rows;
    gate->variety += (from > 0 ? sqrt(to / from) : 0) / rows;
}

dcm_status dcm_trainer_gate(dcm_trainer *t, dcm_train_gate *gate)
{
    const cache *c = &t->sequence.packed;
    const kv_pool *on_device = &c->slots.pool;
    const uint32_t merges = c->step.n_merges, rows = on_device->layers * on_device->kv_heads;
    const uint32_t looked = merges < GATE_MERGES ? merges : GATE_MERGES;
    void *blocks[KV_BLOCKS] = {0};
    ref_pool pool;
    dcm_status status;
    *gate = (dcm_train_gate){0};
    if (!merges)
        return dcm_fail(DCM_ERR_USAGE, "nothing was merged yet");
    DCM_TRY(status, done, host_pool_read(on_device, t->model->config.rope, 0, on_device->layers, blocks, &pool));
    for (uint32_t row = 0; row < rows; row++) {
        row_sums sums = {0};
        for (uint32_t i = 0; i < looked; i++)
            add_merge(t, &pool, (uint32_t)((uint64_t)merges * i / looked), row, &sums);
        add_row(gate, &sums, pool.head_dim, looked, rows);
    }
done:
    host_pool_free(blocks);
    return status;
}
