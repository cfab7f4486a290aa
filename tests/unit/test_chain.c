/* Chains of linear maps and attention on every device: each link reads what those before it wrote, and the bits are
 * those of single launches, also while launches are counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops/ops_cl.h"
#include "ops/profile.h"
#include "support/fixture.h"
#include "each_device.h"

/* LAYERS: more than one launch takes. */
enum { HIDDEN = 96, FFN = 160, OTHER = HIDDEN + 5, LAYERS = 14, LAYER_LINKS = 5, LINKS = LAYERS * LAYER_LINKS + 1 };
enum { CACHED_LAYERS = 2, ROUNDS = 5 };

typedef struct shape {
    quant_type type;
    fx_spec cache;
} shape;

/* One side's model, cache and activations. */
typedef struct side {
    backend *b;
    const shape *shape;
    matrix *qkv, *attn_out, *gate_up, *down, *other;
    buffer *gain, *bias, *x, *rows, *attn, *gate, *out;
    kv_pool pool;
    step step;
} side;

static uint32_t attn_size(const fx_spec *s) { return s->heads * s->head_dim; }

static uint32_t qkv_size(const fx_spec *s) { return attn_size(s) + 2 * s->kv_heads * s->head_dim; }

static matrix *make_matrix(backend *b, quant_type type, uint32_t rows, uint32_t cols)
{
    uint64_t rng = rows;
    matrix *w = NULL;
    void *data = fx_weights(type, rows, cols, 0.1, &rng);
    assert_int_equal(b->ops->matrix_new(b, type, rows, cols, data, &w), DCM_OK);
    free(data);
    return w;
}

static buffer *make_vector(backend *b, const char *name, size_t items)
{
    uint64_t rng = items;
    float *x = fx_alloc(items * sizeof *x);
    fx_fill(x, 1, items, FX_NORMAL, &rng);
    buffer *made = fx_make_plain(b, name, x, items * sizeof *x, 4);
    free(x);
    return made;
}

static void make(backend *b, const shape *shape, const fx_cache *cache, side *s)
{
    const quant_type type = shape->type;
    const uint32_t attn = attn_size(&shape->cache), qkv = qkv_size(&shape->cache);
    *s = (side){.b = b,
                .shape = shape,
                .qkv = make_matrix(b, type, qkv, HIDDEN),
                .attn_out = make_matrix(b, type, HIDDEN, attn),
                .gate_up = make_matrix(b, type, 2 * FFN, HIDDEN),
                .down = make_matrix(b, type, HIDDEN, FFN),
                .other = make_matrix(b, type == QUANT_F16 ? QUANT_F32 : QUANT_F16, OTHER, HIDDEN),
                .gain = make_vector(b, "gain", HIDDEN),
                .bias = make_vector(b, "bias", OTHER),
                .x = make_vector(b, "x", HIDDEN),
                .rows = make_vector(b, "rows", qkv),
                .attn = make_vector(b, "attn", attn),
                .gate = make_vector(b, "gate", 2 * FFN),
                .out = make_vector(b, "out", OTHER)};
    fx_upload(cache, fx_make_plain, b, &s->pool, &s->step);
}

static void release(side *s)
{
    matrix_free(&s->qkv), matrix_free(&s->attn_out), matrix_free(&s->gate_up), matrix_free(&s->down);
    matrix_free(&s->other);
    buffer_free(&s->gain), buffer_free(&s->bias), buffer_free(&s->x), buffer_free(&s->rows), buffer_free(&s->attn);
    buffer_free(&s->gate), buffer_free(&s->out);
    fx_free_uploaded(&s->pool, &s->step);
}

static op_link attention(side *s, uint32_t layer)
{
    return (op_link){.kind = LINK_ATTENTION,
                     .attention = {.pool = &s->pool,
                                   .step = &s->step,
                                   .layer = layer % CACHED_LAYERS,
                                   .rope = s->shape->cache.rope,
                                   .qkv = s->rows,
                                   .heads = s->shape->cache.heads,
                                   .out = s->attn,
                                   .store = true}};
}

/* The layers of a model, and a map of another type whose result, `out`, has the bits of all. */
static void run(side *s, bool chained)
{
    const linear_args map = {.n = 1, .eps = 1e-5f, .gain = s->gain, .x = s->x, .y = s->x};
    linear_args qkv = map, attn_out = map, gate_up = map, down = map, other = map;
    op_link link[LINKS];
    qkv.w = s->qkv, qkv.input = INPUT_RMSNORM, qkv.y = s->rows, qkv.ldy = qkv_size(&s->shape->cache);
    attn_out.w = s->attn_out, attn_out.x = s->attn, attn_out.add = true, attn_out.ldy = HIDDEN;
    gate_up.w = s->gate_up, gate_up.input = INPUT_RMSNORM, gate_up.y = s->gate, gate_up.ldy = 2 * FFN;
    down.w = s->down, down.input = INPUT_SWIGLU, down.x = s->gate, down.add = true, down.ldy = HIDDEN;
    other.w = s->other, other.bias = s->bias, other.y = s->out, other.ldy = OTHER;
    for (uint32_t i = 0; i < LAYERS; i++) {
        op_link *l = link + i * LAYER_LINKS;
        l[0] = (op_link){.linear = qkv}, l[1] = attention(s, i), l[2] = (op_link){.linear = attn_out};
        l[3] = (op_link){.linear = gate_up}, l[4] = (op_link){.linear = down};
    }
    link[LINKS - 1] = (op_link){.linear = other};
    assert_int_equal((chained ? s->b->ops->chain : chain_each)(s->b, link, LINKS), DCM_OK);
}

static void assert_same(buffer *a, buffer *b, bool finite)
{
    float *x = fx_alloc(a->bytes), *y = fx_alloc(b->bytes);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->owner->ops->read(a, 0, x, a->bytes), DCM_OK);
    assert_int_equal(b->owner->ops->read(b, 0, y, b->bytes), DCM_OK);
    assert_memory_equal(x, y, a->bytes);
    assert_true(!finite || isfinite(x[0]));
    free(x);
    free(y);
}

/* Launches of a round: of attention each by itself, of chains where they are made, and no plan written once more. */
static void assert_counted(backend *b, const profile *counted)
{
    uint64_t attentions = 0, chains = 0, writes = 0;
    for (size_t i = 0; i < counted->count; i++) {
        const dcm_profile_entry *e = &counted->entry[i];
        attentions += strcmp(e->family, "attention") ? 0 : e->launches;
        chains += strcmp(e->kernel, "chain") ? 0 : e->launches;
        writes += strcmp(e->family, "transfer") ? 0 : e->launches;
    }
    const bool chained = clop_wide(b) && clop_device(b)->limits.type & CL_DEVICE_TYPE_CPU;
    assert_true(attentions >= LAYERS);
    assert_int_equal(chains, chained ? 2 * LAYERS : 0);
    assert_int_equal(writes, 0);
}

/* Each round begins with the x of the one before; in the last two, launches are counted. */
static void same_bits_of(backend *b, const shape *shape)
{
    fx_cache cache;
    side s[2];
    profile counted = {0};
    uint64_t rng = 1;
    fx_cache_new(&cache, &shape->cache, &rng);
    for (uint32_t i = 0; i < CACHED_LAYERS; i++)
        fx_cache_fill_views(&cache, i, FX_NORMAL, &rng);
    make(b, shape, &cache, &s[0]);
    make(b, shape, &cache, &s[1]);
    for (int round = 0; round < ROUNDS; round++) {
        run(&s[0], false);
        counted = (profile){0};
        if (round >= ROUNDS - 2)
            assert_int_equal(b->ops->profile(b, &counted), DCM_OK);
        run(&s[1], true);
        assert_int_equal(b->ops->profile(b, NULL), DCM_OK);
        assert_same(s[0].x, s[1].x, true);
        assert_same(s[0].attn, s[1].attn, true);
        assert_same(s[0].out, s[1].out, true);
        for (uint32_t i = 0; i < cache.pool.n_blocks; i++)
            assert_same(s[0].pool.block[i], s[1].pool.block[i], false);
    }
    assert_counted(b, &counted);
    release(&s[0]);
    release(&s[1]);
    fx_cache_free(&cache);
}

static void same_bits(backend *b)
{
    static const shape shapes[] = {
        {QUANT_Q4_1,
         {CACHED_LAYERS, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 300}, .bias = 1}},
        {QUANT_F16, {CACHED_LAYERS, 4, 4, 80, KV_F32, ROPE_HALF, .n = 1, .n_ranges = 1, .count = {1}}},
        {QUANT_Q8_0, {CACHED_LAYERS, 1, 8, 72, KV_F16, ROPE_HALF, .n = 1, .n_ranges = 3, .count = {2, 7, 61}}},
        {QUANT_F32, {CACHED_LAYERS, 2, 2, 128, KV_F32, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 4093}}},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        same_bits_of(b, &shapes[i]);
}

static void chains(void **state)
{
    (void)state;
    on_every_device(same_bits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(chains)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
