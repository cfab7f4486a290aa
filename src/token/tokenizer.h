/* A tokenizer from an opened GGUF file. */
#ifndef TOKEN_TOKENIZER_H
#define TOKEN_TOKENIZER_H

#include <dcm/tokenizer.h>

#include "io/gguf.h"

/* dcm_tokenizer_open over a file that is open; it may be closed afterwards. */
dcm_status tokenizer_open_gguf(dcm_tokenizer **tokenizer, const gguf *file);

#endif
