#include "fuzz/vocabularies.h"

#include "fuzz/fuzz.h"
#include "support/gguf_writer.h"
#include "support/tiny_model.h"
#include "token/tokenizer.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dcm_tokenizer *open_bytes(gw_bytes bytes)
{
    gguf *file;
    dcm_tokenizer *t = NULL;
    fuzz_check(gguf_open_memory(&file, "vocabulary", bytes.data, bytes.size) == DCM_OK, "a vocabulary's file");
    fuzz_check(tokenizer_open_gguf(&t, file) == DCM_OK, "a vocabulary");
    gguf_close(&file);
    gw_free(&bytes);
    return t;
}

/* 3 special tokens, 256 byte tokens, and words. */
static dcm_tokenizer *sentencepiece(bool several_words)
{
    static const char *const words[] = {"a",
                                        "b",
                                        "ab",
                                        "\xe2\x96\x81",
                                        "\xe2\x96\x81"
                                        "a",
                                        "\xe2\x96\x81\xe2\x96\x81",
                                        "bb",
                                        "\xc3\xbc",
                                        "<x>",
                                        "b\xe2\x96\x81"
                                        "a"};
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    const size_t n_words = sizeof words / sizeof *words - !several_words, count = 3 + 256 + n_words;
    const char *texts[3 + 256 + sizeof words / sizeof *words];
    int32_t types[3 + 256 + sizeof words / sizeof *words];
    float scores[3 + 256 + sizeof words / sizeof *words] = {0};
    char bytes[256][8];
    gguf_writer w;
    for (size_t i = 0; i < count; i++) {
        if (i >= 3 && i < 259)
            snprintf(bytes[i - 3], sizeof bytes[0], "<0x%02zX>", i - 3);
        texts[i] = i < 3 ? special[i] : i < 259 ? bytes[i - 3] : words[i - 259];
        types[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : !strcmp(texts[i], "<x>") ? 4 : 1;
        scores[i] = i < 259 ? 0 : -(float)((i * 7) % 11);
    }
    gw_open(&w);
    gw_string(&w, "tokenizer.ggml.model", "llama");
    gw_strings(&w, "tokenizer.ggml.tokens", texts, count);
    gw_array(&w, "tokenizer.ggml.token_type", GW_I32, count, types, count * sizeof *types);
    gw_array(&w, "tokenizer.ggml.scores", GW_F32, count, scores, count * sizeof *scores);
    return open_bytes(gw_finish(&w));
}

/* The tiny model's file with another name of a pre-tokenizer of the same length: found by its bytes. */
static dcm_tokenizer *byte_level(const char *pre)
{
    static const char *const merges[] = {"a b", "\xc4\xa0 t",       "\xc4\xa0t h", "h e", "\xc4\xa0 \xc4\xa0",
                                         "1 2", "\xc4\x8a \xc4\x8a"};
    static const char *const more[] = {"ab", "\xc4\xa0t",        "\xc4\xa0th", "he",    "\xc4\xa0\xc4\xa0",
                                       "12", "\xc4\x8a\xc4\x8a", "<|im_end|>", "<user>"};
    const tiny_params params = {0};
    const size_t n_more = sizeof more / sizeof *more, count = 256 + n_more;
    gw_bytes model = tiny_model_make(&params);
    gguf *file;
    gguf_string *texts = calloc(tiny_vocab_min(&params), sizeof *texts);
    gw_bytes tokens = {0}, types = {0};
    gguf_writer w;
    fuzz_check(texts && gguf_open_memory(&file, "tiny", model.data, model.size) == DCM_OK, "the tiny model");
    fuzz_check(!gguf_get_string_array(file, "tokenizer.ggml.tokens", texts, tiny_vocab_min(&params)), "its tokens");
    for (size_t i = 0; i < count; i++) {
        const int32_t type = i + 2 == count ? 3 : i + 1 == count ? 4 : 1;
        if (i < 256) {
            gw_put_u64(&tokens, texts[i].size);
            gw_put(&tokens, texts[i].data, texts[i].size);
        } else {
            gw_put_string(&tokens, more[i - 256]);
        }
        gw_put(&types, &type, sizeof type);
    }
    gw_open(&w);
    gw_string(&w, "tokenizer.ggml.model", "gpt2");
    gw_string(&w, "tokenizer.ggml.pre", pre);
    gw_array(&w, "tokenizer.ggml.tokens", GW_STRING, count, tokens.data, tokens.size);
    gw_array(&w, "tokenizer.ggml.token_type", GW_I32, count, types.data, types.size);
    gw_strings(&w, "tokenizer.ggml.merges", merges, sizeof merges / sizeof *merges);
    gw_u32(&w, "tokenizer.ggml.bos_token_id", 256 + 7);
    gguf_close(&file);
    free(texts);
    gw_free(&model);
    gw_free(&tokens);
    gw_free(&types);
    return open_bytes(gw_finish(&w));
}

const dcm_tokenizer *fuzz_vocabulary(unsigned which)
{
    static const char *const pre[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    static dcm_tokenizer *made[FUZZ_VOCABULARIES];
    if (!made[which])
        made[which] = which < 4 ? byte_level(pre[which]) : sentencepiece(which == 5);
    return made[which];
}

enum { TEMPLATES = 64 };

/* Open every file of the folder; returns how many. */
static unsigned read_templates(chat *made)
{
    static const char folder[] = TEST_GOLDEN "/token/templates";
    struct dirent **names;
    unsigned count = 0;
    const int n = scandir(folder, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char path[4096], text[8192];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        FILE *in = names[i]->d_name[0] != '.' && count < TEMPLATES ? fopen(path, "rb") : NULL;
        if (in) {
            const size_t size = fread(text, 1, sizeof text, in);
            fuzz_check(chat_open(&made[count], (gguf_string){text, size}) == DCM_OK && made[count].kind, "a template");
            made[count].bos = "<s>";
            made[count].eos = "</s>";
            count++;
            fclose(in);
        }
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    fuzz_check(count > 0, "no templates in tests/golden");
    return count;
}

const chat *fuzz_template(unsigned which)
{
    static chat made[TEMPLATES];
    static unsigned count;
    if (!count)
        count = read_templates(made);
    return &made[which % count];
}
