#define _GNU_SOURCE
#include "corpus.h"

#include "mix.h"
#include "reader.h"
#include "tool.h"
#include "utf8.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Room for `more` items behind `count`. */
static int grow(void *items, size_t *room, size_t count, size_t more, size_t size)
{
    void **pointer = items;
    if (*room - count >= more)
        return 0;
    const size_t wanted = 2 * (count + more);
    void *grown = realloc(*pointer, wanted * size);
    if (!grown)
        return tool_fail(DCM_ERR_MEMORY, "no room for %zu bytes of tokens", wanted * size);
    *pointer = grown;
    *room = wanted;
    return 0;
}

/* A text's beginning: at most one control character in 50 bytes, and one byte in 1000 that is not UTF-8. */
static int check_encoding(const char *path, const char *data, size_t size)
{
    size_t controls = 0, wrong = 0;
    for (size_t at = 0; at < size;) {
        const unsigned char *c = (const unsigned char *)data + at;
        const int length = utf8_length(c, size - at);
        if (!length) /* cut by the end of what was read */
            break;
        wrong += length < 0;
        controls += *c < ' ' && !strchr("\t\n\v\f\r\033", *c);
        at += length < 0 ? 1 : (size_t)length;
    }
    if (50 * controls > size)
        return tool_fail(DCM_ERR_FILE, "%s: not a text: %zu of its first %zu bytes are control characters", path,
                         controls, size);
    if (1000 * wrong > size)
        return tool_fail(DCM_ERR_FILE,
                         "%s: not in UTF-8: %zu of its first %zu bytes; a text in Latin-1 or another encoding is "
                         "converted first (iconv -f LATIN1 -t UTF-8)",
                         path, wrong, size);
    return 0;
}

static int add_text(corpus_source *s, const char *path, size_t first)
{
    corpus_text text = {.path = strdup(path), .first = first, .count = s->count - first};
    int code = text.path ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
    for (size_t i = first; i < s->count; i++)
        text.digest = mix64(MIX_STEP + (text.digest ^ (uint64_t)s->ids[i]));
    if (code == 0)
        code = grow(&s->text, &s->texts_room, s->texts, 1, sizeof *s->text);
    if (code == 0)
        s->text[s->texts++] = text;
    else
        free(text.path);
    return code;
}

static int read_file(corpus_source *s, const dcm_tokenizer *tokenizer, const char *path)
{
    const args none = {0};
    const input_source input = {.file = path};
    const size_t first = s->count;
    text_reader reader;
    size_t count = 1;
    int code = reader_open(&reader, &none, &input);
    if (code == 0)
        code = check_encoding(path, reader.data, reader.size);
    while (code == 0 && count) {
        int32_t *ids;
        code = reader_next(&reader, tokenizer, 0, &ids, &count);
        if (code)
            fprintf(stderr, "%s: in %s\n", tool_name(), path);
        if (code == 0)
            code = grow(&s->ids, &s->room, s->count, count, sizeof *s->ids);
        if (code == 0 && count) {
            memcpy(s->ids + s->count, ids, count * sizeof *ids);
            s->count += count;
        }
        dcm_free(ids);
    }
    reader_close(&reader);
    if (code == 0 && s->count == first)
        code = tool_fail(DCM_ERR_FILE, "%s: an empty text", path);
    return code ? code : add_text(s, path, first);
}

static int visible(const struct dirent *e) { return e->d_name[0] != '.'; }

/* What was given may be a stream, what lies in a folder not. */
static int read_path(corpus_source *s, const dcm_tokenizer *tokenizer, const char *path, bool given)
{
    struct dirent **entry = NULL;
    struct stat st;
    int code = 0;
    if (stat(path, &st) != 0)
        return tool_fail(DCM_ERR_FILE, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode) && !given)
        return tool_fail(DCM_ERR_FILE, "%s: not a regular file", path);
    if (!S_ISDIR(st.st_mode))
        return read_file(s, tokenizer, path);
    const int entries = scandir(path, &entry, visible, alphasort);
    if (entries < 0)
        return tool_fail(DCM_ERR_FILE, "%s: %s", path, strerror(errno));
    for (int i = 0; i < entries; i++) {
        char *inside = NULL;
        if (code == 0 && asprintf(&inside, "%s/%s", path, entry[i]->d_name) < 0)
            code = tool_fail(DCM_ERR_MEMORY, "no room for a file's name");
        if (code == 0)
            code = read_path(s, tokenizer, inside, false);
        free(inside);
        free(entry[i]);
    }
    free(entry);
    return code;
}

/* Places where n tokens of the text begin. */
static size_t places(const corpus_text *t, size_t n) { return t->count < n ? 0 : t->count - n + 1; }

static size_t all_places(const corpus_source *s, size_t n)
{
    size_t sum = 0;
    for (size_t i = 0; i < s->texts; i++)
        sum += places(&s->text[i], n);
    return sum;
}

static size_t longest(const corpus_source *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->texts; i++)
        most = s->text[i].count > most ? s->text[i].count : most;
    return most;
}

int corpus_open(corpus *c, const dcm_tokenizer *tokenizer, const arg_texts *paths, size_t needed)
{
    int code = 0;
    c->bos = dcm_bos_token(tokenizer);
    for (size_t i = 0; i < paths->count && code == 0; i++) {
        corpus_source *s = &c->source[c->count++];
        s->path = paths->item[i];
        code = read_path(s, tokenizer, s->path, true);
        if (code == 0 && !all_places(s, needed))
            code = tool_fail(DCM_ERR_FILE, "%s: no text of %zu tokens: the longest of %zu has %zu", s->path, needed,
                             s->texts, longest(s));
    }
    return code;
}

void corpus_close(corpus *c)
{
    for (size_t i = 0; i < c->count; i++) {
        for (size_t k = 0; k < c->source[i].texts; k++)
            free(c->source[i].text[k].path);
        free(c->source[i].ids);
        free(c->source[i].text);
    }
    *c = (corpus){0};
}

void corpus_draw(const corpus *c, size_t number, uint64_t seed, int32_t *ids, size_t n)
{
    const corpus_source *s = &c->source[number % c->count];
    if (c->bos >= 0) {
        *ids++ = c->bos;
        n--;
    }
    uint64_t at = mix64(MIX_STEP + seed) % all_places(s, n);
    const corpus_text *t = s->text;
    for (; at >= places(t, n); t++)
        at -= places(t, n);
    memcpy(ids, s->ids + t->first + at, n * sizeof *ids);
}

/* The text of c that has t's tokens, or NULL. */
static const corpus_text *find_text(const corpus *c, const corpus_text *t)
{
    for (size_t i = 0; i < c->count; i++)
        for (size_t k = 0; k < c->source[i].texts; k++) {
            const corpus_text *found = &c->source[i].text[k];
            if (found->count == t->count && found->digest == t->digest)
                return found;
        }
    return NULL;
}

int corpus_check_apart(const corpus *c, const corpus *held)
{
    for (size_t i = 0; i < held->count; i++)
        for (size_t k = 0; k < held->source[i].texts; k++) {
            const corpus_text *t = &held->source[i].text[k], *found = find_text(c, t);
            if (found)
                return tool_fail(DCM_ERR_USAGE, "%s is held out, but trained on too: %s has the same text", t->path,
                                 found->path);
        }
    return 0;
}

uint64_t corpus_digest(const corpus *c)
{
    uint64_t digest = 0;
    for (size_t i = 0; i < c->count; i++) {
        digest = mix64(MIX_STEP + (digest ^ c->source[i].texts));
        for (size_t k = 0; k < c->source[i].texts; k++)
            digest = mix64(MIX_STEP + (digest ^ c->source[i].text[k].digest));
    }
    return digest;
}
