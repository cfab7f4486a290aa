#include "train/learner.h"

#include "base/error.h"
#include "base/rng.h"
#include "ref/score_net.h"
#include "train/adamw.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PIECE_BYTES = 16 << 20 }; /* most bytes of what the way back keeps, unless one merge has more */

/* ---- Parameters ---- */

/* As the published code's, PyTorch's default: uniform within 1 / sqrt(inputs), biases too. */
static void set_first(learner *l, uint64_t seed)
{
    uint64_t rng = seed;
    for (uint32_t i = 0; i < pair_linears(l->pair.shape); i++) {
        const pair_linear map = pair_linear_of(l->pair.shape, i);
        const double most = 1 / sqrt(map.in);
        for (size_t c = 0; c < (size_t)map.out * (map.in + 1); c++)
            l->param[map.at + c] = (float)(most * (2 * rng_uniform(&rng) - 1));
    }
}

static void set_kinds(learner *l)
{
    for (uint32_t i = 0; i < pair_linears(l->pair.shape); i++) {
        const pair_linear map = pair_linear_of(l->pair.shape, i);
        const size_t weights = (size_t)map.out * map.in;
        memset(l->kind + map.at, ADAMW_DECAY, weights);
        memset(l->kind + map.at + weights, ADAMW_PLAIN, map.out);
    }
}

static dcm_status open_params(learner *l, const dcm_train_params *p, const safetensors *from)
{
    const bool direct = l->arch == &learner_direct;
    float *loaded = NULL;
    dcm_status status;
    if (!from && (p->depth % MERGE_LINEARS || p->depth > MERGE_MAX_BLOCKS * MERGE_LINEARS))
        return dcm_fail(DCM_ERR_USAGE, "a depth of %u: a multiple of %d up to %d is needed", p->depth, MERGE_LINEARS,
                        MERGE_MAX_BLOCKS * MERGE_LINEARS);
    l->pair.shape = (pair_shape){l->facts.head_dim, p->depth / MERGE_LINEARS, direct};
    if (from)
        DCM_TRY(status, fail, pair_file_load(from, &l->facts, &l->pair.shape, &loaded));
    l->count = pair_count(l->pair.shape);
    DCM_TRY(status, fail, learner_room(l));
    set_kinds(l);
    if (loaded)
        memcpy(l->param, loaded, l->count * sizeof *loaded);
    else
        set_first(l, p->seed);
    status = merge_open_pair(&l->merge, l->ops, l->pair.shape, l->param);
fail:
    mem_free(&loaded);
    return status;
}

/* ---- The way back ---- */

static dcm_status scratch(learner *l, size_t rows, size_t columns, buffer **out)
{
    return l->ops->ops->buffer_new(l->ops, rows * columns * sizeof(float), MEM_SCRATCH, out);
}

static dcm_status open_back(learner *l, uint32_t tokens)
{
    pair_back *b = &l->pair;
    const uint32_t maps = pair_linears(b->shape);
    const size_t width = 2 * (size_t)b->shape.head_dim, rows = 2 * (size_t)l->facts.kv_heads;
    const size_t fit = PIECE_BYTES / (rows * width * (maps + 4) * sizeof(float));
    dcm_status status;
    b->merges = fit < 1 ? 1 : fit < tokens ? (uint32_t)fit : tokens;
    for (uint32_t i = 0; i < maps; i++) {
        const pair_linear map = pair_linear_of(b->shape, i);
        DCM_TRY(status, fail, scratch(l, map.out, map.in, &b->dw[i]));
        DCM_TRY(status, fail, scratch(l, map.out, 1, &b->dbias[i]));
        DCM_TRY(status, fail, scratch(l, b->merges * rows, width, &b->x[i]));
    }
    DCM_TRY(status, fail, scratch(l, b->merges * rows, width, &b->y));
    DCM_TRY(status, fail, scratch(l, b->merges * rows, width, &b->dy));
    DCM_TRY(status, fail, scratch(l, b->merges * rows, width, &b->dx[0]));
    DCM_TRY(status, fail, scratch(l, b->merges * rows, width, &b->dx[1]));
fail:
    return status;
}

static dcm_status open_pair(learner *l, const dcm_train_params *p, const safetensors *from)
{
    const dcm_status status = open_params(l, p, from);
    return status == DCM_OK ? open_back(l, p->tokens) : status;
}

static void close_pair(learner *l)
{
    pair_back *b = &l->pair;
    for (uint32_t i = 0; i < PAIR_LINEARS_MAX; i++) {
        buffer_free(&b->dw[i]);
        buffer_free(&b->dbias[i]);
        buffer_free(&b->x[i]);
    }
    buffer_free(&b->y);
    buffer_free(&b->dy);
    buffer_free(&b->dx[0]);
    buffer_free(&b->dx[1]);
}

static dcm_status upload(learner *l, const float *params) { return merge_set_pair(&l->merge, params); }

static dcm_status forget(learner *l)
{
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < pair_linears(l->pair.shape) && status == DCM_OK; i++) {
        status = learner_zero(l, l->pair.dw[i]);
        if (status == DCM_OK)
            status = learner_zero(l, l->pair.dbias[i]);
    }
    return status;
}

static dcm_status read_gradient(learner *l, float *gradient)
{
    const pair_back *b = &l->pair;
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < pair_linears(b->shape) && status == DCM_OK; i++) {
        const pair_linear map = pair_linear_of(b->shape, i);
        float *to = gradient + map.at;
        status = l->ops->ops->read(b->dw[i], 0, to, b->dw[i]->bytes);
        if (status == DCM_OK)
            status = l->ops->ops->read(b->dbias[i], 0, to + (size_t)map.out * map.in, b->dbias[i]->bytes);
    }
    return status;
}

/* What follows map i; the head of a gate is linear. */
static activation act_after(pair_shape s, uint32_t i)
{
    return i + 1 < pair_linears(s) || s.direct ? ACT_ELU : ACT_NONE;
}

/* The inputs of all maps, from x[0] on, and y. */
static dcm_status rows_forward(learner *l, uint32_t rows)
{
    const uint32_t maps = pair_linears(l->pair.shape);
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < maps && status == DCM_OK; i++) {
        const merge_linear *map = merge_linear_at(&l->merge, i);
        const dense_args args = {.x = l->pair.x[i],
                                 .w = map->w,
                                 .bias = map->bias,
                                 .y = i + 1 < maps ? l->pair.x[i + 1] : l->pair.y,
                                 .n = rows,
                                 .in = map->in,
                                 .out = map->out,
                                 .act = act_after(l->pair.shape, i)};
        status = l->ops->ops->dense(l->ops, &args);
    }
    return status;
}

/* From dy to the gradients of all maps; *dx gets that of x[0]. */
static dcm_status rows_back(learner *l, uint32_t rows, buffer **dx)
{
    pair_back *b = &l->pair;
    const uint32_t maps = pair_linears(b->shape);
    dcm_status status = DCM_OK;
    buffer *dy = b->dy;
    for (uint32_t i = maps; i-- > 0 && status == DCM_OK;) {
        const merge_linear *map = merge_linear_at(&l->merge, i);
        const dense_back_args args = {.n = rows,
                                      .in = map->in,
                                      .out = map->out,
                                      .act = act_after(b->shape, i),
                                      .x = b->x[i],
                                      .w = map->w,
                                      .y = i + 1 < maps ? b->x[i + 1] : b->y,
                                      .dy = dy,
                                      .dx = b->dx[i % 2],
                                      .dw = b->dw[i],
                                      .dbias = b->dbias[i]};
        status = l->ops->ops->grad->dense_back(l->ops, &args);
        dy = args.dx;
    }
    *dx = dy;
    return status;
}

static dcm_status back_piece(learner *l, const level_merges *m)
{
    const grad_ops *grad = l->ops->ops->grad;
    const uint32_t rows = m->step->n_merges * 2 * l->facts.kv_heads;
    const merge_gather_args gather = {m->pool, m->step, m->layer, 1, m->rope, l->pair.x[0]};
    const merge_apply_back_args apply = {.pool = m->pool,
                                         .step = m->step,
                                         .units = m->units,
                                         .first = m->first,
                                         .layer = m->layer,
                                         .rope = m->rope,
                                         .mode = l->merge.mode,
                                         .head = l->pair.y,
                                         .dhead = l->pair.dy,
                                         .dunits = m->dunits};
    merge_gather_back_args inputs = {m->pool, m->step, m->units, m->first, m->rope, NULL, m->dunits};
    dcm_status status;
    DCM_TRY(status, fail, l->ops->ops->merge_gather(l->ops, &gather));
    DCM_TRY(status, fail, rows_forward(l, rows));
    DCM_TRY(status, fail, grad->merge_apply_back(l->ops, &apply));
    DCM_TRY(status, fail, rows_back(l, rows, &inputs.dx));
    status = grad->merge_gather_back(l->ops, &inputs);
fail:
    return status;
}

static dcm_status back(learner *l, const level_merges *m)
{
    dcm_status status = DCM_OK;
    for (uint32_t at = 0; at < m->step->n_merges && status == DCM_OK; at += l->pair.merges) {
        const uint32_t left = m->step->n_merges - at;
        step part = *m->step;
        level_merges piece = *m;
        part.n_merges = left < l->pair.merges ? left : l->pair.merges;
        part.merges += (size_t)at * MERGE_WORDS;
        part.merge_rot += (size_t)at * 3 * l->facts.head_dim;
        piece.step = &part;
        piece.first += at;
        status = back_piece(l, &piece);
    }
    return status;
}

/* ---- What is told of it ---- */

/* Where the result's key lies between the sources' ones: the gate. */
static double share(const learner *l, const done_merge *m)
{
    const uint32_t d = l->facts.head_dim;
    score_unit a, b, out;
    double along = 0, length = 0;
    score_load(m->pool, m->layer, m->head, m->pair.a, m->rotation, &a);
    score_load(m->pool, m->layer, m->head, m->pair.b, m->rotation + d, &b);
    score_load(m->pool, m->layer, m->head, m->pair.out, m->rotation + 2 * (size_t)d, &out);
    for (uint32_t c = 0; c < d; c++) {
        along += (out.x[c] - b.x[c]) * (a.x[c] - b.x[c]);
        length += (a.x[c] - b.x[c]) * (a.x[c] - b.x[c]);
    }
    return length > 0 ? along / length : 0.5;
}

static void describe(const learner *l, char *text, size_t size)
{
    snprintf(text, size, "depth=%u", l->pair.shape.blocks * MERGE_LINEARS);
}

static dcm_status save(const learner *l, const char *path, const float *params, const st_note *notes, size_t n_notes)
{
    return pair_file_save(path, &l->facts, l->pair.shape, params, notes, n_notes, ST_F16);
}

#define PAIR_PARTS                                                                                                     \
    .open = open_pair, .close = close_pair, .upload = upload, .forget = forget, .read = read_gradient, .back = back,   \
    .describe = describe, .save = save

const learner_arch learner_gate = {.name = "gate", .share = share, PAIR_PARTS},
                   learner_direct = {.name = "direct", PAIR_PARTS};
