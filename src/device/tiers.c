#include "device/device.h"

#include <dcm/log.h>

#include "base/memory.h"
#include "device/features.h"
#include "device/list.h"
#include "device/run.h"

#include <stdio.h>
#include <string.h>

typedef struct tier {
    cldev_tier_text text;
    dcm_status (*possible)(const cldev *device); /* what can be known without trying; `why` it is not is dcm_error() */
    dcm_status (*check)(cldev *device, probe_run *run);
} tier;

/* Whether this process may run the instructions at all: where it may not, trying would end the program. */
static dcm_status on_this_processor(const cldev *device, bool has, const char *what)
{
    if (!device->limits.host_code || !(device->limits.type & CL_DEVICE_TYPE_CPU))
        return dcm_fail(DCM_ERR_DEVICE, "its driver does not compile assembly for this processor");
    return has ? DCM_OK : dcm_fail(DCM_ERR_DEVICE, "this processor has no %s", what);
}

static dcm_status dot4_possible(const cldev *device)
{
#if defined(__x86_64__)
    const bool has = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
#else
    const bool has = false;
#endif
    return on_this_processor(device, has, "AVX-512 VNNI");
}

static dcm_status dot2_possible(const cldev *device)
{
#if defined(__x86_64__)
    const bool has = __builtin_cpu_supports("avx2");
#else
    const bool has = false;
#endif
    return on_this_processor(device, has, "AVX2");
}

static dcm_status half16_possible(const cldev *device)
{
#if defined(__x86_64__)
    const bool has = __builtin_cpu_supports("avx512f");
#else
    const bool has = false;
#endif
    return on_this_processor(device, has, "AVX-512");
}

/* Some compilers complain on stderr, past the build log, about what the device does not claim. */
static dcm_status claims(const cldev *device, const char *const *extensions)
{
    if (cldev_claims(device->id, extensions))
        return DCM_OK;
    return dcm_fail(DCM_ERR_DEVICE, "its driver does not claim %s", extensions[0]);
}

static dcm_status fp16_possible(const cldev *device)
{
    static const char *const extensions[] = {"cl_khr_fp16", NULL};
    return claims(device, extensions);
}

/*
 * The probe is one kernel, so that the width must be the same for all: asked for by an attribute, or fixed by the
 * hardware, as NVIDIA's and AMD's. Where a compiler chooses it kernel by kernel, nobody would tell that it chose 8.
 */
static dcm_status subgroups_possible(const cldev *device)
{
    static const char *const extensions[] = {"cl_intel_required_subgroup_size", "cl_nv_compiler_options",
                                             "cl_amd_device_attribute_query", NULL};
    return claims(device, extensions);
}

static dcm_status mma_possible(const cldev *device)
{
    static const char *const extensions[] = {"cl_nv_compiler_options", NULL};
    return claims(device, extensions);
}

/*
 * Not among them: arithmetic on halves, since halves are only stored and sums are floats; and command buffers: 150
 * small kernels replayed by cl_khr_command_buffer (0.9, provisional) took 1.1 times as long on PoCL 3.1 as enqueued one
 * by one with their arguments set anew, and 0.7 to 0.9 times as long on Intel's CPU runtime, 1 to 5 us less for each.
 */
static const tier tiers[CLDEV_TIERS] = {
    [CLDEV_DOT4] = {{"dot4", "AVX-512 VNNI by inline assembly (PoCL)", "products of quantised weights, by integers",
                     true},
                    dot4_possible,
                    check_dot4},
    [CLDEV_DOT2] = {{"dot2", "AVX2 by inline assembly (PoCL)",
                     "products of weights of 4 bits, by integers, for want of dot4", true},
                    dot2_possible,
                    check_dot2},
    [CLDEV_HALF16] = {{"half16", "AVX-512 by inline assembly (PoCL)", "f16 weights and caches, read 16 at a time",
                       true},
                      half16_possible,
                      check_half16},
    [CLDEV_FP16] = {{"fp16", "halves as a type (cl_khr_fp16)", "f16 weights and caches, converted in registers", false},
                    fp16_possible,
                    check_fp16},
    [CLDEV_SUBGROUPS] = {{"subgroups", "sub-group shuffles (cl_khr_subgroup_shuffle, Intel's, inline PTX)",
                          "sums over work-items: products of single vectors, attention", false},
                         subgroups_possible,
                         check_subgroups},
    [CLDEV_MMA] = {{"mma", "tf32 matrix units by inline PTX (NVIDIA)", "products of many vectors", false},
                   mma_possible,
                   check_mma},
};

const cldev_tier_text *cldev_tier_get(cldev_tier tier) { return &tiers[tier].text; }

const cldev_tier_state *cldev_tier_probe(cldev *device, cldev_tier which)
{
    const tier *t = &tiers[which];
    cldev_tier_state *state = &device->tier[which];
    probe_run run = {0};
    if (state->probed)
        return state;
    state->probed = true;
    dcm_status status = t->possible(device);
    if (status == DCM_OK)
        status = t->check(device, &run);
    probe_run_close(&run);
    state->works = status == DCM_OK;
    if (!state->works) {
        snprintf(state->why, sizeof state->why, "%s", dcm_error());
        dcm_log(DCM_LOG_DEBUG, "%s: no %s: %s", device->limits.name, t->text.name, state->why);
    }
    return state;
}

bool cldev_has(cldev *device, cldev_tier tier)
{
    return !(device->limits.tiers_off & 1u << tier) && cldev_tier_probe(device, tier)->works;
}

dcm_status cldev_probe_tiers(cldev *device)
{
    probe_run run = {0};
    dcm_status status = DCM_OK;
    /* A device on which nothing builds is broken, not without tiers. */
    DCM_TRY(status, fail, probe_run_kernel(&run, device, "", "probe_empty", false));
    DCM_TRY(status, fail, probe_run_enqueue(&run, device, 1, 1));
    CL_TRY(status, fail, clFinish(device->queue));
    for (int t = 0; t < CLDEV_TIERS; t++)
        cldev_tier_probe(device, (cldev_tier)t);
fail:
    probe_run_close(&run);
    return status;
}

void cldev_tiers_used(const cldev *device, char *out, size_t size)
{
    size_t used = 0;
    *out = '\0';
    for (int t = 0; t < CLDEV_TIERS && used < size; t++)
        if (device->tier[t].works && !(device->limits.tiers_off & 1u << t))
            used += (size_t)snprintf(out + used, size - used, "%s%s=off", used ? "," : "", tiers[t].text.name);
}

/* "dot4, half16, ..." */
static void list_names(char *out, size_t size)
{
    size_t used = 0;
    for (int t = 0; t < CLDEV_TIERS && used < size; t++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", t ? ", " : "", tiers[t].text.name);
}

/* "NAME=on" or "NAME=off", `size` bytes. */
static dcm_status parse_one(const char *text, size_t size, uint32_t *on, uint32_t *off)
{
    const char *equals = memchr(text, '=', size);
    const size_t name = equals ? (size_t)(equals - text) : size, value = equals ? size - name - 1 : 0;
    const bool is_on = value == 2 && !memcmp(equals + 1, "on", 2), is_off = value == 3 && !memcmp(equals + 1, "off", 3);
    char names[200];
    int t = 0;
    while (t < CLDEV_TIERS && (strlen(tiers[t].text.name) != name || memcmp(tiers[t].text.name, text, name)))
        t++;
    if (t == CLDEV_TIERS) {
        list_names(names, sizeof names);
        return dcm_fail(DCM_ERR_USAGE, "there is no tier \"%.*s\"; there are: %s", (int)name, text, names);
    }
    if (!is_on && !is_off)
        return dcm_fail(DCM_ERR_USAGE, "tier \"%.*s\" is neither %s=on nor %s=off", (int)size, text, tiers[t].text.name,
                        tiers[t].text.name);
    *(is_on ? on : off) |= 1u << t;
    *(is_on ? off : on) &= ~(1u << t);
    return DCM_OK;
}

dcm_status cldev_tiers_parse(const char *text, uint32_t *on, uint32_t *off)
{
    dcm_status status = DCM_OK;
    *on = *off = 0;
    while (text && *text && status == DCM_OK) {
        const size_t size = strcspn(text, ",");
        status = parse_one(text, size, on, off);
        text += size + (text[size] == ',');
    }
    return status;
}

dcm_status cldev_tiers_force(cldev *device, uint32_t on, uint32_t off)
{
    device->limits.tiers_on = on;
    device->limits.tiers_off = off;
    for (int t = 0; t < CLDEV_TIERS; t++)
        if (on & 1u << t && !cldev_has(device, (cldev_tier)t))
            return dcm_fail(DCM_ERR_DEVICE, "%s: tier %s is forced on and does not work here: %s", device->limits.name,
                            tiers[t].text.name, device->tier[t].why);
    return DCM_OK;
}
