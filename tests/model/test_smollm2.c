/*
 * SmolLM2-135M-Instruct Q4_1 ($DCM_TEST_MODEL) against PyTorch over 512 tokens of tests/golden/model/text.txt:
 * test_smollm2 [--all] [CASE]. Short runs take three cases on `ref` and all on OpenCL devices with f32, and there the
 * three with f16, and read all in steps and three token by token; --all takes all of both. CASE: only the golden of
 * that name, or "bits".
 */
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER TEST_GOLDEN "/model/smollm2"
#define DCM_CASE(L, S, MERGE)                                                                                          \
    {                                                                                                                  \
        "dcm_L" #L "_S" #S "_" MERGE, {.group = L, .sinks = S ? S : -1, .merge = MERGE}, GOLDEN_TOKENS,                \
            L == 16 && S == 4                                                                                          \
    }

enum { BIT_TOKENS = 300, BIT_TOKENS_REF = 48, BIT_GROUP = 256, BIT_SINKS = 4 };

static const golden_case cases[] = {
    {"full", {.kind = DCM_CACHE_FULL}, GOLDEN_TOKENS, true},
    DCM_CASE(4, 0, "mean"),
    DCM_CASE(4, 0, "newer"),
    DCM_CASE(4, 4, "mean"),
    DCM_CASE(4, 4, "newer"),
    DCM_CASE(16, 0, "mean"),
    DCM_CASE(16, 0, "newer"),
    DCM_CASE(16, 4, "mean"),
    DCM_CASE(16, 4, "newer"),
    DCM_CASE(64, 0, "mean"),
    DCM_CASE(64, 0, "newer"),
    DCM_CASE(64, 4, "mean"),
    DCM_CASE(64, 4, "newer"),
    {"dcm_L16_S4_newer_logr1", {.group = 16, .sinks = 4, .merge = "newer", .log_r = 1}, GOLDEN_TOKENS, false},
    {"dcm_L16_S4_gate", {.group = 16, .sinks = 4, .merge = FOLDER "/gate.safetensors"}, GOLDEN_TOKENS / 2, false},
    {"window_W64_S4", {.kind = DCM_CACHE_WINDOW, .window = 64, .sinks = 4}, GOLDEN_TOKENS, false},
    {"window_W64_S0", {.kind = DCM_CACHE_WINDOW, .window = 64, .sinks = -1}, GOLDEN_TOKENS, false},
};

static const golden_bounds bounds_f32 = {1e-3, 1e-2}, bounds_f16 = {4e-3, 1e-1};

/*
 * Averaging the first tokens away leaves a model that hangs on the last bits (perplexity 231): llama.py itself, in
 * float64 with nothing but its keys and values rounded to f16, is 6.9e-3 (mean) and 0.163 (max) off within 230 tokens.
 */
static const char sensitive_f16[] = "dcm_L4_S0_mean";
static const golden_bounds bounds_sensitive = {2e-2, 5e-1};

static golden_bounds bounds_of(const golden_case *c, bool f16)
{
    if (!f16)
        return bounds_f32;
    return strcmp(c->name, sensitive_f16) ? bounds_f16 : bounds_sensitive;
}

typedef struct options {
    bool all;
    const char *only; /* NULL: every case */
    size_t ran;
} options;

static bool test_goldens(dcm_model *model, const char *device, bool is_ref, options *o, const int32_t *ids)
{
    bool ok = true;
    for (int f16 = 0; f16 < 2; f16++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            const golden_case *c = &cases[i];
            const bool usual = f16 ? c->brief && !is_ref : c->brief || !is_ref;
            if (o->only ? strcmp(o->only, c->name) != 0 : !(o->all || usual))
                continue;
            o->ran++;
            /* 0: in steps, as a prompt is read; 1: token by token, of which `ref` makes the same bits (test_prefill).
             */
            const size_t last = o->all || o->only || (c->brief && !is_ref) ? 1 : 0;
            for (size_t chunk = 0; chunk <= last; chunk++)
                ok = golden_compare(model, device, FOLDER, "", c, f16 ? DCM_KV_F16 : DCM_KV_F32, chunk,
                                    bounds_of(c, f16), ids) &&
                     ok;
        }
    return ok;
}

static bool test_device(const char *name, const char *path, options *o, const int32_t *ids)
{
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    dcm_device_info info;
    const dcm_device_params params = {.name = name};
    bool ok = dcm_device_open(&device, &params) == DCM_OK && dcm_model_open(&model, device, path) == DCM_OK;
    if (ok) {
        dcm_device_get_info(device, &info);
        ok = test_goldens(model, name, info.is_ref, o, ids);
        const size_t count = info.is_ref && !o->all ? BIT_TOKENS_REF : BIT_TOKENS;
        for (int f16 = 0; f16 < 2 && (!o->only || !strcmp(o->only, "bits")); f16++) {
            const dcm_cache_params dcm = {
                .group = BIT_GROUP, .sinks = BIT_SINKS, .merge = "newer", .kv = f16 ? DCM_KV_F16 : DCM_KV_F32};
            o->ran++;
            ok = golden_same_bits(model, name, "dcm_L256_S4", &dcm, ids, count, 2 * BIT_GROUP - 1 + BIT_SINKS) && ok;
        }
    } else {
        golden_fail("%s: %s", name, dcm_error());
    }
    dcm_model_close(&model);
    dcm_device_close(&device);
    return ok;
}

int main(int argc, char **argv)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    int32_t ids[GOLDEN_TOKENS];
    size_t devices, count;
    options o = {0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--all"))
            o.all = true;
        else
            o.only = argv[i];
    }
    const char *path = getenv("DCM_TEST_MODEL");
    if (!path || !*path) {
        golden_fail("DCM_TEST_MODEL is not set: give it the path of SmolLM2-135M-Instruct.Q4_1.gguf");
        return EXIT_FAILURE;
    }
    bool ok = golden_read_ids(FOLDER, ids, &count) && golden_devices(names, &devices);
    if (!ok || (count != GOLDEN_TOKENS && !golden_fail("ids.txt is not %d ids", GOLDEN_TOKENS)))
        return EXIT_FAILURE;
    for (size_t i = 0; i < devices; i++)
        ok = test_device(names[i], path, &o, ids) && ok;
    if (!o.ran)
        ok = golden_fail("no case %s was run", o.only ? o.only : "at all");
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
