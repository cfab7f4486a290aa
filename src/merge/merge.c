#include "merge/merge.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/memory.h"
#include "io/safetensors.h"
#include "merge/shipped.h"

#include <string.h>

enum { PIECE_BYTES = 16 << 20 }; /* most bytes of activations, in and out, unless one merge has more */

static dcm_status upload(backend *ops, const float *data, size_t count, buffer **out)
{
    dcm_status status = ops->ops->buffer_new(ops, count * sizeof *data, MEM_WEIGHTS, out);
    return status == DCM_OK ? ops->ops->write(*out, 0, data, count * sizeof *data) : status;
}

dcm_status merge_set_score(merge_model *m, const float *params)
{
    const score_layout l = score_layout_of(m->score);
    for (size_t i = 0; i < m->rows; i++)
        memcpy(m->bias + i * m->score.levels, params + i * l.row + l.bias, m->score.levels * sizeof *m->bias);
    return m->ops->ops->write(m->params, 0, params, m->params->bytes);
}

dcm_status merge_open_score(merge_model *m, backend *ops, const merge_facts *facts, score_shape shape,
                            const float *params)
{
    *m = (merge_model){.ops = ops, .name = "score", .head_dim = facts->head_dim, .score = shape};
    m->rows = (size_t)facts->layers * facts->kv_heads;
    const size_t bytes = m->rows * score_layout_of(shape).row * sizeof *params;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&m->bias, m->rows, shape.levels * sizeof *m->bias, "biases of levels"));
    DCM_TRY(status, fail, ops->ops->buffer_new(ops, bytes, MEM_WEIGHTS, &m->params));
    status = merge_set_score(m, params);
fail:
    return status;
}

static dcm_status upload_linear(merge_linear *to, backend *ops, pair_linear l, const float *params)
{
    const size_t weights = (size_t)l.out * l.in;
    *to = (merge_linear){.in = l.in, .out = l.out};
    const dcm_status status = upload(ops, params + l.at, weights, &to->w);
    return status == DCM_OK ? upload(ops, params + l.at + weights, l.out, &to->bias) : status;
}

dcm_status merge_open_pair(merge_model *m, backend *ops, pair_shape shape, const float *params)
{
    dcm_status status = DCM_OK;
    *m = (merge_model){.ops = ops,
                       .name = pair_name(shape),
                       .mode = shape.direct ? MERGE_DIRECT : MERGE_GATE,
                       .head_dim = shape.head_dim,
                       .blocks = shape.blocks};
    for (uint32_t i = 0; i < pair_linears(shape) && status == DCM_OK; i++)
        status = upload_linear(merge_linear_at(m, i), ops, pair_linear_of(shape, i), params);
    return status;
}

dcm_status merge_set_pair(merge_model *m, const float *params)
{
    const pair_shape shape = {m->head_dim, m->blocks, m->mode == MERGE_DIRECT};
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < pair_linears(shape) && status == DCM_OK; i++) {
        const pair_linear l = pair_linear_of(shape, i);
        const merge_linear *to = merge_linear_at(m, i);
        status = m->ops->ops->write(to->w, 0, params + l.at, to->w->bytes);
        if (status == DCM_OK)
            status = m->ops->ops->write(to->bias, 0, params + l.at + (size_t)l.out * l.in, to->bias->bytes);
    }
    return status;
}

static dcm_status load_pair(merge_model *m, const safetensors *file, const merge_facts *facts)
{
    pair_shape shape;
    float *params = NULL;
    dcm_status status = pair_file_load(file, facts, &shape, &params);
    if (status == DCM_OK)
        status = merge_open_pair(m, m->ops, shape, params);
    mem_free(&params);
    return status;
}

static dcm_status load_score(merge_model *m, const safetensors *file, const merge_facts *facts)
{
    score_shape shape;
    float *params = NULL;
    dcm_status status = score_file_load(file, facts, &shape, &params);
    if (status == DCM_OK)
        status = merge_open_score(m, m->ops, facts, shape, params);
    mem_free(&params);
    return status;
}

dcm_status merge_open(merge_model *m, backend *ops, const char *what, const merge_facts *facts)
{
    *m = (merge_model){.ops = ops, .head_dim = facts->head_dim, .mode = MERGE_CONSTANT};
    if (!strcmp(what, "mean")) {
        m->name = "mean";
        m->weight = 0.5f;
        return DCM_OK;
    }
    const bool automatic = !strcmp(what, "auto");
    const merge_file *shipped = automatic ? merge_shipped_for(facts->digest) : NULL;
    if (!strcmp(what, "newer") || (automatic && !shipped)) {
        m->name = "newer";
        m->weight = 0.0f;
        return DCM_OK;
    }
    safetensors *file = NULL;
    dcm_status status = shipped ? safetensors_open_memory(&file, shipped->name, shipped->data,
                                                          (size_t)(shipped->end - shipped->data))
                                : safetensors_open(&file, what);
    if (status == DCM_OK) {
        status = score_is_ours(file) && !pair_is_ours(file) ? load_score(m, file, facts) : load_pair(m, file, facts);
        if (status != DCM_OK)
            status = dcm_fail_in(status, "%s", what);
    }
    safetensors_close(&file);
    return status;
}

static void close_linear(merge_linear *l)
{
    buffer_free(&l->w);
    buffer_free(&l->bias);
}

void merge_close(merge_model *m)
{
    for (size_t i = 0; i < sizeof m->linear / sizeof *m->linear; i++)
        close_linear(&m->linear[i]);
    close_linear(&m->head);
    buffer_free(&m->x);
    buffer_free(&m->y);
    buffer_free(&m->params);
    mem_free(&m->bias);
    memset(m, 0, sizeof *m);
}

size_t merge_bytes(const merge_model *m)
{
    size_t bytes = m->head.w ? m->head.w->bytes + m->head.bias->bytes : m->params ? m->params->bytes : 0;
    for (uint32_t i = 0; i < m->blocks * MERGE_LINEARS; i++)
        bytes += m->linear[i].w->bytes + m->linear[i].bias->bytes;
    return bytes;
}

static dcm_status hash_buffer(backend *ops, buffer *b, uint64_t *hash)
{
    void *data = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&data, b->bytes, 1, "merge weights"));
    DCM_TRY(status, done, ops->ops->read(b, 0, data, b->bytes));
    *hash = hash_bytes(*hash, data, b->bytes);
done:
    mem_free(&data);
    return status;
}

dcm_status merge_params_digest(merge_model *m, uint64_t *digest)
{
    const uint32_t linears = m->head.w ? m->blocks * MERGE_LINEARS + 1 : 0;
    dcm_status status = DCM_OK;
    *digest = m->params || linears ? HASH_START : 0;
    if (m->params)
        status = hash_buffer(m->ops, m->params, digest);
    for (uint32_t i = 0; status == DCM_OK && i < linears; i++) {
        const merge_linear *l = merge_linear_at(m, i);
        status = hash_buffer(m->ops, l->w, digest);
        if (status == DCM_OK)
            status = hash_buffer(m->ops, l->bias, digest);
    }
    return status;
}

dcm_status merge_reserve(merge_model *m, size_t rows)
{
    if (rows <= m->rows_room)
        return DCM_OK;
    const size_t bytes = rows * 2 * m->head_dim * sizeof(float);
    m->rows_room = 0;
    buffer_free(&m->x);
    buffer_free(&m->y);
    dcm_status status = m->ops->ops->buffer_new(m->ops, bytes, MEM_SCRATCH, &m->x);
    if (status == DCM_OK)
        status = m->ops->ops->buffer_new(m->ops, bytes, MEM_SCRATCH, &m->y);
    if (status == DCM_OK)
        m->rows_room = rows;
    return status;
}

static dcm_status run_linear(merge_model *m, const merge_linear *l, size_t rows, activation act)
{
    const dense_args args = {
        .x = m->x, .w = l->w, .bias = l->bias, .y = m->y, .n = (uint32_t)rows, .in = l->in, .out = l->out, .act = act};
    const dcm_status status = m->ops->ops->dense(m->ops, &args);
    buffer *swap = m->x;
    m->x = m->y;
    m->y = swap;
    return status;
}

dcm_status merge_rows(merge_model *m, size_t rows, buffer **head)
{
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; status == DCM_OK && i < m->blocks * MERGE_LINEARS; i++)
        status = run_linear(m, &m->linear[i], rows, ACT_ELU);
    if (status == DCM_OK)
        status = run_linear(m, &m->head, rows, m->mode == MERGE_DIRECT ? ACT_ELU : ACT_NONE);
    *head = m->x;
    return status;
}

/* The merges of `s` together; rows are those of one merge. */
static dcm_status merge_piece(merge_model *m, kv_pool *pool, const step *s, uint32_t layer, uint32_t layers,
                              rope_kind rope, size_t rows)
{
    const merge_gather_args gather = {
        .pool = pool, .step = s, .layer = layer, .layers = layers, .rope = rope, .x = m->x};
    merge_apply_args apply = {
        .pool = pool, .step = s, .layer = layer, .layers = layers, .rope = rope, .mode = m->mode, .weight = m->weight};
    dcm_status status = DCM_OK;
    if (m->mode != MERGE_CONSTANT) {
        status = m->ops->ops->merge_gather(m->ops, &gather);
        if (status == DCM_OK)
            status = merge_rows(m, s->n_merges * rows, &apply.head);
    }
    return status == DCM_OK ? m->ops->ops->merge_apply(m->ops, &apply) : status;
}

/* The scorer's merges of `s`, and telling of them. */
static dcm_status run_score(merge_model *m, kv_pool *pool, const step *s, uint32_t layer, uint32_t layers,
                            rope_kind rope)
{
    const size_t heads = pool->kv_heads, rows = (size_t)s->n_merges * layers;
    merge_score_args args = {pool, s, layer, layers, rope, m->score, m->params, NULL};
    dcm_status status = DCM_OK;
    if (m->seen && rows)
        status = mem_new(&args.seen, rows, heads * sizeof *args.seen, "choices of merges");
    if (status == DCM_OK)
        status = m->ops->ops->merge_score(m->ops, &args);
    for (size_t i = 0; args.seen && status == DCM_OK && i < rows; i++)
        m->seen(m->seen_context, layer + (uint32_t)(i % layers), args.seen + i * heads);
    mem_free(&args.seen);
    return status;
}

dcm_status merge_run(merge_model *m, kv_pool *pool, const step *s, uint32_t layer, uint32_t layers, rope_kind rope)
{
    const size_t rows = (size_t)layers * 2 * pool->kv_heads, turn = pool->head_dim;
    if (m->params)
        return run_score(m, pool, s, layer, layers, rope);
    uint32_t most = s->n_merges;
    dcm_status status = DCM_OK;
    if (m->mode != MERGE_CONSTANT) {
        const size_t fit = PIECE_BYTES / (rows * 2 * 2 * m->head_dim * sizeof(float));
        most = fit < most ? (uint32_t)(fit ? fit : 1) : most;
        status = merge_reserve(m, most * rows);
    }
    for (uint32_t at = 0; status == DCM_OK && at < s->n_merges; at += most) {
        step piece = *s;
        piece.n_merges = s->n_merges - at < most ? s->n_merges - at : most;
        piece.merges += (size_t)at * MERGE_WORDS;
        piece.merge_rot += (size_t)at * 3 * turn;
        status = merge_piece(m, pool, &piece, layer, layers, rope, rows);
    }
    return status;
}
