#include "verify.h"

#include "check.h"
#include "tool.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int verify_open(verifier *v, const runtime *r, const char *path, const device_options *device,
                const dcm_cache_params *params, const dcm_session *session)
{
    const dcm_device_params where = {.name = "ref", .threads = (int)device->threads};
    dcm_session_stats stats;
    dcm_cache_params same = *params;
    dcm_session_get_stats(session, &stats);
    if (params->kind == DCM_CACHE_DCM && !params->merge && !strcmp(stats.merge, "newer"))
        same.merge = stats.merge; /* what "auto" was, without saying it again */
    same.chunk = 1;
    dcm_status status = dcm_device_open(&v->device, &where);
    if (status == DCM_OK)
        status = dcm_model_open(&v->model, v->device, path);
    if (status == DCM_OK)
        status = dcm_session_open(&v->rough, v->model, &same);
    same.kv = DCM_KV_F32;
    if (status == DCM_OK)
        status = dcm_session_open(&v->exact, v->model, &same);
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
    v->logits = NULL;
}

int verify_before(verifier *v, dcm_session *session)
{
    v->due = v->every && v->steps++ % (uint64_t)v->every == 0;
    if (!v->due)
        return 0;
    dcm_status status = dcm_session_copy(v->exact, session);
    if (status == DCM_OK)
        status = dcm_session_copy(v->rough, session);
    return status == DCM_OK ? 0 : tool_fail((int)status, "--verify-every: %s", dcm_error());
}

int verify_after(verifier *v, int32_t token, const float *logits, size_t vocab)
{
    float *exact = v->logits, *rough = v->logits + vocab;
    if (!v->due)
        return 0;
    dcm_status status = dcm_session_feed(v->exact, &token, 1, exact);
    if (status == DCM_OK)
        status = dcm_device_sum_floats(v->device, true);
    if (status == DCM_OK)
        status = dcm_session_feed(v->rough, &token, 1, rough);
    if (status == DCM_OK)
        status = dcm_device_sum_floats(v->device, false);
    if (status != DCM_OK)
        return tool_fail((int)status, "--verify-every: %s", dcm_error());
    const double bound = check_bound(exact, rough, vocab), found = check_max_abs(exact, logits, vocab);
    v->verified++;
    v->worst = found / bound > v->worst ? found / bound : v->worst;
    if (found <= bound)
        return 0;
    dcm_session_stats stats;
    dcm_session_get_stats(v->exact, &stats);
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
