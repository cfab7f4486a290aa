/*
 * The same device, build and tuning give the same bits: test_determinism MODEL.gguf MERGE.safetensors. A prompt and
 * tokens after it, on `ref` and on every OpenCL device, again in another session, between steps of other sessions, with
 * kernels counted, on the device opened anew (its programs then come from the cache folder, which is empty at first),
 * and with other numbers of threads. Every logit of every step counts.
 */
#include "golden.h"

#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOKENS = 64, PROMPT = 37 };

static const char *model_path, *merge_path;
static int32_t ids[GOLDEN_TOKENS];

static const golden_case cases[] = {
    {"full f32", {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32}, TOKENS, true},
    {"dcm mean f16", {.group = 4, .sinks = 1, .merge = "mean"}, TOKENS, true},
    {"dcm newer f32, chunks", {.group = 8, .merge = "newer", .kv = DCM_KV_F32, .chunk = 9}, TOKENS, true},
    {"dcm gate f16", {.group = 4, .sinks = 1}, TOKENS, true},
    {"window f16", {.kind = DCM_CACHE_WINDOW, .window = 20}, TOKENS, true},
};
enum { CASES = sizeof cases / sizeof *cases };

/* What else is done meanwhile. */
typedef enum beside { NOTHING, OTHER_SESSIONS, COUNTING } beside;

static dcm_status step_of_other(dcm_session *other, const int32_t *token)
{
    return other ? dcm_session_feed(other, token, 1, NULL) : DCM_OK;
}

/* A hash of all logits; 0 where something fails. */
static uint64_t bits_of(dcm_model *model, const golden_case *c, beside what)
{
    dcm_session *session = NULL, *other = NULL;
    dcm_model_info info;
    dcm_cache_params params = c->params;
    const dcm_cache_params full = {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32};
    uint64_t hash = HASH_START;
    dcm_model_get_info(model, &info);
    if (params.kind == DCM_CACHE_DCM && !params.merge)
        params.merge = merge_path;
    float *logits = malloc((size_t)PROMPT * info.vocab * sizeof *logits);
    bool ok = logits && dcm_session_open(&session, model, &params) == DCM_OK;
    if (ok && what == OTHER_SESSIONS)
        ok = dcm_session_open(&other, model, &full) == DCM_OK && dcm_session_fill(other, 150, 3) == DCM_OK;
    ok = ok && dcm_session_feed_each(session, ids, PROMPT, logits) == DCM_OK;
    if (ok)
        hash = hash_bytes(hash, logits, (size_t)PROMPT * info.vocab * sizeof *logits);
    for (int i = PROMPT; ok && i < TOKENS; i++) {
        ok = step_of_other(other, ids + i) == DCM_OK && dcm_session_feed(session, ids + i, 1, logits) == DCM_OK;
        hash = hash_bytes(hash, logits, info.vocab * sizeof *logits);
    }
    free(logits);
    dcm_session_close(&other);
    dcm_session_close(&session);
    return ok ? hash : 0;
}

/* All cases on one opening of a device; the first ever sets `want`. */
static bool run_all(const char *name, int threads, beside what, uint64_t want[CASES])
{
    const dcm_device_params params = {.name = name, .threads = threads};
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    bool ok = dcm_device_open(&device, &params) == DCM_OK && dcm_model_open(&model, device, model_path) == DCM_OK;
    if (ok && what == COUNTING)
        ok = dcm_device_profile(device, true, NULL) == DCM_OK;
    if (!ok)
        golden_fail("%s: %s", name, dcm_error());
    for (int again = 0; ok && again < 2; again++)
        for (int i = 0; ok && i < CASES; i++) {
            const uint64_t got = bits_of(model, &cases[i], what);
            if (!got)
                ok = golden_fail("%s %s: %s", name, cases[i].name, dcm_error());
            else if (!want[i])
                want[i] = got;
            else if (got != want[i])
                ok = golden_fail("%s %s: other bits with %d threads, %s%s", name, cases[i].name, threads,
                                 (const char *[]){"nothing", "other sessions", "counting"}[what],
                                 again ? ", the second time" : "");
        }
    dcm_model_close(&model);
    dcm_device_close(&device);
    return ok;
}

static bool test_device(const char *name)
{
    uint64_t want[CASES] = {0};
    bool ok = run_all(name, 0, NOTHING, want) && run_all(name, 0, NOTHING, want) &&
              run_all(name, 0, OTHER_SESSIONS, want) && run_all(name, 0, COUNTING, want);
    for (int threads = 1; ok && threads <= 3; threads += 2)
        ok = run_all(name, threads, NOTHING, want);
    for (int i = 0; ok && i < CASES; i++)
        for (int k = 0; k < i; k++)
            if (want[i] == want[k]) /* or nothing is compared */
                ok = golden_fail("%s: %s and %s are the same", name, cases[i].name, cases[k].name);
    if (ok)
        printf("%s: the same bits in 12 runs of %d policies: ok\n", name, CASES);
    return ok;
}

int main(int argc, char **argv)
{
    char names[DEVICE_NAMES][DEVICE_NAME], folder[] = "/tmp/dcm-determinism-XXXXXX";
    size_t devices, count;
    if (argc != 3)
        return EXIT_FAILURE;
    model_path = argv[1];
    merge_path = argv[2];
    bool ok = mkdtemp(folder) && setenv("DCM_CACHE", folder, 1) == 0 && setenv("POCL_CACHE_DIR", folder, 1) == 0 &&
              golden_read_ids(TEST_GOLDEN "/model/tiny", ids, &count) && golden_devices(names, &devices) &&
              (count == TOKENS || golden_fail("ids.txt is not %d ids", TOKENS));
    for (size_t i = 0; ok && i < devices; i++)
        ok = test_device(names[i]);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    ok = system(command) == 0 && ok;
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
