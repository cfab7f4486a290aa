/*
 * Chains of linear maps and attention on every device: each link reads what those before it wrote, and the bits are
 * those of single launches, also while launches are counted, wherever a chain is cut, and where work-items give up
 * waiting. Programs and launches pass through the test (the linker's --wrap).
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "each_device.h"
#include "ops/ops_cl.h"
#include "ops/profile.h"
#include "support/fixture.h"

/* LAYERS: more than one launch takes. */
enum { HIDDEN = 96, OTHER = HIDDEN + 5, LAYERS = 24, LAYER_LINKS = 5, LINKS = LAYERS * LAYER_LINKS + 1 };
enum { CACHED_LAYERS = 2, ROUNDS = 5 };

/* What chain_wait in cl/chain.cl has for the number of its looks at a counter, and what it has here; NULL: the same. */
static const char looks[] = "PATIENCE + cut->share_bytes";
static const char *other_looks;
static unsigned changed_programs, launched_chains;

/* The linker gives these names. */
cl_program __real_clCreateProgramWithSource(cl_context context, cl_uint count, const char **parts, const size_t *sizes,
                                            cl_int *error);
cl_program __wrap_clCreateProgramWithSource(cl_context context, cl_uint count, const char **parts, const size_t *sizes,
                                            cl_int *error);
cl_int __real_clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                                     const size_t *global, const size_t *local, cl_uint n_events,
                                     const cl_event *events, cl_event *event);
cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                                     const size_t *global, const size_t *local, cl_uint n_events,
                                     const cl_event *events, cl_event *event);

cl_program __wrap_clCreateProgramWithSource(cl_context context, cl_uint count, const char **parts, const size_t *sizes,
                                            cl_int *error)
{
    char *text = NULL, *all = NULL;
    size_t size = 0;
    if (!other_looks)
        return __real_clCreateProgramWithSource(context, count, parts, sizes, error);
    FILE *whole = open_memstream(&text, &size);
    assert_non_null(whole);
    for (cl_uint i = 0; i < count; i++)
        fwrite(parts[i], 1, sizes[i], whole);
    assert_int_equal(fclose(whole), 0);
    const char *found = strstr(text, looks);
    changed_programs += found != NULL;
    assert_true(asprintf(&all, "%.*s%s%s", (int)(found ? found - text : 0), text, found ? other_looks : "",
                         found ? found + strlen(looks) : text) >= 0);
    const cl_program program = __real_clCreateProgramWithSource(context, 1, (const char **)&all, NULL, error);
    free(all);
    free(text);
    return program;
}

cl_int __wrap_clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                                     const size_t *global, const size_t *local, cl_uint n_events,
                                     const cl_event *events, cl_event *event)
{
    char name[48] = "";
    clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL);
    launched_chains += !strcmp(name, "chain");
    return __real_clEnqueueNDRangeKernel(queue, kernel, dims, offset, global, local, n_events, events, event);
}

typedef struct shape {
    quant_type type;
    uint32_t ffn;
    bool apart;        /* each layer has weights and activations of its own */
    unsigned launches; /* that a chain takes */
    fx_spec cache;
} shape;

typedef struct layer {
    matrix *qkv, *attn_out, *gate_up, *down;
    buffer *gain, *bias, *rows, *attn, *gate;
} layer;

/* One side's model, cache and activations. */
typedef struct side {
    backend *b;
    const shape *shape;
    layer layer[LAYERS];
    matrix *other;
    buffer *bias, *x, *out;
    kv_pool pool;
    step step;
} side;

/* Layers that are made. */
static uint32_t layers(const shape *s) { return s->apart ? LAYERS : 1; }

static bool is_chained(const backend *b)
{
    return clop_wide(b) && clop_device((backend *)b)->limits.type & CL_DEVICE_TYPE_CPU;
}

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
                .other = make_matrix(b, type == QUANT_F16 ? QUANT_F32 : QUANT_F16, OTHER, HIDDEN),
                .bias = make_vector(b, "bias", OTHER),
                .x = make_vector(b, "x", HIDDEN),
                .out = make_vector(b, "out", OTHER)};
    for (uint32_t i = 0; i < layers(shape); i++)
        s->layer[i] = (layer){.qkv = make_matrix(b, type, qkv, HIDDEN),
                              .attn_out = make_matrix(b, type, HIDDEN, attn),
                              .gate_up = make_matrix(b, type, 2 * shape->ffn, HIDDEN),
                              .down = make_matrix(b, type, HIDDEN, shape->ffn),
                              .gain = make_vector(b, "gain", HIDDEN),
                              .bias = make_vector(b, "bias", qkv),
                              .rows = make_vector(b, "rows", qkv),
                              .attn = make_vector(b, "attn", attn),
                              .gate = make_vector(b, "gate", 2 * shape->ffn)};
    fx_upload(cache, fx_make_plain, b, &s->pool, &s->step);
}

static void release(side *s)
{
    for (uint32_t i = 0; i < layers(s->shape); i++) {
        layer *l = &s->layer[i];
        matrix_free(&l->qkv), matrix_free(&l->attn_out), matrix_free(&l->gate_up), matrix_free(&l->down);
        buffer_free(&l->gain), buffer_free(&l->bias), buffer_free(&l->rows), buffer_free(&l->attn);
        buffer_free(&l->gate);
    }
    matrix_free(&s->other);
    buffer_free(&s->bias), buffer_free(&s->x), buffer_free(&s->out);
    fx_free_uploaded(&s->pool, &s->step);
}

/* The links of layer `i`. */
static void layer_links(side *s, uint32_t i, op_link *link)
{
    const layer *l = &s->layer[i % layers(s->shape)];
    const linear_args map = {.n = 1, .eps = 1e-5f, .gain = l->gain, .x = s->x, .y = s->x};
    linear_args qkv = map, attn_out = map, gate_up = map, down = map;
    qkv.w = l->qkv, qkv.input = INPUT_RMSNORM, qkv.bias = l->bias, qkv.y = l->rows;
    qkv.ldy = qkv_size(&s->shape->cache);
    attn_out.w = l->attn_out, attn_out.x = l->attn, attn_out.add = true, attn_out.ldy = HIDDEN;
    gate_up.w = l->gate_up, gate_up.input = INPUT_RMSNORM, gate_up.y = l->gate, gate_up.ldy = 2 * s->shape->ffn;
    down.w = l->down, down.input = INPUT_SWIGLU, down.x = l->gate, down.add = true, down.ldy = HIDDEN;
    link[0] = (op_link){.linear = qkv};
    link[1] = (op_link){.kind = LINK_ATTENTION,
                        .attention = {.pool = &s->pool,
                                      .step = &s->step,
                                      .layer = i % CACHED_LAYERS,
                                      .rope = s->shape->cache.rope,
                                      .qkv = l->rows,
                                      .heads = s->shape->cache.heads,
                                      .out = l->attn,
                                      .store = true}};
    link[2] = (op_link){.linear = attn_out};
    link[3] = (op_link){.linear = gate_up};
    link[4] = (op_link){.linear = down};
}

/* The layers of a model, and a map of another type whose result, `out`, has the bits of all. */
static void run(side *s, bool chained)
{
    op_link link[LINKS];
    for (uint32_t i = 0; i < LAYERS; i++)
        layer_links(s, i, link + i * LAYER_LINKS);
    link[LINKS - 1] = (op_link){
        .linear = {.w = s->other, .x = s->x, .n = 1, .eps = 1e-5f, .bias = s->bias, .y = s->out, .ldy = OTHER}};
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
    assert_true(attentions >= LAYERS);
    assert_int_equal(chains, is_chained(b) ? 2 * LAYERS : 0);
    assert_int_equal(writes, 0);
}

/* What launches of chains count with is as they found it. */
static void assert_zeros(backend *b)
{
    buffer *marks = NULL;
    assert_int_equal(clop_scratch(b, CLOP_SCRATCH_CHAIN, sizeof(cl_uint), &marks), DCM_OK);
    cl_uint *mark = fx_alloc(marks->bytes);
    assert_int_equal(b->ops->read(marks, 0, mark, marks->bytes), DCM_OK);
    for (size_t i = 0; i < marks->bytes / sizeof *mark; i++)
        assert_int_equal(mark[i], 0);
    free(mark);
}

/* Each round begins with the x of the one before; in the last two, launches are counted. */
static void same_bits_of(backend *b, const shape *shape)
{
    fx_cache cache;
    static side s[2];
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
        launched_chains = 0;
        if (round >= ROUNDS - 2)
            assert_int_equal(b->ops->profile(b, &counted), DCM_OK);
        run(&s[1], true);
        assert_int_equal(b->ops->profile(b, NULL), DCM_OK);
        if (round < ROUNDS - 2)
            assert_int_equal(launched_chains, is_chained(b) ? shape->launches : 0);
        assert_zeros(b);
        assert_same(s[0].x, s[1].x, true);
        for (uint32_t i = 0; i < layers(shape); i++)
            assert_same(s[0].layer[i].attn, s[1].layer[i].attn, true);
        assert_same(s[0].out, s[1].out, true);
        for (uint32_t i = 0; i < cache.pool.n_blocks; i++)
            assert_same(s[0].pool.block[i], s[1].pool.block[i], false);
    }
    assert_counted(b, &counted);
    release(&s[0]);
    release(&s[1]);
    fx_cache_free(&cache);
}

/* The same once for each way that a chain is cut: after 64 links; where 96 buffers do not hold one more link's; behind
 * 32 MB of the cache; of weights. */
static const shape shapes[] = {
    {QUANT_Q4_1,
     160,
     false,
     2,
     {CACHED_LAYERS, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 300}, .bias = 1}},
    {QUANT_Q4_1,
     160,
     true,
     3,
     {CACHED_LAYERS, 3, 9, 64, KV_F16, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 300}, .bias = 1}},
    {QUANT_F16, 160, false, 2, {CACHED_LAYERS, 4, 4, 80, KV_F32, ROPE_HALF, .n = 1, .n_ranges = 1, .count = {1}}},
    {QUANT_F16, 16384, false, 6, {CACHED_LAYERS, 4, 4, 80, KV_F32, ROPE_HALF, .n = 1, .n_ranges = 1, .count = {1}}},
    {QUANT_Q8_0,
     160,
     false,
     2,
     {CACHED_LAYERS, 1, 8, 72, KV_F16, ROPE_HALF, .n = 1, .n_ranges = 3, .count = {2, 7, 61}}},
    {QUANT_F32,
     160,
     false,
     6,
     {CACHED_LAYERS, 2, 2, 128, KV_F32, ROPE_INTERLEAVED, .n = 1, .n_ranges = 2, .count = {4, 4093}}},
};

static void same_bits(backend *b)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        same_bits_of(b, &shapes[i]);
}

static void chains(void **state)
{
    (void)state;
    on_every_device(same_bits);
}

/* All work-items but the first, or but the last, end where they would wait first; each ends that finds something to
 * wait for. Those that stay wait for seconds if need be. */
static void without_patience(backend *b)
{
    static const char *const each[] = {"(get_global_id(0) > 0 ? 0 : 1ul << 31)",
                                       "(get_global_id(0) + 1 < get_global_size(0) ? 0 : 1ul << 31)", "1"};
    const bool own_cache = clop_device(b)->limits.own_cache;
    clop_device(b)->limits.own_cache = true; /* no program that is changed is kept */
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        backend *changed;
        changed_programs = 0;
        other_looks = each[i];
        assert_int_equal(backend_cl_open(&changed, clop_device(b), 0), DCM_OK);
        same_bits_of(changed, &shapes[0]);
        backend_close(&changed);
        other_looks = NULL;
        assert_int_equal(changed_programs, is_chained(b) ? 1 : 0);
    }
    clop_device(b)->limits.own_cache = own_cache;
}

static void items_that_end(void **state)
{
    (void)state;
    on_every_device(without_patience);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(chains), cmocka_unit_test(items_that_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
