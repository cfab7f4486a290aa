/*
 * Constant memory on a tiny model, on `ref` and every OpenCL device: test_steady MODEL.gguf. Ten thousand tokens
 * decoded one by one, and prompts of up to 200,000 (on `ref`, which is slower, 40,000). While a prompt is read the
 * device's peak is at most 1.02 x (units + chunk) beside weights, tables and scratch, whose sizes do not depend on the
 * prompt's length; with the first token after it the cache is at most 1.02 x its units and one step of growth. The
 * process grows by no more than the cache does, and holds at most 64 MiB more than that peak (what it held
 * after a short prompt aside, which builds the kernels).
 */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    TOKENS = 10000,
    SETTLED = 1000,
    GROUP = 64,
    SLACK = 1 << 20,
    SLACK_PROMPT = 4 << 20, /* 23 bytes a token */
    PROMPT = 200000,
    PROMPT_REF = 40000,
    PIECE = 2000,
    RESIDENT = 64 << 20
};

/* Resident bytes of this process. */
static size_t resident(void)
{
    size_t pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%*s %zu", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static bool decode(const char *name, dcm_session *session, const dcm_model_info *info)
{
    float *logits = malloc(info->vocab * sizeof *logits);
    uint64_t rng = 1;
    int32_t token = 0;
    size_t settled = 0;
    dcm_session_stats then = {0}, now;
    bool ok = logits != NULL;
    for (int i = 0; ok && i < TOKENS; i++) {
        ok = dcm_session_feed(session, &token, 1, logits) == DCM_OK || golden_fail("%s: %s", name, dcm_error());
        token = dcm_sample(logits, info->vocab, &(dcm_sample_params){.temperature = 1}, &rng);
        if (i + 1 == SETTLED) {
            settled = resident();
            dcm_session_get_stats(session, &then);
        }
    }
    free(logits);
    if (!ok)
        return false;
    dcm_session_get_stats(session, &now);
    const size_t grown = resident() > settled ? resident() - settled : 0, cache = now.cache_bytes - then.cache_bytes;
    ok = settled && grown <= cache + SLACK && now.units == dcm_units_after(GROUP, 4, TOKENS) && now.tokens == TOKENS;
    printf("%s: %d tokens, %zu units; after the first %d: resident +%zu bytes, cache +%zu: %s\n", name, TOKENS,
           now.units, SETTLED, grown, cache, ok ? "ok" : "GREW");
    return ok;
}

/* 1.02 x what is in the cache, and the larger of 64 units and an eighth. */
static bool cache_bounded(const dcm_session_stats *s)
{
    const size_t eighth = s->cache_bytes / 8;
    const size_t growth = eighth > 64 * s->unit_bytes ? eighth : 64 * s->unit_bytes;
    return (double)s->cache_bytes <= 1.02 * (double)(s->units * s->unit_bytes) + (double)growth;
}

static size_t beside_cache(const dcm_session_stats *s) { return s->weight_bytes + s->table_bytes + s->scratch_bytes; }

/* By the counter, at any time until now. */
static bool reading_bounded(const dcm_session_stats *s, uint32_t chunk)
{
    const double most = 1.02 * (double)((s->units + chunk) * s->unit_bytes);
    return (double)s->peak_bytes <= most + (double)beside_cache(s);
}

/* A prompt, and how its session keeps it. */
typedef struct prompt {
    const char *name;
    size_t tokens;
    dcm_cache_params params;
    uint32_t chunk; /* what the session makes of params.chunk */
} prompt;

static size_t units_of(const prompt *p, size_t tokens)
{
    return p->params.kind == DCM_CACHE_WINDOW ? p->params.window : dcm_units_after(p->params.group, 4, tokens);
}

static bool read_prompt(const char *name, size_t before, dcm_session *session, const prompt *p)
{
    int32_t piece[PIECE];
    size_t settled = 0;
    dcm_session_stats then = {0}, now = {0};
    bool ok = true;
    for (size_t i = 0; i < PIECE; i++)
        piece[i] = (int32_t)(i * 7 % 256);
    for (size_t at = 0; ok && at < p->tokens; at += PIECE) {
        ok = dcm_session_feed(session, piece, PIECE, NULL) == DCM_OK || golden_fail("%s: %s", name, dcm_error());
        dcm_session_get_stats(session, &now);
        ok = ok && (reading_bounded(&now, p->chunk) ||
                    golden_fail("%s: %s: peak %zu bytes, %zu of them not cache, for %zu units after %zu tokens", name,
                                p->name, now.peak_bytes, beside_cache(&now), now.units, at + PIECE));
        if (at <= p->tokens / 10) {
            settled = resident();
            then = now;
        }
    }
    if (!ok)
        return false;
    const size_t grown = resident() > settled ? resident() - settled : 0;
    const size_t cache = now.cache_bytes > then.cache_bytes ? now.cache_bytes - then.cache_bytes : 0;
    ok = settled && grown <= cache + SLACK_PROMPT && now.units == units_of(p, p->tokens) &&
         resident() <= before + now.peak_bytes + RESIDENT && beside_cache(&now) <= beside_cache(&then) + SLACK;
    printf("%s: %s: %zu tokens, %zu units; after its first tenth: resident +%zu bytes, cache +%zu: %s\n", name, p->name,
           p->tokens, now.units, grown, cache, ok ? "ok" : "GREW");
    ok = dcm_session_feed(session, piece, 1, NULL) == DCM_OK && ok;
    dcm_session_get_stats(session, &now);
    return (now.units == units_of(p, p->tokens + 1) && cache_bounded(&now) && ok) ||
           golden_fail("%s: %s: %zu bytes for %zu units after the prompt", name, p->name, now.cache_bytes, now.units);
}

/* Resident bytes once the kernels of such a prompt are built: the compilers keep tens of MB. */
static size_t build_kernels(dcm_model *model, const prompt *p)
{
    int32_t piece[PIECE] = {0};
    dcm_session *session = NULL;
    const bool ok = dcm_session_open(&session, model, &p->params) == DCM_OK &&
                    dcm_session_feed(session, piece, PIECE, NULL) == DCM_OK &&
                    dcm_session_feed(session, piece, 1, NULL) == DCM_OK;
    dcm_session_close(&session);
    return ok ? resident() : 0;
}

static bool read_prompts(const char *name, dcm_device *device, dcm_model *model, bool is_ref)
{
    const prompt prompts[] = {
        {"L 256", is_ref ? PROMPT_REF : PROMPT, {.group = 256, .merge = "newer"}},
        {"L 256 by 77", 20000, {.group = 256, .merge = "newer", .chunk = 77}, 77},
        {"L 64 by 1000", 100000, {.group = 64, .merge = "mean", .chunk = 1000, .kv = DCM_KV_F32}, 1000},
        {"window", 20000, {.kind = DCM_CACHE_WINDOW, .window = 1000}},
    };
    bool ok = true;
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        prompt p = prompts[i];
        dcm_session *session = NULL;
        const size_t before = build_kernels(model, &p);
        dcm_device_reset_peak(device);
        if (dcm_session_open(&session, model, &p.params) == DCM_OK) {
            p.chunk = p.chunk ? p.chunk : dcm_session_chunk(session);
            ok = read_prompt(name, before, session, &p) && ok;
        } else {
            ok = golden_fail("%s: %s", name, dcm_error());
        }
        dcm_session_close(&session);
    }
    return ok;
}

static bool run(const char *name, const char *path)
{
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    dcm_session *session = NULL;
    dcm_model_info info;
    dcm_device_info where;
    const dcm_device_params params = {.name = name, .threads = 1};
    const dcm_cache_params cache = {.group = GROUP, .merge = "newer"};
    bool ok = dcm_device_open(&device, &params) == DCM_OK && dcm_model_open(&model, device, path) == DCM_OK &&
              dcm_session_open(&session, model, &cache) == DCM_OK;
    if (ok) {
        dcm_model_get_info(model, &info);
        dcm_device_get_info(device, &where);
        ok = decode(name, session, &info);
        dcm_session_close(&session);
        ok = read_prompts(name, device, model, where.is_ref) && ok;
    } else {
        golden_fail("%s: %s", name, dcm_error());
    }
    dcm_session_close(&session);
    dcm_model_close(&model);
    dcm_device_close(&device);
    return ok;
}

int main(int argc, char **argv)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    size_t devices;
    if (argc != 2 || !golden_devices(names, &devices))
        return EXIT_FAILURE;
    bool ok = true;
    for (size_t i = 0; i < devices; i++)
        ok = run(names[i], argv[1]) && ok;
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
