#include "verify.h"

#include "check.h"
#include "tool.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Setting up ---- */

/* dcm_merge_seen. */
static void take_choice(void *context, uint32_t layer, const dcm_merge_choice *choice)
{
    verify_choices *c = context;
    memcpy(c->item + (size_t)layer * c->heads, choice, c->heads * sizeof *choice);
    c->made = true;
}

/* Of a scorer: be told of its choices. */
static dcm_status watch(verifier *v)
{
    dcm_session *const session[] = {v->exact, v->rough};
    dcm_session_stats stats;
    dcm_status status = DCM_OK;
    dcm_session_get_stats(v->exact, &stats);
    for (int i = 0; i < 2 && status == DCM_OK && !strcmp(stats.merge, "score"); i++) {
        v->chosen[i].heads = v->kv_heads;
        v->chosen[i].item = calloc((size_t)v->layers * v->kv_heads, sizeof *v->chosen[i].item);
        status = v->chosen[i].item ? dcm_session_watch(session[i], take_choice, &v->chosen[i]) : DCM_ERR_MEMORY;
    }
    return status;
}

int verify_open(verifier *v, const runtime *r, const char *path, const device_options *device,
                const dcm_cache_params *params, const dcm_session *session)
{
    const dcm_device_params where = {.name = "ref", .threads = (int)device->threads};
    dcm_cache_params same = runtime_same_cache(params, session);
    same.chunk = VERIFY_TOKENS;
    dcm_status status = dcm_device_open(&v->device, &where);
    if (status == DCM_OK)
        status = dcm_model_open(&v->model, v->device, path);
    if (status == DCM_OK)
        status = dcm_session_open(&v->rough, v->model, &same);
    same.kv = DCM_KV_F32;
    if (status == DCM_OK)
        status = dcm_session_open(&v->exact, v->model, &same);
    v->kv = params->kv;
    v->layers = r->info.layers;
    v->kv_heads = r->info.kv_heads;
    v->head_dim = r->info.head_dim;
    if (status == DCM_OK)
        status = watch(v);
    if (status != DCM_OK)
        return tool_fail((int)status, "--verify-every: %s", dcm_error());
    v->logits = malloc(2 * (size_t)r->info.vocab * sizeof *v->logits);
    return v->logits ? 0 : tool_fail(DCM_ERR_MEMORY, "--verify-every: no room for logits");
}

void verify_close(verifier *v)
{
    dcm_session_close(&v->exact);
    dcm_session_close(&v->rough);
    dcm_model_close(&v->model);
    dcm_device_close(&v->device);
    free(v->logits);
    free(v->units);
    for (int i = 0; i < 3; i++)
        free(v->values[i]);
    for (int i = 0; i < 2; i++)
        free(v->chosen[i].item);
    *v = (verifier){0};
}

/* ---- Units ---- */

static bool make_room(verifier *v, size_t units)
{
    const size_t row = 2 * (size_t)v->kv_heads * v->head_dim;
    if (units <= v->room)
        return true;
    v->room = 0;
    free(v->units);
    v->units = malloc(units * sizeof *v->units);
    bool made = v->units != NULL;
    for (int i = 0; i < 3; i++) {
        free(v->values[i]);
        v->values[i] = malloc(units * row * sizeof(float));
        made = made && v->values[i];
    }
    v->room = made ? units : 0;
    return made;
}

/* Most that gaps of the step differ by between exact and rough, in all layers: they were made from the same units. */
static double gap_noise(const verifier *v)
{
    double noise = 0;
    for (size_t i = 0; v->chosen[0].made && i < (size_t)v->layers * v->kv_heads; i++)
        noise = fmax(noise, fabs((double)v->chosen[0].item[i].gap - v->chosen[1].item[i].gap));
    return noise;
}

/* Is the unit the one that the step's merge made, the newest of its level? */
static bool is_made(const verifier *v, size_t unit, size_t units)
{
    const uint32_t level = v->units[unit].level;
    return v->chosen[0].made && level == v->chosen[0].item->level + 1 &&
           (unit + 1 == units || v->units[unit + 1].level != level);
}

/* One head of one unit, keys (kind 0) or values; `noise`: between exact and rough in the layer. */
static int verify_unit(verifier *v, uint32_t layer, uint32_t kind, uint32_t head, size_t unit, bool made, double noise)
{
    const size_t d = v->head_dim, at = ((2 * unit + kind) * v->kv_heads + head) * d;
    const float *exact = v->values[0] + at;
    double bound = check_bound(v->kv, CHECK_FACTOR * noise, exact, d);
    if (made) {
        const dcm_merge_choice *c = &v->chosen[0].item[(size_t)layer * v->kv_heads + head];
        bound += check_choice_moves(c, kind, CHECK_FACTOR * gap_noise(v)) * c->spread[kind];
    }
    const double found = check_max_abs(exact, v->values[2] + at, d);
    v->worst = bound > 0 && found / bound > v->worst ? found / bound : v->worst;
    if (found <= bound)
        return 0;
    const dcm_unit *u = &v->units[unit];
    return tool_fail(1,
                     "layer %u, %s of tokens %" PRIu64 " to %" PRIu64 " differ by %.3g from what the reference "
                     "computes from the same cache, and at most %.3g is rounding: the device or its driver computes "
                     "wrongly (see dcm check)",
                     layer, kind ? "values" : "keys", u->first, u->first + u->tokens - 1, found, bound);
}

/* May the unit follow from several choices of the step? */
static bool is_open(const verifier *v, size_t unit) { return v->chosen[0].made && v->due > 1 && v->units[unit].level; }

static int verify_layer(verifier *v, uint32_t layer, size_t units)
{
    const size_t n = (size_t)v->kv_heads * v->head_dim;
    int code = 0;
    for (uint32_t kind = 0; kind < 2; kind++) {
        double noise = 0;
        for (size_t u = 0; u < units; u++)
            if (!is_open(v, u))
                noise =
                    fmax(noise, check_max_abs(v->values[0] + (2 * u + kind) * n, v->values[1] + (2 * u + kind) * n, n));
        for (size_t u = 0; u < units; u++)
            for (uint32_t h = 0; h < v->kv_heads && !is_open(v, u) && code == 0; h++)
                code = verify_unit(v, layer, kind, h, u, is_made(v, u, units), noise);
    }
    return code;
}

static int verify_units(verifier *v)
{
    dcm_session *const session[] = {v->exact, v->rough, v->watched};
    dcm_session_stats stats;
    int code = 0;
    dcm_session_get_stats(v->exact, &stats);
    if (!make_room(v, stats.units))
        return tool_fail(DCM_ERR_MEMORY, "--verify-every: no room for %zu units", stats.units);
    for (uint32_t layer = 0; layer < v->layers && code == 0; layer++) {
        dcm_status status = DCM_OK;
        for (int i = 0; i < 3 && status == DCM_OK; i++)
            status = dcm_session_read_layer(session[i], layer, v->units, v->values[i]);
        code = status == DCM_OK ? verify_layer(v, layer, stats.units)
                                : tool_fail((int)status, "--verify-every: %s", dcm_error());
    }
    return code;
}

/* ---- Around a step ---- */

size_t verify_due(verifier *v, size_t count)
{
    const bool due = v->every && v->steps++ % (uint64_t)v->every == 0;
    v->due = !due ? 0 : count < VERIFY_TOKENS ? count : VERIFY_TOKENS;
    return v->due;
}

int verify_before(verifier *v, dcm_session *session)
{
    if (!v->due)
        return 0;
    v->watched = session;
    v->chosen[0].made = v->chosen[1].made = false;
    dcm_status status = dcm_session_copy(v->exact, session);
    if (status == DCM_OK)
        status = dcm_session_copy(v->rough, session);
    return status == DCM_OK ? 0 : tool_fail((int)status, "--verify-every: %s", dcm_error());
}

int verify_after(verifier *v, const int32_t *ids, const float *logits, size_t vocab)
{
    float *exact = v->logits, *rough = v->logits + vocab;
    if (!v->due)
        return 0;
    dcm_status status = dcm_session_feed(v->exact, ids, v->due, exact);
    if (status == DCM_OK)
        status = dcm_device_sum_floats(v->device, true);
    if (status == DCM_OK)
        status = dcm_session_feed(v->rough, ids, v->due, rough);
    if (status == DCM_OK)
        status = dcm_device_sum_floats(v->device, false);
    if (status != DCM_OK)
        return tool_fail((int)status, "--verify-every: %s", dcm_error());
    const double noise = check_max_abs(exact, rough, vocab), found = check_max_abs(exact, logits, vocab);
    const double bound = check_bound(DCM_KV_F32, CHECK_FACTOR * noise, exact, vocab);
    v->verified++;
    v->worst = found / bound > v->worst ? found / bound : v->worst;
    if (found <= bound)
        return verify_units(v);
    dcm_session_stats stats;
    dcm_session_get_stats(v->exact, &stats);
    if (!check_all_numbers(logits, vocab))
        return tool_fail(1,
                         "token %" PRIu64 ": a logit is no number, where the reference computes numbers from the same "
                         "cache: the device or its driver computes wrongly (see dcm check)",
                         stats.tokens);
    return tool_fail(1,
                     "token %" PRIu64 ": a logit differs by %.3g from what the reference computes from the same cache, "
                     "and at most %.3g is rounding: the device or its driver computes wrongly (see dcm check)",
                     stats.tokens, found, bound);
}

void verify_print_stats(const verifier *v)
{
    if (v->every)
        fprintf(stderr, "verified:       %" PRIu64 " of %" PRIu64 " steps, differences at most %.3g of their bound\n",
                v->verified, v->steps, v->worst);
}
