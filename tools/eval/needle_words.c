#include "needle.h"

#include "tool.h"

#include <stdlib.h>
#include <string.h>

enum { LETTERS = 3 };

static int make_part(int32_t **ids, size_t *count, const dcm_tokenizer *tokenizer, const char *text)
{
    const dcm_status status = dcm_tokenize(tokenizer, text, strlen(text), DCM_TOKENIZE_REST, ids, count);
    return status == DCM_OK ? 0 : tool_fail_library(status);
}

int needle_parts_make(needle_parts *parts, const dcm_tokenizer *tokenizer)
{
    int code = make_part(&parts->before, &parts->n_before, tokenizer, "\nThe secret word of");
    if (code == 0)
        code = make_part(&parts->between, &parts->n_between, tokenizer, " is");
    if (code == 0)
        code = make_part(&parts->after, &parts->n_after, tokenizer, ".\n");
    return code;
}

void needle_parts_release(needle_parts *parts)
{
    dcm_free(parts->before);
    dcm_free(parts->between);
    dcm_free(parts->after);
}

static size_t append(int32_t *to, size_t at, const int32_t *ids, size_t count)
{
    memcpy(to + at, ids, count * sizeof *ids);
    return at + count;
}

size_t needle_append(const needle_parts *parts, const needle *n, bool question, int32_t *ids)
{
    size_t at = append(ids, 0, parts->before, parts->n_before);
    ids[at++] = n->key;
    at = append(ids, at, parts->between, parts->n_between);
    if (question)
        return at;
    ids[at++] = n->candidate[0];
    return append(ids, at, parts->after, parts->n_after);
}

size_t needle_size(const needle_parts *parts, bool question)
{
    const size_t asked = parts->n_before + 1 + parts->n_between;
    return question ? asked : asked + 1 + parts->n_after;
}

static bool is_word(const char *text, size_t size)
{
    if (size < 1 + LETTERS || text[0] != ' ')
        return false;
    for (size_t i = 1; i < size; i++)
        if (text[i] < 'a' || text[i] > 'z')
            return false;
    return true;
}

/* Ids that may be drawn into `ids`: how many. `used`: of every id of the vocabulary. */
static size_t list(int32_t *ids, const dcm_tokenizer *tokenizer, const bool *used, bool words)
{
    const size_t vocab = dcm_vocab_size(tokenizer);
    size_t found = 0;
    for (size_t id = 0; id < vocab; id++) {
        const char *text;
        size_t size;
        if (used[id] || dcm_token_text(tokenizer, (int32_t)id, false, &text, &size) != DCM_OK || !size)
            continue;
        if (!words || is_word(text, size))
            ids[found++] = (int32_t)id;
    }
    return found;
}

static void mark(bool *used, const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        used[ids[i]] = true;
}

int needle_draw(needle *n, size_t candidates, const eval *e, const needle_parts *parts, const int32_t *ids,
                size_t count, eval_random *random)
{
    const size_t vocab = dcm_vocab_size(e->r.tokenizer), wanted = candidates + 1;
    bool *used = calloc(vocab, sizeof *used);
    int32_t *from = malloc(vocab * sizeof *from);
    int code = used && from ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for a vocabulary of %zu", vocab);
    if (code == 0) {
        mark(used, ids, count);
        mark(used, parts->before, parts->n_before);
        mark(used, parts->between, parts->n_between);
        mark(used, parts->after, parts->n_after);
    }
    size_t found = code == 0 ? list(from, e->r.tokenizer, used, true) : 0;
    if (code == 0 && found < wanted)
        found = list(from, e->r.tokenizer, used, false);
    if (code == 0 && found < wanted)
        code = tool_fail(DCM_ERR_FILE,
                         "only %zu tokens of the vocabulary are not in the text: too few for a key and %zu candidates",
                         found, candidates);
    for (size_t i = 0; i < wanted && code == 0; i++) {
        const size_t at = i + random_below(random, found - i);
        const int32_t id = from[at];
        from[at] = from[i];
        from[i] = id;
        *(i ? &n->candidate[i - 1] : &n->key) = id;
    }
    free(used);
    free(from);
    return code;
}
