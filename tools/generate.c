#include "generate.h"

#include "tool.h"

#include <dcm/log.h>

#include <math.h>
#include <stdlib.h>

int generator_open(generator *g, const runtime *r, dcm_session *session)
{
    const size_t vocab = r->info.vocab;
    g->r = r;
    g->session = session;
    g->unfed = -1;
    g->logits = malloc(vocab * sizeof *g->logits);
    g->ends = malloc(vocab * sizeof *g->ends);
    if (!g->logits || !g->ends)
        return tool_fail(DCM_ERR_MEMORY, "no room for the logits of %zu tokens", vocab);
    for (size_t i = 0; i < vocab && i < dcm_vocab_size(r->tokenizer); i++)
        if (dcm_is_end_token(r->tokenizer, (int32_t)i))
            g->ends[g->n_ends++] = (int32_t)i;
    return 0;
}

void generator_close(generator *g)
{
    free(g->logits);
    free(g->ends);
    stream_reset(&g->out);
    g->logits = NULL;
    g->ends = NULL;
}

/* Feed ids and keep the logits after the last one. */
static int feed(generator *g, const int32_t *ids, size_t count)
{
    const dcm_status status = dcm_session_feed(g->session, ids, count, g->logits);
    if (status != DCM_OK)
        return tool_fail_library(status);
    g->begun = true;
    dcm_session_stats stats;
    dcm_session_get_stats(g->session, &stats);
    if (stats.units > g->r->info.context && !g->warned) {
        g->warned = true;
        dcm_log(DCM_LOG_WARN,
                "the cache holds more units than the %u positions that the model was trained on: expect nonsense",
                g->r->info.context);
    }
    return 0;
}

/* Feed the token that the last turn left unfed, then `ids`. */
static int feed_prompt(generator *g, const int32_t *ids, size_t count)
{
    const double start = runtime_seconds();
    int code = 0;
    if (g->unfed >= 0) {
        code = feed(g, &g->unfed, 1);
        g->unfed = -1;
    }
    if (code == 0 && count)
        code = feed(g, ids, count);
    g->times.tokens_in += count;
    g->times.prefill_seconds += runtime_seconds() - start;
    return code;
}

int generator_feed_text(generator *g, const char *text, size_t size, bool first)
{
    const int32_t bos = dcm_bos_token(g->r->tokenizer);
    int32_t *ids;
    size_t count;
    const dcm_status status = dcm_tokenize(g->r->tokenizer, text, size, DCM_TOKENIZE_SPECIAL, &ids, &count);
    if (status != DCM_OK)
        return tool_fail_library(status);
    int code = 0;
    if (first && bos >= 0 && (count == 0 || ids[0] != bos))
        code = feed_prompt(g, &bos, 1);
    if (code == 0 && (count || g->unfed >= 0))
        code = feed_prompt(g, ids, count);
    dcm_free(ids);
    if (code == 0 && !g->begun)
        code = tool_fail(DCM_ERR_USAGE, "the prompt has no tokens: there is nothing to continue");
    return code;
}

static int print_token(generator *g, int32_t id)
{
    const char *text;
    size_t size;
    const dcm_status status = dcm_token_text(g->r->tokenizer, id, false, &text, &size);
    if (status != DCM_OK)
        return tool_fail_library(status);
    return stream_put(&g->out, text, size) ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for the text");
}

int generator_turn(generator *g)
{
    int code = 0;
    tool_catch(true);
    const double start = runtime_seconds();
    for (int64_t n = 0; n < g->tokens && code == 0; n++) {
        if (g->unfed >= 0) {
            code = feed(g, &g->unfed, 1);
            g->unfed = -1;
            g->times.decoded++;
        }
        if (code == 0)
            code = tool_stopped();
        if (code)
            break;
        for (size_t i = 0; g->ignore_end && i < g->n_ends; i++)
            g->logits[g->ends[i]] = -INFINITY;
        const int32_t id = dcm_sample(g->logits, g->r->info.vocab, &g->sample, &g->rng);
        if (dcm_is_end_token(g->r->tokenizer, id) && !g->ignore_end)
            break;
        code = print_token(g, id);
        g->times.tokens_out++;
        g->unfed = id;
        if (g->out.stopped)
            break;
    }
    g->times.decode_seconds += runtime_seconds() - start;
    stream_end(&g->out);
    stream_reset(&g->out);
    tool_catch(false);
    return code;
}
