/* Parts of `dcm eval needle`: the words of a needle (needle_words.c), and the grid (needle.c). */
#ifndef NEEDLE_H
#define NEEDLE_H

#include "eval.h"
#include "random.h"

enum { NEEDLE_CANDIDATES_MAX = 256 };

/* "\nThe secret word of KEY is VALUE.\n": the words are single tokens. */
typedef struct needle {
    int32_t key, candidate[NEEDLE_CANDIDATES_MAX]; /* the first candidate is the value */
} needle;

typedef struct needle_parts {
    int32_t *before, *between, *after; /* tokens of the sentence around its words */
    size_t n_before, n_between, n_after;
} needle_parts;

/* The sentence's parts as the model's tokens. 0, or the exit code after a message; release in any case. */
int needle_parts_make(needle_parts *parts, const dcm_tokenizer *tokenizer);
void needle_parts_release(needle_parts *parts);

/* Append the sentence to `ids`, or all before its value where `question`; tokens appended. */
size_t needle_append(const needle_parts *parts, const needle *n, bool question, int32_t *ids);
size_t needle_size(const needle_parts *parts, bool question);

/*
 * Draw a key and `candidates` values, all different: words of at least three small letters behind a space that are not
 * among the `count` ids of a filler, nor in the sentence, or, where the vocabulary has too few of those, any tokens
 * that are not. 0, or the exit code after a message.
 */
int needle_draw(needle *n, size_t candidates, const eval *e, const needle_parts *parts, const int32_t *ids,
                size_t count, eval_random *random);

#endif
