#include "numbers.h"

#include "policies.h"
#include "tool.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

int numbers_fail(const char *what, uint64_t number, const dcm_session *session, const dcm_cache_params *params)
{
    char policy[POLICY_TEXT];
    dcm_session_stats stats;
    dcm_session_get_stats(session, &stats);
    policy_text(params, stats.merge, policy, sizeof policy);
    return tool_fail(DCM_ERR_FILE,
                     "%s %" PRIu64
                     ", %s: what is computed is no number: the model's weights may hold NaN or infinities "
                     "(or the device computes wrongly: see dcm check)",
                     what, number, policy);
}

int numbers_check(const float *logits, size_t vocab, const dcm_session *session, const dcm_cache_params *params,
                  uint64_t token)
{
    unsigned wrong = 0;
    for (size_t i = 0; i < vocab; i++)
        wrong |= !(fabsf(logits[i]) <= FLT_MAX); /* NaN too */
    return wrong ? numbers_fail("token", token, session, params) : 0;
}
