/*
 * A tiny but whole model, made in memory from a seed: every program and test can run it in milliseconds. Random weights
 * of sensible sizes, a byte-level BPE tokenizer (tokenizer.ggml.model "gpt2", pre "gpt-2"): ids 0 .. 255 are the bytes
 * in their order, then the results of the merges, then <|endoftext|> (the EOS token), with `chatml` <|im_start|> and
 * <|im_end|>, then unused ids up to `vocab`.
 */
#ifndef SUPPORT_TINY_MODEL_H
#define SUPPORT_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "io/quant.h"
#include "support/gguf_writer.h"

typedef enum tiny_rope {
    TINY_ROPE_NONE,
    TINY_ROPE_LINEAR, /* rope.scaling.type "linear", factor 4 */
    TINY_ROPE_LLAMA3  /* tensor rope_freqs.weight as converters write it for Llama 3.1 (factor 8, 1 to 4, of 64
                         positions) */
} tiny_rope;

/* Zero fields mean the default beside them. */
typedef struct tiny_params {
    const char *arch;  /* "llama"; or "qwen2", with biases on Q, K, V */
    uint32_t layers;   /* 2 */
    uint32_t hidden;   /* 64; a multiple of the type's block, and of 2 x heads */
    uint32_t heads;    /* 4 */
    uint32_t kv_heads; /* 2; divides heads */
    uint32_t ffn;      /* 96; a multiple of the type's block */
    uint32_t vocab;    /* as many as the tokenizer has (tiny_vocab_min) */
    uint32_t context;  /* 512 */
    quant_type type;   /* of the matrices: F32; or F16, BF16, Q8_0, Q4_0, Q4_1. Norms and biases are always F32 */
    bool untied;       /* an output matrix of its own */
    tiny_rope rope;    /* none */
    bool chatml;       /* ChatML tokens and template */
    uint64_t seed;
} tiny_params;

/* NULL where a model can be made of these parameters, else what is wrong with them. NULL stands for all defaults here
 * and below. */
const char *tiny_model_check(const tiny_params *params);

/* The least vocabulary: what the tokenizer needs. */
uint32_t tiny_vocab_min(const tiny_params *params);

/* The GGUF file; free it with gw_free(). The parameters must pass tiny_model_check. */
gw_bytes tiny_model_make(const tiny_params *params);

/* The same written to `path`; false with errno set when that fails. */
bool tiny_model_save(const tiny_params *params, const char *path);

#endif
