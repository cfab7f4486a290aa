#include "token/cut.h"

#include <string.h>

/* True for ASCII's visible characters and for bytes of longer ones. */
static bool is_visible(char c) { return (unsigned char)c > ' ' && (unsigned char)c != 0x7f; }

/* Unicode's white space beyond ASCII. */
static const char *const spaces[] = {"\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
                                     "\u2004",   "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
                                     "\u2028",   "\u2029", "\u202f", "\u205f", "\u3000"};
enum { SPACES = sizeof spaces / sizeof *spaces, SPACE_MAX = 3 };

static bool ends_in_space(const char *text, size_t size)
{
    for (size_t i = 0; i < SPACES; i++) {
        const size_t n = strlen(spaces[i]);
        if (size >= n && memcmp(text + size - n, spaces[i], n) == 0)
            return true;
    }
    return false;
}

/* `text` has SPACE_MAX bytes. */
static bool starts_with_space(const char *text)
{
    for (size_t i = 0; i < SPACES; i++)
        if (memcmp(text, spaces[i], strlen(spaces[i])) == 0)
            return true;
    return false;
}

void cut_open(cut_rule *rule, const vocab *v, bool words)
{
    *rule = (cut_rule){.spaces = true, .lines = words};
    for (size_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = vocab_text(v, (int32_t)id, &size);
        if (!vocab_is_special(v, (int32_t)id) || size == 0)
            continue;
        /* A special token that reaches over a place of a cut would be torn. */
        for (size_t i = 1; i < size; i++) {
            rule->spaces = rule->spaces && (text[i] != ' ' || text[i - 1] == ' ');
            rule->lines = rule->lines && (text[i - 1] != '\n' || text[i] == '\n');
        }
        /* Behind a special token SentencePiece begins anew. */
        rule->shut[(unsigned char)text[size - 1]] |= !words;
    }
}

/* May the text be cut at `at`, with 0 < at < size? */
static bool is_place(const cut_rule *rule, const char *text, size_t size, size_t at)
{
    const bool space = rule->spaces && text[at] == ' ';
    const bool line = rule->lines && at > 1 && text[at - 1] == '\n' && is_visible(text[at]);
    if (!space && !line)
        return false;
    const size_t before = space ? at : at - 1;
    const char last = text[before - 1];
    if (!is_visible(last) || rule->shut[(unsigned char)last] || ends_in_space(text, before))
        return false;
    return space || (unsigned char)text[at] < 0x80 ||
           (size - at >= SPACE_MAX && !starts_with_space(text + at));
}

size_t cut_last(const cut_rule *rule, const char *text, size_t size)
{
    for (size_t at = size; at-- > 1;)
        if (is_place(rule, text, size, at))
            return at;
    return 0;
}
