/*
 * Made-up arguments of ops on the host, for tests that compare a back end with formulas or with another back end:
 * inputs of several kinds, weights of every type, a cache of odd blocks, rings that wrap around, views and merges. All
 * from one seeded generator. What no op should read or write holds a pattern that is a NaN, as float and as half.
 */
#ifndef SUPPORT_FIXTURE_H
#define SUPPORT_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ops/ops.h"

enum { FX_PATTERN = 0x7fe17fe1 }; /* NaN as a float, and twice as a half */

typedef enum fx_input { FX_NORMAL, FX_TINY, FX_LARGE, FX_EQUAL, FX_OUTLIER, FX_INPUTS } fx_input;

/* "normal", "tiny", "large", "equal", "outlier". */
const char *fx_input_name(fx_input input);

/* A standard normal number. */
double fx_normal(uint64_t *rng);

/* `rows` rows of `cols` floats: about 1; 1e-20; 1e4; all rows the same; about 1 with one of 300. */
void fx_fill(float *x, size_t rows, size_t cols, fx_input input, uint64_t *rng);

/* `bytes` (a multiple of 2) of FX_PATTERN. */
void fx_pattern(void *data, size_t bytes);

/* Memory that the test frees with free(); the test stops where there is none. */
void *fx_alloc(size_t bytes);

/* All types, and the bytes of a random matrix with weights of about `scale`. */
enum { FX_TYPES = 9 };
extern const quant_type fx_types[FX_TYPES];
void *fx_weights(quant_type type, uint32_t rows, uint32_t cols, double scale, uint64_t *rng);

/* Pairs (cos, sin) of an integer position, rounded from doubles; base 10000. */
void fx_rotation(float *out, uint32_t head_dim, int64_t position);

/* Which units of each ring a token sees, counted from the ring's first ever; count 0: the ring is not in its view. */
typedef struct fx_seen {
    uint32_t first[VIEW_RANGES], count[VIEW_RANGES];
} fx_seen;

/* A cache and one step over it. Zeroed parts are left out. */
typedef struct fx_spec {
    uint32_t layers, kv_heads, heads, head_dim;
    kv_type type;
    rope_kind rope;
    uint32_t n; /* tokens: slots, anchors, a view each */
    uint32_t n_merges;
    uint32_t n_ranges; /* rings; the first token's view has a range of each, others see parts of it */
    uint32_t count[VIEW_RANGES];
    float bias;          /* ring r has bias times r */
    const fx_seen *seen; /* (n) in place of count */
} fx_spec;

typedef struct fx_cache {
    fx_spec spec;
    kv_pool pool; /* without buffers */
    step step;    /* without its buffer */
    void *block[KV_BLOCKS];
    size_t block_bytes[KV_BLOCKS];
    uint32_t *table, *words;
    size_t table_words, step_words;
    size_t bias; /* word of the step's data: (ranges, layers, kv_heads) */
} fx_cache;

/* The tokens before a step, and what the cache keeps of them. */
typedef struct fx_prompt {
    uint32_t before; /* tokens */
    uint32_t group;  /* dcm: L; 0: no merges */
    uint32_t window; /* units; 0: all */
    uint32_t sinks;
} fx_prompt;

/*
 * What each of n tokens behind a prompt sees, from the rule of the schedule itself: a list of units, of which two are
 * merged, or one dropped, before each token. Rings: the sinks, then the levels, highest first; returns how many. The
 * caller frees *seen.
 */
uint32_t fx_prompt_seen(const fx_prompt *prompt, uint32_t n, fx_seen **seen);

void fx_cache_new(fx_cache *cache, const fx_spec *spec, uint64_t *rng);
void fx_cache_free(fx_cache *cache);

/* Index of the element within its block. */
size_t fx_element(const fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c);

/* Channel c of KV head h, keys (w = 0) or values (1), of `slot` in block images laid out as the cache's. */
double fx_get(const fx_cache *cache, void *const *blocks, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c);
void fx_put(fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c, double value);

/* Put values into all heads of one layer of the unit in `slot`. */
void fx_cache_fill(fx_cache *cache, uint32_t layer, uint32_t slot, fx_input input, uint64_t *rng);

/* Into every unit of every view, one layer; into every source of a merge, all layers. */
void fx_cache_fill_views(fx_cache *cache, uint32_t layer, fx_input input, uint64_t *rng);
void fx_cache_fill_merges(fx_cache *cache, fx_input input, uint64_t *rng);

/* Parts of the step. */
const view *fx_view(const fx_cache *cache, uint32_t t);
float fx_bias(const fx_cache *cache, const view_range *range, uint32_t layer, uint32_t kv_head);
const float *fx_query_rot(const fx_cache *cache, uint32_t t, uint32_t range);
const float *fx_key_rot(const fx_cache *cache, uint32_t t);
const merge_pair *fx_merge(const fx_cache *cache, uint32_t m);
const float *fx_merge_rot(const fx_cache *cache, uint32_t m, uint32_t which);
uint32_t fx_slot(const fx_cache *cache, const view_range *range, uint32_t j);

/* The two channels of pair i. */
void fx_pair(rope_kind rope, uint32_t head_dim, uint32_t i, uint32_t *first, uint32_t *second);

/* A buffer of a back end with `bytes` of `data`, elements of `item` bytes (for messages and checks). */
typedef buffer *(*fx_make)(void *context, const char *name, const void *data, size_t bytes, unsigned item);

/* fx_make of a back end's plain buffers; `context` is the back end. The test stops where it fails. */
buffer *fx_make_plain(void *context, const char *name, const void *data, size_t bytes, unsigned item);

/* The cache's pool and step with buffers made by `make`. */
void fx_upload(const fx_cache *cache, fx_make make, void *context, kv_pool *pool, step *step);

/* Free what fx_upload made with fx_make_plain. */
void fx_free_uploaded(kv_pool *pool, step *step);

#endif
