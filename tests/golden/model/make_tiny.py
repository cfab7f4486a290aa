"""Tiny random models and their goldens in tiny/: make_tiny.py. Seconds. Every feature of an architecture in some file."""

import math
import os
import sys

import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter, RopeScalingType, TokenType
from gguf.quants import quantize

from llama import Dcm, Full, Model, Window, mean, newer, save_csv, save_ids

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "merge"))
from mlp import MergeMlp, random_mlp, save_mlp  # noqa: E402

TOKENS = 64
FIRST_MERGED = ["th", "the", "in", "er", "Ġthe"]
MERGES = ["t h", "th e", "i n", "e r", "Ġ the"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokens():
    """The 256 one-byte tokens of byte-level BPE: printable bytes as they are, the others from U+0100 on, in order."""
    printable = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


VOCAB = SPECIAL + byte_tokens() + FIRST_MERGED


def random_k_blocks(rng, kind, rows, cols, std):
    """Valid blocks of random bytes: gguf does not quantise these types. Only the half-precision scales are chosen."""
    n = rows * cols // 256

    def scale(values):
        return np.broadcast_to(np.asarray(values, dtype=np.float16), n).copy().view(np.uint8).reshape(n, 2)

    def noise(count):
        return rng.integers(0, 256, (n, count), dtype=np.uint8)

    spread = std * rng.uniform(0.7, 1.3, n)
    if kind == Q.Q6_K:
        blocks = [noise(128), noise(64), noise(16), scale(spread / 1370)]
    elif kind == Q.Q5_K:
        blocks = [scale(spread / 350), scale(15.5 * spread / 350), noise(12), noise(32), noise(128)]
    else:
        blocks = [scale(spread / 170), scale(7.5 * spread / 170), noise(12), noise(128)]
    return np.concatenate(blocks, axis=1).reshape(rows, -1)


class Tiny:
    """One file. `types`: quantisation of each kind of matrix, by the middle of the tensor's name."""

    def __init__(self, name, seed, arch, types, hidden, heads, kv_heads, d, ffn, layers=2, tied=False, bias=False,
                 base=10000.0, linear=None, llama3=None, version=3, pre="gpt-2"):
        self.path = os.path.join(HERE, "tiny", name + ".gguf")
        self.rng, self.types = np.random.default_rng(seed), types
        w = self.w = GGUFWriter(self.path, arch)
        w.add_name("tiny " + name)
        w.add_block_count(layers)
        w.add_context_length(2048)
        w.add_embedding_length(hidden)
        w.add_feed_forward_length(ffn)
        w.add_head_count(heads)
        w.add_head_count_kv(kv_heads)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(base)
        w.add_rope_dimension_count(d)
        if d * heads != hidden:
            w.add_key_length(d)
            w.add_value_length(d)
        if linear:
            w.add_rope_scaling_type(RopeScalingType.LINEAR)
            w.add_rope_scaling_factor(linear)
        w.add_vocab_size(len(VOCAB))
        self.tokenizer(pre)
        self.matrix("token_embd", len(VOCAB), hidden, 2.5 * hidden**-0.5 if tied else 1.0)
        self.vector("output_norm", hidden, 1, 0.2)
        if not tied:
            self.matrix("output", len(VOCAB), hidden, 2.5 * hidden**-0.5)
        if llama3:
            w.add_tensor("rope_freqs.weight", self.llama3_factors(d, base, *llama3))
        for i in range(layers):
            self.layer(i, hidden, heads, kv_heads, d, ffn, bias)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        if version != 3:
            with open(self.path, "r+b") as file:
                file.seek(4)
                file.write(version.to_bytes(4, "little"))

    def tokenizer(self, pre):
        self.w.add_tokenizer_model("gpt2")
        self.w.add_tokenizer_pre(pre)
        self.w.add_token_list(VOCAB)
        self.w.add_token_types([TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in VOCAB])
        self.w.add_token_merges(MERGES)
        self.w.add_bos_token_id(0)
        self.w.add_eos_token_id(2)
        self.w.add_add_bos_token(False)

    def layer(self, i, hidden, heads, kv_heads, d, ffn, bias):
        b, s = f"blk.{i}.", hidden**-0.5
        self.vector(b + "attn_norm", hidden, 1, 0.2)
        for part, rows, gain in (("q", heads * d, 1.4), ("k", kv_heads * d, 1.4), ("v", kv_heads * d, 1.0)):
            self.matrix(b + "attn_" + part, rows, hidden, gain * s)
            if bias:
                self.vector(b + "attn_" + part, rows, 0, 1.0, "bias")
        self.matrix(b + "attn_output", hidden, heads * d, (heads * d) ** -0.5)
        self.vector(b + "ffn_norm", hidden, 1, 0.2)
        self.matrix(b + "ffn_gate", ffn, hidden, 1.5 * s)
        self.matrix(b + "ffn_up", ffn, hidden, 1.5 * s)
        self.matrix(b + "ffn_down", hidden, ffn, ffn**-0.5)

    def vector(self, name, n, middle, std, suffix="weight"):
        self.w.add_tensor(f"{name}.{suffix}", (middle + std * self.rng.standard_normal(n)).astype(np.float32))

    def matrix(self, name, rows, cols, std):
        kind = self.types.get(name.split(".")[-1], self.types["*"])
        if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
            data = random_k_blocks(self.rng, kind, rows, cols, std)
        else:
            values = (std * self.rng.standard_normal((rows, cols))).astype(np.float32)
            data = values if kind == Q.F32 else values.astype(np.float16) if kind == Q.F16 else quantize(values, kind)
        raw = None if kind in (Q.F32, Q.F16) else kind
        self.w.add_tensor(name + ".weight", data, raw_dtype=raw)

    @staticmethod
    def llama3_factors(d, base, factor, low, high, context):
        """What Llama 3's scaling divides each frequency by: 1 for short waves, `factor` for long ones, between in between."""
        factors = []
        for i in range(d // 2):
            wave = 2 * math.pi * base ** (2 * i / d)
            smooth = (context / wave - low) / (high - low)
            smooth = min(max(smooth, 0.0), 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
        return np.array(factors, dtype=np.float32)


def make_models():
    Tiny("llama3", 1, "llama", {"*": Q.F16, "token_embd": Q.Q8_0, "ffn_gate": Q.Q8_0, "ffn_up": Q.Q4_0},
         hidden=64, heads=2, kv_heads=1, d=32, ffn=96, base=500.0, llama3=(8.0, 1.0, 4.0, 64), pre="llama-bpe")
    Tiny("linear", 2, "llama", {"*": Q.F32, "token_embd": Q.Q8_0, "attn_k": Q.BF16, "attn_v": Q.F16, "ffn_gate": Q.Q8_0,
                                "ffn_up": Q.Q8_0, "ffn_down": Q.Q4_1},
         hidden=64, heads=2, kv_heads=2, d=32, ffn=96, tied=True, linear=4.0, version=2, pre="smollm")
    Tiny("qwen2", 3, "qwen2", {"*": Q.Q4_0, "token_embd": Q.Q8_0, "output": Q.BF16, "attn_v": Q.BF16, "ffn_down": Q.Q4_1},
         hidden=96, heads=3, kv_heads=1, d=32, ffn=128, bias=True, base=1e6, pre="qwen2")
    Tiny("kquants", 4, "llama", {"*": Q.Q4_K, "token_embd": Q.Q6_K, "attn_k": Q.Q5_K, "attn_v": Q.Q6_K, "ffn_up": Q.Q5_K,
                                 "ffn_down": Q.Q8_0},
         hidden=256, heads=4, kv_heads=1, d=64, ffn=64, layers=1, tied=True)
    Tiny("wide", 5, "llama", {"*": Q.F16}, hidden=32, heads=4, kv_heads=2, d=32, ffn=64)


def make_mlps():
    """Merge models for head size 32: gates that spread and stay smooth, so that goldens compare well."""
    for head in ("gate", "direct"):
        tensors = random_mlp(seed=11, d=32, blocks=1, head=head, gain=0.7)
        save_mlp(os.path.join(HERE, "tiny", head + ".safetensors"), tensors)


def policies(name):
    out = [Dcm(4, 1, newer, "newer"), Dcm(4, 1, mean, "mean"), Dcm(2, 0, newer, "newer"), Window(12, 2),
           Dcm(4, 1, newer, "newer_logr0.5", log_r=0.5)]
    if name != "kquants":  # its head size is 64
        out += [Dcm(4, 1, MergeMlp(os.path.join(HERE, "tiny", head + ".safetensors")).forward, head)
                for head in ("gate", "direct")]
    return out


def main():
    torch.set_grad_enabled(False)
    make_models()
    make_mlps()
    ids = np.random.default_rng(100).integers(0, len(VOCAB), TOKENS).tolist()
    save_ids(os.path.join(HERE, "tiny", "ids.txt"), ids)
    for name in ("llama3", "linear", "qwen2", "kquants", "wide"):
        path = os.path.join(HERE, "tiny", name)
        model = Model(path + ".gguf")
        full = model.run_full(ids)
        chosen = policies(name) + [Full()]
        results = model.run(ids, chosen)
        assert max(abs(a - b) for a, b in zip(results[-1], full)) < 1e-10
        print(f"{name}: " + ", ".join(f"{p.name} {-sum(r) / len(r):.3f}" for p, r in zip(chosen, results)))
        for policy, values in zip(chosen, results):
            save_csv(f"{path}.{policy.name}.csv", ids, values)


main()
