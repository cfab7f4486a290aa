#include "support/fixture.h"

#include "base/half.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *fx_input_name(fx_input input)
{
    static const char *const names[FX_INPUTS] = {"normal", "tiny", "large", "equal", "outlier"};
    return names[input];
}

double fx_normal(uint64_t *rng)
{
    const double u = 1 - rng_uniform(rng), angle = 6.283185307179586 * rng_uniform(rng);
    return sqrt(-2 * log(u)) * cos(angle);
}

void fx_fill(float *x, size_t rows, size_t cols, fx_input input, uint64_t *rng)
{
    const double scale = input == FX_TINY ? 1e-20 : input == FX_LARGE ? 1e4 : 1;
    for (size_t i = 0; i < rows * cols; i++)
        x[i] = input == FX_EQUAL && i >= cols ? x[i - cols] : (float)(scale * fx_normal(rng));
    if (input == FX_OUTLIER && rows && cols)
        x[rng_next(rng) % (rows * cols)] = 300;
}

void fx_pattern(void *data, size_t bytes)
{
    for (size_t i = 0; i + 1 < bytes; i += 2)
        memcpy((char *)data + i, &(uint16_t){FX_PATTERN & 0xffff}, 2);
}

void *fx_alloc(size_t bytes)
{
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "test: no room for %zu bytes\n", bytes);
        exit(EXIT_FAILURE);
    }
    return p;
}

const quant_type fx_types[FX_TYPES] = {QUANT_F32,  QUANT_F16,  QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0,
                                       QUANT_Q4_1, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

/* A block's half-precision factor: where it stands, and by what it is multiplied at most; negative: the factor is too.
 */
typedef struct factor {
    quant_type type;
    int at;
    double largest;
} factor;

void *fx_weights(quant_type type, uint32_t rows, uint32_t cols, double scale, uint64_t *rng)
{
    static const factor factors[] = {{QUANT_Q8_0, 0, 128},     {QUANT_Q4_0, 0, 8},  {QUANT_Q4_1, 0, 8},
                                     {QUANT_Q4_1, 2, -1},      {QUANT_Q4_K, 2, 63}, {QUANT_Q4_K, 0, 7 * 63},
                                     {QUANT_Q5_K, 0, 15 * 63}, {QUANT_Q5_K, 2, 63}, {QUANT_Q6_K, 208, 32 * 128}};
    const quant_info *info = quant_get(type);
    const size_t bytes = rows * quant_row_bytes(type, cols);
    unsigned char *data = fx_alloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)rng_next(rng);
    for (size_t at = 0; at < bytes; at += info->bytes) {
        if (type == QUANT_F32) {
            memcpy(data + at, &(float){(float)(scale * fx_normal(rng))}, 4);
        } else if (type == QUANT_F16 || type == QUANT_BF16) {
            const float value = (float)(scale * fx_normal(rng));
            const uint16_t half = type == QUANT_F16 ? float_to_half(value) : (uint16_t)(float_to_bits(value) >> 16);
            memcpy(data + at, &half, 2);
        }
        for (size_t f = 0; f < sizeof factors / sizeof *factors; f++)
            if (factors[f].type == type) {
                const double value = scale * (0.5 + rng_uniform(rng)) / factors[f].largest;
                memcpy(data + at + factors[f].at, &(uint16_t){float_to_half((float)value)}, 2);
            }
    }
    return data;
}

void fx_rotation(float *out, uint32_t head_dim, int64_t position)
{
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        const double angle = (double)position * pow(10000, -2.0 * i / head_dim);
        out[2 * i] = (float)cos(angle);
        out[2 * i + 1] = (float)sin(angle);
    }
}

/* ---- The cache ---- */

static uint32_t power_of_two(uint32_t n)
{
    uint32_t p = 1;
    while (p < n)
        p *= 2;
    return p;
}

/* All slots of the pool in random order; freed by the caller. */
static uint32_t *shuffled_slots(const fx_cache *cache, size_t total, uint64_t *rng)
{
    uint32_t *slots = fx_alloc(total * sizeof *slots);
    size_t n = 0;
    for (uint32_t b = 0; b < cache->pool.n_blocks; b++)
        for (uint32_t u = 0; u < cache->pool.block_units[b]; u++)
            slots[n++] = kv_slot(b, u);
    for (size_t i = total - 1; i > 0; i--) {
        const size_t j = rng_next(rng) % (i + 1);
        const uint32_t swap = slots[i];
        slots[i] = slots[j];
        slots[j] = swap;
    }
    return slots;
}

/* Blocks of uneven sizes for at least `units` units; returns how many in all. */
static size_t make_blocks(fx_cache *cache, size_t units)
{
    const fx_spec *spec = &cache->spec;
    const size_t sizes[] = {units / 2 + 1, 3, units / 3 + 2, 1, units / 4 + 5};
    size_t total = 0;
    cache->pool = (kv_pool){.layers = spec->layers,
                            .kv_heads = spec->kv_heads,
                            .head_dim = spec->head_dim,
                            .type = spec->type,
                            .n_blocks = sizeof sizes / sizeof *sizes};
    for (uint32_t b = 0; b < cache->pool.n_blocks; b++) {
        cache->pool.block_units[b] = (uint32_t)sizes[b];
        cache->block_bytes[b] =
            (size_t)spec->layers * 2 * spec->kv_heads * sizes[b] * spec->head_dim * (spec->type == KV_F16 ? 2 : 4);
        cache->block[b] = fx_alloc(cache->block_bytes[b]);
        fx_pattern(cache->block[b], cache->block_bytes[b]);
        total += sizes[b];
    }
    return total;
}

/* Offsets of the step's parts, a few unused words between them. */
static void make_step(fx_cache *cache)
{
    const fx_spec *spec = &cache->spec;
    const size_t d = spec->head_dim;
    step *s = &cache->step;
    size_t at = 8;
    *s = (step){.n = spec->n, .n_merges = spec->n_merges};
    cache->bias = at, at += spec->n_ranges * (size_t)spec->layers * spec->kv_heads + 8;
    s->tokens = at, at += spec->n + 8;
    s->slots = at, at += spec->n + 8;
    at = (at + 7) / 8 * 8;
    s->key_rot = at, at += spec->n * d + 8;
    s->views = at, at += spec->n * (size_t)VIEW_WORDS + 8;
    s->query_rot = at, at += spec->n * VIEW_RANGES * d + 8;
    s->merges = at, at += spec->n_merges * (size_t)MERGE_WORDS + 8;
    at = (at + 7) / 8 * 8;
    s->merge_rot = at, at += spec->n_merges * 3 * d + 8;
    cache->step_words = at;
    cache->words = fx_alloc(at * 4);
    fx_pattern(cache->words, at * 4);
    for (size_t i = 0; i < spec->n_ranges * (size_t)spec->layers * spec->kv_heads; i++)
        ((float *)cache->words)[cache->bias + i] = spec->bias * (float)(i % 7);
}

/* The rings of the table, the first last, as in a cache. */
typedef struct fx_rings {
    uint32_t at[VIEW_RANGES], capacity[VIEW_RANGES];
    size_t units; /* in all */
} fx_rings;

/* Parts of the first token's view: an old token sees less of the end. The rings wrap around. */
static fx_seen *random_seen(const fx_spec *spec, uint64_t *rng)
{
    fx_seen *seen = fx_alloc(spec->n * sizeof *seen);
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t r = 0; r < spec->n_ranges; r++) {
            const uint32_t capacity = power_of_two(spec->count[r]);
            const bool all = t == 0 || spec->count[r] < 2;
            seen[t].first[r] = capacity - capacity / 3 - 1;
            seen[t].count[r] = all ? spec->count[r] : 1 + (uint32_t)(rng_next(rng) % spec->count[r]);
        }
    return seen;
}

static fx_rings make_rings(fx_cache *cache, const fx_seen *seen)
{
    const fx_spec *spec = &cache->spec;
    fx_rings rings = {0};
    cache->table_words = 3;
    for (uint32_t r = spec->n_ranges; r-- > 0;) {
        uint32_t first = UINT32_MAX, end = 0;
        for (uint32_t t = 0; t < spec->n; t++)
            if (seen[t].count[r]) {
                first = seen[t].first[r] < first ? seen[t].first[r] : first;
                end = seen[t].first[r] + seen[t].count[r] > end ? seen[t].first[r] + seen[t].count[r] : end;
            }
        rings.at[r] = (uint32_t)cache->table_words;
        rings.capacity[r] = end ? power_of_two(end - first) : 1;
        rings.units += rings.capacity[r];
        cache->table_words += rings.capacity[r] + 1;
    }
    cache->table_words += 3;
    cache->table = fx_alloc(cache->table_words * 4);
    return rings;
}

static void make_view(fx_cache *cache, uint32_t t, const fx_rings *rings, const fx_seen *seen, uint64_t *rng)
{
    const fx_spec *spec = &cache->spec;
    view *v = (view *)(cache->words + cache->step.views) + t;
    memset(v, 0, sizeof *v);
    for (uint32_t r = 0; r < spec->n_ranges; r++) {
        const uint32_t mask = rings->capacity[r] - 1, i = v->n_ranges;
        if (!seen->count[r])
            continue;
        v->range[v->n_ranges++] = (view_range){.ring = rings->at[r],
                                               .mask = mask,
                                               .begin = seen->first[r] & mask,
                                               .count = seen->count[r],
                                               .place = v->units,
                                               .bias = (uint32_t)(cache->bias + r * spec->layers * spec->kv_heads)};
        v->units += seen->count[r];
        fx_rotation((float *)cache->words + cache->step.query_rot + (t * VIEW_RANGES + i) * (size_t)spec->head_dim,
                    spec->head_dim, (int64_t)(rng_next(rng) % 10000));
    }
    if (v->units > cache->step.max_units)
        cache->step.max_units = v->units;
}

/* Merges of `free_slots`, three for each; the result goes into a, b or the third. */
static void make_merges(fx_cache *cache, const uint32_t *free_slots, uint64_t *rng)
{
    const fx_spec *spec = &cache->spec;
    for (uint32_t m = 0; m < spec->n_merges; m++) {
        const uint32_t *slots = free_slots + 3 * m;
        const merge_pair pair = {slots[0], slots[1], slots[m % 3], m % 5};
        memcpy(cache->words + cache->step.merges + m * (size_t)MERGE_WORDS, &pair, sizeof pair);
        for (uint32_t i = 0; i < 3; i++)
            fx_rotation((float *)cache->words + cache->step.merge_rot + (3 * m + i) * (size_t)spec->head_dim,
                        spec->head_dim, (int64_t)(rng_next(rng) % 10000));
    }
}

void fx_cache_new(fx_cache *cache, const fx_spec *spec, uint64_t *rng)
{
    *cache = (fx_cache){.spec = *spec};
    fx_seen *made = spec->seen ? NULL : random_seen(spec, rng);
    const fx_seen *seen = spec->seen ? spec->seen : made;
    const fx_rings rings = make_rings(cache, seen);
    const size_t total = make_blocks(cache, rings.units + spec->n + 3 * (size_t)spec->n_merges);
    uint32_t *slots = shuffled_slots(cache, total, rng);
    size_t used = 0;
    for (uint32_t r = 0; r < spec->n_ranges; r++)
        for (uint32_t j = 0; j < rings.capacity[r]; j++)
            cache->table[rings.at[r] + j] = slots[used++];
    make_step(cache);
    for (uint32_t t = 0; t < spec->n; t++) {
        cache->words[cache->step.slots + t] = slots[used++];
        fx_rotation((float *)cache->words + cache->step.key_rot + t * (size_t)spec->head_dim, spec->head_dim,
                    (int64_t)(rng_next(rng) % 10000));
        make_view(cache, t, &rings, seen + t, rng);
    }
    make_merges(cache, slots + used, rng);
    free(slots);
    free(made);
}

void fx_cache_free(fx_cache *cache)
{
    for (uint32_t b = 0; b < cache->pool.n_blocks; b++)
        free(cache->block[b]);
    free(cache->table);
    free(cache->words);
    *cache = (fx_cache){0};
}

size_t fx_element(const fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c)
{
    const kv_pool *p = &cache->pool;
    const size_t units = p->block_units[slot >> KV_SLOT_BITS], u = slot & ((1u << KV_SLOT_BITS) - 1);
    return ((((size_t)layer * 2 + (size_t)w) * p->kv_heads + h) * units + u) * p->head_dim + c;
}

double fx_get(const fx_cache *cache, void *const *blocks, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c)
{
    const void *block = blocks[slot >> KV_SLOT_BITS];
    const size_t at = fx_element(cache, layer, w, h, slot, c);
    return cache->pool.type == KV_F16 ? half_to_float(((const uint16_t *)block)[at]) : ((const float *)block)[at];
}

void fx_put(fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t c, double value)
{
    void *block = cache->block[slot >> KV_SLOT_BITS];
    const size_t at = fx_element(cache, layer, w, h, slot, c);
    if (cache->pool.type == KV_F16)
        ((uint16_t *)block)[at] = float_to_half((float)value);
    else
        ((float *)block)[at] = (float)value;
}

void fx_cache_fill(fx_cache *cache, uint32_t layer, uint32_t slot, fx_input input, uint64_t *rng)
{
    const kv_pool *p = &cache->pool;
    const double scale = input == FX_LARGE ? 1e-2 : input == FX_TINY && p->type == KV_F16 ? 1e14 : 1;
    uint64_t same = 12345;
    float x[1024];
    for (int w = 0; w < 2; w++)
        for (uint32_t h = 0; h < p->kv_heads; h++) {
            fx_fill(x, 1, p->head_dim, input, input == FX_EQUAL ? &same : rng);
            for (uint32_t c = 0; c < p->head_dim; c++)
                fx_put(cache, layer, w, h, slot, c, x[c] * scale);
        }
}

/* Only the first of many units has outliers. */
static fx_input of_unit(fx_input input, bool first) { return input == FX_OUTLIER && !first ? FX_NORMAL : input; }

void fx_cache_fill_views(fx_cache *cache, uint32_t layer, fx_input input, uint64_t *rng)
{
    bool *filled[KV_BLOCKS], first = true;
    for (uint32_t b = 0; b < cache->pool.n_blocks; b++)
        filled[b] = fx_alloc(cache->pool.block_units[b]);
    for (uint32_t t = 0; t < cache->step.n; t++) {
        const view *v = fx_view(cache, t);
        for (uint32_t r = 0; r < v->n_ranges; r++)
            for (uint32_t j = 0; j < v->range[r].count; j++) {
                const uint32_t slot = fx_slot(cache, v->range + r, j);
                bool *done = &filled[slot >> KV_SLOT_BITS][slot & ((1u << KV_SLOT_BITS) - 1)];
                if (!*done)
                    fx_cache_fill(cache, layer, slot, of_unit(input, first), rng);
                *done = true;
                first = false;
            }
    }
    for (uint32_t b = 0; b < cache->pool.n_blocks; b++)
        free(filled[b]);
}

void fx_cache_fill_merges(fx_cache *cache, fx_input input, uint64_t *rng)
{
    for (uint32_t m = 0; m < cache->spec.n_merges; m++)
        for (uint32_t layer = 0; layer < cache->spec.layers; layer++) {
            fx_cache_fill(cache, layer, fx_merge(cache, m)->a, of_unit(input, m == 0), rng);
            fx_cache_fill(cache, layer, fx_merge(cache, m)->b, of_unit(input, false), rng);
        }
}

float fx_bias(const fx_cache *cache, const view_range *range, uint32_t layer, uint32_t kv_head)
{
    return ((const float *)cache->words)[range->bias + (size_t)layer * cache->spec.kv_heads + kv_head];
}

const view *fx_view(const fx_cache *cache, uint32_t t) { return (const view *)(cache->words + cache->step.views) + t; }

static const float *rotation_at(const fx_cache *cache, size_t start, size_t index)
{
    return (const float *)cache->words + start + index * cache->spec.head_dim;
}

const float *fx_query_rot(const fx_cache *cache, uint32_t t, uint32_t range)
{
    return rotation_at(cache, cache->step.query_rot, (size_t)t * VIEW_RANGES + range);
}

const float *fx_key_rot(const fx_cache *cache, uint32_t t) { return rotation_at(cache, cache->step.key_rot, t); }

const merge_pair *fx_merge(const fx_cache *cache, uint32_t m)
{
    return (const merge_pair *)(cache->words + cache->step.merges) + m;
}

const float *fx_merge_rot(const fx_cache *cache, uint32_t m, uint32_t which)
{
    return rotation_at(cache, cache->step.merge_rot, 3 * (size_t)m + which);
}

uint32_t fx_slot(const fx_cache *cache, const view_range *range, uint32_t j)
{
    return cache->table[range->ring + ((range->begin + j) & range->mask)];
}

void fx_pair(rope_kind rope, uint32_t head_dim, uint32_t i, uint32_t *first, uint32_t *second)
{
    *first = rope == ROPE_HALF ? i : 2 * i;
    *second = rope == ROPE_HALF ? i + head_dim / 2 : 2 * i + 1;
}

void fx_upload(const fx_cache *cache, fx_make make, void *context, kv_pool *pool, step *step)
{
    static const char *const names[] = {"block 0", "block 1", "block 2", "block 3", "block 4"};
    *pool = cache->pool;
    *step = cache->step;
    for (uint32_t b = 0; b < pool->n_blocks; b++)
        pool->block[b] =
            make(context, names[b], cache->block[b], cache->block_bytes[b], cache->spec.type == KV_F16 ? 2 : 4);
    pool->table = make(context, "table", cache->table, cache->table_words * 4, 4);
    step->data = make(context, "step", cache->words, cache->step_words * 4, 4);
}

buffer *fx_make_plain(void *context, const char *name, const void *data, size_t bytes, unsigned item)
{
    backend *b = context;
    buffer *made = NULL;
    (void)item;
    if (b->ops->buffer_new(b, bytes, MEM_SCRATCH, &made) != DCM_OK || b->ops->write(made, 0, data, bytes) != DCM_OK) {
        fprintf(stderr, "test: buffer %s: %s\n", name, dcm_error());
        exit(EXIT_FAILURE);
    }
    return made;
}

void fx_free_uploaded(kv_pool *pool, step *step)
{
    for (uint32_t b = 0; b < pool->n_blocks; b++)
        buffer_free(&pool->block[b]);
    buffer_free(&pool->table);
    buffer_free(&step->data);
}
