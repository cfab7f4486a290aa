/* A vocabulary as bytes: what each id stands for, and ids by their bytes. */
#ifndef TOKEN_VOCAB_H
#define TOKEN_VOCAB_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/gguf.h"

/* GGUF's own numbers. */
typedef enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
} token_type;

/* How a normal token's text stands for bytes: GPT-2's alphabet of 256 characters, or SentencePiece's U+2581 for a
 * space. */
typedef enum vocab_form { VOCAB_BYTE_LEVEL, VOCAB_SENTENCEPIECE } vocab_form;

typedef struct vocab {
    size_t count;
    char *bytes;               /* of all tokens, in the order of ids */
    size_t *start;             /* count + 1: token i is bytes[start[i] .. start[i + 1]) */
    uint8_t *type;             /* token_type, count */
    int32_t *slots;            /* ids of the normal tokens, hashed by their bytes; -1 free */
    size_t mask;               /* slots - 1, a power of two less one */
    size_t longest;            /* bytes of the longest normal token */
    int32_t byte[256];         /* the token of each single byte, -1 where the vocabulary has none */
    int32_t *special;          /* control, unknown and user-defined tokens, by first byte, then the longest first */
    size_t special_first[257]; /* those that start with byte b: special[special_first[b] .. special_first[b + 1]) */
} vocab;

/* Read tokenizer.ggml.tokens and token_type. A zeroed `v`; on failure close it. */
dcm_status vocab_open(vocab *v, const gguf *file, vocab_form form);

/* Free; a zeroed vocabulary is accepted. */
void vocab_close(vocab *v);

/* The bytes of a token that exists. */
static inline const char *vocab_text(const vocab *v, int32_t id, size_t *size)
{
    *size = v->start[id + 1] - v->start[id];
    return v->bytes + v->start[id];
}

static inline bool vocab_is_special(const vocab *v, int32_t id)
{
    return v->type[id] == TOKEN_CONTROL || v->type[id] == TOKEN_USER || v->type[id] == TOKEN_UNKNOWN;
}

/* The normal token that stands for these bytes, or -1. */
int32_t vocab_find(const vocab *v, const char *bytes, size_t size);

/*
 * The longest special token that `text` starts with, or -1. User-defined tokens always count, control and unknown ones
 * when `control`.
 */
int32_t vocab_special_at(const vocab *v, const char *text, size_t size, bool control);

/* Bytes that `size` bytes of GPT-2's alphabet stand for, into `out` (at most `size` bytes); false for a character
 * outside it. */
bool vocab_from_byte_level(const char *text, size_t size, char *out, size_t *out_size);

#endif
