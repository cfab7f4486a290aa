/* SentencePiece's BPE: the adjacent pair whose text is the token of highest score is merged, the leftmost first, until
 * none is left. */
#ifndef TOKEN_SPM_H
#define TOKEN_SPM_H

#include "token/ids.h"
#include "token/vocab.h"

typedef struct spm {
    float *score;         /* of every token */
    int32_t unknown;      /* the unknown token's id */
    bool split_at_spaces; /* no token has a space behind another character, so no merge crosses such a place */
} spm;

typedef struct spm_work {
    struct spm_symbol *symbols;
    struct spm_pair *queue;
    size_t room;
    bool lossy;          /* the unknown token for bytes that have none, where the vocabulary has no byte tokens */
    const char *lacking; /* the byte of the text that the last call failed for */
} spm_work;

/* Read tokenizer.ggml.scores. A zeroed `s`; on failure close it. */
dcm_status spm_open(spm *s, const vocab *v, const gguf *file, int32_t unknown);

/* Free; a zeroed object is accepted. */
void spm_close(spm *s);

/*
 * Append the ids of `size` (at most 2^31 - 1) bytes at `text`, spaces as spaces. Bytes that no token covers (invalid
 * UTF-8, and U+2581, which in a token means a space) become byte tokens. DCM_ERR_FILE where there is no such token
 * either, unless work->lossy.
 */
dcm_status spm_encode(const spm *s, const vocab *v, const char *text, size_t size, spm_work *work, token_ids *ids);

void spm_work_free(spm_work *work);

#endif
