/* Seeds of tokenizers: GGUF metadata, texts, and chat templates. */
#include "fuzz/corpus.h"

#include <math.h>
#include <string.h>

#define SPACE "\xe2\x96\x81"
#define G "\xc4\xa0" /* a space in GPT-2's alphabet */

enum { TOKENS = 8 };

typedef struct facts {
    const char *model, *pre, *tokens[TOKENS], *merges[3], *template;
    int32_t types[TOKENS], bos;
    float scores[TOKENS];
    size_t n_tokens, n_types, n_merges, n_scores;
} facts;

static const facts bytes = {"gpt2",
                            "gpt-2",
                            {"a", "b", "ab", G, G "ab", "<|im_end|>", "<u>", "\xc4\x80"},
                            {"a b", G " ab", "a b"},
                            NULL,
                            {1, 1, 1, 1, 1, 3, 4, 1},
                            5,
                            {0},
                            8,
                            8,
                            3,
                            0};
static const facts pieces = {"llama",
                             NULL,
                             {"<unk>", "<s>", "</s>", "<0x61>", SPACE, "b", SPACE "b", "bb"},
                             {0},
                             NULL,
                             {2, 3, 3, 6, 1, 1, 1, 1},
                             1,
                             {0, 0, 0, 0, -3, -4, -1, -2},
                             8,
                             8,
                             0,
                             8};

static void write_facts(gguf_writer *w, const facts *f)
{
    gw_open(w);
    gw_string(w, "tokenizer.ggml.model", f->model);
    if (f->pre)
        gw_string(w, "tokenizer.ggml.pre", f->pre);
    gw_strings(w, "tokenizer.ggml.tokens", f->tokens, f->n_tokens);
    gw_array(w, "tokenizer.ggml.token_type", GW_I32, f->n_types, f->types, f->n_types * 4);
    if (f->n_merges)
        gw_strings(w, "tokenizer.ggml.merges", f->merges, f->n_merges);
    if (f->n_scores)
        gw_array(w, "tokenizer.ggml.scores", GW_F32, f->n_scores, f->scores, f->n_scores * 4);
    gw_value(w, "tokenizer.ggml.bos_token_id", GW_I32, &f->bos, 4);
    if (f->template)
        gw_string(w, "tokenizer.chat_template", f->template);
}

static void put(const char *name, facts f)
{
    gguf_writer w;
    write_facts(&w, &f);
    corpus_put("tokenizer", name, gw_finish(&w));
}

static void tokenizers(void)
{
    facts f = bytes;
    put("byte-level", bytes);
    put("sentencepiece", pieces);
    f.pre = "future";
    put("pre-tokenizer-unknown", f);
    f = bytes;
    f.pre = "llama-bpe";
    put("whole-words", f);
    f = bytes;
    f.bos = -1;
    put("bos-negative", f);
    f.bos = 8;
    put("bos-outside", f);
    f = bytes;
    f.merges[1] = "ab";
    put("merge-without-space", f);
    f.merges[1] = "ab nothing";
    put("merge-of-no-tokens", f);
    f.merges[1] = " ";
    put("merge-of-a-space", f);
    f.merges[1] = "\xe4\xb8\x96 a";
    put("merge-outside-the-alphabet", f);
    f = bytes;
    f.n_types = 7;
    put("types-too-few", f);
    f = bytes;
    f.types[0] = -7;
    f.types[1] = 6;
    put("type-negative-and-byte-of-no-byte", f);
    f = bytes;
    f.tokens[1] = f.tokens[2] = "a";
    put("tokens-the-same", f);
    f = bytes;
    f.tokens[5] = f.tokens[6] = "";
    put("special-tokens-empty", f);
    f = bytes;
    f.n_tokens = f.n_types = 0;
    put("no-tokens", f);
    f = pieces;
    f.scores[4] = NAN;
    put("score-not-a-number", f);
    f = pieces;
    f.n_scores = 3;
    put("scores-too-few", f);
    f = pieces;
    f.tokens[3] = "<0xG1>";
    put("byte-token-malformed", f);
    f = bytes;
    f.template = "{% for m in messages %}{{ '<|im_start|>' + m['ro";
    put("template-without-end", f);
}

static void wrong_types(void)
{
    gguf_writer w;
    write_facts(&w, &bytes);
    gw_array(&w, "tokenizer.ggml.scores", GW_STRING, UINT64_C(1) << 61, NULL, 0);
    corpus_put("tokenizer", "scores-absurd", gw_finish(&w));
    facts f = bytes;
    f.n_merges = 0;
    write_facts(&w, &f);
    gw_array(&w, "tokenizer.ggml.merges", GW_STRING, UINT32_MAX, "\3\0\0\0\0\0\0\0a b", 11);
    corpus_put("tokenizer", "merges-absurd", gw_finish(&w));
    gw_open(&w);
    gw_string(&w, "tokenizer.ggml.model", "gpt2");
    gw_string(&w, "tokenizer.ggml.pre", "gpt-2");
    gw_array(&w, "tokenizer.ggml.tokens", GW_I32, 2, (const int32_t[]){1, 2}, 8);
    corpus_put("tokenizer", "tokens-of-numbers", gw_finish(&w));
    gw_open(&w);
    gw_u32(&w, "tokenizer.ggml.model", 2);
    corpus_put("tokenizer", "model-a-number", gw_finish(&w));
    write_facts(&w, &f);
    gw_string(&w, "tokenizer.ggml.merges", "a b");
    corpus_put("tokenizer", "merges-one-text", gw_finish(&w));
}

static void texts(void)
{
    static const char *const list[] = {"Hello world's, it's 1234 o'clock\n\n  and   more\t\n",
                                       "   \n \r\n\v\xc2\xa0\xe3\x80\x80 x",
                                       "\xff\xfe"
                                       "a\xc3"
                                       "b\xed\xa0\x80\xf4\x90\x80\x80\xc0\x80",
                                       "\xe4\xb8\x96\xe7\x95\x8c \xd9\xa3\xd9\xa4 \xf0\x9f\x98\x80\xcc\x81",
                                       "<|im_end|><user> a<user>b <s></s><x> <x>",
                                       "a b ab  ab bb" SPACE "a <0x61>"};
    for (unsigned kind = 0; kind < 6; kind++) {
        const char name[] = {'k', 'i', 'n', 'd', '-', (char)('0' + kind), 0};
        gw_bytes b = {0};
        gw_put(&b, (const unsigned char[]){(unsigned char)kind, (unsigned char)(kind % 4)}, 2);
        for (size_t i = 0; i < sizeof list / sizeof *list; i++)
            gw_put(&b, list[i], strlen(list[i]));
        gw_put(&b, "", 1);
        corpus_put("text", name, b);
    }
}

static void template(const char *name, const char *text)
{
    gw_bytes b = {0};
    gw_put(&b, "", 1);
    gw_put(&b, text, strlen(text));
    corpus_put("chat", name, b);
}

static void templates(void)
{
    gw_bytes b;
    template("chatml", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
                       "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
                       "}}{% endif %}");
    template("default-system", "{{ '<|im_start|>system\\n\\'a\\' \\\\ \"b\"<|im_end|>\\n' }}");
    template("string-without-end", "{{ 'abc\\");
    template("tag-without-end", "a\n  {%- if x ");
    template("comment-without-end", "a {#- b -#} c {# d");
    template("signs", " \n{%- a -%} \n {%+ b +%}\n{{- c -}} {{+ d +}}{##}{%%}{{}}{{-}}{%-%}{#-#}");
    template("sums",
             "{{ '' }}{{ '' + \"\" }}{{ a + 'b' + 'c' + d }}{{ a[''] }}{{ ''['b'] }}{{ [\"a\"] }}{{ a['b']['c'] }}");
    for (unsigned which = 1; which <= 18; which += 4) {
        const char name[] = {'t', 'u', 'r', 'n', 's', '-', (char)('a' + which), 0};
        static const char turns[] = "\2be brief \0\0 hello\n\0\1 yes\t\0\0and then?";
        b = (gw_bytes){0};
        gw_put(&b, &(unsigned char){(unsigned char)which}, 1);
        gw_put(&b, turns, sizeof turns);
        corpus_put("chat", name, b);
    }
    b = (gw_bytes){0};
    gw_put(&b, "\7\1out of turn\0\3tool", 18);
    corpus_put("chat", "turns-wrong", b);
}

void corpus_tokens(void)
{
    tokenizers();
    wrong_types();
    texts();
    templates();
}
