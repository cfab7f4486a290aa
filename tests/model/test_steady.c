/*
 * Constant memory on a tiny model, on `ref` and every OpenCL device: test_steady MODEL.gguf. Ten thousand tokens
 * decoded one by one, and a prompt of 200,000 (on `ref`, which is slower, 40,000): the process grows by no more
 * than the cache does, and the cache is never larger than its units and one step of growth.
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
    PROMPT = 200000,
    PROMPT_REF = 40000,
    PIECE = 2000,
    PROMPT_GROUP = 256
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

static bool read_prompt(const char *name, dcm_session *session, size_t tokens)
{
    int32_t piece[PIECE];
    size_t settled = 0;
    dcm_session_stats then = {0}, now = {0};
    bool ok = true;
    for (size_t i = 0; i < PIECE; i++)
        piece[i] = (int32_t)(i * 7 % 256);
    for (size_t at = 0; ok && at < tokens; at += PIECE) {
        ok = dcm_session_feed(session, piece, PIECE, NULL) == DCM_OK || golden_fail("%s: %s", name, dcm_error());
        dcm_session_get_stats(session, &now);
        ok = ok && (cache_bounded(&now) || golden_fail("%s: %zu bytes for %zu units after %zu tokens", name,
                                                       now.cache_bytes, now.units, at + PIECE));
        if (at + PIECE == tokens / 10) {
            settled = resident();
            then = now;
        }
    }
    const size_t grown = resident() > settled ? resident() - settled : 0, cache = now.cache_bytes - then.cache_bytes;
    ok = ok && settled && grown <= cache + SLACK && now.units == dcm_units_after(PROMPT_GROUP, 4, tokens);
    printf("%s: a prompt of %zu tokens, %zu units; after its first tenth: resident +%zu bytes, cache +%zu: %s\n", name,
           tokens, now.units, grown, cache, ok ? "ok" : "GREW");
    return ok;
}

static bool run(const char *name, const char *path)
{
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    dcm_session *session = NULL, *reader = NULL;
    dcm_model_info info;
    dcm_device_info where;
    const dcm_device_params params = {.name = name, .threads = 1};
    const dcm_cache_params cache = {.group = GROUP, .merge = "newer"};
    const dcm_cache_params long_cache = {.group = PROMPT_GROUP, .merge = "newer"};
    bool ok = dcm_device_open(&device, &params) == DCM_OK && dcm_model_open(&model, device, path) == DCM_OK &&
              dcm_session_open(&session, model, &cache) == DCM_OK &&
              dcm_session_open(&reader, model, &long_cache) == DCM_OK;
    if (ok) {
        dcm_model_get_info(model, &info);
        dcm_device_get_info(device, &where);
        ok = decode(name, session, &info);
        ok = read_prompt(name, reader, where.is_ref ? PROMPT_REF : PROMPT) && ok;
    } else {
        golden_fail("%s: %s", name, dcm_error());
    }
    dcm_session_close(&reader);
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
