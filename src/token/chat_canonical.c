/* One form for all the ways of writing the same Jinja template: see chat.h. */
#include "token/chat.h"

#include "base/memory.h"
#include "token/buffer.h"

#include <stdbool.h>
#include <string.h>

/* A token inside a tag: a string literal with its escapes read, or a name, number or operator as it stands. */
typedef struct lexeme {
    uint32_t start, size : 31, string : 1; /* in lexer.words, of at most CHAT_TEMPLATE_MAX bytes */
} lexeme;

typedef struct lexer {
    const char *text; /* line ends are \n, the last one gone */
    size_t size, at;
    bool line_start; /* the last tag took the line break behind it */
    buffer words;    /* bytes of the tag's tokens */
    lexeme *list;    /* of the tag */
    size_t count, room;
    buffer literal; /* output text not yet printed */
    buffer out;
    dcm_status status;
} lexer;

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           (unsigned char)c >= 0x80;
}

static void print_string(buffer *out, const char *text, size_t size)
{
    buffer_text(out, "\"");
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '"' || text[i] == '\\')
            buffer_text(out, "\\");
        buffer_add(out, &text[i], 1);
    }
    buffer_text(out, "\"");
}

static void flush_literal(lexer *l)
{
    if (l->literal.size > 0)
        print_string(&l->out, l->literal.data, l->literal.size);
    l->literal.size = 0;
}

static void add_lexeme(lexer *l, size_t start, bool string)
{
    if (l->count == l->room && l->status == DCM_OK) {
        const size_t room = 2 * l->room + 64;
        l->status = mem_resize(&l->list, room, sizeof *l->list, "a chat template");
        if (l->status == DCM_OK)
            l->room = room;
    }
    if (l->status == DCM_OK)
        l->list[l->count++] = (lexeme){(uint32_t)start, (uint32_t)(l->words.size - start) & INT32_MAX, string};
}

/* The literal that starts at the quote `at`; returns the place behind it. */
static size_t read_string(lexer *l, size_t at)
{
    const char quote = l->text[at++];
    const size_t start = l->words.size;
    for (; at < l->size && l->text[at] != quote; at++) {
        char c = l->text[at];
        if (c == '\\' && at + 1 < l->size) {
            c = l->text[++at];
            if (c == 'n' || c == 't')
                c = c == 'n' ? '\n' : '\t';
            else if (c != '\\' && c != '\'' && c != '"')
                buffer_text(&l->words, "\\");
        }
        buffer_add(&l->words, &c, 1);
    }
    add_lexeme(l, start, true);
    return at + (at < l->size);
}

/* Read a tag's tokens up to its end, "%}" or "}}"; returns the place of that end, of a "-" or "+" before it too. */
static size_t read_tag(lexer *l, size_t at, const char *end)
{
    l->words.size = l->count = 0;
    while (at < l->size) {
        const char *p = l->text + at;
        const size_t left = l->size - at, start = l->words.size;
        const bool sign = (*p == '-' || *p == '+') && left >= 3;
        if ((left >= 2 && memcmp(p, end, 2) == 0) || (sign && memcmp(p + 1, end, 2) == 0))
            break;
        if (is_space(*p)) {
            at++;
        } else if (*p == '\'' || *p == '"') {
            at = read_string(l, at);
        } else {
            size_t n = 1;
            while (is_word(*p) && n < left && is_word(p[n]))
                n++;
            if (n == 1 && left > 1 && p[1] == '=' && strchr("=!<>", *p))
                n = 2;
            buffer_add(&l->words, p, n);
            add_lexeme(l, start, false);
            at += n;
        }
    }
    return at;
}

static bool lexeme_is(const lexer *l, size_t i, const char *text)
{
    return i < l->count && !l->list[i].string && l->list[i].size == strlen(text) &&
           memcmp(l->words.data + l->list[i].start, text, l->list[i].size) == 0;
}

static bool any_lexeme(const lexer *l, size_t i, const char *const *texts)
{
    for (; *texts; texts++)
        if (lexeme_is(l, i, *texts))
            return true;
    return false;
}

/* ["name"] may be written .name: where the bracket follows a value. */
static bool is_attribute(const lexer *l, size_t i)
{
    if (!lexeme_is(l, i, "[") || i == 0 || i + 2 >= l->count || !l->list[i + 1].string || !lexeme_is(l, i + 2, "]"))
        return false;
    const char *name = l->words.data + l->list[i + 1].start, before = l->words.data[l->list[i - 1].start];
    if (!l->list[i - 1].string && !is_word(before) && before != ']' && before != ')')
        return false;
    for (size_t c = 0; c < l->list[i + 1].size; c++)
        if (!is_word(name[c]))
            return false;
    return l->list[i + 1].size > 0;
}

/* "a" + "b" may be written "ab": where nothing around binds tighter than the sum. */
static bool joins(const lexer *l, size_t first, size_t i)
{
    static const char *const open[] = {"+", "(", "=", ",", NULL};
    static const char *const close[] = {"+", ")", ",", NULL};
    if (!lexeme_is(l, i, "+") || i + 1 >= l->count || !l->list[i + 1].string)
        return false;
    return (first == 0 || any_lexeme(l, first - 1, open)) && (i + 2 == l->count || any_lexeme(l, i + 2, close));
}

/* The tag is one literal, or a sum of literals. */
static bool is_literal(const lexer *l)
{
    for (size_t i = 0; i < l->count; i++)
        if (i % 2 == 0 ? !l->list[i].string : !lexeme_is(l, i, "+"))
            return false;
    return l->count % 2 == 1;
}

static void print_tag(lexer *l)
{
    for (size_t i = 0; i < l->count; i++) {
        const char *text = l->words.data + l->list[i].start;
        if (l->list[i].string) {
            const size_t first = i;
            buffer joined = {0};
            buffer_add(&joined, text, l->list[i].size);
            for (; joins(l, first, i + 1); i += 2)
                buffer_add(&joined, l->words.data + l->list[i + 2].start, l->list[i + 2].size);
            if (joined.status != DCM_OK)
                l->status = joined.status;
            else
                print_string(&l->out, joined.data, joined.size);
            mem_free(&joined.data);
        } else if (is_attribute(l, i)) {
            buffer_text(&l->out, ". ");
            buffer_add(&l->out, l->words.data + l->list[i + 1].start, l->list[i + 1].size);
            i += 2;
        } else {
            buffer_add(&l->out, text, l->list[i].size);
        }
        buffer_text(&l->out, " ");
    }
}

/* Literal output before a tag: all white space goes before "-", white space from the start of the line before a block
 * or comment. */
static void add_literal(lexer *l, size_t start, size_t end, bool strip, bool strip_line)
{
    if (strip) {
        while (end > start && is_space(l->text[end - 1]))
            end--;
    } else if (strip_line) {
        size_t line = end;
        while (line > start && is_space(l->text[line - 1]) && l->text[line - 1] != '\n')
            line--;
        if (line > start ? l->text[line - 1] == '\n' : l->line_start)
            end = line;
    }
    buffer_add(&l->literal, l->text + start, end - start);
}

/* The tag at l->at, and what its end takes away of the text behind it. `kind` is '%', '{' or '#'. */
static void add_tag(lexer *l, char kind)
{
    const char end[3] = {kind == '{' ? '}' : kind, '}', '\0'};
    size_t at = l->at + 2;
    if (at < l->size && (l->text[at] == '-' || l->text[at] == '+'))
        at++;
    if (kind == '#') {
        while (at < l->size && !(l->size - at >= 2 && memcmp(l->text + at, end, 2) == 0))
            at++;
    } else {
        at = read_tag(l, at, end);
        if (kind == '{' && is_literal(l)) {
            for (size_t i = 0; i < l->count; i += 2)
                buffer_add(&l->literal, l->words.data + l->list[i].start, l->list[i].size);
        } else {
            flush_literal(l);
            buffer_text(&l->out, kind == '{' ? "{{ " : "{% ");
            print_tag(l);
            buffer_text(&l->out, end);
        }
    }
    if (at >= l->size) {
        flush_literal(l);
        buffer_text(&l->out, "{% unfinished");
    }
    const char sign = kind == '#' ? l->text[at - 1] : at < l->size ? l->text[at] : ' ';
    at += (kind != '#' && (sign == '-' || sign == '+')) + 2;
    at = at < l->size ? at : l->size;
    l->line_start = false;
    if (sign == '-') {
        while (at < l->size && is_space(l->text[at]))
            l->line_start = l->text[at++] == '\n';
    } else if (sign != '+' && kind != '{' && at < l->size && l->text[at] == '\n') {
        l->line_start = true;
        at++;
    }
    l->at = at;
}

static void run(lexer *l)
{
    l->line_start = true;
    while (l->at < l->size && l->status == DCM_OK) {
        size_t at = l->at;
        while (at + 1 < l->size && !(l->text[at] == '{' && strchr("%{#", l->text[at + 1])))
            at++;
        if (at + 1 >= l->size) {
            add_literal(l, l->at, l->size, false, false);
            break;
        }
        const char kind = l->text[at + 1], sign = at + 2 < l->size ? l->text[at + 2] : ' ';
        add_literal(l, l->at, at, sign == '-', sign != '+' && kind != '{');
        l->at = at;
        add_tag(l, kind);
    }
    flush_literal(l);
}

/* The text with \r\n and \r as \n, and without the last line's end. */
static dcm_status normal_lines(gguf_string text, char **copy, size_t *size)
{
    const dcm_status status = mem_new(copy, text.size + 1, 1, "a chat template");
    if (status != DCM_OK)
        return status;
    size_t n = 0;
    for (size_t i = 0; i < text.size; i++) {
        if (text.data[i] == '\0')
            continue;
        (*copy)[n++] = text.data[i] == '\r' ? '\n' : text.data[i];
        if (text.data[i] == '\r' && i + 1 < text.size && text.data[i + 1] == '\n')
            i++;
    }
    *size = n > 0 && (*copy)[n - 1] == '\n' ? n - 1 : n;
    return DCM_OK;
}

dcm_status chat_canonical(gguf_string text, char **out)
{
    char *copy = NULL;
    lexer l = {0};
    *out = NULL;
    l.status = normal_lines(text, &copy, &l.size);
    l.text = copy;
    if (l.status == DCM_OK) {
        buffer_text(&l.out, "");
        buffer_text(&l.words, "");
        run(&l);
    }
    const dcm_status parts[] = {l.status, l.words.status, l.literal.status, l.out.status};
    dcm_status status = DCM_OK;
    for (size_t i = 0; i < 4; i++)
        status = status == DCM_OK ? parts[i] : status;
    if (status == DCM_OK) {
        *out = l.out.data;
        l.out.data = NULL;
    }
    mem_free(&copy);
    mem_free(&l.words.data);
    mem_free(&l.list);
    mem_free(&l.literal.data);
    mem_free(&l.out.data);
    return status;
}
