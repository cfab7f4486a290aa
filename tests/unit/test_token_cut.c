/*
 * Texts in pieces (dcm_tokenize_cut): the ids of the pieces one after the other are the whole text's, for every length
 * that a piece may have been read to, on the goldens' texts and on random texts of what pre-tokenizers look at. The
 * case on SmolLM2's own vocabulary needs DCM_TEST_MODEL, as in test_token.c.
 */
#include <dcm/tokenizer.h>

#include "base/rng.h"
#include "token/cut.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const fixtures[] = {"gpt2", "llama3", "qwen2", "llama"};
enum { FIXTURES = sizeof fixtures / sizeof *fixtures, TEXT_MAX = 1 << 14 };

typedef struct token_list {
    int32_t *ids;
    size_t count;
} token_list;

static token_list encode(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags)
{
    token_list list;
    if (dcm_tokenize(t, text, size, flags, &list.ids, &list.count) != DCM_OK)
        fail_msg("%s", dcm_error());
    return list;
}

/* Of no ids there is no array. */
static bool same_ids(const int32_t *a, const int32_t *b, size_t count)
{
    return count == 0 || memcmp(a, b, count * sizeof *a) == 0;
}

static void same_at(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags, const token_list *whole,
                    size_t cut)
{
    const token_list left = encode(t, text, cut, flags);
    const token_list right = encode(t, text + cut, size - cut, flags | DCM_TOKENIZE_REST);
    if (left.count + right.count != whole->count || !same_ids(left.ids, whole->ids, left.count) ||
        !same_ids(right.ids, whole->ids + left.count, right.count))
        fail_msg("cut at %zu of \"%.*s\" (flags %u)", cut, (int)size, text, flags);
    dcm_free(left.ids);
    dcm_free(right.ids);
}

/* Cut where each beginning of the text says. Returns how many different places that were. */
static size_t check_text(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags)
{
    const token_list whole = encode(t, text, size, flags);
    size_t places = 0, last = 0;
    for (size_t known = 0; known <= size; known++) {
        const size_t cut = dcm_tokenize_cut(t, text, known);
        assert_true(cut == 0 || cut < known);
        assert_true(cut >= last); /* what could be cut can be cut when more is known */
        if (cut != last) {
            same_at(t, text, size, flags, &whole, cut);
            places++;
        }
        last = cut;
    }
    dcm_free(whole.ids);
    return places;
}

/* As a reader does: a buffer filled `step` bytes at a time, cut, and the rest moved to its front. */
static void check_reading(const dcm_tokenizer *t, const char *text, size_t size, unsigned flags, size_t step)
{
    const token_list whole = encode(t, text, size, flags);
    size_t start = 0, count = 0;
    for (size_t end = 0; start < size;) {
        end = size - end < step ? size : end + step;
        const size_t cut = end == size ? size - start : dcm_tokenize_cut(t, text + start, end - start);
        if (cut == 0)
            continue;
        const token_list piece = encode(t, text + start, cut, start ? flags | DCM_TOKENIZE_REST : flags);
        assert_true(count + piece.count <= whole.count);
        assert_memory_equal(piece.ids, whole.ids + count, piece.count * sizeof *piece.ids);
        count += piece.count;
        start += cut;
        dcm_free(piece.ids);
    }
    assert_int_equal(count, whole.count);
    dcm_free(whole.ids);
}

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

/* Every text of the goldens alone, and all of them as one text. */
static void check_goldens(const dcm_tokenizer *t, const char *name)
{
    static char line[1 << 16], text[TEXT_MAX], all[1 << 19];
    size_t places = 0, total = 0;
    snprintf(line, sizeof line, TEST_GOLDEN "/token/%s.txt", name);
    FILE *file = fopen(line, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file)) {
        char *hex = strchr(line, '\t'), *ids = hex ? strchr(hex + 1, '\t') : NULL;
        assert_non_null(ids);
        *ids = '\0';
        const unsigned flags = (unsigned)atoi(line) & ~(unsigned)DCM_TOKENIZE_BOS;
        const size_t size = from_hex(hex + 1, text);
        places += check_text(t, text, size, flags | DCM_TOKENIZE_LOSSY);
        assert_true(total + size <= sizeof all);
        memcpy(all + total, text, size);
        total += size;
    }
    fclose(file);
    if (places < 200)
        fail_msg("%s: only %zu places", name, places);
    for (unsigned special = 0; special <= DCM_TOKENIZE_SPECIAL; special += DCM_TOKENIZE_SPECIAL) {
        static const size_t steps[] = {1, 2, 3, 7, 64, 257, 1000, 4096, 65536};
        for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
            check_reading(t, all, total, special | DCM_TOKENIZE_LOSSY, steps[i]);
    }
}

static void test_goldens(void **state)
{
    (void)state;
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_tokenizer *t = open_fixture(fixtures[i]);
        check_goldens(t, fixtures[i]);
        dcm_tokenizer_close(&t);
    }
}

/* Texts strewn from what the expressions tell apart, white space above all. */
static size_t random_text(uint64_t *rng, char *text)
{
    static const char *const bits[] = {
        " ",
        " ",
        "\n",
        "\n",
        "\r",
        "\t",
        "\v",
        "\xc2\x85",
        "\u00a0",
        "\u1680",
        "\u2003",
        "\u2028",
        "\u202f",
        "\u3000",
        "\u180e",
        "a",
        "Zx",
        "7",
        "123",
        "'s",
        "'",
        "!",
        ".)",
        "_",
        "\x01",
        "\x7f",
        "\u0301",
        "\u0660",
        "\u4e2d\u6587",
        "\u3002",
        "\xff",
        "\xc2",
        "\x85",
        "\xe2\x80",
        "\xf0\x9f\x98\x80",
        "<s>",
        "</s>",
        "<|im_end|>",
        "<tool>",
        "call",
        "\u2581",
        "<|im_start|>user",
    };
    size_t size = 0;
    for (uint64_t n = rng_next(rng) % 16; n > 0; n--) {
        const char *bit = bits[rng_next(rng) % (sizeof bits / sizeof *bits)];
        memcpy(text + size, bit, strlen(bit));
        size += strlen(bit);
    }
    return size;
}

static void check_random(const dcm_tokenizer *t, uint64_t seed)
{
    size_t places = 0;
    uint64_t rng = seed;
    for (int i = 0; i < 20000; i++) {
        char text[512];
        const size_t size = random_text(&rng, text);
        const unsigned flags = rng_next(&rng) % 2 ? DCM_TOKENIZE_SPECIAL : 0;
        places += check_text(t, text, size, flags | DCM_TOKENIZE_LOSSY);
    }
    assert_true(places > 1000);
}

static void test_random(void **state)
{
    (void)state;
    const uint64_t seed = 20250915;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < FIXTURES; i++) {
        dcm_tokenizer *t = open_fixture(fixtures[i]);
        check_random(t, seed + i);
        dcm_tokenizer_close(&t);
    }
}

static void test_smollm(void **state)
{
    (void)state;
    const char *path = getenv("DCM_TEST_MODEL");
    if (!path || !*path)
        skip();
    dcm_tokenizer *t = open_path(path);
    check_goldens(t, "smollm");
    check_random(t, 7);
    dcm_tokenizer_close(&t);
}

static void cut_is(const dcm_tokenizer *t, const char *text, size_t expected)
{
    const size_t cut = dcm_tokenize_cut(t, text, strlen(text));
    if (cut != expected)
        fail_msg("\"%s\": cut at %zu, not %zu", text, cut, expected);
}

/* Cuts are where they are useful, and not in white space. */
static void test_places(void **state)
{
    (void)state;
    dcm_tokenizer *gpt2 = open_fixture("gpt2"), *llama = open_fixture("llama");
    cut_is(gpt2, "", 0);
    cut_is(gpt2, "word", 0);
    cut_is(gpt2, "one two", 3);
    cut_is(gpt2, "one two ", 7);
    cut_is(gpt2, "one  ", 3);
    cut_is(gpt2, "one\n", 0);
    cut_is(gpt2, "one\ntwo", 4);
    cut_is(gpt2, "one\n\ntwo", 0);
    cut_is(gpt2, "\u4e2d\n\u6587.", 4);
    cut_is(gpt2, "one\u3000 two", 0);
    cut_is(gpt2, "one\n\u3000\u3000two", 0);
    cut_is(llama, "one two\nthree", 3);
    cut_is(llama, "<s>one</s> two", 0);
    dcm_tokenizer_close(&gpt2);
    dcm_tokenizer_close(&llama);
}

static size_t cut_with_special(const char *special, bool words, const char *text)
{
    size_t start[] = {0, strlen(special)};
    uint8_t type[] = {TOKEN_USER};
    char bytes[64];
    const vocab v = {.count = 1, .bytes = strcpy(bytes, special), .start = start, .type = type};
    cut_rule rule;
    cut_open(&rule, &v, words);
    return cut_last(&rule, text, strlen(text));
}

/* No cut through a special token, nor behind one where a SentencePiece vocabulary begins anew. */
static void test_special(void **state)
{
    (void)state;
    assert_int_equal(cut_with_special("<x>", true, "one\ntwo three"), 7);
    assert_int_equal(cut_with_special("<x y>", true, "one\ntwo three"), 4);
    assert_int_equal(cut_with_special("\nt", true, "one\ntwo"), 0);
    assert_int_equal(cut_with_special("\n\n", true, "one\ntwo"), 4);
    assert_int_equal(cut_with_special("  ", true, "one  two"), 3);
    assert_int_equal(cut_with_special("<x>", true, "one <x> two"), 7);
    assert_int_equal(cut_with_special("<x>", false, "one <x> two"), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_places), cmocka_unit_test(test_special), cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_random), cmocka_unit_test(test_smollm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
