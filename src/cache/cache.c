#include "cache/cache.h"

#include "base/error.h"
#include "cache/ring.h"
#include "cache/room.h"
#include "cache/view.h"

#include <math.h>
#include <string.h>

/* A slot that the step's later ops no longer name; those of longer steps stay readable until the step is done. */
static void release(cache *c, uint32_t slot)
{
    if (c->step.n == 1)
        slots_give(&c->slots, slot);
    else
        c->released[c->released_count++] = slot;
}

/* A merge planned but not yet placed in its level's batch. */
typedef struct planned_merge {
    merge_pair pair;
    uint32_t level;
    uint64_t node; /* of the older source */
} planned_merge;

static void plan_merge(cache *c, uint32_t level, planned_merge *m)
{
    const uint64_t node = c->plan.first[level];
    *m = (planned_merge){.level = level, .node = node};
    m->pair.a = ring_get(c, level, node);
    m->pair.b = ring_get(c, level, node + 1);
    m->pair.out = m->pair.a;
    m->pair.level = level;
    if (c->step.n > 1) {
        m->pair.out = slots_take(&c->slots);
        release(c, m->pair.a);
    }
    release(c, m->pair.b);
    ring_put(c, level + 1, node / 2, m->pair.out);
    c->merges++;
}

/* Before the first token of a chunk: all neighbours of one level below the top become one, the highest level first, so
 * that no unit is merged twice. */
static void plan_chunk(cache *c, planned_merge *merges, uint32_t *n_merges)
{
    dcm_plan *p = &c->plan;
    if (p->tokens <= p->sinks || (p->tokens - p->sinks) % p->group)
        return;
    for (uint32_t g = p->top; g-- > 0;)
        while (p->count[g]) {
            plan_merge(c, g, &merges[(*n_merges)++]);
            p->first[g] += 2;
            p->count[g] -= 2;
            p->count[g + 1]++;
        }
}

/* Before token i is appended: the schedule's merges, or the window's eviction. */
static void plan_action(cache *c, planned_merge *merges, uint32_t *n_merges)
{
    if (c->in_chunks) {
        plan_chunk(c, merges, n_merges);
    } else if (c->kind == DCM_CACHE_DCM) {
        const dcm_action action = dcm_plan_peek(&c->plan);
        if (action.kind == DCM_ACTION_MERGE)
            plan_merge(c, (uint32_t)action.level, &merges[(*n_merges)++]);
    } else if (c->kind == DCM_CACHE_WINDOW && dcm_plan_units(&c->plan) == c->window) {
        release(c, ring_get(c, 0, c->plan.first[0]));
        c->plan.first[0]++;
        c->plan.count[0]--;
    }
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
    if (c->kind == DCM_CACHE_DCM && !c->in_chunks) {
        dcm_plan_step(p);
    } else {
        p->count[0] += !sink;
        p->tokens++;
    }
}

/* Room for `words` of a step's data on both sides. */
static dcm_status reserve_words(cache *c, size_t words)
{
    if (words <= c->words_room)
        return DCM_OK;
    dcm_status status = mem_resize(&c->words, words, sizeof *c->words, "step data");
    if (status != DCM_OK)
        return status;
    memset(c->words, 0, words * sizeof *c->words);
    c->words_room = 0;
    buffer_free(&c->step.data);
    status = c->ops->ops->buffer_new(c->ops, words * sizeof *c->words, MEM_TABLES, &c->step.data);
    if (status == DCM_OK)
        c->words_room = words;
    return status;
}

static size_t bias_words(const cache *c) { return (size_t)c->levels * bias_row_size(c); }

/*
 * Rows of biases that a step of n tokens adds to those of the levels: of the last level, for each number of its units
 * from far_first on that a query may see, one in L tokens more. None where they stay within the limit.
 */
static size_t far_rows(const cache *c, uint32_t n)
{
    if (!c->far_limit)
        return 0;
    const size_t more = n / c->plan.group + 2;
    return c->far_first + more > c->far_limit ? more : 0;
}

static void fill_biases(cache *c, size_t rows)
{
    const size_t heads = bias_row_size(c);
    const float *last = c->bias + (c->levels - 1) * heads;
    float *to = (float *)c->words + bias_words(c);
    memcpy(c->words, c->bias, bias_words(c) * sizeof *c->words);
    for (size_t row = 0; row < rows; row++) {
        const double crowd = (double)(c->far_first + row) / c->far_limit, less = crowd > 1 ? log(crowd) : 0;
        for (size_t i = 0; i < heads; i++)
            *to++ = (float)(last[i] - less);
    }
}

/* Words of a step's data for each token; `turn`: of a rotation. */
static size_t token_words(size_t turn) { return 2 + VIEW_WORDS + MERGE_WORDS + (1 + VIEW_RANGES + 3) * turn; }

size_t cache_bytes_read(const dcm_model_info *model, kv_type kv)
{
    return token_words(model->head_dim) * sizeof(uint32_t) +
           unit_bytes(model->layers, model->kv_heads, model->head_dim, kv);
}

/* Offsets of a step of n tokens, and room for it on both sides and for the slots that it releases. */
static dcm_status lay_out_step(cache *c, uint32_t n)
{
    const size_t turn = 2 * (size_t)c->rope.pairs, releases = 2 * (size_t)n;
    step *s = &c->step;
    s->n = n;
    s->n_merges = 0;
    s->max_units = 0;
    c->far_first = c->plan.count[c->levels - 1];
    const size_t rows = far_rows(c, n);
    s->tokens = bias_words(c) + rows * bias_row_size(c);
    s->slots = s->tokens + n;
    s->key_rot = s->slots + n;
    s->views = s->key_rot + n * turn;
    s->query_rot = s->views + (size_t)n * VIEW_WORDS;
    s->merges = s->query_rot + n * VIEW_RANGES * turn;
    s->merge_rot = s->merges + (size_t)n * MERGE_WORDS;
    dcm_status status = DCM_OK;
    if (releases > c->released_room) {
        status = mem_resize(&c->released, releases, sizeof *c->released, "released slots");
        if (status != DCM_OK)
            return status;
        c->released_room = releases;
    }
    status = reserve_words(c, s->tokens + n * token_words(turn));
    if (status == DCM_OK)
        fill_biases(c, rows);
    return status;
}

static float *rotation_words(cache *c, size_t at, size_t index)
{
    return (float *)c->words + at + index * 2 * c->rope.pairs;
}

static void plan_token(cache *c, int32_t token, uint32_t i, planned_merge *merges)
{
    step *s = &c->step;
    plan_action(c, merges, &s->n_merges);
    const uint32_t slot = slots_take(&c->slots);
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
}

/* Put the planned merges in batches by level, oldest first in each, so that those of new units come last. */
static void batch_merges(cache *c, const planned_merge *merges)
{
    const uint64_t start = c->plan.tokens - c->step.n;
    size_t at = 0;
    for (uint32_t g = 0; g < DCM_LEVELS_MAX; g++) {
        c->batch[g].first = c->batch[g].late = at;
        for (uint32_t i = 0; i < c->step.n_merges; i++) {
            const planned_merge *m = &merges[i];
            if (m->level != g)
                continue;
            memcpy(c->words + c->step.merges + at * MERGE_WORDS, &m->pair, sizeof m->pair);
            rotation(&c->rope, anchor_of(c, m->node), rotation_words(c, c->step.merge_rot, 3 * at));
            rotation(&c->rope, anchor_of(c, m->node + 1), rotation_words(c, c->step.merge_rot, 3 * at + 1));
            rotation(&c->rope, anchor_of(c, m->node / 2), rotation_words(c, c->step.merge_rot, 3 * at + 2));
            at++;
            if (c->plan.sinks + ((m->node + 2) << g) <= start)
                c->batch[g].late = at;
        }
        c->batch[g].end = at;
    }
}

dcm_status cache_step_begin(cache *c, const int32_t *tokens, size_t most)
{
    planned_merge *merges = NULL;
    uint32_t n;
    dcm_status status;
    DCM_TRY(status, done, room_for_step(c, most, &n));
    DCM_TRY(status, done, rings_reserve(c, n));
    DCM_TRY(status, done, lay_out_step(c, n));
    DCM_TRY(status, done, mem_new(&merges, n, sizeof *merges, "planned merges"));
    for (uint32_t i = 0; i < n; i++)
        plan_token(c, tokens[i], i, merges);
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

/* Give every unit of the staging block a regular slot; the pairs (source, source, slot) go into c->words. */
static uint32_t plan_moves(cache *c)
{
    uint32_t n = 0;
    for (uint32_t g = 0; g < RINGS; g++) {
        const uint64_t first = ring_first(c, g), end = first + ring_count(c, g);
        for (uint64_t node = first; node < end; node++) {
            const uint32_t slot = ring_get(c, g, node);
            if (!slots_staged(&c->slots, slot))
                continue;
            const merge_pair move = {slot, slot, slots_take(&c->slots), 0};
            memcpy(c->words + n++ * (size_t)MERGE_WORDS, &move, sizeof move);
            ring_put(c, g, node, move.out);
        }
    }
    return n;
}

dcm_status cache_settle(cache *c)
{
    dcm_status status;
    if (!c->slots.staged)
        return DCM_OK;
    DCM_TRY(status, fail, reserve_words(c, c->slots.staged * MERGE_WORDS));
    const step moves = {.data = c->step.data, .n_merges = plan_moves(c)};
    const merge_apply_args apply = {.pool = &c->slots.pool,
                                    .step = &moves,
                                    .layers = c->slots.pool.layers,
                                    .rope = c->rope.kind,
                                    .mode = MERGE_COPY};
    DCM_TRY(status, fail,
            c->ops->ops->write(moves.data, 0, c->words, moves.n_merges * (size_t)MERGE_WORDS * sizeof *c->words));
    DCM_TRY(status, fail, c->ops->ops->merge_apply(c->ops, &apply));
    slots_unstage(&c->slots);
fail:
    return status;
}

step cache_step_batch(const cache *c, uint32_t level, bool late)
{
    step s = c->step;
    const merge_batch *b = &c->batch[level];
    const size_t first = late ? b->late : b->first;
    s.n_merges = (uint32_t)((late ? b->end : b->late) - first);
    s.merges += first * MERGE_WORDS;
    s.merge_rot += first * 3 * 2 * c->rope.pairs;
    return s;
}

void cache_step_done(cache *c)
{
    while (c->released_count)
        slots_give(&c->slots, c->released[--c->released_count]);
}

bool cache_same_policy(const cache *a, const cache *b)
{
    return a->kind == b->kind && a->window == b->window && a->plan.group == b->plan.group &&
           a->plan.sinks == b->plan.sinks && a->far_limit == b->far_limit &&
           memcmp(a->bias, b->bias, bias_words(a) * sizeof *a->bias) == 0;
}

size_t cache_units(const cache *c) { return (size_t)dcm_plan_units(&c->plan); }

dcm_status cache_open(cache *c, backend *ops, const dcm_model_info *model, const dcm_cache_params *params, rope rope)
{
    *c = (cache){.ops = ops,
                 .kind = params->kind,
                 .window = params->window,
                 .chunk = params->chunk,
                 .rope = rope};
    slots_init(&c->slots, ops, model->layers, model->kv_heads, model->head_dim,
               params->kv == DCM_KV_F32 ? KV_F32 : KV_F16);
    c->plan.sinks = params->kind == DCM_CACHE_WINDOW ? (uint32_t)params->sinks : 0;
    c->levels = 1;
    dcm_status status = DCM_OK;
    if (params->kind == DCM_CACHE_DCM) {
        DCM_TRY(status, fail, dcm_plan_init(&c->plan, params->group, (uint32_t)params->sinks));
        for (uint32_t ratio = params->group; ratio > 1; ratio /= 2)
            c->levels++;
        c->far_limit = params->far_limit > 0 ? (uint32_t)params->far_limit : 0;
    }
    DCM_TRY(status, fail, mem_new(&c->bias, bias_words(c), sizeof *c->bias, "biases of levels"));
    for (size_t i = 0; i < bias_words(c); i++)
        c->bias[i] = params->log_r * (float)(i / bias_row_size(c)) * 0.693147180559945f;
fail:
    return status;
}

void cache_add_biases(cache *c, const float *bias, uint32_t levels)
{
    const size_t heads = bias_row_size(c);
    for (uint32_t g = 1; g < c->levels; g++)
        for (size_t i = 0; i < heads; i++)
            c->bias[g * heads + i] += bias[i * levels + (g <= levels ? g : levels) - 1];
}

void cache_close(cache *c)
{
    slots_close(&c->slots);
    buffer_free(&c->step.data);
    mem_free(&c->table);
    mem_free(&c->released);
    mem_free(&c->words);
    mem_free(&c->bias);
    memset(c, 0, sizeof *c);
}
