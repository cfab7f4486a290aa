#include "ops/pool_cl.h"
#include "ops/strict_matrix_cl.h"

#include <math.h>
#include <stdio.h>

enum { GROUP = 64, INPUT_ITEMS = 64 /* as in cl/strict.cl */ };
enum { RESULT_BIAS = 1, RESULT_ADD = 2, RESULT_ELU = 4 }; /* as in cl/strict_math.cl */

#define COUNT(ARRAY) (sizeof(ARRAY) / sizeof *(ARRAY))

dcm_status cl_strict_build(cldev *device, const char *family, const char *options, cl_program *program)
{
    char families[128], all[512];
    snprintf(families, sizeof families, "strict_math+%s", family);
    snprintf(all, sizeof all, "-DSTRICT=1 -DEXP=strict_exp %s", options);
    return cldev_build(device, families, all, program);
}

/* A work-item for each of `items`, rounded up to whole groups, and each of n tokens. */
static dcm_status launch(backend *b, const char *name, const clop_arg *args, size_t count, size_t items, size_t n)
{
    const size_t local[] = {GROUP, 1}, global[] = {(items + GROUP - 1) / GROUP * GROUP, n};
    cl_kernel kernel;
    const dcm_status status = clop_kernel(b, "strict", "", name, &kernel);
    return status == DCM_OK ? clop_launch(b, kernel, args, count, 2, global, local) : status;
}

/* ---- Without the pool ---- */

static dcm_status strict_embed(backend *b, const embed_args *a)
{
    const matrix_strict *m = matrix_strict_of(a->table);
    const cl_ulong tokens = a->step->tokens;
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < m->n_parts && status == DCM_OK; i++) {
        const cl_uint row0 = i * m->part_rows, rows = matrix_strict_rows(m, i);
        const clop_arg args[] = {CLOP_MEM(m->part[i]),    CLOP_VAR(row0),   CLOP_VAR(rows), CLOP_VAR(m->base.cols),
                                 CLOP_MEM(a->step->data), CLOP_VAR(tokens), CLOP_MEM(a->x)};
        status = launch(b, "strict_embed", args, COUNT(args), m->base.cols, a->step->n);
    }
    return status;
}

/* A linear map's input, made, and where its result goes. */
typedef struct linear_case {
    const buffer *x, *bias, *y;
    cl_ulong x_offset, y_offset, ldy;
    cl_uint cols, what;
    uint32_t n;
} linear_case;

static dcm_status linear_rows(backend *b, const linear_case *c, const buffer *w, cl_uint row0, cl_uint rows)
{
    const clop_arg args[] = {CLOP_MEM(w),
                             CLOP_VAR(row0),
                             CLOP_VAR(rows),
                             CLOP_VAR(c->cols),
                             CLOP_MEM(c->x),
                             CLOP_VAR(c->x_offset),
                             CLOP_MEM(c->bias ? c->bias : c->x),
                             CLOP_VAR(c->what),
                             CLOP_MEM(c->y),
                             CLOP_VAR(c->y_offset),
                             CLOP_VAR(c->ldy)};
    return launch(b, "strict_linear", args, COUNT(args), rows, c->n);
}

/* f(x) of all tokens into scratch. */
static dcm_status make_input(backend *b, const linear_args *a, linear_case *c)
{
    const cl_uint kind = a->input;
    buffer *made = NULL;
    dcm_status status;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, (size_t)a->n * c->cols * sizeof(float), &made));
    const clop_arg args[] = {CLOP_MEM(a->x),   CLOP_VAR(c->x_offset), CLOP_MEM(a->gain ? a->gain : a->x),
                             CLOP_VAR(a->eps), CLOP_VAR(kind),        CLOP_VAR(c->cols),
                             CLOP_MEM(made)};
    DCM_TRY(status, fail,
            launch(b, "strict_input_rows", args, COUNT(args), (c->cols + INPUT_ITEMS - 1) / INPUT_ITEMS, a->n));
    c->x = made;
    c->x_offset = 0;
fail:
    return status;
}

static dcm_status strict_linear(backend *b, const linear_args *a)
{
    const matrix_strict *m = matrix_strict_of(a->w);
    linear_case c = {.x = a->x,
                     .bias = a->bias,
                     .y = a->y,
                     .x_offset = a->x_offset,
                     .y_offset = a->y_offset,
                     .ldy = a->ldy,
                     .cols = m->base.cols,
                     .what = (a->bias ? RESULT_BIAS : 0) | (a->add ? RESULT_ADD : 0),
                     .n = a->n};
    dcm_status status = a->input == INPUT_PLAIN ? DCM_OK : make_input(b, a, &c);
    for (uint32_t i = 0; i < m->n_parts && status == DCM_OK; i++)
        status = linear_rows(b, &c, m->part[i], i * m->part_rows, matrix_strict_rows(m, i));
    return status;
}

static dcm_status strict_dense(backend *b, const dense_args *a)
{
    const linear_case c = {.x = a->x,
                           .bias = a->bias,
                           .y = a->y,
                           .ldy = a->out,
                           .cols = a->in,
                           .what = (a->bias ? RESULT_BIAS : 0) | (a->act == ACT_ELU ? RESULT_ELU : 0),
                           .n = a->n};
    return a->n ? linear_rows(b, &c, a->w, 0, a->out) : DCM_OK;
}

/* ---- With it ---- */

/* A kernel of the pool, with more options behind the pool's own. */
static dcm_status pool_kernel(backend *b, const kv_pool *pool, rope_kind rope, uint32_t blocks, const char *family,
                              const char *more, const char *name, cl_kernel *kernel)
{
    char options[192];
    snprintf(options, sizeof options, "-DHEAD_DIM=%u -DROPE_HALF=%d -DKV_F32=%d -DKV_ARGS=%u%s", pool->head_dim,
             rope == ROPE_HALF, pool->type == KV_F32, blocks, more);
    return clop_kernel(b, family, options, name, kernel);
}

static dcm_status strict_attention(backend *b, const attention_args *a)
{
    const kv_pool *pool = a->pool;
    const uint32_t blocks = pool_blocks(b, pool, true);
    const kv_store_args store = {a->pool, a->step, a->layer, a->rope, a->qkv, a->heads};
    cl_kernel kernel;
    pool_sizes sizes;
    dcm_status status = a->store ? cl_kv_store(b, &store) : DCM_OK;
    if (status == DCM_OK)
        status = pool_kernel(b, pool, a->rope, blocks, "strict_pool", "", "strict_attention", &kernel);
    if (status != DCM_OK)
        return status;
    const cl_ulong views = a->step->views, query_rot = a->step->query_rot;
    const cl_float scale = (cl_float)(1 / sqrt((double)pool->head_dim));
    clop_arg args[POOL_ARGS + 10] = {[POOL_ARGS] = CLOP_MEM(a->step->data),
                                     CLOP_MEM(pool->table),
                                     CLOP_VAR(views),
                                     CLOP_VAR(query_rot),
                                     CLOP_VAR(a->layer),
                                     CLOP_VAR(a->heads),
                                     CLOP_VAR(pool->kv_heads),
                                     CLOP_VAR(scale),
                                     CLOP_MEM(a->qkv),
                                     CLOP_MEM(a->out)};
    const clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    const size_t global[] = {a->heads, a->step->n}, local[] = {1, 1};
    return clop_launch(b, kernel, first, (size_t)(args + COUNT(args) - first), 2, global, local);
}

static dcm_status strict_merge_score(backend *b, const merge_score_args *a)
{
    const kv_pool *pool = a->pool;
    const step *step = a->step;
    const uint32_t blocks = pool_blocks(b, pool, true);
    char more[64];
    cl_kernel kernel;
    pool_sizes sizes;
    if (step->n_merges == 0)
        return DCM_OK;
    snprintf(more, sizeof more, " -DHIDDEN=%u -DLEVELS=%u", a->shape.hidden, a->shape.levels);
    const dcm_status status =
        pool_kernel(b, pool, a->rope, blocks, "score+strict_pool+strict_score", more, "strict_merge_score", &kernel);
    if (status != DCM_OK)
        return status;
    const cl_ulong merges = step->merges, merge_rot = step->merge_rot;
    clop_arg args[POOL_ARGS + 7] = {[POOL_ARGS] = CLOP_MEM(step->data),
                                    CLOP_VAR(merges),
                                    CLOP_VAR(merge_rot),
                                    CLOP_VAR(step->n_merges),
                                    CLOP_VAR(a->layer),
                                    CLOP_VAR(pool->kv_heads),
                                    CLOP_MEM(a->params)};
    const clop_arg *first = pool_args_of(pool, blocks, &sizes, args);
    const size_t global = (size_t)step->n_merges * a->layers * pool->kv_heads, local = 1;
    return clop_launch(b, kernel, first, (size_t)(args + COUNT(args) - first), 1, &global, &local);
}

/*
 * kv_store, merge_gather and merge_apply have no sums but of two products, and are strict as they are where their
 * programs are built as a strict back end builds them.
 */
void cl_strict_ops(ops *table)
{
    table->matrix_new = strict_matrix_new;
    table->matrix_free = strict_matrix_free;
    table->embed = strict_embed;
    table->linear = strict_linear;
    table->attention = strict_attention;
    table->chain = chain_each;
    table->dense = strict_dense;
    table->merge_score = strict_merge_score;
}
