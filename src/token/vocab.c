#include "token/vocab.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/memory.h"
#include "token/utf8.h"

#include <stdlib.h>
#include <string.h>

/*
 * GPT-2's alphabet: the printable bytes of Latin-1 (21-7E, A1-AC, AE-FF) stand for themselves, the others, in order,
 * for U+0100 to U+0143.
 */
static bool byte_of_character(uint32_t code, unsigned char *byte)
{
    const bool prints = (code >= 0x21 && code <= 0x7e) || (code >= 0xa1 && code <= 0xff && code != 0xad);
    const bool moved = code >= 0x100 && code <= 0x143;
    *byte = (unsigned char)(prints ? code : code <= 0x120 ? code - 0x100 : code <= 0x142 ? code - 0x121 + 0x7f : 0xad);
    return prints || moved;
}

bool vocab_from_byte_level(const char *text, size_t size, char *out, size_t *out_size)
{
    size_t n = 0;
    for (size_t at = 0; at < size;) {
        uint32_t code;
        unsigned char byte;
        const size_t step = utf8_read(text + at, size - at, &code);
        if (step == 0 || !byte_of_character(code, &byte))
            return false;
        out[n++] = (char)byte;
        at += step;
    }
    *out_size = n;
    return true;
}

static size_t from_sentencepiece(const char *text, size_t size, char *out)
{
    size_t n = 0;
    for (size_t at = 0; at < size;) {
        if (size - at >= 3 && memcmp(text + at, "\xe2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            at += 3;
        } else {
            out[n++] = text[at++];
        }
    }
    return n;
}

/* "<0x0A>" */
static bool byte_token(gguf_string text, unsigned char *byte)
{
    unsigned value = 0;
    if (text.size != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return false;
    for (size_t i = 3; i < 5; i++) {
        const char c = text.data[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + (unsigned)(c - '0');
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + (unsigned)(c - 'A') + 10;
        else
            return false;
    }
    *byte = (unsigned char)value;
    return true;
}

/* Decode token `id` behind the ones before it; a normal token that is no text of its form becomes unused. */
static dcm_status add_token(vocab *v, vocab_form form, size_t id, gguf_string text)
{
    char *out = v->bytes + v->start[id];
    size_t size = text.size;
    if (v->type[id] == TOKEN_BYTE) {
        unsigned char byte;
        if (!byte_token(text, &byte))
            return dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.tokens: token %zu is a byte token, but its text is \"%.*s\"",
                            id, (int)(text.size < 40 ? text.size : 40), text.data);
        *out = (char)byte;
        size = 1;
        v->byte[byte] = (int32_t)id;
    } else if (v->type[id] == TOKEN_NORMAL && form == VOCAB_SENTENCEPIECE) {
        size = from_sentencepiece(text.data, text.size, out);
    } else if (v->type[id] == TOKEN_NORMAL && vocab_from_byte_level(text.data, text.size, out, &size)) {
        if (size == 1 && v->byte[(unsigned char)*out] < 0)
            v->byte[(unsigned char)*out] = (int32_t)id;
    } else {
        if (v->type[id] == TOKEN_NORMAL)
            v->type[id] = TOKEN_UNUSED;
        if (v->type[id] == TOKEN_UNUSED)
            size = 0;
        memcpy(out, text.data, size);
    }
    if (v->type[id] == TOKEN_NORMAL && size > v->longest)
        v->longest = size;
    v->start[id + 1] = v->start[id] + size;
    return DCM_OK;
}

static size_t slot_of(const vocab *v, const char *bytes, size_t size)
{
    return (size_t)(hash_bytes(HASH_START, bytes, size) >> 7) & v->mask;
}

int32_t vocab_find(const vocab *v, const char *bytes, size_t size)
{
    if (size > v->longest)
        return -1;
    for (size_t at = slot_of(v, bytes, size); v->slots[at] >= 0; at = (at + 1) & v->mask) {
        size_t n;
        const char *text = vocab_text(v, v->slots[at], &n);
        if (n == size && memcmp(text, bytes, n) == 0)
            return v->slots[at];
    }
    return -1;
}

/* The table of normal tokens; of two with the same bytes the first counts. */
static dcm_status index_normal(vocab *v)
{
    size_t slots = 16;
    while (slots < 2 * v->count)
        slots *= 2;
    dcm_status status = mem_new(&v->slots, slots, sizeof *v->slots, "the vocabulary's index");
    if (status != DCM_OK)
        return status;
    v->mask = slots - 1;
    memset(v->slots, 0xff, slots * sizeof *v->slots);
    for (size_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = vocab_text(v, (int32_t)id, &size);
        if (v->type[id] != TOKEN_NORMAL || size == 0 || vocab_find(v, text, size) >= 0)
            continue;
        size_t at = slot_of(v, text, size);
        while (v->slots[at] >= 0)
            at = (at + 1) & v->mask;
        v->slots[at] = (int32_t)id;
    }
    return DCM_OK;
}

typedef struct special_key {
    unsigned char first;
    size_t size;
    int32_t id;
} special_key;

static int special_order(const void *a, const void *b)
{
    const special_key *x = a, *y = b;
    if (x->first != y->first)
        return (x->first > y->first) - (x->first < y->first);
    if (x->size != y->size)
        return (x->size < y->size) - (x->size > y->size);
    return (x->id > y->id) - (x->id < y->id);
}

static dcm_status index_special(vocab *v)
{
    dcm_status status;
    special_key *keys = NULL;
    size_t n = 0;
    for (size_t id = 0; id < v->count; id++)
        n += vocab_is_special(v, (int32_t)id) && v->start[id + 1] > v->start[id];
    DCM_TRY(status, fail, mem_new(&v->special, n, sizeof *v->special, "special tokens"));
    DCM_TRY(status, fail, mem_new(&keys, n, sizeof *keys, "special tokens"));
    n = 0;
    for (size_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = vocab_text(v, (int32_t)id, &size);
        if (vocab_is_special(v, (int32_t)id) && size > 0)
            keys[n++] = (special_key){(unsigned char)*text, size, (int32_t)id};
    }
    qsort(keys, n, sizeof *keys, special_order);
    for (size_t i = 0; i < n; i++) {
        v->special[i] = keys[i].id;
        v->special_first[keys[i].first + 1]++;
    }
    for (size_t b = 0; b < 256; b++)
        v->special_first[b + 1] += v->special_first[b];
fail:
    mem_free(&keys);
    return status;
}

int32_t vocab_special_at(const vocab *v, const char *text, size_t size, bool control)
{
    const unsigned char b = (unsigned char)*text;
    for (size_t i = v->special_first[b]; i < v->special_first[b + 1]; i++) {
        size_t n;
        const int32_t id = v->special[i];
        const char *bytes = vocab_text(v, id, &n);
        if ((control || v->type[id] == TOKEN_USER) && n <= size && memcmp(bytes, text, n) == 0)
            return id;
    }
    return -1;
}

static dcm_status read_types(vocab *v, const gguf *file)
{
    const void *data;
    size_t count;
    memset(v->type, TOKEN_NORMAL, v->count);
    if (!gguf_has(file, "tokenizer.ggml.token_type"))
        return DCM_OK;
    dcm_status status = gguf_get_i32_array(file, "tokenizer.ggml.token_type", &data, &count);
    if (status != DCM_OK)
        return status;
    if (count != v->count)
        return dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.token_type has %zu items, tokenizer.ggml.tokens %zu", count,
                        v->count);
    for (size_t i = 0; i < count; i++) {
        int32_t type;
        memcpy(&type, (const char *)data + 4 * i, sizeof type);
        v->type[i] = type >= TOKEN_NORMAL && type <= TOKEN_BYTE ? (uint8_t)type : TOKEN_UNUSED;
    }
    return DCM_OK;
}

dcm_status vocab_open(vocab *v, const gguf *file, vocab_form form)
{
    dcm_status status;
    gguf_string *texts = NULL;
    size_t total = 0;
    memset(v->byte, 0xff, sizeof v->byte);
    DCM_TRY(status, fail, gguf_get_array_size(file, "tokenizer.ggml.tokens", &v->count));
    if (v->count == 0 || v->count > INT32_MAX) {
        status = dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.tokens has %zu items", v->count);
        goto fail;
    }
    DCM_TRY(status, fail, mem_new(&texts, v->count, sizeof *texts, "the vocabulary"));
    DCM_TRY(status, fail, gguf_get_string_array(file, "tokenizer.ggml.tokens", texts, v->count));
    for (size_t i = 0; i < v->count; i++)
        total += texts[i].size;
    DCM_TRY(status, fail, mem_new(&v->bytes, total, 1, "the vocabulary"));
    DCM_TRY(status, fail, mem_new(&v->start, v->count + 1, sizeof *v->start, "the vocabulary"));
    DCM_TRY(status, fail, mem_new(&v->type, v->count, 1, "the vocabulary"));
    DCM_TRY(status, fail, read_types(v, file));
    for (size_t i = 0; i < v->count; i++)
        DCM_TRY(status, fail, add_token(v, form, i, texts[i]));
    DCM_TRY(status, fail, index_normal(v));
    DCM_TRY(status, fail, index_special(v));
fail:
    mem_free(&texts);
    return status;
}

void vocab_close(vocab *v)
{
    mem_free(&v->bytes);
    mem_free(&v->start);
    mem_free(&v->type);
    mem_free(&v->slots);
    mem_free(&v->special);
    v->count = 0;
}
