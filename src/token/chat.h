/* Chat templates: recognised from their text, rendered in C. */
#ifndef TOKEN_CHAT_H
#define TOKEN_CHAT_H

#include <dcm/tokenizer.h>

#include "io/gguf.h"

typedef struct chat_kind chat_kind;

/* A model's chat template and the texts it needs. Zeroed: the model has none. */
typedef struct chat {
    const chat_kind *kind; /* NULL: none, or unknown */
    const char *name;      /* of the kind, NULL when unknown */
    char *default_system;  /* the system message that the template adds where a conversation has none, or NULL */
    uint64_t digest;       /* of the template's canonical form (its text if too long), 0 when the model has none */
    const char *bos, *eos; /* their texts, not owned, "" where the model has none */
} chat;

/* A longer template, in bytes, is none of those known. */
enum { CHAT_TEMPLATE_MAX = 32 << 10 };

/* Recognise the template; an unknown one is no error here. Only DCM_ERR_MEMORY. */
dcm_status chat_open(chat *c, gguf_string text);

/* Free; a zeroed object is accepted. */
void chat_close(chat *c);

/* See dcm_chat_render. */
dcm_status chat_render(const chat *c, const dcm_chat_message *messages, size_t first, size_t count, bool generate,
                       char **text);

/*
 * A template's canonical form into *out (freed with mem_free, NUL-terminated): what Jinja's lexer makes of the text
 * with the settings that Hugging Face's libraries use (trim_blocks, lstrip_blocks), printed in one way. Texts that
 * differ only in white space inside tags, in line breaks that the settings remove, in kinds of quotes, escapes, a['b']
 * for a.b or 'a' + 'b' for 'ab' have the same form, and render alike. For texts of at most CHAT_TEMPLATE_MAX bytes.
 */
dcm_status chat_canonical(gguf_string text, char **out);

#endif
