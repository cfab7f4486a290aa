#include <dcm/eval.h>

#include "base/error.h"
#include "cache/ring.h"
#include "model/model.h"
#include "ops/host_pool.h"
#include "session/peek.h"

#include <math.h>
#include <string.h>

/* A weight under it is none: its ratio to another one says nothing. */
#define LEAST_WEIGHT 1e-12

typedef struct measuring {
    const dcm_model *model;
    const cache *c;
    const activations *act;
    size_t n, first, queries;
    dcm_attention_metrics *layer;
    /* Of the layer at hand: */
    float *qkv;  /* (n, columns) */
    float *keys; /* (n, kv_heads, head_dim), turned at their tokens' places */
    void *block[KV_BLOCKS];
    uint32_t at;   /* its number */
    ref_pool pool; /* of it alone, on the host */
    /* Of the query and head at hand: */
    double *full, *weight; /* of tokens, of units */
    size_t *from;          /* first token behind each unit; of one more, the number of tokens */
} measuring;

static size_t columns_of(const dcm_model_info *m) { return ((size_t)m->heads + 2 * m->kv_heads) * m->head_dim; }

/* ---- A layer's data ---- */

/* `x` floats of one head, turned by `rotation`. */
static void turned(const measuring *m, const float *x, const float *rotation, double *out)
{
    for (uint32_t c = 0; c < m->pool.head_dim; c++)
        out[c] = x[c];
    pool_rotate(&m->pool, out, rotation, 1);
}

static const float *rotation_at(const cache *c, size_t at, size_t index)
{
    return (const float *)c->words + at + index * 2 * c->rope.pairs;
}

static dcm_status read_layer(measuring *m, uint32_t layer)
{
    const dcm_model_info *info = &m->model->config.info;
    const uint32_t d = info->head_dim;
    const size_t columns = columns_of(info), bytes = m->n * columns * sizeof *m->qkv;
    dcm_status status;
    DCM_TRY(status, fail, host_pool_read(&m->c->slots.pool, m->model->config.rope, layer, 1, m->block, &m->pool));
    DCM_TRY(status, fail, m->act->qkv->owner->ops->read(m->act->qkv, 0, m->qkv, bytes));
    for (size_t t = 0; t < m->n; t++)
        for (uint32_t h = 0; h < info->kv_heads; h++) {
            double key[REF_HEAD_MAX];
            turned(m, m->qkv + t * columns + (info->heads + h) * d, rotation_at(m->c, m->c->step.key_rot, t), key);
            for (uint32_t c = 0; c < d; c++)
                m->keys[(t * info->kv_heads + h) * d + c] = (float)key[c];
        }
fail:
    return status;
}

/* ---- One query and head ---- */

static void softmax(double *x, size_t n)
{
    double high = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        high = fmax(high, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += x[i] = exp(x[i] - high);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

static void add_scaled(double *out, double by, const float *x, uint32_t d)
{
    for (uint32_t c = 0; c < d; c++)
        out[c] += by * (double)x[c];
}

/* Attention of head h of token t to tokens 0 .. t: m->full, out. */
static void attend_full(measuring *m, size_t t, uint32_t h, double *out)
{
    const dcm_model_info *info = &m->model->config.info;
    const uint32_t d = info->head_dim, kv = h / (info->heads / info->kv_heads);
    const size_t columns = columns_of(info), value = (size_t)(info->heads + info->kv_heads + kv) * d;
    double q[REF_HEAD_MAX];
    turned(m, m->qkv + t * columns + (size_t)h * d, rotation_at(m->c, m->c->step.key_rot, t), q);
    for (size_t j = 0; j <= t; j++)
        m->full[j] = ref_dot(m->keys + (j * info->kv_heads + kv) * d, q, d) / sqrt(d);
    softmax(m->full, t + 1);
    memset(out, 0, d * sizeof *out);
    for (size_t j = 0; j <= t; j++)
        add_scaled(out, m->full[j], m->qkv + j * columns + value, d);
}

static uint32_t slot_of(const measuring *m, const view_range *r, uint32_t j)
{
    return m->c->table[r->ring + ((r->begin + j) & r->mask)];
}

/* The same to the units of its view: m->weight, out. */
static void attend_units(measuring *m, const view *v, size_t t, uint32_t h, double *out)
{
    const dcm_model_info *info = &m->model->config.info;
    const uint32_t d = info->head_dim, kv = h / (info->heads / info->kv_heads);
    double q[REF_HEAD_MAX];
    float x[REF_HEAD_MAX];
    for (uint32_t i = 0; i < v->n_ranges; i++) {
        const view_range *r = &v->range[i];
        const double bias = ((const float *)m->c->words)[r->bias + m->at * info->kv_heads + kv];
        turned(m, m->qkv + t * columns_of(info) + (size_t)h * d,
               rotation_at(m->c, m->c->step.query_rot, t * VIEW_RANGES + i), q);
        for (uint32_t j = 0; j < r->count; j++) {
            pool_load(&m->pool, pool_at(&m->pool, 0, REF_KEYS, kv, slot_of(m, r, j)), x);
            m->weight[r->place + j] = ref_dot(x, q, d) / sqrt(d) + bias;
        }
    }
    softmax(m->weight, v->units);
    memset(out, 0, d * sizeof *out);
    for (uint32_t i = 0; i < v->n_ranges; i++)
        for (uint32_t j = 0; j < v->range[i].count; j++) {
            pool_load(&m->pool, pool_at(&m->pool, 0, REF_VALUES, kv, slot_of(m, &v->range[i], j)), x);
            add_scaled(out, m->weight[v->range[i].place + j], x, d);
        }
}

/* ---- Comparing ---- */

static bool is_sinks(const measuring *m, const view_range *r)
{
    return m->c->plan.sinks && r->ring == m->c->ring[RING_SINKS].offset;
}

static uint32_t level_of(const measuring *m, const view_range *r)
{
    uint32_t g = 0;
    while (m->c->ring[g].offset != r->ring)
        g++;
    return g;
}

/* m->from: sinks stand for the first tokens, the other units for those that end with token t, without a gap. */
static void lay_out_blocks(measuring *m, const view *v, size_t t)
{
    size_t end = t + 1;
    for (uint32_t i = v->n_ranges; i-- > 0;) {
        const view_range *r = &v->range[i];
        const bool sinks = is_sinks(m, r);
        const size_t tokens = sinks ? 1 : (size_t)1 << level_of(m, r);
        for (uint32_t j = r->count; j-- > 0;)
            m->from[r->place + j] = sinks ? j : (end -= tokens);
    }
    m->from[v->units] = t + 1;
}

static double divergence(double p, double q)
{
    const double middle = (p + q) / 2;
    return (p > 0 ? p * log(p / middle) : 0) + (q > 0 ? q * log(q / middle) : 0);
}

/* Jensen-Shannon; what lies between the last sink and the oldest other unit is the block of no unit. */
static double compare_weights(const measuring *m, const view *v)
{
    const uint32_t sinks = is_sinks(m, &v->range[0]) ? v->range[0].count : 0;
    double sum = 0, rest = 0;
    for (size_t u = 0; u < v->units; u++) {
        double p = 0;
        const size_t end = u < sinks ? m->from[u] + 1 : m->from[u + 1];
        for (size_t j = m->from[u]; j < end; j++)
            p += m->full[j];
        sum += divergence(p, m->weight[u]);
    }
    for (size_t j = sinks; j < m->from[sinks]; j++)
        rest += m->full[j];
    return (sum + divergence(rest, 0)) / 2;
}

static void add_boundaries(const measuring *m, const view *v, dcm_attention_metrics *to)
{
    for (uint32_t i = 1; i < v->n_ranges; i++) {
        const uint32_t place = v->range[i].place;
        const double older = m->weight[place - 1], newer = m->weight[place];
        if (is_sinks(m, &v->range[i - 1]) || !(older >= LEAST_WEIGHT && newer >= LEAST_WEIGHT))
            continue;
        to->bsd += fabs(older / newer - 1);
        to->bsd_log += fabs(log(older / newer));
        to->boundaries++;
    }
}

static void measure_query(measuring *m, size_t t, dcm_attention_metrics *to)
{
    const dcm_model_info *info = &m->model->config.info;
    double full[REF_HEAD_MAX], out[REF_HEAD_MAX];
    view v;
    memcpy(&v, m->c->words + m->c->step.views + t * (size_t)VIEW_WORDS, sizeof v);
    lay_out_blocks(m, &v, t);
    for (uint32_t h = 0; h < info->heads; h++) {
        double off = 0, dot = 0, full_square = 0, out_square = 0;
        attend_full(m, t, h, full);
        attend_units(m, &v, t, h, out);
        for (uint32_t c = 0; c < info->head_dim; c++) {
            off += (out[c] - full[c]) * (out[c] - full[c]);
            dot += out[c] * full[c];
            full_square += full[c] * full[c];
            out_square += out[c] * out[c];
        }
        to->il += off;
        to->attention += full_square;
        to->cosine += dot / sqrt(full_square * out_square);
        to->js += compare_weights(m, &v);
        add_boundaries(m, &v, to);
    }
}

/* After a layer of the pass: its units and its tokens' queries, keys and values are all there. */
static dcm_status measure_layer(void *context, uint32_t layer)
{
    measuring *m = context;
    dcm_attention_metrics *to = &m->layer[layer];
    m->at = layer;
    const double terms = (double)m->queries * m->model->config.info.heads;
    if (m->c->step.n != m->n)
        return dcm_fail(DCM_ERR_USAGE, "%zu tokens are measured in one step, but the session takes %u: a larger chunk",
                        m->n, m->c->step.n);
    const dcm_status status = read_layer(m, layer);
    if (status != DCM_OK)
        return status;
    *to = (dcm_attention_metrics){0};
    for (size_t i = 0; i < m->queries; i++)
        measure_query(m, m->first + (i + 1) * (m->n - m->first) / m->queries - 1, to);
    to->il /= terms;
    to->attention /= terms;
    to->cosine /= terms;
    to->js /= terms;
    to->sdi = (1 - to->cosine) / 2 + to->js / 2;
    to->bsd /= to->boundaries ? (double)to->boundaries : 1;
    to->bsd_log /= to->boundaries ? (double)to->boundaries : 1;
    return DCM_OK;
}

dcm_status dcm_session_measure(dcm_session *session, const int32_t *tokens, size_t count, size_t first, size_t queries,
                               dcm_attention_metrics *layer)
{
    measuring m = {.model = session_model(session), .c = session_cache(session), .n = count, .first = first};
    const dcm_model_info *info = &m.model->config.info;
    activations *act = session_activations(session);
    dcm_status status;
    if (m.c->plan.tokens)
        return dcm_fail(DCM_ERR_USAGE, "only a session that nothing was fed to can be measured");
    if (first >= count)
        return dcm_fail(DCM_ERR_USAGE, "no query among %zu tokens from token %zu on", count, first);
    m.act = act;
    m.layer = layer;
    m.queries = queries && queries < count - first ? queries : count - first;
    DCM_TRY(status, done, mem_new(&m.qkv, count, columns_of(info) * sizeof *m.qkv, "queries, keys and values"));
    DCM_TRY(status, done, mem_new(&m.keys, count, info->kv_heads * info->head_dim * sizeof *m.keys, "keys"));
    DCM_TRY(status, done, mem_new(&m.full, count, sizeof *m.full, "weights of tokens"));
    DCM_TRY(status, done, mem_new(&m.weight, count, sizeof *m.weight, "weights of units"));
    DCM_TRY(status, done, mem_new(&m.from, count + 1, sizeof *m.from, "blocks of tokens"));
    act->seen = measure_layer;
    act->seen_context = &m;
    status = dcm_session_feed(session, tokens, count, NULL);
    act->seen = NULL;
done:
    host_pool_free(m.block);
    mem_free(&m.qkv);
    mem_free(&m.keys);
    mem_free(&m.full);
    mem_free(&m.weight);
    mem_free(&m.from);
    return status;
}
