#include "train/trainer.h"

#include "base/error.h"

#include <math.h>

/* Merges looked at, spread over the sequence's. */
enum { GATE_MERGES = 512 };

/* The pool's blocks in host memory. */
static dcm_status read_pool(const kv_pool *p, rope_kind rope, void **blocks, ref_pool *out)
{
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < p->n_blocks && status == DCM_OK; i++) {
        status = mem_new(&blocks[i], 1, p->block[i]->bytes, "units");
        if (status == DCM_OK)
            status = p->block[i]->owner->ops->read(p->block[i], 0, blocks[i], p->block[i]->bytes);
    }
    *out = (ref_pool){.layers = p->layers,
                      .kv_heads = p->kv_heads,
                      .head_dim = p->head_dim,
                      .half = p->type == KV_F16,
                      .half_split = rope == ROPE_HALF,
                      .block = blocks,
                      .block_units = p->block_units};
    return status;
}

/* The older unit's share of the key in merge m, row `row` of layers and KV heads. */
static double share_of(const dcm_trainer *t, const ref_pool *pool, uint32_t m, uint32_t row)
{
    const cache *c = &t->sequence.packed;
    done_merge merge = {.pool = pool,
                        .rotation = (const float *)(c->words + c->step.merge_rot) + (size_t)m * 3 * pool->head_dim,
                        .layer = row / pool->kv_heads,
                        .head = row % pool->kv_heads};
    memcpy(&merge.pair, c->words + c->step.merges + (size_t)m * MERGE_WORDS, sizeof merge.pair);
    return t->learner.arch->share(&t->learner, &merge);
}

dcm_status dcm_trainer_gate(dcm_trainer *t, dcm_train_gate *gate)
{
    const cache *c = &t->sequence.packed;
    const uint32_t merges = c->step.n_merges, rows = c->slots.pool.layers * c->slots.pool.kv_heads;
    const uint32_t looked = merges < GATE_MERGES ? merges : GATE_MERGES;
    void *blocks[KV_BLOCKS] = {0};
    ref_pool pool;
    double sure = 0;
    dcm_status status;
    *gate = (dcm_train_gate){0};
    if (!merges)
        return dcm_fail(DCM_ERR_USAGE, "nothing was merged yet");
    DCM_TRY(status, done, read_pool(&c->slots.pool, t->model->config.rope, blocks, &pool));
    for (uint32_t row = 0; row < rows; row++) {
        double sum = 0, square = 0;
        for (uint32_t i = 0; i < looked; i++) {
            const double m = share_of(t, &pool, (uint32_t)((uint64_t)merges * i / looked), row);
            sum += m;
            square += m * m;
            sure += m < 0.1 || m > 0.9;
        }
        const double mean = sum / looked;
        gate->mean += mean / rows;
        gate->spread += sqrt(fmax(square / looked - mean * mean, 0)) / rows;
    }
    gate->sure = sure / ((double)rows * looked);
done:
    for (uint32_t i = 0; i < KV_BLOCKS; i++)
        mem_free(&blocks[i]);
    return status;
}
