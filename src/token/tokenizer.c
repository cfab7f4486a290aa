#include "token/tokenizer.h"

#include "base/error.h"
#include "base/memory.h"
#include "token/bpe.h"
#include "token/chat.h"
#include "token/cut.h"
#include "token/split.h"
#include "token/spm.h"

#include <stdlib.h>
#include <string.h>

struct dcm_tokenizer {
    vocab v;
    split *split; /* NULL for SentencePiece */
    bpe bpe;
    spm spm;
    cut_rule cut;
    bool space_prefix; /* SentencePiece: a space goes before each text at the start and behind a special token */
    int32_t bos, eos, eot, unknown; /* -1: none; SentencePiece has an unknown token always */
    bool add_bos;
    bool *ends;
    char *bos_text, *eos_text;
    chat chat;
};

static bool string_is(gguf_string s, const char *text)
{
    return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}

/* Id of an optional key; `otherwise` where it is missing. */
static dcm_status read_id(const gguf *file, const char *key, size_t count, int32_t otherwise, int32_t *id)
{
    uint32_t value;
    *id = otherwise >= 0 && (size_t)otherwise < count ? otherwise : -1;
    if (!gguf_has(file, key))
        return DCM_OK;
    const dcm_status status = gguf_get_u32(file, key, &value);
    if (status != DCM_OK)
        return status;
    if (value >= count)
        return dcm_fail(DCM_ERR_FILE, "%s is %u, but the vocabulary has %zu tokens", key, value, count);
    *id = (int32_t)value;
    return DCM_OK;
}

static dcm_status read_flag(const gguf *file, const char *key, bool *flag)
{
    return gguf_has(file, key) ? gguf_get_bool(file, key, flag) : DCM_OK;
}

/* SentencePiece models that leave these ids out mean the library's own defaults. */
static dcm_status read_ids(dcm_tokenizer *t, const gguf *file, bool sentencepiece)
{
    dcm_status status;
    const size_t n = t->v.count;
    DCM_TRY(status, fail, read_id(file, "tokenizer.ggml.bos_token_id", n, sentencepiece ? 1 : -1, &t->bos));
    DCM_TRY(status, fail, read_id(file, "tokenizer.ggml.eos_token_id", n, sentencepiece ? 2 : -1, &t->eos));
    DCM_TRY(status, fail, read_id(file, "tokenizer.ggml.unknown_token_id", n, sentencepiece ? 0 : -1, &t->unknown));
    DCM_TRY(status, fail, read_id(file, "tokenizer.ggml.eot_token_id", n, -1, &t->eot));
fail:
    return status;
}

static dcm_status mark_ends(dcm_tokenizer *t)
{
    static const char *const texts[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"};
    const dcm_status status = mem_new(&t->ends, t->v.count, sizeof *t->ends, "end tokens");
    if (status != DCM_OK)
        return status;
    if (t->eos >= 0)
        t->ends[t->eos] = true;
    if (t->eot >= 0)
        t->ends[t->eot] = true;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const size_t size = strlen(texts[i]);
        const int32_t id = vocab_special_at(&t->v, texts[i], size, true);
        if (id >= 0 && t->v.type[id] == TOKEN_CONTROL && t->v.start[id + 1] - t->v.start[id] == size)
            t->ends[id] = true;
    }
    return DCM_OK;
}

static dcm_status open_model(dcm_tokenizer *t, const gguf *file)
{
    dcm_status status;
    gguf_string model, pre;
    split_facts facts;
    DCM_TRY(status, fail, gguf_get_string(file, "tokenizer.ggml.model", &model));
    const bool sentencepiece = string_is(model, "llama");
    if (!sentencepiece && !string_is(model, "gpt2")) {
        status = dcm_fail(DCM_ERR_FILE, "tokenizer model \"%.*s\" is not known; known are gpt2 and llama",
                          (int)(model.size < 80 ? model.size : 80), model.data);
        goto fail;
    }
    if (sentencepiece) {
        t->space_prefix = t->add_bos = true;
    } else {
        DCM_TRY(status, fail, gguf_get_string(file, "tokenizer.ggml.pre", &pre));
        DCM_TRY(status, fail, split_open(&t->split, pre, &facts));
        t->add_bos = facts.add_bos;
    }
    DCM_TRY(status, fail, vocab_open(&t->v, file, sentencepiece ? VOCAB_SENTENCEPIECE : VOCAB_BYTE_LEVEL));
    DCM_TRY(status, fail, read_ids(t, file, sentencepiece));
    DCM_TRY(status, fail, read_flag(file, "tokenizer.ggml.add_bos_token", &t->add_bos));
    if (sentencepiece) {
        DCM_TRY(status, fail, read_flag(file, "tokenizer.ggml.add_space_prefix", &t->space_prefix));
        DCM_TRY(status, fail, spm_open(&t->spm, &t->v, file, t->unknown));
    } else {
        DCM_TRY(status, fail, bpe_open(&t->bpe, &t->v, file, facts.whole_words));
    }
    if (!sentencepiece || t->spm.split_at_spaces)
        cut_open(&t->cut, &t->v, !sentencepiece);
    DCM_TRY(status, fail, mark_ends(t));
fail:
    return status;
}

/* A copy of a token's text with a NUL behind it; "" for id -1. */
static dcm_status copy_text(const vocab *v, int32_t id, char **text)
{
    size_t size = 0;
    const char *bytes = id >= 0 ? vocab_text(v, id, &size) : "";
    const dcm_status status = mem_new(text, size + 1, 1, "a token's text");
    if (status == DCM_OK)
        memcpy(*text, bytes, size);
    return status;
}

static dcm_status open_chat(dcm_tokenizer *t, const gguf *file)
{
    dcm_status status;
    gguf_string text;
    DCM_TRY(status, fail, copy_text(&t->v, t->bos, &t->bos_text));
    DCM_TRY(status, fail, copy_text(&t->v, t->eos, &t->eos_text));
    if (gguf_has(file, "tokenizer.chat_template")) {
        DCM_TRY(status, fail, gguf_get_string(file, "tokenizer.chat_template", &text));
        DCM_TRY(status, fail, chat_open(&t->chat, text));
    }
    t->chat.bos = t->bos_text;
    t->chat.eos = t->eos_text;
fail:
    return status;
}

dcm_status tokenizer_open_gguf(dcm_tokenizer **tokenizer, const gguf *file)
{
    *tokenizer = NULL;
    dcm_status status = mem_new(tokenizer, 1, sizeof **tokenizer, "the tokenizer");
    if (status != DCM_OK)
        return status;
    status = open_model(*tokenizer, file);
    if (status == DCM_OK)
        status = open_chat(*tokenizer, file);
    if (status != DCM_OK) {
        dcm_fail_in(status, "%s", gguf_path(file));
        dcm_tokenizer_close(tokenizer);
    }
    return status;
}

dcm_status dcm_tokenizer_open(dcm_tokenizer **tokenizer, const char *path)
{
    gguf *file;
    *tokenizer = NULL;
    dcm_status status = gguf_open(&file, path);
    if (status == DCM_OK)
        status = tokenizer_open_gguf(tokenizer, file);
    gguf_close(&file);
    return status;
}

void dcm_tokenizer_close(dcm_tokenizer **tokenizer)
{
    if (!tokenizer || !*tokenizer)
        return;
    dcm_tokenizer *t = *tokenizer;
    vocab_close(&t->v);
    split_close(&t->split);
    bpe_close(&t->bpe);
    spm_close(&t->spm);
    chat_close(&t->chat);
    mem_free(&t->ends);
    mem_free(&t->bos_text);
    mem_free(&t->eos_text);
    mem_free(tokenizer);
}

size_t dcm_vocab_size(const dcm_tokenizer *tokenizer) { return tokenizer->v.count; }

static bool id_exists(const dcm_tokenizer *t, int32_t id) { return id >= 0 && (size_t)id < t->v.count; }

bool dcm_is_end_token(const dcm_tokenizer *tokenizer, int32_t id)
{
    return id_exists(tokenizer, id) && tokenizer->ends[id];
}

int32_t dcm_bos_token(const dcm_tokenizer *tokenizer) { return tokenizer->add_bos ? tokenizer->bos : -1; }

/* One call of dcm_tokenize. */
typedef struct encoder {
    const dcm_tokenizer *t;
    const char *text; /* the whole text */
    token_ids ids;
    bpe_work bpe;
    spm_work spm;
    char *prefixed; /* SentencePiece: a part of the text with its space before it */
} encoder;

/* `status` of encoding; where a byte of the text has no token, the message says which. */
static dcm_status name_byte(const encoder *e, dcm_status status, const char *lacking)
{
    if (status != DCM_ERR_FILE)
        return status;
    return dcm_fail(status, "byte 0x%02x at offset %zu of the text has no token in this model's vocabulary",
                    (unsigned char)*lacking, (size_t)(lacking - e->text));
}

static dcm_status encode_word(void *context, const char *word, size_t size)
{
    encoder *e = context;
    const dcm_status status = bpe_encode(&e->t->bpe, &e->t->v, word, size, &e->bpe, &e->ids);
    return name_byte(e, status, e->bpe.lacking);
}

/* A part of the text without special tokens; `prefix`: where the model puts a space before it, do so. */
static dcm_status encode_part(encoder *e, const char *part, size_t size, bool prefix)
{
    dcm_status status;
    if (e->t->split)
        return split_text(e->t->split, part, size, encode_word, e);
    if (!e->t->space_prefix || !prefix) {
        status = spm_encode(&e->t->spm, &e->t->v, part, size, &e->spm, &e->ids);
        return name_byte(e, status, e->spm.lacking);
    }
    DCM_TRY(status, fail, mem_resize(&e->prefixed, size + 1, 1, "a text"));
    e->prefixed[0] = ' ';
    memcpy(e->prefixed + 1, part, size);
    status = spm_encode(&e->t->spm, &e->t->v, e->prefixed, size + 1, &e->spm, &e->ids);
    if (status == DCM_ERR_FILE)
        status = name_byte(e, status, part + (e->spm.lacking > e->prefixed ? e->spm.lacking - e->prefixed - 1 : 0));
fail:
    return status;
}

static dcm_status encode(encoder *e, size_t size, unsigned flags)
{
    dcm_status status = DCM_OK;
    const vocab *v = &e->t->v;
    const int32_t bos = flags & DCM_TOKENIZE_BOS ? dcm_bos_token(e->t) : -1;
    DCM_TRY(status, fail, ids_reserve(&e->ids, size / 4 + 2));
    if (bos >= 0)
        e->ids.data[e->ids.count++] = bos;
    for (size_t start = 0; start < size;) {
        int32_t id = -1;
        size_t end = start;
        while (end < size && (id = vocab_special_at(v, e->text + end, size - end, flags & DCM_TOKENIZE_SPECIAL)) < 0)
            end++;
        if (end > start)
            DCM_TRY(status, fail,
                    encode_part(e, e->text + start, end - start, start > 0 || !(flags & DCM_TOKENIZE_REST)));
        start = end;
        if (id >= 0) {
            DCM_TRY(status, fail, ids_reserve(&e->ids, 1));
            e->ids.data[e->ids.count++] = id;
            start += v->start[id + 1] - v->start[id];
        }
    }
fail:
    return status;
}

dcm_status dcm_tokenize(const dcm_tokenizer *tokenizer, const char *text, size_t len, unsigned flags, int32_t **ids,
                        size_t *count)
{
    *ids = NULL;
    *count = 0;
    if (flags & ~(unsigned)(DCM_TOKENIZE_BOS | DCM_TOKENIZE_SPECIAL | DCM_TOKENIZE_LOSSY | DCM_TOKENIZE_REST))
        return dcm_fail(DCM_ERR_USAGE, "tokenize: flags 0x%x are not known", flags);
    if (len >= INT32_MAX)
        return dcm_fail(DCM_ERR_USAGE, "tokenize: a text of %zu bytes; at most %d at once", len, INT32_MAX - 1);
    encoder e = {.t = tokenizer, .text = text};
    e.bpe.lossy = e.spm.lossy = flags & DCM_TOKENIZE_LOSSY;
    const dcm_status status = encode(&e, len, flags);
    if (status == DCM_OK && e.ids.count > 0) {
        *ids = e.ids.data;
        *count = e.ids.count;
        e.ids.data = NULL;
    }
    mem_free(&e.ids.data);
    mem_free(&e.prefixed);
    bpe_work_free(&e.bpe);
    spm_work_free(&e.spm);
    return status;
}

size_t dcm_tokenize_cut(const dcm_tokenizer *tokenizer, const char *text, size_t len)
{
    return cut_last(&tokenizer->cut, text, len);
}

/* Text of a token that exists: user-defined ones are part of it, control tokens only where `special` says so. */
static const char *text_of(const vocab *v, int32_t id, bool special, size_t *len)
{
    const char *text = vocab_text(v, id, len);
    if (!special && vocab_is_special(v, id) && v->type[id] != TOKEN_USER)
        *len = 0;
    return text;
}

dcm_status dcm_token_text(const dcm_tokenizer *tokenizer, int32_t id, bool special, const char **text, size_t *len)
{
    if (!id_exists(tokenizer, id))
        return dcm_fail(DCM_ERR_USAGE, "token %d is not in the vocabulary of %zu", id, tokenizer->v.count);
    *text = text_of(&tokenizer->v, id, special, len);
    return DCM_OK;
}

dcm_status dcm_detokenize(const dcm_tokenizer *tokenizer, const int32_t *ids, size_t count, bool special, char **text,
                          size_t *len)
{
    dcm_status status = DCM_OK;
    char *out = NULL;
    size_t total = 0, n;
    const char *bytes;
    *text = NULL;
    *len = 0;
    for (size_t i = 0; i < count; i++) {
        DCM_TRY(status, fail, dcm_token_text(tokenizer, ids[i], special, &bytes, &n));
        if (!size_add(total, n, &total)) {
            status = dcm_fail(DCM_ERR_MEMORY, "host memory: the text of %zu tokens is too long", count);
            goto fail;
        }
    }
    DCM_TRY(status, fail, mem_new(&out, total + 1, 1, "text"));
    bool strip = tokenizer->space_prefix;
    for (size_t i = 0; i < count; i++) {
        bytes = text_of(&tokenizer->v, ids[i], special, &n);
        const bool is_special = vocab_is_special(&tokenizer->v, ids[i]);
        const size_t skip = strip && !is_special && n > 0 && bytes[0] == ' ';
        memcpy(out + *len, bytes + skip, n - skip);
        *len += n - skip;
        strip = is_special && tokenizer->space_prefix;
    }
    *text = out;
fail:
    return status;
}

const char *dcm_chat_template(const dcm_tokenizer *tokenizer) { return tokenizer->chat.name; }

dcm_status dcm_chat_render(const dcm_tokenizer *tokenizer, const dcm_chat_message *messages, size_t first, size_t count,
                           bool generate, char **text)
{
    return chat_render(&tokenizer->chat, messages, first, count, generate, text);
}
