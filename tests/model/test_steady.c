/*
 * Ten thousand tokens decoded one by one with L = 64 on a tiny model, on `ref` and every OpenCL device: the process
 * grows by no more than the cache does. test_steady MODEL.gguf
 */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { TOKENS = 10000, SETTLED = 1000, GROUP = 64, SLACK = 1 << 20 };

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

static bool run(const char *name, const char *path)
{
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    dcm_session *session = NULL;
    dcm_model_info info;
    const dcm_device_params where = {.name = name, .threads = 1};
    const dcm_cache_params cache = {.group = GROUP, .merge = "newer"};
    bool ok = dcm_device_open(&device, &where) == DCM_OK && dcm_model_open(&model, device, path) == DCM_OK &&
              dcm_session_open(&session, model, &cache) == DCM_OK;
    if (ok) {
        dcm_model_get_info(model, &info);
        ok = decode(name, session, &info);
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
