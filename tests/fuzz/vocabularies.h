/* Small vocabularies and the chat templates that are known, made once. */
#ifndef FUZZ_VOCABULARIES_H
#define FUZZ_VOCABULARIES_H

#include "token/chat.h"

/* Four of byte-level BPE with a pre-tokenizer each, and SentencePiece's with and without tokens of several words. */
enum { FUZZ_VOCABULARIES = 6 };

/* All have a token for every byte. Kept for the process's life. */
const dcm_tokenizer *fuzz_vocabulary(unsigned which);

/* One of the templates of tests/golden; any number chooses. */
const chat *fuzz_template(unsigned which);

#endif
