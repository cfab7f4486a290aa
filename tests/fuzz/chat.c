/*
 * Chat templates. Byte 0 from 1 on chooses a template of those known, and the rest makes a conversation: a byte for the
 * role of each turn and the text up to the next NUL. Byte 0 of 0: the rest is a template.
 */
#include "fuzz/fuzz.h"
#include "fuzz/vocabularies.h"

#include "base/memory.h"
#include "token/chat.h"

#include <stdlib.h>
#include <string.h>

enum { TURNS = 8 };

static void check_template(const char *text, size_t size)
{
    chat c = {0};
    char *rendered;
    const dcm_chat_message hello = {"user", "hello"};
    fuzz_check_status(chat_open(&c, (gguf_string){text, size}));
    fuzz_check(!c.kind == !c.name, "a kind without a name");
    if (chat_render(&c, &hello, 0, 1, true, &rendered) == DCM_OK)
        mem_free(&rendered);
    chat_close(&c);
}

/* Turn by turn the same as in one go. */
static void check_turns(const chat *c, const dcm_chat_message *turns, size_t count)
{
    char *whole, *first, *rest;
    if (chat_render(c, turns, 0, count, true, &whole) != DCM_OK)
        return;
    for (size_t at = 0; at <= count; at++) {
        if (chat_render(c, turns, 0, at, false, &first) != DCM_OK)
            continue;
        if (chat_render(c, turns, at, count, true, &rest) == DCM_OK) {
            const size_t n = strlen(first);
            fuzz_check(!strncmp(whole, first, n) && !strcmp(whole + n, rest), "turns differ from the whole");
            mem_free(&rest);
        }
        mem_free(&first);
    }
    mem_free(&whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const roles[] = {"user", "assistant", "system", "tool"};
    if (size == 0)
        return 0;
    if (data[0] == 0) {
        check_template((const char *)data + 1, size - 1);
        return 0;
    }
    char *copy = malloc(size);
    dcm_chat_message turns[TURNS];
    size_t count = 0;
    fuzz_check(copy != NULL, "no memory");
    memcpy(copy, data + 1, size - 1);
    copy[size - 1] = 0;
    for (size_t at = 0; count < TURNS && at + 1 < size; count++) {
        turns[count] = (dcm_chat_message){roles[copy[at] & 3], copy + at + 1};
        at += 2 + strlen(copy + at + 1);
    }
    check_turns(fuzz_template(data[0] - 1), turns, count);
    free(copy);
    return 0;
}
