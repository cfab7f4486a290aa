/*
 * Strict devices (dcm_device_params.strict): the same bits of every logit on `ref` and on every OpenCL device, fed one
 * by one and as a prompt in chunks of two sizes, over 200 steps of tiny models; and those of `ref` against PyTorch.
 */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER TEST_GOLDEN "/model/tiny"

enum { TOKENS = 64, STEPS = 200, PROMPT = 150 };

static const golden_case cases[] = {
    {"full", {.kind = DCM_CACHE_FULL, .kv = DCM_KV_F32}, TOKENS, true},
    {"dcm_L4_S1_mean", {.group = 4, .sinks = 1, .merge = "mean"}, TOKENS, true},
    {"dcm_L4_S1_newer_logr0.5",
     {.group = 4, .sinks = 1, .merge = "newer", .log_r = 0.5f, .kv = DCM_KV_F32},
     TOKENS,
     false},
    {"window_W12_S2", {.kind = DCM_CACHE_WINDOW, .window = 12, .sinks = 2}, TOKENS, true},
    {"dcm_L4_S1_gate", {.group = 4, .sinks = 1, .merge = FOLDER "/gate.safetensors"}, TOKENS, true},
    {"dcm_L4_S1_direct",
     {.group = 4, .sinks = 1, .merge = FOLDER "/direct.safetensors", .kv = DCM_KV_F32},
     TOKENS,
     true},
};

/* Of cases, those that the model has; models whose heads are not 32 wide have no merge model. */
static const struct {
    const char *name;
    size_t cases;
} models[] = {{"llama3.", 6}, {"qwen2.", 6}, {"kquants.", 4}};
enum { CASES = sizeof cases / sizeof *cases, MODELS = sizeof models / sizeof *models };

static int32_t ids[STEPS];
static float *baseline[MODELS][CASES]; /* (STEPS, vocab) of ref, one by one */

/* The logits of all steps: a prompt of `prompt` tokens, then one by one. NULL after a message. */
static float *run(dcm_model *model, const dcm_cache_params *given, uint32_t chunk, size_t prompt)
{
    dcm_model_info info;
    dcm_session *session = NULL;
    dcm_cache_params params = *given;
    params.chunk = chunk;
    dcm_model_get_info(model, &info);
    float *logits = malloc((size_t)STEPS * info.vocab * sizeof *logits);
    bool ok = logits && dcm_session_open(&session, model, &params) == DCM_OK;
    if (ok && prompt)
        ok = dcm_session_feed_each(session, ids, prompt, logits) == DCM_OK;
    for (size_t i = prompt; ok && i < STEPS; i++)
        ok = dcm_session_feed(session, ids + i, 1, logits + i * info.vocab) == DCM_OK;
    dcm_session_close(&session);
    if (ok)
        return logits;
    free(logits);
    golden_fail("%s", dcm_error());
    return NULL;
}

/* Takes `got`. */
static bool same(const char *what, const char *model, const char *name, uint32_t vocab, const float *want, float *got)
{
    bool ok = got != NULL;
    for (size_t i = 0; ok && i < STEPS; i++)
        if (memcmp(want + i * vocab, got + i * vocab, vocab * sizeof *got) != 0)
            ok = golden_fail("%s %s%s: other bits from step %zu on", what, model, name, i + 1);
    free(got);
    return ok;
}

static bool test_case(dcm_model *model, const char *device, size_t m, size_t i)
{
    const char *name = cases[i].name, *of = models[m].name;
    dcm_model_info info;
    char what[2 * DEVICE_NAME];
    bool ok = true;
    dcm_model_get_info(model, &info);
    float *one_by_one = run(model, &cases[i].params, 0, 0);
    if (!baseline[m][i])
        baseline[m][i] = one_by_one;
    else
        ok = same(device, of, name, info.vocab, baseline[m][i], one_by_one);
    if (!baseline[m][i])
        return false;
    snprintf(what, sizeof what, "%s, in chunks of 7,", device);
    ok = same(what, of, name, info.vocab, baseline[m][i], run(model, &cases[i].params, 7, PROMPT)) && ok;
    snprintf(what, sizeof what, "%s, in its own chunks,", device);
    return same(what, of, name, info.vocab, baseline[m][i], run(model, &cases[i].params, 0, PROMPT)) && ok;
}

static bool test_device(const char *name)
{
    static const golden_bounds bounds_f32 = {5e-5, 5e-4}, bounds_f16 = {4e-3, 1e-1}; /* as in test_tiny.c */
    const dcm_device_params params = {.name = name, .threads = strcmp(name, "ref") ? 0 : 1, .strict = true};
    dcm_device *device = NULL;
    if (dcm_device_open(&device, &params) != DCM_OK)
        return golden_fail("%s: %s", name, dcm_error());
    bool ok = true;
    for (size_t m = 0; m < MODELS; m++) {
        char path[1024];
        dcm_model *model = NULL;
        snprintf(path, sizeof path, FOLDER "/%sgguf", models[m].name);
        if (dcm_model_open(&model, device, path) != DCM_OK)
            return golden_fail("%s: %s", path, dcm_error());
        for (size_t i = 0; i < models[m].cases; i++) {
            const dcm_kv_type kv = cases[i].params.kv;
            ok = test_case(model, name, m, i) && ok;
            if (strcmp(name, "ref") == 0)
                ok = golden_compare(model, "ref, strict,", FOLDER, models[m].name, &cases[i], kv, 0,
                                    kv == DCM_KV_F16 ? bounds_f16 : bounds_f32, ids) &&
                     ok;
        }
        dcm_model_close(&model);
    }
    dcm_device_close(&device);
    if (ok)
        printf("%s: the bits of ref over %d steps of %d models: ok\n", name, STEPS, MODELS);
    return ok;
}

int main(void)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    int32_t read[GOLDEN_TOKENS];
    size_t devices, count;
    bool ok = golden_read_ids(FOLDER, read, &count) && golden_devices(names, &devices);
    if (!ok || (count != TOKENS && !golden_fail("ids.txt is not %d ids", TOKENS)))
        return EXIT_FAILURE;
    for (size_t i = 0; i < STEPS; i++)
        ids[i] = read[i * (1 + i / TOKENS) % TOKENS];
    for (size_t i = 0; i < devices; i++)
        ok = test_device(names[i]) && ok;
    for (size_t m = 0; m < MODELS; m++)
        for (size_t i = 0; i < CASES; i++)
            free(baseline[m][i]);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
