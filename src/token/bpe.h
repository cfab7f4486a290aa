/* Byte-pair encoding of one word: the adjacent pair of lowest rank is merged, the leftmost first, until none is left.
 */
#ifndef TOKEN_BPE_H
#define TOKEN_BPE_H

#include "token/ids.h"
#include "token/vocab.h"

typedef struct bpe_merge bpe_merge;

typedef struct bpe {
    bpe_merge *slots; /* hashed by the pair */
    size_t mask;
    bool whole_words; /* a word that is a token is that token, whatever the merges say */
} bpe;

/* Symbols and queue of the longest word so far; zeroed at first. */
typedef struct bpe_work {
    struct bpe_symbol *symbols;
    uint64_t *queue;
    size_t room;
    bool lossy;          /* leave out bytes that the vocabulary lacks, as if they were not there */
    const char *lacking; /* the byte of the word that the last call failed for */
} bpe_work;

/* Read tokenizer.ggml.merges. A zeroed `b`; on failure close it. */
dcm_status bpe_open(bpe *b, const vocab *v, const gguf *file, bool whole_words);

/* Free; a zeroed object is accepted. */
void bpe_close(bpe *b);

/*
 * Append the ids of the `size` (at most 2^31 - 1) bytes at `word`; O(n log n). DCM_ERR_FILE for a byte that the
 * vocabulary lacks, unless work->lossy.
 */
dcm_status bpe_encode(const bpe *b, const vocab *v, const char *word, size_t size, bpe_work *work, token_ids *ids);

void bpe_work_free(bpe_work *work);

#endif
