#include "cache/cache.h"

#include "base/error.h"
#include "cache/ring.h"
#include "cache/view.h"

#include <string.h>

enum { SLACK_PART = 50 /* a step may leave 1/50 unused */ };

/* A slot that the step's later ops no longer name; those of longer steps stay readable until the step is done. */
static dcm_status release(cache *c, uint32_t slot)
{
    if (c->step.n == 1) {
        slots_give(&c->slots, slot);
        return DCM_OK;
    }
    if (c->released_count == c->released_room) {
        const size_t room = 2 * c->released_room + 64;
        const dcm_status status = mem_resize(&c->released, room, sizeof *c->released, "released slots");
        if (status != DCM_OK)
            return status;
        c->released_room = room;
    }
    c->released[c->released_count++] = slot;
    return DCM_OK;
}

/* A merge planned but not yet placed in its level's batch. */
typedef struct planned_merge {
    merge_pair pair;
    uint32_t level;
    uint64_t node; /* of the older source */
} planned_merge;

static dcm_status plan_merge(cache *c, uint32_t level, planned_merge *m)
{
    const uint64_t node = c->plan.first[level];
    *m = (planned_merge){.level = level, .node = node};
    m->pair.a = ring_get(c, level, node);
    m->pair.b = ring_get(c, level, node + 1);
    m->pair.out = m->pair.a;
    dcm_status status = DCM_OK;
    if (c->step.n > 1 && (status = slots_take(&c->slots, &m->pair.out)) == DCM_OK)
        status = release(c, m->pair.a);
    if (status == DCM_OK)
        status = release(c, m->pair.b);
    ring_put(c, level + 1, node / 2, m->pair.out);
    c->merges++;
    return status;
}

/* Before token i is appended: the schedule's merge, or the window's eviction. */
static dcm_status plan_action(cache *c, planned_merge *merges, uint32_t *n_merges)
{
    if (c->kind == DCM_CACHE_DCM) {
        const dcm_action action = dcm_plan_peek(&c->plan);
        if (action.kind == DCM_ACTION_MERGE)
            return plan_merge(c, (uint32_t)action.level, &merges[(*n_merges)++]);
    } else if (c->kind == DCM_CACHE_WINDOW && dcm_plan_units(&c->plan) == c->window) {
        const uint32_t slot = ring_get(c, 0, c->plan.first[0]);
        c->plan.first[0]++;
        c->plan.count[0]--;
        return release(c, slot);
    }
    return DCM_OK;
}

/* Advance the plan by the action and one token; the token's unit gets `slot`. */
static void plan_append(cache *c, uint32_t slot)
{
    dcm_plan *p = &c->plan;
    const bool sink = p->tokens < p->sinks;
    if (sink)
        ring_put(c, RING_SINKS, p->tokens, slot);
    else
        ring_put(c, 0, p->tokens - p->sinks, slot);
    if (c->kind == DCM_CACHE_DCM) {
        dcm_plan_step(p);
    } else {
        p->count[0] += !sink;
        p->tokens++;
    }
}

/* Offsets of a step of n tokens, and room for it on both sides. */
static dcm_status lay_out_step(cache *c, uint32_t n)
{
    const size_t turn = 2 * (size_t)c->rope.pairs;
    step *s = &c->step;
    s->n = n;
    s->n_merges = 0;
    s->max_units = 0;
    s->tokens = 0;
    s->slots = s->tokens + n;
    s->key_rot = s->slots + n;
    s->views = s->key_rot + n * turn;
    s->query_rot = s->views + (size_t)n * VIEW_WORDS;
    s->merges = s->query_rot + n * VIEW_RANGES * turn;
    s->merge_rot = s->merges + (size_t)n * MERGE_WORDS;
    const size_t words = s->merge_rot + 3 * n * turn;
    if (words <= c->words_room)
        return DCM_OK;
    dcm_status status = mem_resize(&c->words, words, sizeof *c->words, "step data");
    if (status != DCM_OK)
        return status;
    memset(c->words, 0, words * sizeof *c->words);
    c->words_room = 0;
    buffer_free(&s->data);
    status = c->ops->ops->buffer_new(c->ops, words * sizeof *c->words, MEM_TABLES, &s->data);
    if (status == DCM_OK)
        c->words_room = words;
    return status;
}

static float *rotation_words(cache *c, size_t at, size_t index)
{
    return (float *)c->words + at + index * 2 * c->rope.pairs;
}

static dcm_status plan_token(cache *c, int32_t token, uint32_t i, planned_merge *merges)
{
    step *s = &c->step;
    uint32_t slot;
    dcm_status status = plan_action(c, merges, &s->n_merges);
    if (status == DCM_OK)
        status = slots_take(&c->slots, &slot);
    if (status != DCM_OK)
        return status;
    const uint64_t anchor = c->plan.tokens; /* of a token's own unit: its number, sink or not */
    plan_append(c, slot);
    c->words[s->tokens + i] = (uint32_t)token;
    c->words[s->slots + i] = slot;
    rotation(&c->rope, anchor, rotation_words(c, s->key_rot, i));
    view v;
    view_fill(c, &v, rotation_words(c, s->query_rot, (size_t)i * VIEW_RANGES));
    memcpy(c->words + s->views + (size_t)i * VIEW_WORDS, &v, sizeof v);
    if (v.units > s->max_units)
        s->max_units = v.units;
    return DCM_OK;
}

/* Put the planned merges in batches by level, oldest first in each. */
static void batch_merges(cache *c, const planned_merge *merges)
{
    size_t at = 0;
    for (uint32_t g = 0; g < DCM_LEVELS_MAX; g++) {
        c->batch_first[g] = at;
        for (uint32_t i = 0; i < c->step.n_merges; i++) {
            const planned_merge *m = &merges[i];
            if (m->level != g)
                continue;
            memcpy(c->words + c->step.merges + at * MERGE_WORDS, &m->pair, sizeof m->pair);
            rotation(&c->rope, anchor_of(c, m->node), rotation_words(c, c->step.merge_rot, 3 * at));
            rotation(&c->rope, anchor_of(c, m->node + 1), rotation_words(c, c->step.merge_rot, 3 * at + 1));
            rotation(&c->rope, anchor_of(c, m->node / 2), rotation_words(c, c->step.merge_rot, 3 * at + 2));
            at++;
        }
    }
    c->batch_first[DCM_LEVELS_MAX] = at;
}

dcm_status cache_step_begin(cache *c, const int32_t *tokens, uint32_t n)
{
    planned_merge *merges = NULL;
    dcm_status status;
    DCM_TRY(status, done, rings_reserve(c, n));
    DCM_TRY(status, done, lay_out_step(c, n));
    DCM_TRY(status, done, mem_new(&merges, n, sizeof *merges, "planned merges"));
    for (uint32_t i = 0; i < n; i++)
        DCM_TRY(status, done, plan_token(c, tokens[i], i, merges));
    batch_merges(c, merges);
    c->bytes_written += ((uint64_t)n + c->step.n_merges) * c->slots.unit_bytes;
    DCM_TRY(status, done, rings_upload(c));
    status =
        c->ops->ops->write(c->step.data, 0, c->words,
                           (c->step.merge_rot + 3 * (size_t)c->step.n_merges * 2 * c->rope.pairs) * sizeof *c->words);
done:
    mem_free(&merges);
    return status;
}

/* Units at the height of a step of n tokens and after it; for dcm every token past a full near queue counts as a merge.
 */
static void step_units(const cache *c, uint64_t n, uint64_t *peak, uint64_t *after)
{
    const dcm_plan *p = &c->plan;
    const uint64_t units = dcm_plan_units(p);
    *peak = *after = units + n;
    if (c->kind == DCM_CACHE_WINDOW && *after > c->window) {
        *after = c->window;
    } else if (c->kind == DCM_CACHE_DCM) {
        const uint64_t sinks_left = p->tokens < p->sinks ? p->sinks - p->tokens : 0;
        const uint64_t unmerged = sinks_left + 2 * (uint64_t)p->group - 1 - dcm_plan_near(p);
        const uint64_t merges = n > unmerged ? n - unmerged : 0;
        *peak += merges;
        *after -= merges;
    }
}

static uint32_t room(const cache *c, uint32_t most)
{
    for (uint32_t n = most; n > 1; n--) {
        uint64_t peak, after;
        step_units(c, n, &peak, &after);
        if (peak <= c->slots.allocated || SLACK_PART * (peak - after) <= after)
            return n;
    }
    return 1;
}

uint32_t cache_step_room(cache *c, uint32_t most)
{
    const uint32_t n = room(c, most);
    const size_t units = cache_units(c), growth = slots_growth(&c->slots);
    const size_t limit = units + units / SLACK_PART + growth;
    /* A block ahead of need, of what the bound on the cache leaves, unless blocks would become small or many. */
    if (n == most || limit < c->slots.allocated + growth / 2 || c->slots.pool.n_blocks >= KV_BLOCKS / 2 ||
        slots_grow(&c->slots, limit - c->slots.allocated) != DCM_OK)
        return n;
    return room(c, most);
}

step cache_step_batch(const cache *c, uint32_t level)
{
    step s = c->step;
    const size_t first = c->batch_first[level];
    s.n_merges = (uint32_t)(c->batch_first[level + 1] - first);
    s.merges += first * MERGE_WORDS;
    s.merge_rot += first * 3 * 2 * c->rope.pairs;
    return s;
}

void cache_step_done(cache *c)
{
    while (c->released_count)
        slots_give(&c->slots, c->released[--c->released_count]);
}

size_t cache_units(const cache *c) { return (size_t)dcm_plan_units(&c->plan); }

dcm_status cache_open(cache *c, backend *ops, const dcm_model_info *model, const dcm_cache_params *params, rope rope)
{
    *c = (cache){.ops = ops, .kind = params->kind, .window = params->window, .log_r = params->log_r, .rope = rope};
    slots_init(&c->slots, ops, model->layers, model->kv_heads, model->head_dim,
               params->kv == DCM_KV_F32 ? KV_F32 : KV_F16);
    if (params->kind == DCM_CACHE_DCM)
        return dcm_plan_init(&c->plan, params->group, (uint32_t)params->sinks);
    c->plan.sinks = params->kind == DCM_CACHE_WINDOW ? (uint32_t)params->sinks : 0;
    return DCM_OK;
}

void cache_close(cache *c)
{
    slots_close(&c->slots);
    buffer_free(&c->step.data);
    mem_free(&c->table);
    mem_free(&c->released);
    mem_free(&c->words);
    memset(c, 0, sizeof *c);
}
