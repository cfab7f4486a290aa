#include <dcm/log.h>
#include <dcm/session.h>

#include "base/error.h"
#include "cache/copy.h"
#include "cache/fill.h"
#include "cache/read.h"
#include "merge/merge.h"
#include "model/model.h"
#include "session/peek.h"

#include <string.h>

enum { LOGITS_BYTES = 32 << 20 /* most that logits take on the device, beyond a row */ };

struct dcm_session {
    dcm_model *model;
    cache cache;
    merge_model merge; /* name NULL for full and window */
    activations act;
    uint64_t tokens;
    bool failed; /* the cache's state is not known: only closing and counting are left */
};

static dcm_status open_merge(dcm_session *s, const dcm_cache_params *params)
{
    const char *what = params->merge ? params->merge : "auto";
    const merge_facts facts = model_merge_facts(s->model);
    const dcm_status status = merge_open(&s->merge, s->model->ops, what, &facts);
    if (status == DCM_OK && !strcmp(what, "auto") && !s->merge.params)
        dcm_log(DCM_LOG_WARN,
                "no trained merge weights for this model: the newer unit of a pair is kept (--merge newer)");
    return status;
}

/*
 * Set the chunk, by default what suits the device, or less where steps would take more than a quarter of the memory
 * that is left.
 */
static dcm_status set_chunk(const dcm_model *model, dcm_cache_params *params)
{
    const backend *ops = model->ops;
    const size_t left = ops->max_memory - ops->memory.total;
    const size_t each =
        activations_bytes(model) + cache_bytes_read(&model->config.info, params->kv == DCM_KV_F32 ? KV_F32 : KV_F16);
    if (!params->chunk)
        for (params->chunk = ops->chunk; params->chunk > 1 && params->chunk * each > left / 4;)
            params->chunk /= 2;
    else if (params->chunk > left / each)
        return dcm_fail(DCM_ERR_MEMORY,
                        "a chunk of %u tokens takes %zu bytes, but %zu of %zu are left: a chunk of %zu would fit",
                        params->chunk, params->chunk * each, left, ops->max_memory, left / each);
    return DCM_OK;
}

dcm_status dcm_session_open(dcm_session **out, dcm_model *model, const dcm_cache_params *given)
{
    dcm_session *s = NULL;
    dcm_cache_params params;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, fail, cache_check_params(&params, given));
    DCM_TRY(status, fail, mem_new(&s, 1, sizeof *s, "session"));
    s->model = model;
    DCM_TRY(status, fail, set_chunk(model, &params));
    const model_config *c = &model->config;
    const rope turn = {c->rope, c->info.head_dim / 2, c->rope_frequency};
    DCM_TRY(status, fail, cache_open(&s->cache, model->ops, &c->info, &params, turn));
    s->cache.yields = !given || !given->chunk;
    if (params.kind == DCM_CACHE_DCM)
        DCM_TRY(status, fail, open_merge(s, &params));
    if (s->merge.bias)
        cache_add_biases(&s->cache, s->merge.bias, s->merge.score.levels);
    DCM_TRY(status, fail, activations_open(&s->act, model, params.chunk));
    *out = s;
    return DCM_OK;
fail:
    dcm_session_close(&s);
    return status;
}

void dcm_session_close(dcm_session **out)
{
    if (!out || !*out)
        return;
    dcm_session *s = *out;
    s->model->ops->ops->sync(s->model->ops); /* what is still running uses what is freed below */
    activations_close(&s->act);
    merge_close(&s->merge);
    cache_close(&s->cache);
    mem_free(out);
}

dcm_status dcm_session_fill(dcm_session *s, uint64_t tokens, uint64_t seed)
{
    if (s->failed || s->tokens)
        return dcm_fail(DCM_ERR_USAGE, "only a session that nothing was fed to can be filled");
    const dcm_status status = cache_fill(&s->cache, tokens, seed);
    s->failed = status != DCM_OK;
    s->tokens = tokens;
    return status;
}

/* Which logits a feed wants. */
typedef enum wanted { LOGITS_NONE, LOGITS_LAST, LOGITS_EACH } wanted;

/* Of the last step's n tokens, some rows at a time: those of a long step would take more room than all else. */
static dcm_status read_logits(dcm_session *s, uint32_t n, wanted want, float *logits)
{
    const dcm_model *model = s->model;
    const size_t row = model->config.info.vocab * sizeof *logits;
    const uint32_t most = LOGITS_BYTES / row ? (uint32_t)(LOGITS_BYTES / row) : 1;
    dcm_status status = DCM_OK;
    uint32_t count;
    for (uint32_t first = want == LOGITS_EACH ? 0 : n - 1; first < n; first += count) {
        count = n - first < most ? n - first : most;
        DCM_TRY(status, fail, model_logits(model, &s->act, first, count, want == LOGITS_EACH && s->act.reading));
        DCM_TRY(status, fail, model->ops->ops->read(s->act.logits, 0, logits, count * row));
        logits += (size_t)count * model->config.info.vocab;
    }
fail:
    return status;
}

/*
 * One step of *n tokens, at most `left`: merges of older units by level, then all layers, then the logits that are
 * wanted: of the last token where nothing is left.
 */
static dcm_status run_step(dcm_session *s, const int32_t *tokens, size_t left, wanted want, float *logits, uint32_t *n)
{
    const dcm_model *model = s->model;
    kv_pool *pool = &s->cache.slots.pool;
    dcm_status status;
    DCM_TRY(status, fail, cache_step_begin(&s->cache, tokens, left));
    *n = s->cache.step.n;
    late_merges late = {.merge = &s->merge};
    for (uint32_t g = 0; g < s->cache.plan.top; g++) {
        const step early = cache_step_batch(&s->cache, g, false);
        DCM_TRY(status, fail, merge_run(&s->merge, pool, &early, 0, pool->layers, model->config.rope));
        late.batch[late.count] = cache_step_batch(&s->cache, g, true);
        late.count += late.batch[late.count].n_merges > 0;
    }
    DCM_TRY(status, fail, model_forward(model, &s->act, pool, &s->cache.step, &late));
    cache_step_done(&s->cache);
    if (want == LOGITS_EACH || (want == LOGITS_LAST && *n == left))
        DCM_TRY(status, fail, read_logits(s, *n, want, logits));
    s->tokens += *n;
fail:
    return status;
}

static dcm_status feed(dcm_session *s, const int32_t *tokens, size_t count, wanted want, float *logits)
{
    const uint32_t vocab = s->model->config.info.vocab;
    if (s->failed)
        return dcm_fail(DCM_ERR_USAGE, "the session failed before and can only be closed");
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return dcm_fail(DCM_ERR_USAGE, "token %zu is %d, not an id of the vocabulary of %u", i, (int)tokens[i],
                            vocab);
    dcm_status status = count == 1 ? cache_settle(&s->cache) : DCM_OK;
    s->act.reading = count > 1;
    uint32_t n = 0;
    for (size_t at = 0; status == DCM_OK && at < count; at += n)
        status = run_step(s, tokens + at, count - at, want, want == LOGITS_EACH ? logits + at * vocab : logits, &n);
    if (status != DCM_OK) {
        s->failed = true;
        return dcm_fail_in(status, "token %llu", (unsigned long long)(s->tokens + 1));
    }
    return DCM_OK;
}

dcm_status dcm_session_feed(dcm_session *s, const int32_t *tokens, size_t count, float *logits)
{
    if (!count && logits)
        return dcm_fail(DCM_ERR_USAGE, "logits were asked for, but no token was fed");
    return feed(s, tokens, count, logits ? LOGITS_LAST : LOGITS_NONE, logits);
}

dcm_status dcm_session_feed_each(dcm_session *s, const int32_t *tokens, size_t count, float *logits)
{
    return feed(s, tokens, count, LOGITS_EACH, logits);
}

const cache *session_cache(const dcm_session *s) { return &s->cache; }

const dcm_model *session_model(const dcm_session *s) { return s->model; }

activations *session_activations(dcm_session *s) { return &s->act; }

/* The schedule aside, which a copy takes over, do both do the same with the same tokens? */
static bool same_policy(const dcm_session *a, const dcm_session *b)
{
    return a->model->config.info.digest == b->model->config.info.digest && cache_same_policy(&a->cache, &b->cache) &&
           !a->merge.name == !b->merge.name && (!a->merge.name || !strcmp(a->merge.name, b->merge.name));
}

dcm_status dcm_session_copy(dcm_session *to, dcm_session *from)
{
    const kv_type given = from->cache.slots.pool.type, wanted = to->cache.slots.pool.type;
    if (to->failed || from->failed || to == from)
        return dcm_fail(DCM_ERR_USAGE, "a session that failed, or itself, cannot be copied");
    if (!same_policy(to, from) || (wanted != given && wanted != KV_F32))
        return dcm_fail(DCM_ERR_USAGE, "only sessions of one model and one cache policy can be copied");
    dcm_status status;
    DCM_TRY(status, done, cache_settle(&from->cache));
    DCM_TRY(status, done, cache_settle(&to->cache));
    DCM_TRY(status, done, cache_copy(&to->cache, &from->cache));
    to->tokens = from->tokens;
done:
    to->failed = from->failed = status != DCM_OK;
    return status;
}

dcm_status dcm_session_read_layer(dcm_session *s, uint32_t layer, dcm_unit *units, float *values)
{
    if (s->failed)
        return dcm_fail(DCM_ERR_USAGE, "the session failed before and can only be closed");
    if (layer >= s->cache.slots.pool.layers)
        return dcm_fail(DCM_ERR_USAGE, "there is no layer %u, but %u from 0 on", layer, s->cache.slots.pool.layers);
    if (units)
        cache_list_units(&s->cache, units);
    return values ? cache_read_layer(&s->cache, layer, values) : DCM_OK;
}

dcm_status dcm_session_watch(dcm_session *s, dcm_merge_seen *seen, void *context)
{
    dcm_device_info device;
    dcm_device_get_info(s->model->device, &device);
    if (!s->merge.params || !device.is_ref)
        return dcm_fail(DCM_ERR_USAGE, "only a scorer's merges on the reference can be watched");
    s->merge.seen = seen;
    s->merge.seen_context = context;
    return DCM_OK;
}

uint32_t dcm_session_chunk(const dcm_session *s) { return s->cache.chunk; }

dcm_status dcm_session_merge_digest(dcm_session *s, uint64_t *digest) { return merge_params_digest(&s->merge, digest); }

void dcm_session_get_stats(const dcm_session *s, dcm_session_stats *stats)
{
    const mem_counter *m = &s->model->ops->memory;
    *stats = (dcm_session_stats){.tokens = s->tokens,
                                 .merges = s->cache.merges,
                                 .units = cache_units(&s->cache),
                                 .unit_bytes = s->cache.slots.unit_bytes,
                                 .cache_bytes = slots_allocated(&s->cache.slots) * s->cache.slots.unit_bytes,
                                 .table_bytes = m->now[MEM_TABLES],
                                 .scratch_bytes = m->now[MEM_SCRATCH],
                                 .weight_bytes = m->now[MEM_WEIGHTS],
                                 .peak_bytes = m->peak,
                                 .cache_written = s->cache.bytes_written,
                                 .merge = s->merge.name ? s->merge.name : ""};
}
