#include "ops/ops_ref.h"

#include "base/clock.h"
#include "base/error.h"
#include "ops/profile.h"
#include "ref/strict.h"

#include <string.h>

_Static_assert((int)REF_SLOT_BITS == (int)KV_SLOT_BITS, "slots are passed through");
_Static_assert(sizeof(ref_merge) == sizeof(merge_pair), "merges are passed through");
_Static_assert((int)REF_PLAIN == (int)INPUT_PLAIN && (int)REF_RMSNORM == (int)INPUT_RMSNORM &&
                   (int)REF_SWIGLU == (int)INPUT_SWIGLU,
               "inputs are passed through");
_Static_assert((int)REF_CONSTANT == (int)MERGE_CONSTANT && (int)REF_GATE == (int)MERGE_GATE &&
                   (int)REF_DIRECT == (int)MERGE_DIRECT && (int)REF_COPY == (int)MERGE_COPY,
               "modes are passed through");

enum { REF_CHUNK = 64 }; /* a row of weights is unpacked once for a step */

/* ---- Memory ---- */

static void ref_close(backend *b) { mem_free(&b); }

/* Zeroed memory counted on `b`. */
static dcm_status memory_new(backend *b, size_t bytes, mem_category category, void *out)
{
    const size_t left = b->max_memory - b->memory.total;
    if (bytes > left)
        return dcm_fail(DCM_ERR_MEMORY, "reference: %zu bytes asked for, %zu of %zu are left", bytes, left,
                        b->max_memory);
    const dcm_status status = mem_new(out, 1, bytes, "the reference back end");
    if (status == DCM_OK)
        mem_count(&b->memory, category, bytes);
    return status;
}

static dcm_status ref_buffer_new(backend *b, size_t bytes, mem_category category, buffer **out)
{
    buffer *made = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&made, 1, sizeof *made, "a buffer"));
    DCM_TRY(status, fail, memory_new(b, bytes, category, &made->handle));
    made->owner = b;
    made->bytes = bytes;
    made->category = category;
    *out = made;
    return DCM_OK;
fail:
    mem_free(&made);
    *out = NULL;
    return status;
}

static void ref_buffer_free(buffer **b)
{
    mem_uncount(&(*b)->owner->memory, (*b)->category, (*b)->bytes);
    mem_free(&(*b)->handle);
    mem_free(b);
}

static dcm_status ref_write(buffer *b, size_t offset, const void *data, size_t bytes)
{
    memcpy((char *)b->handle + offset, data, bytes);
    return DCM_OK;
}

static dcm_status ref_read(buffer *b, size_t offset, void *data, size_t bytes)
{
    memcpy(data, (const char *)b->handle + offset, bytes);
    return DCM_OK;
}

static dcm_status ref_copy(buffer *to, size_t to_offset, const buffer *from, size_t from_offset, size_t bytes)
{
    memcpy((char *)to->handle + to_offset, (const char *)from->handle + from_offset, bytes);
    return DCM_OK;
}

static dcm_status ref_sync(backend *b)
{
    (void)b;
    return DCM_OK;
}

static dcm_status ref_matrix_new(backend *b, quant_type type, uint32_t rows, uint32_t cols, const void *data,
                                 matrix **out)
{
    const size_t bytes = rows * quant_row_bytes(type, cols);
    matrix_ref *made = NULL;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&made, 1, sizeof *made, "a matrix"));
    DCM_TRY(status, fail, memory_new(b, bytes, MEM_WEIGHTS, &made->data));
    memcpy(made->data, data, bytes);
    made->base = (matrix){.owner = b, .type = type, .rows = rows, .cols = cols, .bytes = bytes};
    *out = &made->base;
    return DCM_OK;
fail:
    mem_free(&made);
    *out = NULL;
    return status;
}

static void ref_matrix_free(matrix **m)
{
    mem_uncount(&(*m)->owner->memory, MEM_WEIGHTS, (*m)->bytes);
    mem_free(&((matrix_ref *)*m)->data);
    mem_free(m);
}

/* ---- Ops ---- */

/* What an op calls, by how sums are done. Rows of a table are exact anyway. */
typedef struct ref_sums {
    dcm_status (*linear)(const ref_linear_args *, int threads);
    void (*kv_store)(const ref_pool *, uint32_t layer, const float *qkv, uint32_t heads, uint32_t n,
                     const uint32_t *slots, const float *key_rot, int threads);
    dcm_status (*attention)(const ref_pool *, uint32_t layer, const ref_range *, uint32_t n_ranges, const float *q,
                            uint32_t heads, float *out, int threads);
    void (*merge_gather)(const ref_pool *, const ref_merges *, float *x, int threads);
    void (*merge_apply)(const ref_pool *, const ref_merges *, ref_merge_mode, float weight, const float *head,
                        int threads);
    void (*merge_score)(const ref_pool *, const ref_merges *, const ref_score *, dcm_merge_choice *seen, int threads);
} ref_sums;

static const ref_sums in_double = {ref_linear,       ref_kv_store,    ref_attention,
                                   ref_merge_gather, ref_merge_apply, ref_merge_score};
static const ref_sums in_float = {ref_linear_float, ref_kv_store,    ref_attention_float,
                                  ref_merge_gather, ref_merge_apply, ref_merge_score_strict};
static const ref_sums strictly = {ref_linear_strict,       ref_kv_store_strict,    ref_attention_strict,
                                  ref_merge_gather_strict, ref_merge_apply_strict, ref_merge_score_strict};

static const ref_sums *sums_of(const backend *b) { return ((const backend_ref *)b)->sums; }

static dcm_status op_embed(backend *b, const embed_args *a)
{
    (void)b;
    ref_embed(a->table->type, data_of(a->table), a->table->cols, words_at(a->step, a->step->tokens), a->step->n,
              floats_of(a->x));
    return DCM_OK;
}

static dcm_status op_linear(backend *b, const linear_args *a)
{
    const ref_linear_args args = {
        .type = a->w->type,
        .w = data_of(a->w),
        .rows = a->w->rows,
        .cols = a->w->cols,
        .n = a->n,
        .input = (ref_input)a->input,
        .x = floats_of(a->x) + a->x_offset,
        .gain = floats_of(a->gain),
        .eps = a->eps,
        .bias = floats_of(a->bias),
        .y = floats_of(a->y) + a->y_offset,
        .ldy = a->ldy,
        .add = a->add,
    };
    return sums_of(b)->linear(&args, threads_of(b));
}

static dcm_status op_dense(backend *b, const dense_args *a)
{
    const ref_linear_args args = {
        .type = QUANT_F32,
        .w = a->w->handle,
        .rows = a->out,
        .cols = a->in,
        .n = a->n,
        .x = floats_of(a->x),
        .bias = floats_of(a->bias),
        .y = floats_of(a->y),
        .ldy = a->out,
        .elu = a->act == ACT_ELU,
    };
    return sums_of(b)->linear(&args, threads_of(b));
}

static dcm_status op_kv_store(backend *b, const kv_store_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    sums_of(b)->kv_store(&pool, a->layer, floats_of(a->qkv), a->heads, a->step->n, words_at(a->step, a->step->slots),
                 words_at(a->step, a->step->key_rot), threads_of(b));
    return DCM_OK;
}

uint32_t ranges_of(const kv_pool *pool, const step *step, uint32_t layer, uint32_t t, ref_range *ranges)
{
    const size_t d = pool->head_dim;
    const view *seen = (const view *)words_at(step, step->views) + t;
    const float *rotations = (const float *)words_at(step, step->query_rot) + t * VIEW_RANGES * d;
    for (uint32_t r = 0; r < seen->n_ranges; r++)
        ranges[r] = (ref_range){
            .ring = (const uint32_t *)pool->table->handle + seen->range[r].ring,
            .mask = seen->range[r].mask,
            .begin = seen->range[r].begin,
            .count = seen->range[r].count,
            .bias = (const float *)words_at(step, seen->range[r].bias) + (size_t)layer * pool->kv_heads,
            .rotation = rotations + r * d,
        };
    return seen->n_ranges;
}

/* Attention of the step's token t. */
static dcm_status attend(const backend *b, const attention_args *a, const ref_pool *pool, uint32_t t)
{
    const size_t d = pool->head_dim, row = (a->heads + 2 * (size_t)pool->kv_heads) * d;
    ref_range ranges[VIEW_RANGES];
    const uint32_t n_ranges = ranges_of(a->pool, a->step, a->layer, t, ranges);
    return sums_of(b)->attention(pool, a->layer, ranges, n_ranges, floats_of(a->qkv) + t * row, a->heads,
                           floats_of(a->out) + t * a->heads * d, threads_of(b));
}

static dcm_status op_attention(backend *b, const attention_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    dcm_status status = DCM_OK;
    if (a->store)
        status = op_kv_store(b, &(kv_store_args){a->pool, a->step, a->layer, a->rope, a->qkv, a->heads});
    for (uint32_t t = 0; t < a->step->n && status == DCM_OK; t++)
        status = attend(b, a, &pool, t);
    return status;
}

static dcm_status op_merge_gather(backend *b, const merge_gather_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    sums_of(b)->merge_gather(&pool, &merges, floats_of(a->x), threads_of(b));
    return DCM_OK;
}

static dcm_status op_merge_apply(backend *b, const merge_apply_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    sums_of(b)->merge_apply(&pool, &merges, (ref_merge_mode)a->mode, a->weight, floats_of(a->head), threads_of(b));
    return DCM_OK;
}

static dcm_status op_merge_score(backend *b, const merge_score_args *a)
{
    void *blocks[KV_BLOCKS];
    const ref_pool pool = pool_of(a->pool, a->rope, blocks);
    const ref_merges merges = merges_of(a->step, a->layer, a->layers);
    const ref_score score = score_of(a->shape, floats_of(a->params));
    sums_of(b)->merge_score(&pool, &merges, &score, a->seen, threads_of(b));
    return DCM_OK;
}

/* ---- The same, timed ---- */

static dcm_status ref_profile(backend *b, profile *to);

static dcm_status timed_linear(backend *b, const linear_args *a)
{
    profile *p = b->profile;
    p->rows = a->w->rows;
    p->cols = a->w->cols;
    const uint64_t begin = clock_ns();
    const dcm_status status = op_linear(b, a);
    profile_add(p, profile_find(p, "linear", "linear", 0), begin, clock_ns());
    p->rows = p->cols = 0;
    return status;
}

#define TIMED(FAMILY, OP)                                                                                              \
    static dcm_status timed_##OP(backend *b, const OP##_args *a)                                                       \
    {                                                                                                                  \
        const uint64_t begin = clock_ns();                                                                             \
        const dcm_status status = op_##OP(b, a);                                                                \
        profile_add(b->profile, profile_find(b->profile, FAMILY, #OP, 0), begin, clock_ns());                          \
        return status;                                                                                                 \
    }
TIMED("linear", embed)
TIMED("cache", kv_store)
TIMED("attention", attention)
TIMED("merge", merge_gather)
TIMED("dense", dense)
TIMED("merge", merge_apply)
TIMED("merge", merge_score)

/* ---- The tables ---- */

#define REF_MEMORY                                                                                                     \
    .grad = &ref_grad_ops, .close = ref_close, .buffer_new = ref_buffer_new, .buffer_free = ref_buffer_free,           \
    .write = ref_write, .copy = ref_copy, .read = ref_read, .sync = ref_sync, .profile = ref_profile,                  \
    .matrix_new = ref_matrix_new, .matrix_free = ref_matrix_free

static const ops ref_ops = {
    REF_MEMORY,
    .embed = op_embed,
    .linear = op_linear,
    .kv_store = op_kv_store,
    .attention = op_attention,
    .chain = chain_each,
    .merge_gather = op_merge_gather,
    .dense = op_dense,
    .merge_apply = op_merge_apply,
    .merge_score = op_merge_score,
};

static const ops timed_ops = {
    REF_MEMORY,
    .embed = timed_embed,
    .linear = timed_linear,
    .kv_store = timed_kv_store,
    .attention = timed_attention,
    .chain = chain_each,
    .merge_gather = timed_merge_gather,
    .dense = timed_dense,
    .merge_apply = timed_merge_apply,
    .merge_score = timed_merge_score,
};

static dcm_status ref_profile(backend *b, profile *to)
{
    b->ops = to ? &timed_ops : &ref_ops;
    b->profile = to;
    return DCM_OK;
}

dcm_status backend_ref_open(backend **out, int threads, size_t max_memory)
{
    backend_ref *made = NULL;
    const dcm_status status = mem_new(&made, 1, sizeof *made, "the reference back end");
    *out = NULL;
    if (status != DCM_OK)
        return status;
    made->base.ops = &ref_ops;
    made->sums = &in_double;
    made->base.max_memory = max_memory ? max_memory : mem_host_bytes() ? mem_host_bytes() : SIZE_MAX;
    made->base.max_alloc = made->base.max_memory;
    made->base.chunk = REF_CHUNK;
    made->threads = ref_threads(threads);
    *out = &made->base;
    return DCM_OK;
}

void backend_ref_sum_floats(backend *b, bool on) { ((backend_ref *)b)->sums = on ? &in_float : &in_double; }

void backend_ref_strict(backend *b) { ((backend_ref *)b)->sums = &strictly; }
