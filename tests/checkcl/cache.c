/* cl_kv_store: new keys, turned at their anchors, and values into their slots, and nowhere else. */
#include "harness.h"

typedef struct store_case {
    fx_cache cache;
    uint32_t layer;
    float *qkv;
    size_t qkv_bytes;
} store_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const store_case *s = what;
    kv_pool pool;
    step step;
    fx_upload(&s->cache, ck_make, &(ck_maker){c, side}, &pool, &step);
    const kv_store_args args = {.pool = &pool,
                                .step = &step,
                                .layer = s->layer,
                                .rope = s->cache.spec.rope,
                                .qkv = ck_buffer(c, side, "qkv", s->qkv, s->qkv_bytes, 4),
                                .heads = s->cache.spec.heads};
    return c->side[side]->ops->kv_store(c->side[side], &args);
}

/* A turned channel is a sum of two products: three roundings. Values are stored as they are. */
static void bounds(ck *c, const void *what)
{
    const store_case *s = what;
    const fx_spec *spec = &s->cache.spec;
    const size_t row = (size_t)(spec->heads + 2 * spec->kv_heads) * spec->head_dim;
    for (uint32_t t = 0; t < spec->n; t++)
        for (uint32_t h = 0; h < spec->kv_heads; h++) {
            const float *key = s->qkv + t * row + (spec->heads + h) * spec->head_dim, *rot = fx_key_rot(&s->cache, t);
            const uint32_t slot = s->cache.words[s->cache.step.slots + t];
            for (uint32_t i = 0; i < spec->head_dim / 2; i++) {
                uint32_t a, b;
                fx_pair(spec->rope, spec->head_dim, i, &a, &b);
                const double ac = fabs((double)key[a] * rot[2 * i]), as = fabs((double)key[a] * rot[2 * i + 1]);
                const double bc = fabs((double)key[b] * rot[2 * i]), bs = fabs((double)key[b] * rot[2 * i + 1]);
                ck_bound_unit(c, &s->cache, s->layer, 0, h, slot, a,
                              ck_stored(spec->type, ac + bs, 3 * CK_U * (ac + bs)));
                ck_bound_unit(c, &s->cache, s->layer, 0, h, slot, b,
                              ck_stored(spec->type, as + bc, 3 * CK_U * (as + bc)));
            }
        }
}

static void one(ck *c, const fx_spec *spec, fx_input fill)
{
    store_case s = {.layer = spec->layers - 1};
    if (!ck_case(c, "kv_store/h%u_kv%u_d%u_n%u_l%u_%s_%s_%s", spec->heads, spec->kv_heads, spec->head_dim, spec->n,
                 spec->layers, spec->type == KV_F16 ? "f16" : "f32", spec->rope == ROPE_HALF ? "half" : "interleaved",
                 fx_input_name(fill)))
        return;
    const size_t row = (size_t)(spec->heads + 2 * spec->kv_heads) * spec->head_dim;
    fx_cache_new(&s.cache, spec, &c->rng);
    s.qkv_bytes = spec->n * row * 4;
    s.qkv = fx_alloc(s.qkv_bytes);
    fx_fill(s.qkv, spec->n, row, fill, &c->rng);
    c->traffic = (size_t)spec->n * 2 * spec->kv_heads * spec->head_dim * (4 + (spec->type == KV_F16 ? 2 : 4));
    ck_run(c, run, bounds, &s);
    fx_cache_free(&s.cache);
    free(s.qkv);
}

void check_kv_store(ck *c)
{
    static const uint32_t dims[] = {8, 16, 48, 64, 96, 128, 256}, n[] = {1, 2, 31, 32, 33, 65};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (int form = 0; form < 4; form++)
            one(c,
                &(fx_spec){3, 3, 9, dims[i], form & 1 ? KV_F32 : KV_F16, form & 2 ? ROPE_HALF : ROPE_INTERLEAVED,
                           .n = 1 + (uint32_t)form},
                FX_NORMAL);
    for (int fill = 0; fill < FX_INPUTS; fill++)
        for (int form = 0; form < 2; form++)
            one(c, &(fx_spec){2, 2, 4, 64, form ? KV_F32 : KV_F16, ROPE_HALF, .n = 5}, (fx_input)fill);
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        one(c, &(fx_spec){1, 1, 1, 64, KV_F16, ROPE_INTERLEAVED, .n = n[i]}, FX_NORMAL);
}
