#include "generate.h"

#include "fit.h"
#include "numbers.h"
#include "progress.h"
#include "tool.h"

#include <dcm/log.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

int generator_open(generator *g)
{
    const runtime *r = g->r;
    const size_t vocab = r->info.vocab;
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

/* Say once that the cache holds, or will hold, more units than the model knows positions. */
static void warn_of_units(generator *g, size_t units)
{
    if (units <= g->r->info.context || g->warned)
        return;
    g->warned = true;
    dcm_log(DCM_LOG_WARN,
            "the cache holds more units than the %u positions that the model was trained on: expect nonsense",
            g->r->info.context);
}

/* Feed ids, which may be g->unfed, and keep the logits after the last one; what is to be verified is fed apart. */
static int feed(generator *g, const int32_t *ids, size_t count)
{
    const size_t before = count - verify_due(&g->watch, count);
    dcm_status status = before ? dcm_session_feed(g->session, ids, before, g->logits) : DCM_OK;
    int code = status == DCM_OK ? verify_before(&g->watch, g->session) : 0;
    if (status == DCM_OK && code == 0 && before < count)
        status = dcm_session_feed(g->session, ids + before, count - before, g->logits);
    if (status != DCM_OK)
        return tool_fail_library(status);
    if (code == 0)
        code = verify_after(&g->watch, ids + before, g->logits, g->r->info.vocab);
    if (code)
        return code;
    g->begun = true;
    g->unfed = -1;
    dcm_session_stats stats;
    dcm_session_get_stats(g->session, &stats);
    warn_of_units(g, stats.units);
    return numbers_check(g->logits, g->r->info.vocab, g->session, g->params, stats.tokens);
}

/* ---- Reading a prompt ---- */

/* Tokens on their way into the session, a few steps at a time. */
typedef struct feeder {
    generator *g;
    progress line;
    int32_t *ids; /* waiting */
    size_t count, room;
    size_t piece; /* tokens fed at a time, a multiple of a step's */
    uint64_t fed;
} feeder;

static int push(feeder *f, const int32_t *ids, size_t count)
{
    if (f->room - f->count < count) {
        const size_t room = 2 * (f->count + count);
        int32_t *grown = realloc(f->ids, room * sizeof *grown);
        if (!grown)
            return tool_fail(DCM_ERR_MEMORY, "no room for %zu tokens", room);
        f->ids = grown;
        f->room = room;
    }
    memcpy(f->ids + f->count, ids, count * sizeof *ids);
    f->count += count;
    return 0;
}

/* Seconds of a piece: short enough for Ctrl-C and progress, long enough that waiting for the device costs nothing. */
static const double piece_least = 0.2, piece_most = 0.8;

static void fit_piece(feeder *f, double seconds)
{
    const size_t step = dcm_session_chunk(f->g->session);
    if (seconds < piece_least && f->piece < 64 * step)
        f->piece *= 2;
    else if (seconds > piece_most && f->piece > step)
        f->piece = f->piece / step / 2 * step;
}

/* Feed whole pieces; with `all` what is left too. */
static int drain(feeder *f, bool all)
{
    generator *g = f->g;
    size_t at = 0;
    int code = tool_stopped();
    while (code == 0 && at < f->count && (all || f->count - at >= f->piece)) {
        const size_t count = f->count - at < f->piece ? f->count - at : f->piece;
        const double start = runtime_seconds();
        code = feed(g, f->ids + at, count);
        const double seconds = runtime_seconds() - start;
        if (code)
            break;
        at += count;
        f->fed += count;
        g->times.prefill_seconds += seconds;
        progress_at(&f->line, f->fed);
        fit_piece(f, seconds);
        code = tool_stopped();
    }
    f->count -= at;
    if (at)
        memmove(f->ids, f->ids + at, f->count * sizeof *f->ids);
    return code;
}

/* Refuse or warn before work starts, where the length is known. */
static int look_ahead(generator *g, uint64_t tokens)
{
    size_t units, bytes;
    dcm_session_stats stats;
    dcm_session_get_stats(g->session, &stats);
    const int code = fit_check(g->r, g->device, g->session, &g->params, 1, stats.tokens + tokens);
    if (code == 0 && dcm_cache_bytes(&g->r->info, g->params, stats.tokens + tokens, &units, &bytes) == DCM_OK)
        warn_of_units(g, units);
    return code;
}

static int feed_pieces(feeder *f, text_reader *text, bool first)
{
    const dcm_tokenizer *tokenizer = f->g->r->tokenizer;
    const int32_t bos = first ? dcm_bos_token(tokenizer) : -1;
    const bool unfed = f->g->unfed >= 0;
    int code = unfed ? push(f, &f->g->unfed, 1) : 0;
    bool begun = false;
    while (code == 0) {
        int32_t *ids;
        size_t count;
        code = reader_next(text, tokenizer, DCM_TOKENIZE_SPECIAL, &ids, &count);
        if (code == 0 && !begun && bos >= 0 && (!count || ids[0] != bos))
            code = push(f, &bos, 1);
        begun = true;
        if (code == 0 && count)
            code = push(f, ids, count);
        dcm_free(ids);
        if (code == 0)
            code = drain(f, !count);
        if (!count)
            break;
    }
    f->g->times.tokens_in += f->fed - (unfed && f->fed);
    return code;
}

int generator_feed_text(generator *g, text_reader *text, bool first)
{
    uint64_t total;
    int code = reader_count(text, g->r->tokenizer, DCM_TOKENIZE_SPECIAL, &total);
    if (code == 0 && total)
        code = look_ahead(g, total);
    if (code)
        return code;
    feeder f = {.g = g, .piece = dcm_session_chunk(g->session)};
    tool_catch(true);
    progress_begin(&f.line, g->quiet, total);
    code = feed_pieces(&f, text, first);
    progress_end(&f.line);
    tool_catch(false);
    free(f.ids);
    if (code > 128 && g->interactive)
        dcm_log(DCM_LOG_WARN, "interrupted: the first %llu tokens of the text stay in the context",
                (unsigned long long)f.fed);
    if (code == 0 && !g->begun)
        code = text->file >= 0 ? tool_fail(DCM_ERR_FILE, "%s: has no tokens: there is nothing to continue", text->name)
                               : tool_fail(DCM_ERR_USAGE, "the prompt has no tokens: there is nothing to continue");
    return code;
}

/* ---- Generating ---- */

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
            g->times.decoded++;
        }
        if (code == 0)
            code = tool_stopped();
        if (code)
            break;
        for (size_t i = 0; g->ignore_end && i < g->n_ends; i++)
            g->logits[g->ends[i]] = -INFINITY;
        const int32_t id = dcm_sample(g->logits, g->r->info.vocab, &g->sample, &g->rng);
        if (id < 0) {
            code = tool_fail_library(DCM_ERR_MEMORY);
            break;
        }
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
