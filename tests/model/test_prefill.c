/*
 * A prompt read in steps of many tokens leaves what reading it token by token leaves: test_prefill MODEL.gguf
 * [SEED]. Every chunk 1 .. 140 (steps of 1 .. 70 tokens once units merge), 128, 512, 1000, every L 2 .. 256, sinks 0,
 * 1, 4, every phase of a schedule's cycle and each kind of merge are covered; the rest of a combination is drawn from
 * the seed. The chunk changes no bit of the logits, nor of those of the tokens decoded afterwards, and until the first
 * merge they are those of the full cache. On `ref` they, and the contents of the cache, are the bits of token by token;
 * on OpenCL devices, with keys and values in f32, they are off the reference by at most 8 times what decoding is off by
 * (f16 storage would turn a last bit into a rounding of 2^-11 here and there). Of merge MLPs the bits may depend on
 * the chunk where CLBlast chooses its kernel by the number of rows: on GPUs they are held to the bound alone.
 */
#include "golden.h"

#include "base/hash.h"
#include "base/rng.h"
#include "cache/ring.h"
#include "session/peek.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AFTER = 3, TOKENS_MAX = 4096, FACTOR = 8, ONE_BY_ONE = UINT16_MAX };

typedef struct combination {
    dcm_cache_kind kind;
    uint32_t chunk, group; /* of a window: its units */
    int sinks;
    size_t tokens;
    dcm_kv_type kv;
    const char *merge;
} combination;

typedef struct place {
    const char *name;
    dcm_device *device;
    dcm_model *model;
    dcm_model_info info;
    bool is_ref, is_gpu;
} place;

static const char newer[] = "newer", mean[] = "mean", gate[] = TEST_GOLDEN "/model/tiny/gate.safetensors",
                  direct[] = TEST_GOLDEN "/model/tiny/direct.safetensors";
static const char *const merges[] = {newer, mean, gate, direct};
static uint64_t seed, rng;
static int32_t ids[TOKENS_MAX];

static bool place_open(place *p, const char *name, const char *path)
{
    const dcm_device_params where = {.name = name, .threads = 1};
    *p = (place){.name = name};
    if (dcm_device_open(&p->device, &where) != DCM_OK || dcm_model_open(&p->model, p->device, path) != DCM_OK)
        return golden_fail("%s: %s", name, dcm_error());
    dcm_device_info device;
    dcm_device_get_info(p->device, &device);
    p->is_ref = device.is_ref;
    p->is_gpu = !strcmp(device.type, "gpu");
    dcm_model_get_info(p->model, &p->info);
    return true;
}

static void place_close(place *p)
{
    dcm_model_close(&p->model);
    dcm_device_close(&p->device);
}

/* Every unit of the cache, each level in the order of its nodes: all bytes that the reference holds of them. */
static uint64_t contents(const cache *c)
{
    const kv_pool *pool = &c->slots.pool;
    const size_t row = pool->head_dim * (pool->type == KV_F32 ? 4 : 2);
    uint64_t hash = HASH_START;
    for (uint32_t g = 0; g < RINGS; g++)
        for (uint64_t i = 0; i < ring_count(c, g); i++) {
            const uint64_t node = ring_first(c, g) + i;
            const uint32_t slot = ring_get(c, g, node), block = slot >> KV_SLOT_BITS;
            const size_t unit = slot & ((1u << KV_SLOT_BITS) - 1), units = pool->block_units[block];
            hash = hash_bytes(hash, &node, sizeof node);
            for (size_t plane = 0; plane < (size_t)pool->layers * 2 * pool->kv_heads; plane++)
                hash = hash_bytes(hash, (const char *)pool->block[block]->handle + (plane * units + unit) * row, row);
        }
    return hash;
}

static dcm_cache_params params_of(const combination *c, uint32_t chunk)
{
    dcm_cache_params params = {.kind = c->kind, .kv = c->kv, .chunk = chunk};
    if (c->kind != DCM_CACHE_FULL)
        params.sinks = c->sinks ? c->sinks : -1;
    if (c->kind == DCM_CACHE_DCM)
        params.group = c->group, params.merge = c->merge;
    else if (c->kind == DCM_CACHE_WINDOW)
        params.window = c->group;
    return params;
}

static bool units_right(const combination *c, const dcm_session *session)
{
    dcm_session_stats stats;
    dcm_session_get_stats(session, &stats);
    const size_t n = c->tokens;
    const size_t units = c->kind == DCM_CACHE_DCM ? dcm_units_after(c->group, (uint32_t)c->sinks, n)
                         : c->kind == DCM_CACHE_WINDOW && n > c->group ? c->group
                                                                       : n;
    return stats.units == units;
}

/*
 * Logits after the prompt and after each of AFTER more tokens, (AFTER + 1, vocab), and on the reference behind them the
 * cache's contents after the prompt; the caller frees them. NULL on failure.
 */
static float *read_prompt(const place *p, const combination *c, uint32_t chunk)
{
    const dcm_cache_params params = params_of(c, chunk);
    const size_t count = (AFTER + 1) * (size_t)p->info.vocab;
    dcm_session *session = NULL;
    float *logits = calloc(1, count * sizeof *logits + sizeof(uint64_t));
    bool ok = logits && dcm_session_open(&session, p->model, &params) == DCM_OK;
    if (chunk != ONE_BY_ONE)
        ok = ok && dcm_session_feed(session, ids, c->tokens, logits) == DCM_OK;
    else
        for (size_t i = 0; ok && i < c->tokens; i++)
            ok = dcm_session_feed(session, ids + i, 1, logits) == DCM_OK;
    ok = ok && units_right(c, session);
    if (ok && p->is_ref) {
        const uint64_t hash = contents(session_cache(session));
        memcpy(logits + count, &hash, sizeof hash);
    }
    for (size_t i = 0; ok && i < AFTER; i++)
        ok = dcm_session_feed(session, ids + c->tokens + i, 1, logits + (i + 1) * p->info.vocab) == DCM_OK;
    dcm_session_close(&session);
    if (!ok) {
        golden_fail("%s: chunk %u, kind %d, L %u, %d sinks, %zu tokens: %s", p->name, chunk, (int)c->kind, c->group,
                    c->sinks, c->tokens, dcm_error());
        free(logits);
        return NULL;
    }
    return logits;
}

static double furthest(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - b[i]);
        most = off <= most ? most : off; /* a NaN stays */
    }
    return most;
}

static bool has_mlp(const combination *c) { return c->merge == gate || c->merge == direct; }

/* One combination on the reference and, where `cl` is given, on that device. */
static bool check(const place *ref, const place *cl, combination *c, double *worst)
{
    if (cl)
        c->kv = DCM_KV_F32;
    const place *p = cl ? cl : ref;
    const size_t n = (AFTER + 1) * (size_t)ref->info.vocab, bytes = n * sizeof(float) + sizeof(uint64_t);
    float *truth = read_prompt(ref, c, ONE_BY_ONE), *single = cl ? read_prompt(cl, c, ONE_BY_ONE) : NULL;
    float *steps = read_prompt(p, c, c->chunk), *usual_steps = read_prompt(p, c, 0);
    bool ok = truth && steps && usual_steps && (!cl || single);
    if (ok && !(p->is_gpu && has_mlp(c)))
        ok = !memcmp(steps, usual_steps, bytes) || golden_fail("%s: the chunk changes the bits", p->name);
    if (ok && !cl)
        ok = !memcmp(truth, steps, bytes) || golden_fail("ref: the bits differ from token by token");
    if (ok && cl) {
        const double usual = furthest(single, truth, n), off = furthest(steps, truth, n), ratio = off / usual;
        *worst = ratio <= *worst ? *worst : ratio;
        ok = off <= FACTOR * usual || golden_fail("%s: off by %g, where decoding is off by %g", cl->name, off, usual);
    }
    if (!ok)
        golden_fail("chunk %u, kind %d, L %u, %d sinks, %zu tokens, %s, %s; repeat with seed %llu", c->chunk,
                    (int)c->kind, c->group, c->sinks, c->tokens, golden_kv_name(c->kv), c->merge,
                    (unsigned long long)seed);
    free(truth);
    free(single);
    free(steps);
    free(usual_steps);
    return ok;
}

/* A prompt of as many tokens as are not merged, and one more: the bits of the full cache, and then no longer. */
static bool check_unmerged(const place *p, uint32_t group, int sinks, dcm_kv_type kv)
{
    const size_t unmerged = 2 * group - 1 + (size_t)sinks, bytes = p->info.vocab * sizeof(float);
    const dcm_cache_params params[2] = {{.group = group, .sinks = sinks ? sinks : -1, .merge = "newer", .kv = kv},
                                        {.kind = DCM_CACHE_FULL, .kv = kv}};
    bool ok = true;
    for (size_t more = 0; more < 2; more++) {
        float *logits[2] = {malloc(bytes), malloc(bytes)};
        for (int i = 0; i < 2; i++) {
            dcm_session *session = NULL;
            ok = ok && logits[i] && dcm_session_open(&session, p->model, &params[i]) == DCM_OK &&
                 dcm_session_feed(session, ids, unmerged + more, logits[i]) == DCM_OK;
            dcm_session_close(&session);
        }
        ok = ok && (memcmp(logits[0], logits[1], bytes) == 0) == (more == 0);
        free(logits[0]);
        free(logits[1]);
    }
    return ok || golden_fail("%s: L %u, %d sinks, %s: not the bits of the full cache until the first merge", p->name,
                             group, sinks, golden_kv_name(kv));
}

static uint64_t draw(uint64_t below) { return rng_next(&rng) % below; }

/* What a combination leaves open. `group` 0: drawn, small ones more often than large ones. */
static combination fill(uint32_t chunk, uint32_t group, size_t tokens)
{
    static const int sinks[] = {0, 1, 4};
    combination c = {.chunk = chunk,
                     .group = group ? group : 2u << draw(1 + draw(7)),
                     .sinks = sinks[draw(3)],
                     .kv = draw(2) ? DCM_KV_F16 : DCM_KV_F32,
                     .merge = merges[draw(4)]};
    c.tokens = tokens ? tokens : 1 + draw(dcm_near_coverage(c.group) + 2 * c.group);
    if (!tokens && c.tokens > 600)
        c.tokens = 600 - draw(100);
    return c;
}

static bool run(const place *ref, const place *cl)
{
    static const uint32_t large[] = {128, 512, 1000};
    bool ok = true;
    size_t count = 0;
    double worst = 0;
    for (uint32_t chunk = 1; chunk <= 140; chunk++, count++)
        ok = check(ref, cl, &(combination[]){fill(chunk, 0, 0)}[0], &worst) && ok;
    for (size_t i = 0; i < sizeof large / sizeof *large; i++, count += 2) {
        ok = check(ref, cl, &(combination[]){fill(large[i], 256, 1100)}[0], &worst) && ok;
        ok = check(ref, cl, &(combination[]){fill(large[i], 2u << i * 2, 1100)}[0], &worst) && ok;
    }
    for (uint32_t chunk = 3; chunk < 400; chunk *= 3, count += 2) { /* the same path without merges */
        combination window = fill(chunk, 64, 0), full = window;
        window.kind = DCM_CACHE_WINDOW, full.kind = DCM_CACHE_FULL;
        ok = check(ref, cl, &window, &worst) && check(ref, cl, &full, &worst) && ok;
    }
    for (uint32_t group = 2; group <= 256; group *= 2, count++)
        ok = check(ref, cl,
                   &(combination[]){
                       fill(1 + (uint32_t)draw(4 * group), group, dcm_near_coverage(group) + draw(group))}[0],
                   &worst) &&
             ok;
    for (uint32_t phase = 0; phase < 16; phase++, count++) /* a prompt that ends at each place of a cycle */
        ok = check(ref, cl, &(combination[]){fill(1 + (uint32_t)draw(64), 16, dcm_near_coverage(16) + 4 + phase)}[0],
                   &worst) &&
             ok;
    for (uint32_t group = 2; group <= 64; group *= 2)
        for (int sinks = 0; sinks < 5; sinks += 2)
            ok = check_unmerged(cl ? cl : ref, group, sinks, group % 4 ? DCM_KV_F16 : DCM_KV_F32) && ok;
    if (cl)
        printf("%s: %zu combinations, at most %.2f times as far off as decoding: %s\n", cl->name, count, worst,
               ok ? "ok" : "FAILED");
    else
        printf("ref: %zu combinations, the same bits: %s\n", count, ok ? "ok" : "FAILED");
    fflush(stdout);
    return ok;
}

int main(int argc, char **argv)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    size_t devices;
    place ref, cl;
    if (argc < 2 || !golden_devices(names, &devices) || !place_open(&ref, "ref", argv[1]))
        return EXIT_FAILURE;
    seed = rng = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < TOKENS_MAX; i++)
        ids[i] = (int32_t)draw(ref.info.vocab);
    bool ok = true;
    for (size_t i = 0; i < devices; i++) {
        const bool is_ref = !strcmp(names[i], "ref");
        if (!is_ref && !place_open(&cl, names[i], argv[1])) {
            ok = false;
            continue;
        }
        ok = run(&ref, is_ref ? NULL : &cl) && ok;
        if (!is_ref)
            place_close(&cl);
    }
    place_close(&ref);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
