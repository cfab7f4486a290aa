/* Pre-tokenizers: cutting a text into the words inside which byte-pair merges happen. */
#ifndef TOKEN_SPLIT_H
#define TOKEN_SPLIT_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>

#include "io/gguf.h"

typedef struct split split;

/* What a pre-tokenizer's name implies beside its words. */
typedef struct split_facts {
    bool add_bos;     /* where tokenizer.ggml.add_bos_token is missing */
    bool whole_words; /* bpe.whole_words */
} split_facts;

/* The pre-tokenizer of that GGUF name, *facts too. DCM_ERR_FILE names an unknown one. */
dcm_status split_open(split **s, gguf_string name, split_facts *facts);

/* Close and set *s to NULL, where it may be already. */
void split_close(split **s);

/* Called for each word in order; the bytes of all words are the text's. */
typedef dcm_status split_word(void *context, const char *word, size_t size);

/*
 * Cut `size` bytes into words. The text is first cut into its longest runs of valid UTF-8 and the runs of other bytes
 * between; the expression sees each valid run as a text of its own, and each invalid run is one word. Safe from any
 * number of threads.
 */
dcm_status split_text(const split *s, const char *text, size_t size, split_word *word, void *context);

#endif
