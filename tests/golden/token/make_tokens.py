#!/usr/bin/env python3
"""Write the tokenizer fixtures (vocabulary-only GGUF files) and goldens of this folder.

NAME.txt: lines of FLAGS<TAB>TEXT in hex<TAB>ids with commas; FLAGS are DCM_TOKENIZE_*.
smollm.txt holds ids of SmolLM2's own vocabulary: ./make_tokens.py MODEL.gguf. The other files come with small vocabularies trained here.
Needs gguf, tokenizers and sentencepiece. Training is deterministic, but another version of these packages may train another vocabulary.
"""
import io
import pathlib
import random
import sys

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
SPECIAL = 2
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind; it's the fox's morning run.",
    "She'll say they've done it, I'm sure you'd agree we're right. SHE'LL SAY THEY'VE DONE IT, I'M SURE.",
    "REDO REDEEM VELVET VERY LLAMA LLAMAS SALT SAND TEA TEAM DOG DOING MAP",
    "In 2024 there were 1234567 tokens, 3.14159 of them round, and 42% of 100 were new.",
    "for (int i = 0; i < n; i++) {\n\tsum += values[i];  // add\n}\n\nreturn sum;\r\n",
    "    four spaces\n        eight spaces\n\n\n\ttab\n",
    "Le c\u0153ur d\u00e9\u00e7u mais l'\u00e2me plut\u00f4t na\u00efve. Gr\u00fc\u00dfe aus K\u00f6ln! \u00bfQu\u00e9 tal?",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041a\u0430\u043a \u0434\u0435\u043b\u0430 \u0441\u0435\u0433\u043e\u0434\u043d\u044f?",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3082\u3042\u308a\u307e\u3059\u3002\ud55c\uad6d\uc5b4\ub3c4 \uc788\uc2b5\ub2c8\ub2e4.",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "Smile \U0001f600\U0001f600 and \U0001f468\u200d\U0001f469\u200d\U0001f467 family, flags \U0001f1e9\U0001f1ea.",
]

TEXTS = CORPUS + [
    "", " ", "  ", "a", " a", "a ", "a  ", "  a", "\n", "\n\n", " \n", "\n ", "\r\n\r\n", "\t\t x", "x \t \n \r y", "a\n\n\n b  \n  c",
    "trailing spaces   ", "trailing newline\n", "mixed \t\n\r\u00a0\u2003\u3000 spaces \u2028\u2029\u0085 end", "\u180e\u200b\ufeffzero width",
    "don't DON'T Don'T 's 'S 'll'LL 're'Re'RE x'd'D I'M i'm 'tis 't'T ''ve '\u017f 'm8", "it\u2019s curly",
    "1 12 123 1234 12345 123456789012345", "a1b22c333d4444", " 1  2   3", "\u0661\u0662\u0663 \u2167 \u00bd \u00b2\u00b3 \u4e00\u4e8c \u2460\u2461 \U0001d7d8",
    "e\u0301 o\u0308\u0323 Zalgo\u0310\u0311\u0312 \u0e01\u0e33 \u0915\u094d\u0937", "\u00c5\u212b\u01c5\u02b0\u2160\u00aa\u00ba\u00b5",
    "!!! ??? ... --- === *** ###", "(a)[b]{c}<d> \"e\" 'f' `g`", "path/to/file.c:12:34 https://example.org/?q=a&b=c#d", "x=1;y=2;;\n;;z",
    "\x00\x01\x02 nul\x00inside\x7f", "\u2581 not here".replace("\u2581", "_"), "\ue000\U000f0000\U0010ffff\ufffe",
    "\U00020000\U0002a6d6 \uff21\uff22\uff23\uff11\uff12", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethethethe thethe", "an unreachable unreachables", "UNREACHABLE", "x'REDO'VERY'LLAMAS'SALT'TEAM'DOING'MAP'\u017fAND", " " * 70 + "x", "\n" * 33 + "x", "- [ ] item\n- [x] done\n  1. one\n",
    "\U0001f44d\U0001f3fd\u2764\ufe0f\U0001f600", "na\u00efve caf\u00e9 \u1e9e\ufb01", "\u05e9\u05dc\u05d5\u05dd 123 \u05e2\u05d5\u05dc\u05dd",
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|> b <|im_end|>", "<|im_end|><|im_end|>", "<|im_start|",
    "<<|im_start|>>", "text <|im_start|>it's 12<|im_end|>'s", "  <|im_end|>  \n",
]


def random_texts(count):
    """Short mixtures of the characters that the expressions tell apart."""
    rng = random.Random(7)
    parts = [" ", "  ", "\n", "\r\n", "\t", "a", "B", "\u00e9", "\u4e2d", "1", "\u0663", "'s", "'RE", "'ll", "!", "--", "\U0001f600", "\u0301",
             "\u00a0", "\u3000", "\u180e", "the", " the", "fox", "'", "\u017f", "\x00", "\u0085", "\u2028", "_", "\u00b2", "\u2167"]
    return ["".join(rng.choice(parts) for _ in range(rng.randrange(2, 12))) for _ in range(count)]


def write_golden(name, rows):
    with open(HERE / name, "w") as out:
        for flags, text, ids in rows:
            out.write(f"{flags}\t{text.encode().hex()}\t{','.join(map(str, ids))}\n")


def write_gguf(name, model, tokens, types, merges=None, scores=None, facts=()):
    writer = gguf.GGUFWriter(HERE / name, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for add, value in facts:
        getattr(writer, add)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level(name, pre, pattern, special, user, words, facts):
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = split
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    import json
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for word in words:  # tokens that no merges make
        vocab[word] = len(vocab)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    whole = pre == "llama-bpe"
    rows = []
    for flags, added in ((0, user), (SPECIAL, user + special)):
        hf = Tokenizer(models.BPE(vocab, merges, ignore_merges=whole))
        hf.pre_tokenizer = split
        ids = len(vocab)
        for text in user + special:
            if text in added:
                hf.add_tokens([AddedToken(text, special=text in special, normalized=False)])
        # add_tokens numbers from the vocabulary's end, in order: user-defined ones come first in both.
        assert all(hf.token_to_id(t) == ids + i for i, t in enumerate(user))
        texts = (TEXTS + random_texts(150) if flags == 0 else []) + SPECIAL_TEXTS + [t + u + "x" for t in ("", "a ") for u in user]
        rows += [(flags, text, hf.encode(text).ids) for text in texts]
    write_golden(f"{name}.txt", rows)
    tokens = sorted(vocab, key=vocab.get) + user + special
    types = [1] * len(vocab) + [4] * len(user) + [3] * len(special)
    ids = {t: i for i, t in enumerate(tokens)}
    write_gguf(f"{name}.gguf", "gpt2", tokens, types, [" ".join(m) for m in merges],
               facts=[("add_tokenizer_pre", pre)] + [(add, ids.get(value, value)) for add, value in facts])


def sentence_piece():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS * 3 for line in text.splitlines()]), model_writer=out, model_type="bpe", vocab_size=620,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    n = sp.get_piece_size()
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(n)]
    write_gguf("llama.gguf", "llama", [sp.id_to_piece(i) for i in range(n)], types, scores=[sp.get_score(i) for i in range(n)])
    texts = TEXTS + random_texts(150)
    write_golden("llama.txt", [(0, text, sp.encode(text)) for text in texts])


def smollm(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    rows = []
    for flags in (0, SPECIAL):
        hf = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
        if flags:
            hf.add_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
        texts = (TEXTS + random_texts(150) if flags == 0 else []) + SPECIAL_TEXTS
        rows += [(flags | 4, text, hf.encode(text).ids) for text in texts]  # 4: some bytes have no token, and are left out
    write_golden("smollm.txt", rows)


def main():
    control = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|im_start|>user"]
    byte_level("gpt2", "gpt-2", GPT2, control, ["<tool>", "<tool>call"], [], [])
    byte_level("llama3", "llama-bpe", LLAMA3, control, [], ["\u0120unreachable", "UNREACHABLE"], [("add_bos_token_id", "<|im_start|>")])
    byte_level("qwen2", "qwen2", QWEN2, control, [], [], [("add_eos_token_id", "<|im_end|>"), ("add_bos_token_id", "<|im_start|>"),
                ("add_chat_template", (HERE / "templates" / "qwen2.jinja").read_text())])
    sentence_piece()
    if len(sys.argv) > 1:
        smollm(sys.argv[1])


main()
