/*
 * Tiny random models (tests/golden/model/tiny) against PyTorch, on `ref` and on every OpenCL device: each feature of an
 * architecture, each cache policy and merge, both storage types, fed one by one and in chunks.
 */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER TEST_GOLDEN "/model/tiny"

enum { TOKENS = 64, BIT_GROUP = 16, BIT_SINKS = 1, BIT_WINDOW = 32, CHUNK = 9 };

/* The brief ones are also fed in chunks. */
static const golden_case cases[] = {
    {"full", {.kind = DCM_CACHE_FULL}, TOKENS, true},
    {"dcm_L4_S1_newer", {.kind = DCM_CACHE_DCM, .group = 4, .sinks = 1, .merge = "newer"}, TOKENS, true},
    {"dcm_L4_S1_mean", {.kind = DCM_CACHE_DCM, .group = 4, .sinks = 1, .merge = "mean"}, TOKENS, false},
    {"dcm_L2_S0_newer", {.kind = DCM_CACHE_DCM, .group = 2, .sinks = -1, .merge = "newer"}, TOKENS, true},
    {"dcm_L4_S1_newer_logr0.5", {.group = 4, .sinks = 1, .merge = "newer", .log_r = 0.5f}, TOKENS, false},
    {"window_W12_S2", {.kind = DCM_CACHE_WINDOW, .window = 12, .sinks = 2}, TOKENS, true},
    {"dcm_L4_S1_gate", {.group = 4, .sinks = 1, .merge = FOLDER "/gate.safetensors"}, TOKENS, true},
    {"dcm_L4_S1_direct", {.group = 4, .sinks = 1, .merge = FOLDER "/direct.safetensors"}, TOKENS, false},
};

/* The merge models are for head size 32. */
static const struct {
    const char *name;
    size_t cases;
} models[] = {{"llama3.", 8}, {"linear.", 8}, {"qwen2.", 8}, {"wide.", 8}, {"kquants.", 6}};

/* f32: rounding in one or two layers. f16: keys and values rounded to 11 bits. */
static const golden_bounds bounds_f32 = {5e-5, 5e-4}, bounds_f16 = {4e-3, 1e-1};

static bool test_bits(dcm_model *model, const char *device, const char *name, dcm_kv_type kv, const int32_t *ids)
{
    char label[64];
    const size_t same = 2 * BIT_GROUP - 1 + BIT_SINKS;
    dcm_cache_params params = {.group = BIT_GROUP, .sinks = BIT_SINKS, .merge = "newer", .kv = kv};
    snprintf(label, sizeof label, "%sdcm", name);
    bool ok = golden_same_bits(model, device, label, &params, ids, TOKENS, same);
    params = (dcm_cache_params){.kind = DCM_CACHE_WINDOW, .window = BIT_WINDOW, .sinks = BIT_SINKS, .kv = kv};
    snprintf(label, sizeof label, "%swindow", name);
    return golden_same_bits(model, device, label, &params, ids, TOKENS, BIT_WINDOW) && ok;
}

static bool test_model(dcm_device *device, const char *device_name, const char *name, size_t n_cases,
                       const int32_t *ids)
{
    char path[1024];
    dcm_model *model = NULL;
    bool ok = true;
    snprintf(path, sizeof path, "%s/%sgguf", FOLDER, name);
    if (dcm_model_open(&model, device, path) != DCM_OK)
        return golden_fail("%s: %s", device_name, dcm_error());
    for (int f16 = 0; f16 < 2; f16++) {
        const dcm_kv_type kv = f16 ? DCM_KV_F16 : DCM_KV_F32;
        const golden_bounds bounds = f16 ? bounds_f16 : bounds_f32;
        for (size_t i = 0; i < n_cases; i++) {
            ok = golden_compare(model, device_name, FOLDER, name, &cases[i], kv, 1, bounds, ids) && ok;
            if (cases[i].brief)
                ok = golden_compare(model, device_name, FOLDER, name, &cases[i], kv, CHUNK, bounds, ids) && ok;
        }
        ok = test_bits(model, device_name, name, kv, ids) && ok;
    }
    dcm_model_close(&model);
    return ok;
}

int main(void)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    int32_t ids[GOLDEN_TOKENS];
    size_t devices, count;
    bool ok = golden_read_ids(FOLDER, ids, &count);
    if (!ok || !golden_devices(names, &devices) || (count != TOKENS && !golden_fail("ids.txt is not %d ids", TOKENS)))
        return EXIT_FAILURE;
    for (size_t i = 0; i < devices; i++) {
        dcm_device *device = NULL;
        /* Threads that wait for each other cost more than so little work. */
        const dcm_device_params params = {.name = names[i], .threads = strcmp(names[i], "ref") ? 0 : 1};
        if (dcm_device_open(&device, &params) != DCM_OK) {
            ok = golden_fail("%s: %s", names[i], dcm_error());
            continue;
        }
        for (size_t m = 0; m < sizeof models / sizeof *models; m++)
            ok = test_model(device, names[i], models[m].name, models[m].cases, ids) && ok;
        dcm_device_close(&device);
    }
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
