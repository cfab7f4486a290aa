#include "token/split.h"

#include "base/error.h"
#include "base/memory.h"
#include "token/utf8.h"

#include <stdint.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/*
 * White space is Unicode's White_Space property, spelt out: PCRE2's own \s has U+180E beside it. In a class [..]: WS;
 * as an item: S. Each expression matches at every place of every text, so words leave no gaps.
 */
#define WS "\\t-\\r \\x{85}\\p{Z}"
#define S "[" WS "]"
#define CONTRACTION "'(?:s|t|re|ve|m|ll|d)"

/* GPT-2's: S+(?!\S) leaves a run's last space to the word behind it. */
#define GPT2 CONTRACTION "| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" S "+(?![^" WS "])|" S "+"

/* Every digit is cut out first and GPT-2's expression sees the parts between them: for it a text ends before a digit.
 */
#define SMOLLM "\\p{N}|" CONTRACTION "| ?\\p{L}+| ?[^" WS "\\p{L}\\p{N}]+|" S "+(?![^" WS "\\p{N}])|" S "+"

#define LLAMA3(digits)                                                                                                 \
    "(?i:" CONTRACTION ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" S               \
    "*[\\r\\n]+|" S "+(?![^" WS "])|" S "+"

typedef struct split_rule {
    const char *name;
    const char *pattern;
    split_facts facts;
} split_rule;

static const split_rule rules[] = {
    {"smollm", SMOLLM, {false, false}},
    {"llama-bpe", LLAMA3("\\p{N}{1,3}"), {true, true}},
    {"llama3", LLAMA3("\\p{N}{1,3}"), {true, true}},
    {"llama-v3", LLAMA3("\\p{N}{1,3}"), {true, true}},
    {"qwen2", LLAMA3("\\p{N}"), {false, false}},
    {"deepseek-r1-qwen", LLAMA3("\\p{N}"), {false, false}},
    {"gpt-2", GPT2, {false, false}},
};

struct split {
    pcre2_code *code;
    pcre2_match_context *limits;
};

static dcm_status compile(split *s, const split_rule *rule)
{
    int error;
    PCRE2_SIZE at;
    s->code =
        pcre2_compile((PCRE2_SPTR)rule->pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED, &error, &at, NULL);
    if (!s->code) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(error, text, sizeof text);
        return dcm_fail(DCM_ERR_FILE, "pre-tokenizer \"%s\": PCRE2 refuses its expression at %zu: %s", rule->name,
                        (size_t)at, (const char *)text);
    }
    /* Where there is no just-in-time compiler, matching interprets. */
    pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE);
    s->limits = pcre2_match_context_create(NULL);
    if (!s->limits)
        return dcm_fail(DCM_ERR_MEMORY, "host memory: no room for the pre-tokenizer");
    /* Steps back over a run of spaces count as tries: the default limit would stop at ten million. */
    pcre2_set_match_limit(s->limits, UINT32_MAX);
    return DCM_OK;
}

dcm_status split_open(split **s, gguf_string name, split_facts *facts)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (strlen(rules[i].name) != name.size || memcmp(rules[i].name, name.data, name.size) != 0)
            continue;
        *facts = rules[i].facts;
        dcm_status status = mem_new(s, 1, sizeof **s, "the pre-tokenizer");
        return status == DCM_OK ? compile(*s, &rules[i]) : status;
    }
    return dcm_fail(DCM_ERR_FILE, "pre-tokenizer \"%.*s\" is not known; known are smollm, llama-bpe, qwen2 and gpt-2",
                    (int)(name.size < 80 ? name.size : 80), name.data);
}

void split_close(split **s)
{
    if (!*s)
        return;
    pcre2_code_free((*s)->code);
    pcre2_match_context_free((*s)->limits);
    mem_free(s);
}

/* Bytes at the start of `text` that are valid UTF-8, or else that are not. */
static size_t run_length(const char *text, size_t size, bool valid)
{
    size_t at = 0;
    while (at < size) {
        uint32_t code;
        const size_t step = utf8_read(text + at, size - at, &code);
        if ((step > 0) != valid)
            break;
        at += step ? step : 1;
    }
    return at;
}

static dcm_status split_valid(const split *s, const char *text, size_t size, pcre2_match_data *match, split_word *word,
                              void *context)
{
    for (size_t at = 0; at < size;) {
        const int found = pcre2_match(s->code, (PCRE2_SPTR)text, size, at, PCRE2_NO_UTF_CHECK, match, s->limits);
        if (found < 1) {
            PCRE2_UCHAR reason[128];
            pcre2_get_error_message(found, reason, sizeof reason);
            return dcm_fail(DCM_ERR_MEMORY, "pre-tokenizer: PCRE2 gave up at byte %zu of %zu: %s", at, size,
                            (const char *)reason);
        }
        const size_t end = pcre2_get_ovector_pointer(match)[1];
        const dcm_status status = word(context, text + at, end - at);
        if (status != DCM_OK)
            return status;
        at = end;
    }
    return DCM_OK;
}

dcm_status split_text(const split *s, const char *text, size_t size, split_word *word, void *context)
{
    dcm_status status = DCM_OK;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match)
        return dcm_fail(DCM_ERR_MEMORY, "host memory: no room for the pre-tokenizer");
    for (size_t at = 0; at < size;) {
        const size_t valid = run_length(text + at, size - at, true);
        DCM_TRY(status, fail, split_valid(s, text + at, valid, match, word, context));
        at += valid;
        const size_t invalid = run_length(text + at, size - at, false);
        if (invalid > 0)
            DCM_TRY(status, fail, word(context, text + at, invalid));
        at += invalid;
    }
fail:
    pcre2_match_data_free(match);
    return status;
}
