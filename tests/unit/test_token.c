/*
 * Tokenizers: ids against goldens from Hugging Face's tokenizers and from sentencepiece
 * (tests/golden/token/make_tokens.py), decoding as the inverse of encoding on any bytes, special tokens, BOS, end
 * tokens, long words. The case on SmolLM2's own vocabulary needs DCM_TEST_MODEL, the path of
 * SmolLM2-135M-Instruct.Q4_1.gguf; tests/run sets it.
 */
#include <dcm/tokenizer.h>

#include "base/memory.h"
#include "base/rng.h"
#include "token/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static const char *const fixtures[] = {"gpt2", "llama3", "qwen2", "llama"};
enum { FIXTURES = sizeof fixtures / sizeof *fixtures };

static dcm_tokenizer *open_path(const char *path)
{
    dcm_tokenizer *t;
    if (dcm_tokenizer_open(&t, path) != DCM_OK)
        fail_msg("%s", dcm_error());
    return t;
}

static dcm_tokenizer *open_fixture(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, TEST_GOLDEN "/token/%s.gguf", name);
    return open_path(path);
}

static size_t from_hex(const char *hex, char *out)
{
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++)
        out[n] = (char)byte;
    return n;
}

/* "1,2,3" */
static void print_ids(char *out, size_t room, const int32_t *ids, size_t count)
{
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        at += (size_t)snprintf(out + at, room - at, "%s%d", i ? "," : "", ids[i]);
        assert_true(at < room);
    }
}

static void encode_is(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags, const char *expected)
{
    static char got[1 << 16];
    int32_t *ids;
    size_t count;
    if (dcm_tokenize(t, text, size, flags, &ids, &count) != DCM_OK)
        fail_msg("%s", dcm_error());
    assert_true((count == 0) == (ids == NULL));
    print_ids(got, sizeof got, ids, count);
    if (strcmp(got, expected) != 0)
        fail_msg("\"%.*s\" (flags %u):\n%s\nbut golden:\n%s", (int)size, text, flags, got, expected);
    dcm_free(ids);
}

static size_t check_golden(const dcm_tokenizer *t, const char *name)
{
    static char line[1 << 16], text[1 << 14];
    snprintf(line, sizeof line, TEST_GOLDEN "/token/%s.txt", name);
    FILE *file = fopen(line, "r");
    assert_non_null(file);
    size_t lines = 0;
    for (; fgets(line, sizeof line, file); lines++) {
        line[strcspn(line, "\n")] = '\0';
        char *hex = strchr(line, '\t'), *ids = hex ? strchr(hex + 1, '\t') : NULL;
        assert_non_null(ids);
        *ids++ = '\0';
        encode_is(t, text, from_hex(hex + 1, text), (unsigned)atoi(line), ids);
    }
    fclose(file);
    return lines;
}

static void test_fixtures(void **state)
{
    (void)state;
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_tokenizer *t = open_fixture(fixtures[i]);
        assert_true(check_golden(t, fixtures[i]) > 200);
        dcm_tokenizer_close(&t);
        assert_null(t);
    }
}

/* Every code point written with every length, and cut short, against the standard's own definition. */
static void test_utf8(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 0x120000; code++) {
        for (size_t size = 1; size <= 4; size++) {
            static const uint32_t first[] = {0, 0x00, 0xc0, 0xe0, 0xf0}, least[] = {0, 0, 0x80, 0x800, 0x10000};
            char text[4];
            uint32_t rest = code, got = 0;
            for (size_t i = size; i-- > 1; rest >>= 6)
                text[i] = (char)(0x80 | (rest & 0x3f));
            if (size == 1 ? code >= 0x80 : rest >= (0x80u >> size))
                continue;
            text[0] = (char)(first[size] | rest);
            const bool valid = code >= least[size] && code < 0x110000 && !(code >= 0xd800 && code < 0xe000);
            assert_int_equal(utf8_read(text, size, &got), valid ? size : 0);
            assert_true(!valid || got == code);
            assert_int_equal(size > 1 ? utf8_read(text, size - 1, &got) : 0, 0);
            if (size > 1) {
                text[size - 1] ^= 0x40;
                assert_int_equal(utf8_read(text, size, &got), 0);
            }
        }
    }
    uint32_t got;
    assert_int_equal(utf8_read("\x80", 1, &got), 0);
    assert_int_equal(utf8_read("\xf8\x88\x80\x80\x80", 5, &got), 0);
}

/* Encode, decode, compare; false where the vocabulary lacks a byte. */
static bool round_trip(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags)
{
    int32_t *ids;
    size_t count, len;
    char *back;
    const dcm_status status = dcm_tokenize(t, text, size, flags, &ids, &count);
    if (status != DCM_OK) {
        assert_int_equal(status, DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "has no token"));
        assert_null(ids);
        return false;
    }
    assert_int_equal(dcm_detokenize(t, ids, count, true, &back, &len), DCM_OK);
    assert_int_equal(len, size);
    assert_memory_equal(back, text, size);
    assert_int_equal(back[len], 0);
    dcm_free(ids);
    dcm_free(back);
    return true;
}

/* Random mixtures of whole characters, parts of some, special tokens, spaces and any bytes. */
static size_t random_text(uint64_t *rng, char *text, size_t parts)
{
    static const char *const some[] = {" ",
                                       "  ",
                                       "\n",
                                       "the",
                                       " fox",
                                       "12",
                                       "\xe4\xb8\xad",
                                       "\xe2\x96\x81",
                                       "\xf0\x9f\x98\x80",
                                       "\xe4\xb8",
                                       "\xf0\x9f",
                                       "\xc0\xaf",
                                       "\xed\xa0\x80",
                                       "<|im_end|>",
                                       "<|im_start|>",
                                       "<tool>",
                                       "</s>",
                                       "<s>",
                                       "<0x41>",
                                       "'s"};
    size_t size = 0;
    for (size_t i = 0; i < parts; i++) {
        const uint64_t r = rng_next(rng);
        if (r % 4 == 0) {
            text[size++] = (char)(r >> 8);
        } else {
            const char *part = some[(r >> 8) % (sizeof some / sizeof *some)];
            memcpy(text + size, part, strlen(part));
            size += strlen(part);
        }
    }
    return size;
}

static void test_round_trip(void **state)
{
    (void)state;
    char text[1024];
    uint64_t rng = 3;
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_tokenizer *t = open_fixture(fixtures[i]);
        for (unsigned b = 0; b < 256; b++) {
            text[0] = (char)b;
            assert_true(round_trip(t, text, 1, 0));
        }
        for (size_t k = 0; k < 3000; k++) {
            const size_t size = random_text(&rng, text, rng_next(&rng) % 24);
            for (unsigned flags = 0; flags <= DCM_TOKENIZE_SPECIAL; flags += DCM_TOKENIZE_SPECIAL)
                assert_true(round_trip(t, text, size, flags));
        }
        dcm_tokenizer_close(&t);
    }
}

/* A word's merges do not reach over an invalid byte, and each valid run is a text of its own. */
static void test_invalid_utf8(void **state)
{
    (void)state;
    dcm_tokenizer *t = open_fixture("gpt2");
    int32_t *left, *right, *both;
    size_t n_left, n_right, n_both;
    assert_int_equal(dcm_tokenize(t, "the dog  ", 9, 0, &left, &n_left), DCM_OK);
    assert_int_equal(dcm_tokenize(t, "  the fox", 9, 0, &right, &n_right), DCM_OK);
    assert_int_equal(dcm_tokenize(t, "the dog  \xff\xfe  the fox", 20, 0, &both, &n_both), DCM_OK);
    assert_int_equal(n_both, n_left + 2 + n_right);
    assert_memory_equal(both, left, n_left * sizeof *left);
    assert_memory_equal(both + n_left + 2, right, n_right * sizeof *right);
    dcm_free(left);
    dcm_free(right);
    dcm_free(both);
    dcm_tokenizer_close(&t);
}

static int32_t only_id(const dcm_tokenizer *t, const char *text, unsigned flags)
{
    int32_t *ids, id;
    size_t count;
    assert_int_equal(dcm_tokenize(t, text, strlen(text), flags, &ids, &count), DCM_OK);
    id = count == 1 ? ids[0] : -1;
    dcm_free(ids);
    return id;
}

static void test_special(void **state)
{
    (void)state;
    dcm_tokenizer *t = open_fixture("gpt2");
    const int32_t end = only_id(t, "<|im_end|>", DCM_TOKENIZE_SPECIAL), tool = only_id(t, "<tool>", 0);
    assert_true(end >= 0 && tool >= 0);
    assert_int_equal(only_id(t, "<|im_end|>", 0), -1);
    /* The longest wins, user-defined or not. */
    assert_true(only_id(t, "<tool>call", 0) >= 0 && only_id(t, "<tool>call", 0) != tool);
    assert_true(only_id(t, "<|im_start|>user", DCM_TOKENIZE_SPECIAL) >= 0);

    char *text;
    size_t len;
    const int32_t ids[] = {end, tool};
    assert_int_equal(dcm_detokenize(t, ids, 2, true, &text, &len), DCM_OK);
    assert_string_equal(text, "<|im_end|><tool>");
    dcm_free(text);
    assert_int_equal(dcm_detokenize(t, ids, 2, false, &text, &len), DCM_OK);
    assert_string_equal(text, "<tool>");
    dcm_free(text);
    dcm_tokenizer_close(&t);
}

static void test_bos_and_ends(void **state)
{
    (void)state;
    dcm_tokenizer *t = open_fixture("llama3"); /* asks for BOS by its pre-tokenizer's name */
    const int32_t bos = only_id(t, "<|im_start|>", DCM_TOKENIZE_SPECIAL);
    assert_true(bos > 0 && dcm_bos_token(t) == bos);
    assert_int_equal(only_id(t, "", DCM_TOKENIZE_BOS), bos);
    assert_int_equal(only_id(t, "", 0), -1);
    assert_true(dcm_is_end_token(t, only_id(t, "<|eot_id|>", DCM_TOKENIZE_SPECIAL)));
    assert_true(dcm_is_end_token(t, only_id(t, "<|im_end|>", DCM_TOKENIZE_SPECIAL)));
    assert_false(dcm_is_end_token(t, bos));
    assert_false(dcm_is_end_token(t, -1));
    assert_false(dcm_is_end_token(t, INT32_MAX));
    assert_null(dcm_chat_template(t));
    dcm_tokenizer_close(&t);

    t = open_fixture("qwen2"); /* has a BOS id, but does not ask for it */
    assert_int_equal(dcm_bos_token(t), -1);
    assert_int_equal(only_id(t, "a", DCM_TOKENIZE_BOS), only_id(t, "a", 0));
    assert_string_equal(dcm_chat_template(t), "chatml");
    dcm_tokenizer_close(&t);

    t = open_fixture("llama"); /* SentencePiece: BOS 1 and EOS 2 where nothing is said */
    assert_int_equal(dcm_bos_token(t), 1);
    assert_true(dcm_is_end_token(t, 2));
    encode_is(t, "", 0, DCM_TOKENIZE_BOS, "1");
    dcm_tokenizer_close(&t);
}

/* SentencePiece puts a space before the text at the start and behind special tokens, and decoding takes it off again.
 */
static void test_space_prefix(void **state)
{
    (void)state;
    dcm_tokenizer *t = open_fixture("llama");
    int32_t *plain, *ids;
    size_t n_plain, count, len;
    char *text;
    const char *piece;
    assert_int_equal(dcm_tokenize(t, "the", 3, 0, &plain, &n_plain), DCM_OK);
    assert_int_equal(dcm_tokenize(t, "the</s>the", 10, DCM_TOKENIZE_SPECIAL | DCM_TOKENIZE_BOS, &ids, &count), DCM_OK);
    assert_int_equal(count, 2 * n_plain + 2);
    assert_int_equal(ids[0], 1);
    assert_int_equal(ids[1 + n_plain], 2);
    assert_memory_equal(ids + 1, plain, n_plain * sizeof *ids);
    assert_memory_equal(ids + 2 + n_plain, plain, n_plain * sizeof *ids);
    assert_int_equal(dcm_detokenize(t, ids, count, false, &text, &len), DCM_OK);
    assert_string_equal(text, "thethe");
    dcm_free(text);
    assert_int_equal(dcm_token_text(t, plain[0], false, &piece, &len), DCM_OK);
    assert_true(len > 1 && piece[0] == ' ');
    dcm_free(plain);
    dcm_free(ids);
    /* U+2581 is a space in tokens only: in a text it is three bytes. */
    assert_int_equal(dcm_tokenize(t, "\xe2\x96\x81", 3, 0, &ids, &count), DCM_OK);
    assert_int_equal(count, 4);
    dcm_free(ids);
    dcm_tokenizer_close(&t);
}

static void test_wrong_calls(void **state)
{
    (void)state;
    dcm_tokenizer *t = open_fixture("gpt2");
    int32_t *ids;
    size_t count, len;
    char *text;
    const char *piece;
    const int32_t wrong[] = {-1, INT32_MIN, INT32_MAX, (int32_t)dcm_vocab_size(t)};
    assert_int_equal(dcm_tokenize(t, "a", 1, 64, &ids, &count), DCM_ERR_USAGE);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(dcm_detokenize(t, &wrong[i], 1, true, &text, &len), DCM_ERR_USAGE);
        assert_null(text);
        assert_int_equal(dcm_token_text(t, wrong[i], true, &piece, &len), DCM_ERR_USAGE);
    }
    assert_int_equal(dcm_detokenize(t, NULL, 0, true, &text, &len), DCM_OK);
    assert_string_equal(text, "");
    dcm_free(text);
    dcm_tokenizer_close(&t);
    dcm_tokenizer_close(&t);
    dcm_tokenizer_close(NULL);
}

/* A million bytes without a place to cut: seconds at most, where a quadratic merge loop takes hours. */
static void test_long_words(void **state)
{
    (void)state;
    static const char *const units[] = {"a", "the", " ", "\n", "\xe4\xb8\xad", "\x80", "!"};
    const size_t size = 1000000;
    char *text = malloc(size + 4);
    assert_non_null(text);
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_tokenizer *t = open_fixture(fixtures[i]);
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t n = 0;
            for (; n < size; n += strlen(units[u]))
                memcpy(text + n, units[u], strlen(units[u]));
            const clock_t start = clock();
            assert_true(round_trip(t, text, n, 0));
            assert_true((clock() - start) / CLOCKS_PER_SEC < 60);
        }
        dcm_tokenizer_close(&t);
    }
    free(text);
}

static void test_memory(void **state)
{
    (void)state;
    static const char text[] = "the quick <|im_end|> \xff fox";
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_status status = DCM_ERR_MEMORY;
        char path[1024];
        snprintf(path, sizeof path, TEST_GOLDEN "/token/%s.gguf", fixtures[i]);
        for (long n = 1; status != DCM_OK; n++) {
            dcm_tokenizer *t;
            int32_t *ids = NULL;
            char *back = NULL;
            size_t count = 0, len;
            mem_fail_at(n);
            status = dcm_tokenizer_open(&t, path);
            assert_true((status == DCM_OK) == (t != NULL));
            if (status == DCM_OK)
                status = dcm_tokenize(t, text, sizeof text, DCM_TOKENIZE_SPECIAL, &ids, &count);
            if (status == DCM_OK)
                status = dcm_detokenize(t, ids, count, true, &back, &len);
            mem_fail_at(0);
            assert_true(status == DCM_OK || status == DCM_ERR_MEMORY);
            assert_true((status == DCM_OK) == (back != NULL));
            dcm_free(ids);
            dcm_free(back);
            dcm_tokenizer_close(&t);
            assert_true(n < 1000);
        }
    }
}

static void test_smollm2(void **state)
{
    (void)state;
    const char *path = getenv("DCM_TEST_MODEL");
    if (!path)
        fail_msg("DCM_TEST_MODEL is not set: give it the path of SmolLM2-135M-Instruct.Q4_1.gguf (tests/run does)");
    dcm_tokenizer *t = open_path(path);
    assert_int_equal(dcm_vocab_size(t), 49152);
    assert_int_equal(dcm_bos_token(t), -1);
    assert_true(dcm_is_end_token(t, 2) && dcm_is_end_token(t, 0) && !dcm_is_end_token(t, 1));
    assert_string_equal(dcm_chat_template(t), "smollm2");
    assert_true(check_golden(t, "smollm") > 200);

    /* 21 bytes have no token in this vocabulary: an error that names the byte, never a silent loss. */
    size_t lacking = 0;
    for (unsigned b = 0; b < 256; b++) {
        const char byte = (char)b;
        lacking += !round_trip(t, &byte, 1, 0);
    }
    assert_int_equal(lacking, 21);
    int32_t *ids;
    size_t count;
    assert_int_equal(dcm_tokenize(t, "a\x04", 2, 0, &ids, &count), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "byte 0x04 at offset 1 "));
    char text[1024];
    uint64_t rng = 5;
    size_t exact = 0;
    for (size_t k = 0; k < 3000; k++)
        exact += round_trip(t, text, random_text(&rng, text, rng_next(&rng) % 24), DCM_TOKENIZE_SPECIAL);
    assert_true(exact > 1000);
    dcm_tokenizer_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),    cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_special),     cmocka_unit_test(test_bos_and_ends), cmocka_unit_test(test_space_prefix),
        cmocka_unit_test(test_wrong_calls), cmocka_unit_test(test_long_words),   cmocka_unit_test(test_memory),
        cmocka_unit_test(test_smollm2),     cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
