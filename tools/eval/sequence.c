#include "eval.h"

#include "fit.h"
#include "numbers.h"
#include "score.h"
#include "tool.h"

#include <stdlib.h>

enum { ROWS = 64 }; /* of logits at a time */

int eval_sequence_open(eval_sequence *s, eval *e, size_t policy)
{
    const dcm_cache_params *params = &e->policies.item[policy].params;
    s->e = e;
    s->fed = 0;
    s->params = params;
    const dcm_status status = dcm_session_open(&s->session, e->r.model, params);
    if (status != DCM_OK)
        return tool_fail_library(status);
    policies_settle_merge(&e->policies, params, s->session);
    s->step = dcm_session_chunk(s->session);
    s->logits = malloc(ROWS * (size_t)e->r.info.vocab * sizeof *s->logits);
    if (!s->logits)
        return tool_fail(DCM_ERR_MEMORY, "no room for the logits of %d tokens", ROWS);
    const dcm_cache_params *const all[] = {params};
    return fit_check(&e->r, &e->o->device, s->session, all, 1, s->count);
}

void eval_sequence_close(eval_sequence *s)
{
    dcm_session_close(&s->session);
    free(s->logits);
    s->logits = NULL;
}

/* Feed `count` tokens, at most a step of them; `each`: logits after every one, else after the last, NULL for none. */
static int feed(eval_sequence *s, size_t count, bool each, float *logits)
{
    const size_t vocab = s->e->r.info.vocab, rows = !logits ? 0 : each ? count : 1;
    const int32_t *ids = s->ids + s->fed;
    const dcm_status status =
        each ? dcm_session_feed_each(s->session, ids, count, logits) : dcm_session_feed(s->session, ids, count, logits);
    if (status != DCM_OK)
        return tool_fail_library(status);
    s->fed += count;
    *s->done += count;
    progress_at(s->line, *s->done);
    int code = tool_stopped();
    for (size_t i = 0; i < rows && code == 0; i++)
        code = numbers_check(logits + i * vocab, vocab, s->session, s->params, s->fed - rows + i + 1);
    return code;
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Feed the tokens before `end` without any logits. */
static int skip_to(eval_sequence *s, size_t end)
{
    int code = 0;
    while (s->fed < end && code == 0)
        code = feed(s, least(end - s->fed, s->step), false, NULL);
    return code;
}

int eval_sequence_score(eval_sequence *s, size_t first, size_t count, double *logprob)
{
    const size_t vocab = s->e->r.info.vocab;
    int code = skip_to(s, first - 1);
    for (size_t done = 0; done < count && code == 0;) {
        const size_t rows = least(least(count - done, ROWS), s->step);
        code = feed(s, rows, true, s->logits);
        for (size_t i = 0; i < rows && code == 0; i++, done++) {
            const float *logits = s->logits + i * vocab;
            logprob[done] = logits[s->ids[first + done]] - score_log_sum(logits, vocab);
        }
    }
    return code;
}

int eval_sequence_end(eval_sequence *s)
{
    const int code = skip_to(s, s->count - 1);
    return code ? code : feed(s, 1, false, s->logits);
}
