/* Tokenizers: text to token ids and back, and chat templates. */
#ifndef DCM_TOKENIZER_H
#define DCM_TOKENIZER_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A tokenizer read from a GGUF file's metadata. Immutable after opening: any number of threads may use it.
 *
 * Byte-level BPE (tokenizer.ggml.model "gpt2") with the pre-tokenizers "smollm", "llama-bpe", "qwen2" and "gpt-2", and
 * SentencePiece's BPE ("llama"). Ids are those of the models' own tokenizers, without the normalisation that some of
 * those do first (Qwen2's NFC): decoding gives back the bytes that were encoded. Invalid UTF-8: pre-tokenizer
 * expressions see each longest run of valid UTF-8 as a text of its own; each run of other bytes between is one word.
 * SentencePiece: U+2581, which its tokens use for a space, is encoded as three byte tokens.
 */
typedef struct dcm_tokenizer dcm_tokenizer;

/*
 * Open the tokenizer of the GGUF file at `path`; no weights are read and no device is needed.
 * Errors: DCM_ERR_FILE (an unknown tokenizer model or pre-tokenizer is named), DCM_ERR_MEMORY.
 */
DCM_API dcm_status dcm_tokenizer_open(dcm_tokenizer **tokenizer, const char *path);

/* Close and set *tokenizer to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_tokenizer_close(dcm_tokenizer **tokenizer);

enum {
    DCM_TOKENIZE_BOS = 1,     /* put BOS first where the model's metadata asks for it */
    DCM_TOKENIZE_SPECIAL = 2, /* read the text of special tokens, such as <|im_start|>, as those tokens */
    DCM_TOKENIZE_LOSSY = 4, /* leave out bytes that the vocabulary has no token for, as Hugging Face's tokenizers do */
    DCM_TOKENIZE_REST = 8   /* the text goes on where dcm_tokenize_cut cut one off */
};

/*
 * Encode `len` bytes (any bytes: NUL and invalid UTF-8 included). On success *ids is an array of *count ids that
 * the caller frees with dcm_free(); it is NULL when *count is 0. `flags`: DCM_TOKENIZE_*. Where several special tokens
 * match at one place, the longest counts; user-defined ones match without DCM_TOKENIZE_SPECIAL too. Errors:
 * DCM_ERR_FILE, naming the byte, where the vocabulary has no token for a byte of the text (SmolLM2's lacks 21 of the
 * 256: some control characters, and bytes that begin rare or no UTF-8) and DCM_TOKENIZE_LOSSY is not given;
 * DCM_ERR_USAGE for 2^31 bytes or more.
 */
DCM_API dcm_status dcm_tokenize(const dcm_tokenizer *tokenizer, const char *text, size_t len, unsigned flags,
                                int32_t **ids, size_t *count);

/*
 * For texts read in pieces: the last place where the first `len` bytes of a text may be cut, whatever comes behind
 * them. The ids of the bytes before it and those of the rest (encoded with DCM_TOKENIZE_REST, the other flags as
 * before, no DCM_TOKENIZE_BOS) are, one after the other, those of the whole text; the rest may be cut again. 0: no such
 * place yet, read on. Places are spaces and line ends behind a word; a SentencePiece vocabulary with tokens of several
 * words has none.
 */
DCM_API size_t dcm_tokenize_cut(const dcm_tokenizer *tokenizer, const char *text, size_t len);

/*
 * Decode `count` ids to bytes: the exact bytes that were encoded. On success *text is an array of *len bytes with a
 * NUL behind it that the caller frees with dcm_free(). Special tokens give their text when `special`, else nothing.
 * A SentencePiece model's space before the first word, and before each word behind a special token, is taken off again.
 * Errors: DCM_ERR_USAGE for an id outside the vocabulary.
 */
DCM_API dcm_status dcm_detokenize(const dcm_tokenizer *tokenizer, const int32_t *ids, size_t count, bool special,
                                  char **text, size_t *len);

/*
 * The bytes of one token as it stands inside a text, for output that streams: *text points to *len bytes owned by the
 * tokenizer, without a NUL behind them; possibly a part of a UTF-8 character. Nothing is taken off: the first token of
 * a SentencePiece text may begin with the model's own space. Special tokens as for dcm_detokenize. Errors:
 * DCM_ERR_USAGE for an id outside the vocabulary.
 */
DCM_API dcm_status dcm_token_text(const dcm_tokenizer *tokenizer, int32_t id, bool special, const char **text,
                                  size_t *len);

/* Ids in the vocabulary. */
DCM_API size_t dcm_vocab_size(const dcm_tokenizer *tokenizer);

/* True for a token that ends a turn or a text (EOS, <|im_end|>, <|eot_id|> ...). */
DCM_API bool dcm_is_end_token(const dcm_tokenizer *tokenizer, int32_t id);

/* BOS id where the model's metadata asks for one to be added, else -1. */
DCM_API int32_t dcm_bos_token(const dcm_tokenizer *tokenizer);

/* One message of a conversation. `role`: "system", "user" or "assistant". */
typedef struct dcm_chat_message {
    const char *role;
    const char *content;
} dcm_chat_message;

/* The recognised chat template's name ("chatml", "smollm2", "llama3", "llama2", "mistral" ...), or NULL when there is
 * none or it is unknown. */
DCM_API const char *dcm_chat_template(const dcm_tokenizer *tokenizer);

/*
 * Render messages[first .. count) as the model's own template would render the whole conversation, less what it
 * renders for messages[0 .. first): a later turn appends to what a session has been fed. With `generate` the opening
 * of the assistant's answer follows. The text is for dcm_tokenize with DCM_TOKENIZE_SPECIAL. The caller
 * frees *text with dcm_free(). Errors: DCM_ERR_FILE when the template is missing or unknown, DCM_ERR_USAGE for roles
 * that the template refuses.
 */
DCM_API dcm_status dcm_chat_render(const dcm_tokenizer *tokenizer, const dcm_chat_message *messages, size_t first,
                                   size_t count, bool generate, char **text);

#ifdef __cplusplus
}
#endif

#endif
