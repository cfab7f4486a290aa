#include "ops/ops_cl.h"
#include "ops/pool_cl.h"

#include <stdio.h>

enum { SCORE_GROUP = 128 }; /* work-items of merge_score_group */

dcm_status cl_merge_score(backend *b, const merge_score_args *a)
{
    const kv_pool *pool = a->pool;
    const step *step = a->step;
    const bool wide = clop_wide(b);
    const uint32_t blocks = pool_blocks(b, pool, true);
    char options[160];
    cl_kernel kernel;
    pool_sizes sizes;
    if (step->n_merges == 0)
        return DCM_OK;
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u -DHIDDEN=%u -DLEVELS=%u",
             pool->head_dim, a->rope == ROPE_HALF, pool->type == KV_F32, blocks, a->shape.hidden, a->shape.levels);
    const char *const name = wide ? "merge_score_wide" : "merge_score_group";
    const dcm_status status = clop_kernel(b, "score+score_group+merge_score", options, name, &kernel);
    if (status != DCM_OK)
        return status;
    const cl_ulong merges = step->merges, merge_rot = step->merge_rot;
    clop_arg args[POOL_ARGS + 7] = {
        [POOL_ARGS] = CLOP_MEM(step->data),
        CLOP_VAR(merges),
        CLOP_VAR(merge_rot),
        CLOP_VAR(step->n_merges),
        CLOP_VAR(a->layer),
        CLOP_VAR(pool->kv_heads),
        CLOP_MEM(a->params),
    };
    const clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    const size_t rows = (size_t)step->n_merges * a->layers * pool->kv_heads, local = wide ? 1 : SCORE_GROUP;
    return clop_launch(b, kernel, first, (size_t)(args + sizeof args / sizeof *args - first), 1,
                       &(size_t){rows * local}, &local);
}
