#include "ops/grad_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum { SCORE_GROUP = 128 }; /* work-items of a group: SCORE_GROUP in cl/score_group.cl */

/* The program: of the device's shape. */
static const char *family_of(const backend *b)
{
    return clop_wide(b) ? "score+merge_score_back+merge_score_back_wide"
                        : "score+score_group+merge_score_back+group_fold+merge_score_back_group";
}

/* Vectors of 16 of a unit's channels. */
static size_t chunks_of(score_shape s) { return (2 * (size_t)s.head_dim + 15) / 16; }

/* Floats kept of one merge and KV head: KEPT_ROW of cl/merge_score_back.cl. */
static size_t kept_row(score_shape s) { return 3 * 16 * chunks_of(s) + 4 * (size_t)s.hidden + 16; }

static dcm_status back_units(backend *b, const merge_score_back_args *a, const char *options, uint32_t blocks,
                             buffer *kept)
{
    const kv_pool *pool = a->pool;
    const step *step = a->step;
    const cl_ulong merges = step->merges, merge_rot = step->merge_rot;
    const size_t local = clop_wide(b) ? 1 : SCORE_GROUP, global = (size_t)step->n_merges * pool->kv_heads * local;
    pool_sizes sizes;
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, family_of(b), options, "merge_score_back_units", &kernel);
    if (status != DCM_OK)
        return status;
    clop_arg args[POOL_ARGS + 12] = {
        [POOL_ARGS] = CLOP_MEM(step->data),
        CLOP_VAR(merges),
        CLOP_VAR(merge_rot),
        CLOP_VAR(step->n_merges),
        CLOP_VAR(a->layer),
        CLOP_VAR(pool->kv_heads),
        CLOP_MEM(a->params),
        CLOP_MEM(a->units->list),
        CLOP_VAR(a->first),
        CLOP_VAR(a->magnitude),
        CLOP_MEM(a->dunits),
        CLOP_MEM(kept),
    };
    const clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    return clop_launch(b, kernel, first, (size_t)(args + sizeof args / sizeof *args - first), 1, &global, &local);
}

static dcm_status back_params(backend *b, const merge_score_back_args *a, const char *options, const buffer *kept)
{
    const step *step = a->step;
    const cl_ulong merges = step->merges;
    const cl_uint add_loss = a->magnitude > 0;
    const buffer *loss = a->loss ? a->loss : a->dparams; /* not read where there is nothing to add */
    const size_t hidden = a->shape.hidden / 16, chunks = chunks_of(a->shape), local[2] = {1, 1};
    const size_t global[2] = {chunks * hidden + chunks + hidden + 1, a->pool->kv_heads};
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, family_of(b), options, "merge_score_back_params", &kernel);
    if (status != DCM_OK)
        return status;
    const clop_arg args[] = {
        CLOP_MEM(step->data),        CLOP_VAR(merges), CLOP_VAR(step->n_merges), CLOP_VAR(a->layer),
        CLOP_VAR(a->pool->kv_heads), CLOP_MEM(kept),   CLOP_MEM(a->dscores),     CLOP_VAR(a->first),
        CLOP_MEM(a->dparams),        CLOP_MEM(loss),   CLOP_VAR(add_loss)};
    return clop_launch(b, kernel, args, sizeof args / sizeof *args, 2, global, local);
}

dcm_status cl_merge_score_back(backend *b, const merge_score_back_args *a)
{
    const kv_pool *pool = a->pool;
    const uint32_t blocks = pool_blocks(b, pool, true);
    char options[160];
    buffer *kept;
    dcm_status status;
    if (a->step->n_merges == 0)
        return DCM_OK;
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u -DHIDDEN=%u -DLEVELS=%u",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, blocks, a->shape.hidden, a->shape.levels);
    const size_t rows = (size_t)a->step->n_merges * pool->kv_heads;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_SCORE, rows * kept_row(a->shape) * sizeof(float), &kept));
    DCM_TRY(status, fail, back_units(b, a, options, blocks, kept));
    status = back_params(b, a, options, kept);
fail:
    return status;
}
