#include "token/chat.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/memory.h"
#include "token/buffer.h"
#include "token/utf8.h"

#include <stdbool.h>
#include <time.h>

typedef enum chat_family {
    FAMILY_CHATML,
    FAMILY_LLAMA3,
    FAMILY_LLAMA2,
    FAMILY_MISTRAL,
    FAMILY_MISTRAL_V7,
    FAMILY_ZEPHYR
} chat_family;

/* Where templates of one family differ. */
enum {
    WITH_BOS = 1,       /* ChatML behind the BOS token */
    WITH_DATE = 2,      /* Llama 3.1: a system message always, with the dates */
    WITH_TODAY = 4,     /* Llama 3.2: today's */
    SYSTEM_TURNS = 8,   /* Llama 2: system messages later on are rendered */
    NO_SYSTEM = 16,     /* Mistral: system messages are refused */
    SYSTEM_LAST = 32,   /* Mistral: the system message goes into the last turn, not the first */
    SPACE_BEFORE = 64,  /* Mistral: " [INST] " and " " before answers */
    SPACE_ANSWER = 128, /* Mistral: " " before answers */
    SPACE_AFTER = 256,  /* Mistral: " " behind answers */
    TIGHT_END = 512,    /* Mistral: "[/INST]", not " [/INST]" */
    TRIM_ANSWER = 1024  /* Mistral: answers are trimmed */
};

/*
 * The templates that are known, by the digest of their canonical form without their default system message (see
 * chat_open). The tests hold the texts, and what Jinja makes of them.
 */
struct chat_kind {
    uint64_t digest;
    const char *name;
    chat_family family;
    unsigned options;
};

static const chat_kind kinds[] = {
    {0xc767b7a613cac605, "chatml", FAMILY_CHATML, 0},
    {0x1902aec19dc9ab34, "chatml", FAMILY_CHATML, 0},
    {0xf5c146f62bd2ef58, "chatml", FAMILY_CHATML, 0}, /* SmolLM2 and Qwen2: with a default system message */
    {0xb433d20c6ab5558d, "chatml", FAMILY_CHATML, WITH_BOS},
    {0xe27c928564d82312, "qwen2.5", FAMILY_CHATML, 0},
    {0x8adaddede01eb66c, "llama3", FAMILY_LLAMA3, 0},
    {0x3d653cb60d3aa250, "llama3", FAMILY_LLAMA3, 0},
    {0xb4a8113594ad72ff, "llama3.1", FAMILY_LLAMA3, WITH_DATE},
    {0x4b4f42edad71d9e4, "llama3.2", FAMILY_LLAMA3, WITH_DATE | WITH_TODAY},
    {0x2737fd6ba4107101, "llama2", FAMILY_LLAMA2, 0},
    {0x738aaf0afd0ae1f8, "llama2", FAMILY_LLAMA2, SYSTEM_TURNS},
    {0x48c50b36490fd1bf, "mistral", FAMILY_MISTRAL, NO_SYSTEM},
    {0x67463c580f9b976a, "mistral", FAMILY_MISTRAL, NO_SYSTEM | SPACE_AFTER},
    {0xfd697601333fa210, "mistral-v1", FAMILY_MISTRAL, SPACE_BEFORE},
    {0xda1bf3d5a4548699, "mistral-v3", FAMILY_MISTRAL, SYSTEM_LAST | SPACE_ANSWER | TIGHT_END | TRIM_ANSWER},
    {0xa7841d06686d422a, "mistral-v7", FAMILY_MISTRAL_V7, 0},
    {0x66b359c3c6bf4042, "zephyr", FAMILY_ZEPHYR, 0},
};

/*
 * The default system message of a ChatML template: what stands between the opening and the end of a system turn inside
 * one literal of the canonical form. NULL where there is none.
 */
static char *find_default(char *canonical, size_t *size)
{
    static const char open[] = "<|im_start|>system\n", close[] = "<|im_end|>";
    for (char *at = canonical; (at = strstr(at, open)) != NULL;) {
        at += strlen(open);
        const char *end = strstr(at, close);
        const char *quote = strchr(at, '"');
        while (quote && quote > at && quote[-1] == '\\')
            quote = strchr(quote + 1, '"');
        if (end && end > at && quote > end) {
            *size = (size_t)(end - at);
            return at;
        }
    }
    return NULL;
}

/* Take every copy of `text` out of `from`. */
static void remove_all(char *from, const char *text)
{
    const size_t size = strlen(text);
    char *out = from;
    while (*from) {
        if (strncmp(from, text, size) == 0)
            from += size;
        else
            *out++ = *from++;
    }
    *out = '\0';
}

static void unescape(char *text)
{
    char *out = text;
    for (; *text; text++) {
        text += *text == '\\';
        *out++ = *text;
    }
    *out = '\0';
}

dcm_status chat_open(chat *c, gguf_string text)
{
    dcm_status status;
    char *canonical = NULL;
    size_t size;
    c->bos = c->eos = "";
    if (text.size > CHAT_TEMPLATE_MAX) {
        c->digest = hash_bytes(HASH_START, text.data, text.size);
        return DCM_OK;
    }
    DCM_TRY(status, fail, chat_canonical(text, &canonical));
    const char *system = find_default(canonical, &size);
    if (system) {
        DCM_TRY(status, fail, mem_new(&c->default_system, size + 1, 1, "the default system message"));
        memcpy(c->default_system, system, size);
        remove_all(canonical, c->default_system);
        unescape(c->default_system);
    }
    c->digest = hash_bytes(HASH_START, canonical, strlen(canonical));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].digest == c->digest)
            c->kind = &kinds[i];
    if (c->kind)
        c->name = c->default_system && strstr(c->default_system, "SmolLM") ? "smollm2" : c->kind->name;
fail:
    mem_free(&canonical);
    return status;
}

void chat_close(chat *c) { mem_free(&c->default_system); }

/* White space as Python's str.strip() takes it. */
static bool python_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static void add_stripped(buffer *b, const char *text, size_t size)
{
    uint32_t code;
    size_t step;
    while ((step = utf8_read(text, size, &code)) > 0 && python_space(code)) {
        text += step;
        size -= step;
    }
    for (;;) {
        for (step = 1; step <= 4 && step <= size; step++)
            if (utf8_read(text + size - step, step, &code) == step)
                break;
        if (step > 4 || step > size || !python_space(code))
            break;
        size -= step;
    }
    buffer_add(b, text, size);
}

static void add_trimmed(buffer *b, const char *text) { add_stripped(b, text, strlen(text)); }

static bool role_is(const dcm_chat_message *m, const char *role) { return strcmp(m->role, role) == 0; }

static dcm_status render_chatml(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    if (c->kind->options & WITH_BOS)
        buffer_text(b, c->bos);
    if (c->default_system && !role_is(&m[0], "system")) {
        buffer_text(b, "<|im_start|>system\n");
        buffer_text(b, c->default_system);
        buffer_text(b, "<|im_end|>\n");
    }
    for (size_t i = 0; i < count; i++) {
        buffer_text(b, "<|im_start|>");
        buffer_text(b, m[i].role);
        buffer_text(b, "\n");
        buffer_text(b, m[i].content);
        buffer_text(b, "<|im_end|>\n");
    }
    if (generate)
        buffer_text(b, "<|im_start|>assistant\n");
    return DCM_OK;
}

static void add_today(buffer *b)
{
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    char text[32];
    struct tm day;
    const time_t now = time(NULL);
    localtime_r(&now, &day);
    strftime(text, sizeof text, "%d ", &day);
    buffer_text(b, text);
    buffer_add(b, months + 3 * day.tm_mon, 3);
    strftime(text, sizeof text, " %Y", &day);
    buffer_text(b, text);
}

static void add_llama3_turn(buffer *b, const char *role, const char *content)
{
    buffer_text(b, "<|start_header_id|>");
    buffer_text(b, role);
    buffer_text(b, "<|end_header_id|>\n\n");
    if (content) {
        add_trimmed(b, content);
        buffer_text(b, "<|eot_id|>");
    }
}

static dcm_status render_llama3(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    buffer_text(b, c->bos);
    size_t i = 0;
    if (c->kind->options & WITH_DATE) {
        add_llama3_turn(b, "system", NULL);
        buffer_text(b, "Cutting Knowledge Date: December 2023\nToday Date: ");
        if (c->kind->options & WITH_TODAY)
            add_today(b);
        else
            buffer_text(b, "26 Jul 2024");
        buffer_text(b, "\n\n");
        if (role_is(&m[0], "system"))
            add_trimmed(b, m[i++].content);
        buffer_text(b, "<|eot_id|>");
    }
    for (; i < count; i++)
        add_llama3_turn(b, m[i].role, m[i].content);
    if (generate)
        add_llama3_turn(b, "assistant", NULL);
    return DCM_OK;
}

/* User and assistant in turn, a user first. */
static dcm_status check_turns(const dcm_chat_message *m, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (role_is(&m[i], "user") != (i % 2 == 0))
            return dcm_fail(DCM_ERR_USAGE, "chat template: turns must alternate, user first; turn %zu is \"%s\"", i + 1,
                            m[i].role);
    return DCM_OK;
}

static dcm_status render_llama2(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    (void)generate; /* the text before an answer ends with [/INST] */
    const char *system = role_is(&m[0], "system") ? m[0].content : NULL;
    const size_t skip = system != NULL;
    const dcm_status status = check_turns(m + skip, count - skip);
    if (status != DCM_OK)
        return status;
    for (size_t i = skip; i < count; i++) {
        if (role_is(&m[i], "user")) {
            buffer content = {0};
            if (system && i == skip) {
                buffer_text(&content, "<<SYS>>\n");
                buffer_text(&content, system);
                buffer_text(&content, "\n<</SYS>>\n\n");
            }
            buffer_text(&content, m[i].content);
            buffer_text(b, c->bos);
            buffer_text(b, "[INST] ");
            if (content.status == DCM_OK)
                add_stripped(b, content.data, content.size);
            else
                b->status = content.status;
            buffer_text(b, " [/INST]");
            mem_free(&content.data);
        } else if (role_is(&m[i], "assistant")) {
            buffer_text(b, " ");
            add_trimmed(b, m[i].content);
            buffer_text(b, " ");
            buffer_text(b, c->eos);
        } else if (c->kind->options & SYSTEM_TURNS) {
            buffer_text(b, "<<SYS>>\n");
            add_trimmed(b, m[i].content);
            buffer_text(b, "\n<</SYS>>\n\n");
        }
    }
    return DCM_OK;
}

static void add_mistral_user(const chat *c, const char *system, const char *content, buffer *b)
{
    buffer_text(b, c->kind->options & SPACE_BEFORE ? " [INST] " : "[INST] ");
    if (system) {
        buffer_text(b, system);
        buffer_text(b, "\n\n");
    }
    buffer_text(b, content);
    buffer_text(b, c->kind->options & TIGHT_END ? "[/INST]" : " [/INST]");
}

static void add_mistral_answer(const chat *c, const char *content, buffer *b)
{
    if (c->kind->options & (SPACE_BEFORE | SPACE_ANSWER))
        buffer_text(b, " ");
    if (c->kind->options & TRIM_ANSWER)
        add_trimmed(b, content);
    else
        buffer_text(b, content);
    buffer_text(b, c->eos);
    if (c->kind->options & SPACE_AFTER)
        buffer_text(b, " ");
}

static dcm_status render_mistral(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    (void)generate; /* the text before an answer ends with [/INST] */
    const char *system = !(c->kind->options & NO_SYSTEM) && role_is(&m[0], "system") ? m[0].content : NULL;
    const size_t skip = system != NULL, with_system = c->kind->options & SYSTEM_LAST ? count - 1 : skip;
    const dcm_status status = check_turns(m + skip, count - skip);
    if (status != DCM_OK)
        return status;
    buffer_text(b, c->bos);
    for (size_t i = skip; i < count; i++) {
        if (role_is(&m[i], "user"))
            add_mistral_user(c, i == with_system ? system : NULL, m[i].content, b);
        else if (role_is(&m[i], "assistant"))
            add_mistral_answer(c, m[i].content, b);
        else
            return dcm_fail(DCM_ERR_USAGE, "chat template: no system message is supported as turn %zu", i + 1);
    }
    return DCM_OK;
}

static dcm_status render_mistral_v7(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    (void)generate; /* the text before an answer ends with [/INST] */
    buffer_text(b, c->bos);
    for (size_t i = 0; i < count; i++) {
        const bool user = role_is(&m[i], "user"), system = role_is(&m[i], "system");
        buffer_text(b, user ? "[INST] " : system ? "[SYSTEM_PROMPT] " : " ");
        buffer_text(b, m[i].content);
        buffer_text(b, user ? "[/INST]" : system ? "[/SYSTEM_PROMPT]" : c->eos);
    }
    return DCM_OK;
}

static dcm_status render_zephyr(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    for (size_t i = 0; i < count; i++) {
        buffer_text(b, "<|");
        buffer_text(b, m[i].role);
        buffer_text(b, "|>\n");
        buffer_text(b, m[i].content);
        buffer_text(b, c->eos);
        buffer_text(b, "\n");
    }
    if (generate)
        buffer_text(b, "<|assistant|>\n");
    return DCM_OK;
}

/* A whole conversation; none is the empty text. */
static dcm_status render(const chat *c, const dcm_chat_message *m, size_t count, bool generate, buffer *b)
{
    typedef dcm_status renderer(const chat *, const dcm_chat_message *, size_t, bool, buffer *);
    static renderer *const renderers[] = {
        [FAMILY_CHATML] = render_chatml,   [FAMILY_LLAMA3] = render_llama3,         [FAMILY_LLAMA2] = render_llama2,
        [FAMILY_MISTRAL] = render_mistral, [FAMILY_MISTRAL_V7] = render_mistral_v7, [FAMILY_ZEPHYR] = render_zephyr,
    };
    buffer_text(b, "");
    for (size_t i = 0; i < count; i++)
        if (!role_is(&m[i], "user") && !role_is(&m[i], "system") && !role_is(&m[i], "assistant"))
            return dcm_fail(DCM_ERR_USAGE,
                            "chat: the role of message %zu is \"%s\"; roles are system, user and assistant", i + 1,
                            m[i].role);
    const dcm_status status = count > 0 ? renderers[c->kind->family](c, m, count, generate, b) : DCM_OK;
    return status == DCM_OK ? b->status : status;
}

dcm_status chat_render(const chat *c, const dcm_chat_message *messages, size_t first, size_t count, bool generate,
                       char **text)
{
    dcm_status status;
    buffer whole = {0}, before = {0};
    *text = NULL;
    if (first > count)
        return dcm_fail(DCM_ERR_USAGE, "chat: message %zu of %zu is not there", first, count);
    if (c->digest == 0)
        return dcm_fail(DCM_ERR_FILE, "the model has no chat template; give the whole prompt as text");
    if (!c->kind)
        return dcm_fail(
            DCM_ERR_FILE,
            "the model's chat template is not one of those known (digest %016llx); give the whole prompt as text",
            (unsigned long long)c->digest);
    DCM_TRY(status, fail, render(c, messages, count, generate, &whole));
    DCM_TRY(status, fail, render(c, messages, first, false, &before));
    if (before.size > whole.size || memcmp(before.data, whole.data, before.size) != 0) {
        status =
            dcm_fail(DCM_ERR_USAGE,
                     "chat template \"%s\": a new turn changes the text of earlier ones; render the whole conversation",
                     c->name);
        goto fail;
    }
    memmove(whole.data, whole.data + before.size, whole.size - before.size + 1);
    *text = whole.data;
    whole.data = NULL;
fail:
    mem_free(&whole.data);
    mem_free(&before.data);
    return status;
}
