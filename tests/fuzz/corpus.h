/* Inside make_corpus: seeds by target, each one file. */
#ifndef FUZZ_CORPUS_H
#define FUZZ_CORPUS_H

#include "support/gguf_writer.h"

/* Write, or compare with --check, FOLDER/TARGET/NAME.seed; frees the bytes. */
void corpus_put(const char *target, const char *name, gw_bytes bytes);
void corpus_text(const char *target, const char *name, const char *text);

void corpus_gguf(void);        /* gguf */
void corpus_models(void);      /* config, model */
void corpus_tokens(void);      /* tokenizer, text, chat */
void corpus_checkpoints(void); /* checkpoint */
void corpus_others(void);      /* safetensors, merge, bench_old, tuning, binary */

#endif
