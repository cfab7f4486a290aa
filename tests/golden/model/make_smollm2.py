"""Goldens of SmolLM2-135M-Instruct Q4_1 in smollm2/: make_smollm2.py MODEL.gguf. About six minutes on two cores."""

import math
import os
import sys
import time

import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llama import Dcm, Full, Model, Window, mean, newer, save_csv, save_ids

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "merge"))
from mlp import MergeMlp, random_mlp, save_mlp  # noqa: E402

TOKENS = 512
GATE_TOKENS = 256


def text_ids(path):
    """Ids of text.txt: byte-level BPE from the GGUF vocabulary, digits split one by one (pre-tokenizer `smollm`)."""
    reader = GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    with open(os.path.join(HERE, "text.txt")) as file:
        text = file.read()
    ids = bpe.encode(text).ids
    assert bpe.decode(ids) == text and len(ids) >= TOKENS
    return ids[:TOKENS]


class Gate:
    """A merge by MLP that also notes how far its gates spread, so that a collapsed one would show."""

    def __init__(self, path):
        self.mlp, self.values = MergeMlp(path), []

    def __call__(self, a, b):
        pre = []
        out = self.mlp.forward(a, b, pre)
        self.values += torch.sigmoid(pre[-1][0]).flatten().tolist()
        return out


def report(name, values, start):
    nll = -sum(values) / len(values)
    print(f"{name}: perplexity {math.exp(nll):.3f} ({time.time() - start:.0f} s)", flush=True)


def main():
    path, start = sys.argv[1], time.time()
    out = os.path.join(HERE, "smollm2")
    torch.set_grad_enabled(False)
    ids, model = text_ids(path), Model(path)
    full = model.run_full(ids)
    report("full", full, start)
    save_ids(os.path.join(out, "ids.txt"), ids)
    save_csv(os.path.join(out, "full.csv"), ids, full)

    policies = [Dcm(group, sinks, merge, merge.__name__)
                for group in (4, 16, 64) for sinks in (0, 4) for merge in (mean, newer)]
    policies += [Window(64, 4), Window(64, 0), Dcm(16, 4, newer, "newer_logr1", log_r=1.0), Full()]
    results = model.run(ids, policies)
    difference = max(abs(a - b) for a, b in zip(results.pop(), full))
    print(f"full, token by token against one pass: {difference:.1e}")
    assert difference < 1e-9
    for policy, values in zip(policies, results):
        report(policy.name, values, start)
        save_csv(os.path.join(out, policy.name + ".csv"), ids, values)

    gate_path = os.path.join(out, "gate.safetensors")
    save_mlp(gate_path, random_mlp(seed=7, d=model.d, blocks=1, head="gate", gain=0.8, head_gain=2.0))
    gate = Gate(gate_path)
    policy = Dcm(16, 4, gate, "gate")
    values = model.run(ids[:GATE_TOKENS], [policy])[0]
    report(policy.name, values, start)
    gates = sorted(gate.values)
    print("gates: " + ", ".join(f"{100 * q:.0f}% {gates[int(q * (len(gates) - 1))]:.3f}" for q in (0, .05, .5, .95, 1)))
    save_csv(os.path.join(out, policy.name + ".csv"), ids, values)


main()
