/* Models of random weights. One stretch of random blocks, repeated in host memory, serves all matrices: each begins at
 * another block of it, so that no time goes into making gigabytes of random numbers. */
#include "model/model.h"

#include "base/error.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    PERIOD = 131071, /* blocks before the weights repeat: prime, so that no row length divides it */
    STRIDE = 8191,   /* blocks from the beginning of one matrix to the next one's */
    MAX_LAYERS = 1024,
    MAX_WIDTH = 1 << 20,
    MAX_VOCAB = 1 << 24
};

static const float RANGE = 0.035f; /* weights are spread evenly over -RANGE .. RANGE: a deviation of 0.02 */
static const double ROPE_BASE = 10000;

typedef struct maker {
    dcm_model *model;
    quant_type type;
    unsigned char *data;
    uint32_t made; /* matrices */
} maker;

/* ---- Blocks ---- */

static void put_half(unsigned char *out, float x)
{
    const uint16_t half = float_to_half(x);
    memcpy(out, &half, sizeof half);
}

/* One block: random quants under a scale (and minimum) that spread them over the range. */
static void make_block(quant_type type, unsigned char *out, uint64_t *rng)
{
    const size_t bytes = quant_get(type)->bytes;
    if (type == QUANT_F16) {
        put_half(out, RANGE * (float)(2 * rng_uniform(rng) - 1));
        return;
    }
    const size_t head = type == QUANT_Q4_1 ? 4 : 2;
    for (size_t i = head; i < bytes; i++)
        out[i] = (unsigned char)(rng_next(rng) >> 56);
    put_half(out, type == QUANT_Q4_1 ? 2 * RANGE / 15 : RANGE / 128);
    if (type == QUANT_Q4_1)
        put_half(out + 2, -RANGE);
}

/* Blocks enough for the largest matrix from any beginning. */
static dcm_status make_data(maker *m, size_t largest)
{
    const size_t block = quant_get(m->type)->bytes, period = PERIOD * block, bytes = largest + period;
    uint64_t rng = 1;
    const dcm_status status = mem_new(&m->data, bytes, 1, "random weights");
    if (status != DCM_OK)
        return status;
    for (size_t i = 0; i < PERIOD; i++)
        make_block(m->type, m->data + i * block, &rng);
    for (size_t at = period; at < bytes; at += period)
        memcpy(m->data + at, m->data, bytes - at < period ? bytes - at : period);
    return DCM_OK;
}

/* ---- The model's parts ---- */

static dcm_status make_matrix(maker *m, uint32_t rows, uint32_t cols, matrix **out)
{
    const size_t first = (size_t)m->made++ * STRIDE % PERIOD;
    backend *ops = m->model->ops;
    return ops->ops->matrix_new(ops, m->type, rows, cols, m->data + first * quant_get(m->type)->bytes, out);
}

static dcm_status make_map(maker *m, uint32_t rows, uint32_t cols, linear_map *map)
{
    map->parts = 1;
    map->rows = rows;
    return make_matrix(m, rows, cols, &map->part[0].w);
}

/* A norm's gains: all 1. */
static dcm_status make_norm(maker *m, buffer **out)
{
    const uint32_t size = m->model->config.info.hidden;
    backend *ops = m->model->ops;
    float *ones = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&ones, size, sizeof *ones, "a norm's gains"));
    for (uint32_t i = 0; i < size; i++)
        ones[i] = 1;
    DCM_TRY(status, done, ops->ops->buffer_new(ops, size * sizeof *ones, MEM_WEIGHTS, out));
    status = ops->ops->write(*out, 0, ones, size * sizeof *ones);
done:
    mem_free(&ones);
    return status;
}

static dcm_status make_layer(maker *m, model_layer *layer)
{
    const dcm_model_info *i = &m->model->config.info;
    const uint32_t q = i->heads * i->head_dim, kv = i->kv_heads * i->head_dim;
    dcm_status status;
    DCM_TRY(status, fail, make_norm(m, &layer->attn_norm));
    DCM_TRY(status, fail, make_norm(m, &layer->ffn_norm));
    DCM_TRY(status, fail, make_map(m, q + 2 * kv, i->hidden, &layer->qkv));
    DCM_TRY(status, fail, make_map(m, i->hidden, q, &layer->attn_out));
    DCM_TRY(status, fail, make_map(m, 2 * i->ffn, i->hidden, &layer->gate_up));
    DCM_TRY(status, fail, make_map(m, i->hidden, i->ffn, &layer->down));
    return DCM_OK;
fail:
    return status;
}

static size_t largest_matrix(const dcm_model_info *m, quant_type type)
{
    const uint32_t rows = 2 * m->ffn > m->vocab ? 2 * m->ffn : m->vocab;
    const uint32_t qkv = (m->heads + 2 * m->kv_heads) * m->head_dim;
    const size_t wide = (rows > qkv ? rows : qkv) * quant_row_bytes(type, m->hidden);
    const size_t down = m->hidden * quant_row_bytes(type, m->ffn);
    return wide > down ? wide : down;
}

static dcm_status make_weights(maker *m)
{
    dcm_model *model = m->model;
    const dcm_model_info *i = &model->config.info;
    dcm_status status;
    DCM_TRY(status, fail, make_data(m, largest_matrix(i, m->type)));
    DCM_TRY(status, fail, mem_new(&model->layer, i->layers, sizeof *model->layer, "layers"));
    DCM_TRY(status, fail, make_matrix(m, i->vocab, i->hidden, &model->embedding));
    if (i->tied)
        model->output = model->embedding;
    else
        DCM_TRY(status, fail, make_matrix(m, i->vocab, i->hidden, &model->output));
    DCM_TRY(status, fail, make_norm(m, &model->output_norm));
    for (uint32_t l = 0; l < i->layers; l++)
        DCM_TRY(status, fail, make_layer(m, &model->layer[l]));
    status = model->ops->ops->sync(model->ops);
fail:
    mem_free(&m->data);
    return status;
}

/* ---- The shape ---- */

static dcm_status check(const dcm_model_info *s, quant_type type)
{
    const uint32_t block = quant_get(type)->items;
    const struct {
        const char *name;
        uint32_t value, most;
    } ranges[] = {{"layers", s->layers, MAX_LAYERS}, {"hidden", s->hidden, MAX_WIDTH}, {"heads", s->heads, s->hidden},
                  {"kv", s->kv_heads, s->heads},     {"ffn", s->ffn, MAX_WIDTH},       {"vocab", s->vocab, MAX_VOCAB}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (ranges[i].value < 1 || ranges[i].value > ranges[i].most)
            return dcm_fail(DCM_ERR_USAGE, "shape: %s is %u, not in 1 .. %u", ranges[i].name, ranges[i].value,
                            ranges[i].most);
    if (s->heads % s->kv_heads)
        return dcm_fail(DCM_ERR_USAGE, "shape: %u heads are no multiple of %u KV heads", s->heads, s->kv_heads);
    const uint32_t d = s->hidden / s->heads;
    if (s->hidden % s->heads || d % 8 || d > MODEL_MAX_HEAD_DIM)
        return dcm_fail(DCM_ERR_USAGE, "shape: hidden %u over %u heads is not a multiple of 8 up to %d", s->hidden,
                        s->heads, MODEL_MAX_HEAD_DIM);
    if (s->hidden % block || s->ffn % block)
        return dcm_fail(DCM_ERR_USAGE, "shape: hidden %u and ffn %u must be multiples of %u for %s weights", s->hidden,
                        s->ffn, block, quant_get(type)->name);
    return DCM_OK;
}

static void configure(model_config *c, const dcm_model_info *shape, quant_type type)
{
    dcm_model_info *m = &c->info;
    snprintf(c->arch, sizeof c->arch, "llama");
    snprintf(c->name, sizeof c->name, "%s", shape->name ? shape->name : "synthetic");
    *m = (dcm_model_info){.arch = c->arch,
                          .name = c->name,
                          .layers = shape->layers,
                          .hidden = shape->hidden,
                          .heads = shape->heads,
                          .kv_heads = shape->kv_heads,
                          .head_dim = shape->hidden / shape->heads,
                          .ffn = shape->ffn,
                          .vocab = shape->vocab,
                          .context = UINT32_MAX,
                          .tied = shape->tied};
    c->rope = ROPE_INTERLEAVED;
    c->norm_eps = 1e-5f;
    for (uint32_t i = 0; i < m->head_dim / 2; i++)
        c->rope_frequency[i] = pow(ROPE_BASE, -2.0 * i / m->head_dim);
    const uint32_t facts[] = {m->layers, m->hidden, m->heads, m->kv_heads, m->ffn, m->vocab, m->tied, type};
    m->digest = hash_bytes(hash_bytes(HASH_START, "synthetic", 9), facts, sizeof facts);
}

dcm_status dcm_model_synthetic(dcm_model **out, dcm_device *device, const dcm_model_info *shape, dcm_weights weights)
{
    static const quant_type types[] = {QUANT_F16, QUANT_Q8_0, QUANT_Q4_1};
    maker m = {0};
    dcm_model *model = NULL;
    dcm_status status;
    *out = NULL;
    if ((unsigned)weights >= sizeof types / sizeof *types)
        return dcm_fail(DCM_ERR_USAGE, "unknown weights %d", (int)weights);
    DCM_TRY(status, done, check(shape, types[weights]));
    DCM_TRY(status, done, mem_new(&model, 1, sizeof *model, "model"));
    model->device = device;
    model->ops = device->ops;
    configure(&model->config, shape, types[weights]);
    const size_t before = model->ops->memory.now[MEM_WEIGHTS];
    m = (maker){.model = model, .type = types[weights]};
    DCM_TRY(status, done, make_weights(&m));
    model_count_bytes(model, before);
done:
    if (status != DCM_OK)
        dcm_model_close(&model);
    *out = model;
    return status;
}
