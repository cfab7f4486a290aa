/*
 * Any text through small vocabularies of every kind: byte 0 chooses the kind, byte 1 the flags, the rest is the text.
 * Decoding gives the text back, and a text may be cut where dcm_tokenize_cut says.
 */
#include "fuzz/fuzz.h"
#include "fuzz/vocabularies.h"

#include "token/tokenizer.h"

#include <string.h>

enum { FLAGS = DCM_TOKENIZE_BOS | DCM_TOKENIZE_SPECIAL };

/* The ids of the parts before and behind `cut` are those of the whole. */
static void check_cut(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags, const int32_t *whole,
                      size_t count, size_t cut)
{
    int32_t *first, *rest;
    size_t n, m;
    fuzz_check(dcm_tokenize(t, text, cut, flags, &first, &n) == DCM_OK, "the part before a cut");
    fuzz_check(dcm_tokenize(t, text + cut, size - cut, (flags & ~(unsigned)DCM_TOKENIZE_BOS) | DCM_TOKENIZE_REST, &rest,
                            &m) == DCM_OK,
               "the part behind a cut");
    fuzz_check(n + m == count, "as many ids with a cut as without");
    fuzz_check((!n || !memcmp(whole, first, n * sizeof *whole)) && (!m || !memcmp(whole + n, rest, m * sizeof *whole)),
               "the same ids with a cut as without");
    dcm_free(first);
    dcm_free(rest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const dcm_tokenizer *t = fuzz_vocabulary(data[0] % FUZZ_VOCABULARIES);
    const unsigned flags = data[1] & FLAGS;
    const char *text = (const char *)data + 2;
    int32_t *ids;
    size_t count, back_size;
    char *back;
    size -= 2;
    fuzz_check(dcm_tokenize(t, text, size, flags, &ids, &count) == DCM_OK, "a text is refused");
    const size_t skip = count && (flags & DCM_TOKENIZE_BOS) && dcm_bos_token(t) >= 0;
    fuzz_check(dcm_detokenize(t, count ? ids + skip : NULL, count - skip, true, &back, &back_size) == DCM_OK,
               "ids are refused");
    fuzz_check(back_size == size && (!size || !memcmp(back, text, size)), "the text does not come back");
    const size_t cut = dcm_tokenize_cut(t, text, size);
    fuzz_check(cut <= size, "a cut outside the text");
    if (cut > 0)
        check_cut(t, text, size, flags, ids, count, cut);
    dcm_free(back);
    dcm_free(ids);
    return 0;
}
