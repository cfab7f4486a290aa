/* Tokenizer metadata that is missing, unknown or contradicts itself: each is refused with one line that names the
 * cause. */
#include <dcm/tokenizer.h>

#include "base/memory.h"
#include "support/gguf_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { TOKENS = 8 };

/* A small vocabulary of either kind; a test changes what it wants to be wrong. */
typedef struct facts {
    const char *model, *pre;
    const char *tokens[TOKENS];
    size_t n_tokens, n_types, n_scores, n_merges;
    int32_t types[TOKENS];
    float scores[TOKENS];
    const char *merges[4];
    int64_t bos, eos;       /* -1: no key */
    int64_t eot, unknown;   /* 0: no key */
    const char *number;     /* a key that gets the number 7 in place of a value of its own type */
    const char *numbers;    /* the same with a list of one number */
    int add_bos, add_space; /* -1: no key */
    const char *template;
} facts;

static facts byte_level(void)
{
    return (facts){.model = "gpt2",
                   .pre = "gpt-2",
                   .tokens = {"a", "b", "ab", "\xc4\xa0",
                              "\xc4\xa0"
                              "ab",
                              "<|im_end|>", "<u>", "\xc4\x80"},
                   .n_tokens = 8,
                   .n_types = 8,
                   .types = {1, 1, 1, 1, 1, 3, 4, 1},
                   .merges = {"a b", "\xc4\xa0 ab"},
                   .n_merges = 2,
                   .bos = -1,
                   .eos = 5,
                   .add_bos = -1,
                   .add_space = -1};
}

static facts sentencepiece(void)
{
    return (facts){.model = "llama",
                   .tokens = {"<unk>", "<s>", "</s>", "<0x61>", "\xe2\x96\x81", "b",
                              "\xe2\x96\x81"
                              "b",
                              "bb"},
                   .n_tokens = 8,
                   .n_types = 8,
                   .types = {2, 3, 3, 6, 1, 1, 1, 1},
                   .scores = {0, 0, 0, 0, -3, -4, -1, -2},
                   .n_scores = 8,
                   .bos = -1,
                   .eos = -1,
                   .add_bos = -1,
                   .add_space = -1};
}

static void write_file(const facts *f, char *path)
{
    gguf_writer w;
    gw_open(&w);
    if (f->model)
        gw_string(&w, "tokenizer.ggml.model", f->model);
    if (f->pre)
        gw_string(&w, "tokenizer.ggml.pre", f->pre);
    if (f->n_tokens)
        gw_strings(&w, "tokenizer.ggml.tokens", f->tokens, f->n_tokens);
    if (f->n_types)
        gw_array(&w, "tokenizer.ggml.token_type", GW_I32, f->n_types, f->types, f->n_types * sizeof *f->types);
    if (f->n_scores)
        gw_array(&w, "tokenizer.ggml.scores", GW_F32, f->n_scores, f->scores, f->n_scores * sizeof *f->scores);
    if (f->n_merges)
        gw_strings(&w, "tokenizer.ggml.merges", f->merges, f->n_merges);
    if (f->bos >= 0)
        gw_u32(&w, "tokenizer.ggml.bos_token_id", (uint32_t)f->bos);
    if (f->eos >= 0)
        gw_u32(&w, "tokenizer.ggml.eos_token_id", (uint32_t)f->eos);
    if (f->add_bos >= 0)
        gw_bool(&w, "tokenizer.ggml.add_bos_token", f->add_bos);
    if (f->add_space >= 0)
        gw_bool(&w, "tokenizer.ggml.add_space_prefix", f->add_space);
    if (f->eot)
        gw_u32(&w, "tokenizer.ggml.eot_token_id", (uint32_t)f->eot);
    if (f->unknown)
        gw_u32(&w, "tokenizer.ggml.unknown_token_id", (uint32_t)f->unknown);
    if (f->template)
        gw_string(&w, "tokenizer.chat_template", f->template);
    if (f->number)
        gw_u32(&w, f->number, 7);
    if (f->numbers)
        gw_array(&w, f->numbers, GW_U32, 1, "1234", 4);
    gw_bytes bytes = gw_finish(&w);
    strcpy(path, "/tmp/dcm-test-token-XXXXXX");
    const int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, bytes.data, bytes.size), bytes.size);
    close(file);
    gw_free(&bytes);
}

static dcm_status open_facts(const facts *f, dcm_tokenizer **t)
{
    char path[64];
    write_file(f, path);
    const dcm_status status = dcm_tokenizer_open(t, path);
    if (status != DCM_OK)
        assert_non_null(strstr(dcm_error(), path));
    unlink(path);
    return status;
}

static void refused(const facts *f, const char *says)
{
    dcm_tokenizer *t;
    assert_int_equal(open_facts(f, &t), DCM_ERR_FILE);
    assert_null(t);
    if (!strstr(dcm_error(), says))
        fail_msg("the message should have \"%s\": %s", says, dcm_error());
    assert_null(strchr(dcm_error(), '\n'));
}

static void encodes(const facts *f, const char *text, unsigned flags, const int32_t *expected, size_t n)
{
    dcm_tokenizer *t;
    int32_t *ids;
    size_t count;
    if (open_facts(f, &t) != DCM_OK || dcm_tokenize(t, text, strlen(text), flags, &ids, &count) != DCM_OK)
        fail_msg("%s", dcm_error());
    assert_int_equal(count, n);
    assert_memory_equal(ids, expected, n * sizeof *ids);
    dcm_free(ids);
    dcm_tokenizer_close(&t);
}

#define ENCODES(f, text, flags, ...)                                                                                   \
    encodes(f, text, flags, (const int32_t[]){__VA_ARGS__}, sizeof(const int32_t[]){__VA_ARGS__} / sizeof(int32_t))

static void test_right(void **state)
{
    (void)state;
    facts f = byte_level();
    ENCODES(&f, "ab ab<u>", 0, 2, 4, 6);
    ENCODES(&f, "a<|im_end|>", DCM_TOKENIZE_SPECIAL | DCM_TOKENIZE_BOS, 0, 5);
    f.bos = 6;
    f.add_bos = 1;
    ENCODES(&f, "a", DCM_TOKENIZE_BOS, 6, 0);
    ENCODES(&f, "a", 0, 0);
    f.pre = "llama-bpe";
    f.add_bos = 0;
    ENCODES(&f, "a", DCM_TOKENIZE_BOS, 0);

    f = sentencepiece();
    ENCODES(&f, "bb", DCM_TOKENIZE_BOS, 1, 6, 5);
    ENCODES(&f, "a</s>b", DCM_TOKENIZE_SPECIAL, 4, 3, 2, 6);
    f.add_space = 0;
    f.add_bos = 0;
    ENCODES(&f, "bb", DCM_TOKENIZE_BOS, 7);
    ENCODES(&f, "bxb", DCM_TOKENIZE_LOSSY, 5, 0, 5);
    f.add_bos = 1;
    f.n_tokens = f.n_types = f.n_scores = 1; /* of SentencePiece's own ids the unknown one alone */
    ENCODES(&f, "x", DCM_TOKENIZE_BOS | DCM_TOKENIZE_LOSSY, 0);
}

static void test_unknown(void **state)
{
    (void)state;
    facts f = byte_level();
    f.model = "wordpiece9";
    refused(&f, "\"wordpiece9\"");
    f = byte_level();
    f.pre = "future-bpe";
    refused(&f, "\"future-bpe\"");
    f.pre = "gpt-";
    refused(&f, "\"gpt-\"");
    f.pre = NULL;
    refused(&f, "tokenizer.ggml.pre");
    f = byte_level();
    f.model = NULL;
    refused(&f, "tokenizer.ggml.model");
}

static void test_contradictions(void **state)
{
    (void)state;
    facts f = byte_level();
    f.n_tokens = 0;
    refused(&f, "tokenizer.ggml.tokens");
    f = byte_level();
    f.n_types = 7;
    refused(&f, "token_type has 7 items");
    f = byte_level();
    f.n_merges = 0;
    refused(&f, "tokenizer.ggml.merges");
    f = byte_level();
    f.merges[1] = "nospace";
    refused(&f, "item 1 (\"nospace\")");
    f.merges[1] = "a q";
    refused(&f, "vocabulary lacks");
    f.merges[1] = "b b"; /* both are tokens, but bb is not */
    refused(&f, "vocabulary lacks");
    f.merges[1] = "a \xe4\xb8\xad";
    refused(&f, "outside the byte alphabet");
    f = byte_level();
    f.eos = 8;
    refused(&f, "eos_token_id is 8");
    f = sentencepiece();
    f.n_scores = 0;
    refused(&f, "tokenizer.ggml.scores");
    f.n_scores = 3;
    refused(&f, "scores has 3 items");
    f = sentencepiece();
    f.scores[6] = 0.0f / 0.0f;
    refused(&f, "item 6 is not a number");
    f = sentencepiece();
    f.tokens[3] = "<0x6g>";
    refused(&f, "<0x6g>");
}

/* Texts of a file that stand in a message are cut. */
static void test_long_names(void **state)
{
    (void)state;
    static const char ten[] = "0123456789";
    char text[86], shown[90];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i + 1 < sizeof text ? ten[i % 10] : 0;
    snprintf(shown, sizeof shown, "\"%.80s\"", text);
    facts f = byte_level();
    f.model = text;
    refused(&f, shown);
    f = byte_level();
    f.pre = text;
    refused(&f, shown);
    f = byte_level();
    f.merges[1] = text;
    refused(&f, shown);
    f = sentencepiece();
    f.tokens[3] = text;
    snprintf(shown, sizeof shown, "its text is \"%.40s\"", text);
    refused(&f, shown);
}

static void test_wrong_types(void **state)
{
    (void)state;
    facts f = byte_level();
    f.n_types = f.n_merges = 0;
    f.number = "tokenizer.ggml.token_type";
    refused(&f, f.number);
    f = byte_level();
    f.n_merges = 0;
    f.numbers = "tokenizer.ggml.merges";
    refused(&f, "an array of strings is needed");
    f = byte_level();
    f.number = "tokenizer.ggml.add_bos_token";
    refused(&f, "a bool is needed");
    f.number = "tokenizer.chat_template";
    refused(&f, "a string is needed");
    f = sentencepiece();
    f.number = "tokenizer.ggml.add_space_prefix";
    refused(&f, "a bool is needed");
    f.number = NULL;
    f.unknown = 8;
    refused(&f, "unknown_token_id is 8");
    f = byte_level();
    f.eot = 9;
    refused(&f, "eot_token_id is 9");
}

/* Byte tokens whose text only looks like one. */
static void test_wrong_bytes(void **state)
{
    (void)state;
    static const char *const bytes[] = {"<0x61)", "<0y61>", "<0x611>", "<0x6>", "<0x6:>"};
    facts f = sentencepiece();
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        f.tokens[3] = bytes[i];
        refused(&f, bytes[i]);
    }
}

/* Ends of texts: the EOT token's own key, and control tokens by their texts, whole and of that kind. */
static void test_ends(void **state)
{
    (void)state;
    dcm_tokenizer *t;
    facts f = byte_level();
    f.eos = -1;
    f.eot = 6;
    assert_int_equal(open_facts(&f, &t), DCM_OK);
    assert_true(dcm_is_end_token(t, 5) && dcm_is_end_token(t, 6) && !dcm_is_end_token(t, 4));
    dcm_tokenizer_close(&t);
    f.eot = 0;
    f.tokens[5] = "</s"; /* the beginning of a known text */
    f.tokens[6] = "<|im_end|>";
    assert_int_equal(open_facts(&f, &t), DCM_OK); /* token 6 is the user's own */
    for (int32_t id = 0; id < 8; id++)
        assert_false(dcm_is_end_token(t, id));
    dcm_tokenizer_close(&t);
}

/* "cd" is merged first, then "bcd": "bc", found before them, is no pair any more, though "b" is still there. */
static void test_stale_pair(void **state)
{
    (void)state;
    static const char *const tokens[] = {"cd", "bcd", "bc"};
    facts f = sentencepiece();
    f.add_space = 0;
    for (int i = 0; i < 3; i++) {
        f.tokens[3 + i] = tokens[i];
        f.scores[3 + i] = (float)(-1 - i);
        f.types[3 + i] = 1;
    }
    ENCODES(&f, "bcd", 0, 4);
}

/* U+00AD is no character of the byte alphabet: such a token is not used. Of a word without tokens nothing is left. */
static void test_unused(void **state)
{
    (void)state;
    facts f = byte_level();
    f.tokens[7] = "\xc2\xad";
    ENCODES(&f, "a", 0, 0);
    dcm_tokenizer *t;
    int32_t *ids;
    size_t count;
    assert_int_equal(open_facts(&f, &t), DCM_OK);
    assert_true(dcm_tokenize(t, "xyz", 3, DCM_TOKENIZE_LOSSY, &ids, &count) == DCM_OK && count == 0);
    assert_int_equal(dcm_tokenize(t, "a\xff", 2, 0, &ids, &count), DCM_ERR_FILE); /* a byte that is no character */
    assert_non_null(strstr(dcm_error(), "byte 0xff at offset 1 "));
    assert_int_equal(dcm_tokenize(t, "", INT32_MAX, 0, &ids, &count), DCM_ERR_USAGE);
    assert_non_null(strstr(dcm_error(), "2147483647 bytes"));
    dcm_tokenizer_close(&t);
}

/* Every allocation of encoding a text of many tokens fails once. */
static void test_memory(void **state)
{
    (void)state;
    char words[2000], specials[2000];
    memset(words, 'b', sizeof words);
    for (size_t i = 0; i < sizeof specials; i++)
        specials[i] = "<u>"[i % 3];
    const struct {
        facts f;
        const char *text;
        size_t size, count;
    } cases[] = {{byte_level(), words, 2000, 2000}, {byte_level(), specials, 1998, 666},
                 {sentencepiece(), words, 2000, 1001}};
    dcm_tokenizer *t;
    int32_t *ids;
    size_t count;
    for (size_t i = 0; i < 3; i++) {
        dcm_status status = DCM_ERR_MEMORY;
        assert_int_equal(open_facts(&cases[i].f, &t), DCM_OK);
        for (long n = 1; status != DCM_OK; n++) {
            mem_fail_at(n);
            status = dcm_tokenize(t, cases[i].text, cases[i].size, 0, &ids, &count);
            assert_true(status == DCM_OK || (status == DCM_ERR_MEMORY && !ids));
        }
        mem_fail_at(0);
        assert_int_equal(count, cases[i].count);
        dcm_free(ids);
        dcm_tokenizer_close(&t);
    }
}

static void test_template(void **state)
{
    (void)state;
    dcm_tokenizer *t;
    char *text;
    const dcm_chat_message hi = {"user", "hi"};
    facts f = byte_level();
    f.template = "{{ messages }}";
    assert_int_equal(open_facts(&f, &t), DCM_OK); /* the model is still good for plain text */
    assert_null(dcm_chat_template(t));
    assert_int_equal(dcm_chat_render(t, &hi, 0, 1, true, &text), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "not one of those known"));
    dcm_tokenizer_close(&t);

    /* The texts of BOS and EOS are the model's own. */
    f.template = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
                 "message['content'] + '[/INST]' }}"
                 "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['content'] + "
                 "'[/SYSTEM_PROMPT]' }}{% elif "
                 "message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% else %}{{ "
                 "raise_exception('Only user, system and "
                 "assistant roles are supported!') }}{% endif %}{% endfor %}";
    f.bos = 6;
    assert_int_equal(open_facts(&f, &t), DCM_OK);
    const dcm_chat_message talk[] = {{"user", "hi"}, {"assistant", "ho"}};
    assert_int_equal(dcm_chat_render(t, talk, 0, 2, true, &text), DCM_OK);
    assert_string_equal(text, "<u>[INST] hi[/INST] ho<|im_end|>");
    dcm_free(text);
    dcm_tokenizer_close(&t);
}

/* A byte without a token is named with its place in the whole text, the model's own space before it not counted. */
static void test_lacking_byte(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        facts f = i == 0 ? byte_level() : sentencepiece();
        dcm_tokenizer *t;
        int32_t *ids;
        size_t count;
        f.add_space = i - 1;
        assert_int_equal(open_facts(&f, &t), DCM_OK);
        assert_int_equal(dcm_tokenize(t, "a b<u>bxb", 9, 0, &ids, &count), DCM_ERR_FILE);
        assert_null(ids);
        assert_non_null(strstr(dcm_error(), i == 0 ? "byte 0x78 at offset 7 " : "byte 0x3c at offset 3 "));
        dcm_tokenizer_close(&t);
    }
}

static void test_missing_file(void **state)
{
    (void)state;
    dcm_tokenizer *t;
    assert_int_equal(dcm_tokenizer_open(&t, "/nonexistent/model.gguf"), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "/nonexistent/model.gguf"));
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),    cmocka_unit_test(test_unknown),      cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_template), cmocka_unit_test(test_missing_file), cmocka_unit_test(test_lacking_byte),
        cmocka_unit_test(test_ends),     cmocka_unit_test(test_wrong_types),  cmocka_unit_test(test_wrong_bytes),
        cmocka_unit_test(test_unused),   cmocka_unit_test(test_long_names),   cmocka_unit_test(test_stale_pair),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
