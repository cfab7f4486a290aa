/* Texts to train on, as tokens: several sources of equal weight, each a file or a folder of files. */
#ifndef TRAIN_CORPUS_H
#define TRAIN_CORPUS_H

#include "args.h"

#include <dcm/tokenizer.h>

typedef struct corpus_text {
    char *path;
    size_t first, count; /* of its source's ids */
    uint64_t digest;     /* of them */
} corpus_text;

typedef struct corpus_source {
    const char *path;
    int32_t *ids;
    size_t count, room;
    corpus_text *text;
    size_t texts, texts_room;
} corpus_source;

typedef struct corpus {
    corpus_source source[ARG_LIST_MAX];
    size_t count;
    int32_t bos; /* -1: none */
} corpus;

/*
 * Read and tokenize all files of `paths`, those of folders in the order of their names. 0, or the exit code after a
 * message: 3 for what cannot be read, is empty, no text or not in UTF-8 (by the first 64 KiB), or holds no text of
 * `needed` tokens. Close in any case.
 */
int corpus_open(corpus *c, const dcm_tokenizer *tokenizer, const arg_texts *paths, size_t needed);
void corpus_close(corpus *c);

/*
 * `n` tokens that follow each other in one text of source `number` modulo the sources, BOS first where the model asks
 * for one; drawn by `seed`, every place as likely.
 */
void corpus_draw(const corpus *c, size_t number, uint64_t seed, int32_t *ids, size_t n);

/* 0, or 2 after a message where a text of `held` is one of c's too, by its tokens. */
int corpus_check_apart(const corpus *c, const corpus *held);

/* A digest of all tokens and of where texts and sources end: training goes on with what it began with. */
uint64_t corpus_digest(const corpus *c);

#endif
