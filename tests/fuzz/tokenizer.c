/* Tokenizer data inside GGUF files, and texts through what was read. */
#include "fuzz/fuzz.h"

#include "token/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static void encode(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags)
{
    int32_t *ids;
    size_t count, back_size;
    char *back;
    const dcm_status status = dcm_tokenize(t, text, size, flags, &ids, &count);
    fuzz_check_status(status);
    for (size_t i = 0; status == DCM_OK && i < count; i++)
        fuzz_check(ids[i] >= 0 && (size_t)ids[i] < dcm_vocab_size(t), "an id outside the vocabulary");
    if (status == DCM_OK) {
        fuzz_check(dcm_detokenize(t, ids, count, true, &back, &back_size) == DCM_OK, "ids without a text");
        dcm_free(back);
    }
    fuzz_check(dcm_tokenize_cut(t, text, size) <= size, "a cut outside the text");
    dcm_free(ids);
}

static void use(const dcm_tokenizer *t)
{
    static const char text[] = "Hello, the  world's\n\n1234 \xc3\xbc\xff<|im_end|></s> and\t on";
    const dcm_chat_message turns[] = {{"system", "be brief"}, {"user", " hi "}, {"assistant", "yes\n"}, {"user", "?"}};
    char *rendered;
    for (unsigned flags = 0; flags < 16; flags += 3)
        encode(t, text, sizeof text - 1, flags);
    for (size_t id = 0; id < dcm_vocab_size(t) && id < 64; id++) {
        const char *bytes;
        size_t size;
        fuzz_check(dcm_token_text(t, (int32_t)id, true, &bytes, &size) == DCM_OK, "a token without a text");
        encode(t, bytes, size, DCM_TOKENIZE_SPECIAL | DCM_TOKENIZE_LOSSY);
        dcm_is_end_token(t, (int32_t)id);
    }
    fuzz_check(dcm_bos_token(t) < (int32_t)dcm_vocab_size(t), "the BOS token");
    if (dcm_chat_template(t) && dcm_chat_render(t, turns, 0, 4, true, &rendered) == DCM_OK) {
        encode(t, rendered, strlen(rendered), DCM_TOKENIZE_SPECIAL | DCM_TOKENIZE_BOS);
        dcm_free(rendered);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gguf *file;
    dcm_tokenizer *t;
    if (gguf_open_memory(&file, "fuzz", data, size) != DCM_OK)
        return 0;
    const dcm_status status = tokenizer_open_gguf(&t, file);
    fuzz_check_status(status);
    gguf_close(&file);
    if (status == DCM_OK)
        use(t);
    dcm_tokenizer_close(&t);
    return 0;
}
