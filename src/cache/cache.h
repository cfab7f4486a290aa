/*
 * The key-value cache: which unit is in which slot, and what each token of a step sees.
 *
 * One pool of unit slots in device blocks, and per level a ring of slot indices (the power-of-two groups) that the
 * schedule fills: a merge is written into a slot of its own, nothing is ever shifted. All three policies use it: `full`
 * is level 0 alone, `window` is level 0 whose oldest unit is evicted before each append, sinks are a ring of their own.
 * While a prompt is read there is room for `chunk` units more, in a block that is given back afterwards.
 *
 * `in_chunks` is the paper's approximate schedule (docs/training.md) for training alone: tokens after the sinks come in
 * chunks of L, and once before each further chunk the whole near queue is merged pairwise, every two neighbours of one
 * ratio below L, none twice. So a token of chunk c sees its own chunk's tokens up to itself, chunk c - j as L / 2^j
 * units of level j for j < k, and older chunks as one unit each; nodes of the tree are those of the exact schedule.
 */
#ifndef CACHE_CACHE_H
#define CACHE_CACHE_H

#include <dcm/plan.h>
#include <dcm/session.h>

#include "cache/slots.h"
#include "ops/ops.h"

/* Angular frequencies of RoPE: head_dim / 2 radians per place, scaling included; owned by the caller. */
typedef struct rope {
    rope_kind kind;
    uint32_t pairs;
    const double *frequency;
} rope;

/* A level's slots in tree order; node i of the level is at table[offset + (i & mask)]. */
typedef struct cache_ring {
    size_t offset;                   /* in the table */
    uint32_t mask;                   /* capacity - 1 */
    uint64_t dirty_first, dirty_end; /* nodes whose entries the device has not got yet */
} cache_ring;

/* A level's merges of a step by their index: first .. late - 1 of units older than the step, the others late. */
typedef struct merge_batch {
    size_t first, late, end;
} merge_batch;

typedef struct cache {
    backend *ops;
    dcm_cache_kind kind;
    uint32_t window;
    uint32_t chunk; /* most tokens of a step, and most units more than the step leaves while it runs */
    bool yields;    /* where there is no memory for that, chunk becomes smaller */
    float *bias; /* (levels, layers, kv_heads): added to the scores of a level's units; row 0 is 0 */
    uint32_t levels;
    uint32_t far_limit; /* units of the last level, L tokens each, that more of them weigh as; 0: they all count */
    uint64_t far_first; /* units of the last level before the step */
    bool in_chunks; /* dcm: the schedule of chunked training instead of inference's; for steps from an empty cache */
    rope rope;
    dcm_plan plan; /* dcm: the schedule; full and window: level 0 alone, tokens and sinks counted there too */
    slot_pool slots;
    cache_ring ring[DCM_LEVELS_MAX + 1]; /* the last one is the sinks' */
    uint32_t *table;                     /* host copy of slots.pool.table */
    uint32_t *released;                  /* slots to give back once the step's ops are issued */
    size_t released_count, released_room;
    uint32_t *words; /* host copy of the step's data */
    size_t words_room;
    step step;
    merge_batch batch[DCM_LEVELS_MAX];
    uint64_t merges, bytes_written;
} cache;

/*
 * An empty cache for a model's shape that does not yield; `params` checked and with its defaults filled in by
 * cache_check_params, its chunk by the caller (0: for single tokens only). Zero *c first: cache_close accepts what a
 * failed open leaves.
 */
dcm_status cache_open(cache *c, backend *ops, const dcm_model_info *model, const dcm_cache_params *params, rope rope);
void cache_close(cache *c);

/*
 * Add bias[(l * kv_heads + h) * levels + g - 1] to the scores of units of level g >= 1 in layer l and KV head h, beyond
 * what params->log_r does; of levels above `levels` the last one's. The values are copied.
 */
void cache_add_biases(cache *c, const float *bias, uint32_t levels);

/* Bytes on the device that each token of a chunk takes while a prompt is read: its data, and a unit beyond those that
 * stay. */
size_t cache_bytes_read(const dcm_model_info *model, kv_type kv);

/* What dcm_cache_params.far_limit is for a group length where none is given. */
int32_t cache_far_limit(uint32_t group);

/* Fill in defaults and refuse what is out of range or has no effect (DCM_ERR_USAGE). */
dcm_status cache_check_params(dcm_cache_params *out, const dcm_cache_params *params);

/*
 * Plan a step of at least one and at most `most` and `chunk` tokens, c->step.n in the end, and upload its data into
 * c->step: merges batched by level, slots, rotations and views. For one token a merge goes into its older source's slot
 * and the new token takes the newer one's; for longer steps sources stay readable until cache_step_done, since the
 * step's first tokens see them. DCM_ERR_MEMORY: the cache can only be closed.
 */
dcm_status cache_step_begin(cache *c, const int32_t *tokens, size_t most);

/* No more room than the units need, once a prompt has been read: those in the staging block get regular slots. */
dcm_status cache_settle(cache *c);

/*
 * The step's merges of one level, for the merge ops; n_merges may be 0. A level's come after those of the levels below.
 * Those that are not late are of units that are there before the step: they can be done first of all, in all layers
 * together. Late ones have sources that stand for tokens of the step, whose keys and values a layer makes: they are
 * done within each layer, before its attention. There are none in steps of at most L tokens, as sources are at least L
 * tokens old.
 */
step cache_step_batch(const cache *c, uint32_t level, bool late);

/* Call once all ops of the step are issued. */
void cache_step_done(cache *c);

/* Of one model: kind, window, groups, sinks and biases are the same. */
bool cache_same_policy(const cache *a, const cache *b);

/* Units now. */
size_t cache_units(const cache *c);

#endif
