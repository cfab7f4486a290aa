"""
What `dcm eval metrics` finds in the tiny models: make_metrics.py writes tiny/MODEL.POLICY.metrics.csv. Seconds.

Every query of the compressed pass is also put to all keys and values that the pass itself made, and the two attentions are
compared; README.md has the definitions.
"""

import math
import os
import sys

import torch

from llama import DOUBLE, Dcm, Full, Model, Window, newer

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "merge"))
from mlp import MergeMlp  # noqa: E402

FIRST, QUERIES = 9, 37
COLUMNS = ("il", "attention", "cosine", "js", "sdi", "bsd", "bsd_log", "boundaries")


def attend(model, q, keys, values, bias):
    """One query (heads, d) at the last place: output (heads, d) and weights (heads, N)."""
    n, group = len(keys), model.heads // model.kv_heads
    keys = model.rotate(keys, torch.arange(n)).repeat_interleave(group, dim=1)
    q = model.rotate(q[None], torch.tensor([n - 1]))[0]
    weights = torch.softmax(torch.einsum("hd,nhd->hn", q, keys) / math.sqrt(model.d) + bias, dim=-1)
    return torch.einsum("hn,nhd->hd", weights, values.repeat_interleave(group, dim=1)), weights


def blocks(ratios, sinks, tokens):
    """The tokens (first, end) behind each unit: sinks are the first ones, the others end with the newest token."""
    at = tokens - sum(ratios[sinks:])
    out = [(i, i + 1) for i in range(min(sinks, len(ratios)))]
    for r in ratios[sinks:]:
        out.append((at, at + r))
        at += r
    assert at == tokens
    return out


def jensen_shannon(p, q):
    m = (p + q) / 2
    return sum(torch.where(x > 0, x * torch.log(x / m), 0.0).sum() for x in (p, q)) / 2


def compare(full, full_weights, out, weights, ratios, sinks):
    """The sums over one query's heads; SDI follows from two of them."""
    sums = dict.fromkeys(COLUMNS, 0.0)
    covered = blocks(ratios, sinks, full_weights.shape[1])
    for h in range(len(full)):
        p = torch.stack([full_weights[h, a:b].sum() for a, b in covered])
        rest = (1 - p.sum()).clamp(min=0)
        p, q = torch.cat([p, rest[None]]), torch.cat([weights[h], torch.zeros(1, dtype=DOUBLE)])
        sums["il"] += (out[h] - full[h]).pow(2).sum()
        sums["attention"] += full[h].pow(2).sum()
        sums["cosine"] += out[h] @ full[h] / (out[h].norm() * full[h].norm())
        sums["js"] += jensen_shannon(p, q)
        for i in range(sinks, len(ratios) - 1):
            older, other = weights[h, i], weights[h, i + 1]
            if ratios[i] != ratios[i + 1] and older >= 1e-12 and other >= 1e-12:
                sums["bsd"] += abs(older / other - 1)
                sums["bsd_log"] += abs(torch.log(older / other))
                sums["boundaries"] += 1
    return sums


def measure(model, ids, policy, sinks):
    """One row a layer."""
    chosen = [FIRST + (i + 1) * (len(ids) - FIRST) // QUERIES - 1 for i in range(QUERIES)]
    rows = [dict.fromkeys(COLUMNS, 0.0) for _ in range(model.layers)]
    raw = [[] for _ in range(model.layers)]
    policy.open(model.layers, model.kv_heads, model.d)
    for t, token in enumerate(ids):
        x = model.w["token_embd.weight"][token][None]
        policy.begin_token()
        for layer in range(model.layers):
            q, k, v = model.qkv(x, layer)
            raw[layer].append((k[0], v[0]))
            out, weights = attend(model, q[0], *policy.add(layer, k[0], v[0]), policy.bias())
            if t in chosen:
                full, full_weights = attend(model, q[0], *(torch.stack(part) for part in zip(*raw[layer])), 0.0)
                for name, value in compare(full, full_weights, out, weights, policy.ratios, sinks).items():
                    rows[layer][name] += float(value)
            x = model.after_attention(x, out.reshape(1, -1), layer)
    for row in rows:
        for name in ("il", "attention", "cosine", "js"):
            row[name] /= QUERIES * model.heads
        row["sdi"] = 0.5 * (1 - row["cosine"]) + 0.5 * row["js"]
        for name in ("bsd", "bsd_log"):
            row[name] /= max(row["boundaries"], 1)
    return rows


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    with open(os.path.join(HERE, "tiny", "ids.txt")) as file:
        ids = [int(n) for n in file.read().split(",")]
    gate = MergeMlp(os.path.join(HERE, "tiny", "gate.safetensors")).forward
    for name in ("llama3", "qwen2"):
        model = Model(os.path.join(HERE, "tiny", name + ".gguf"))
        cases = [(Dcm(4, 1, newer, "newer"), 1), (Dcm(2, 0, newer, "newer"), 0), (Dcm(4, 1, gate, "gate"), 1),
                 (Dcm(4, 1, newer, "newer_logr0.5", log_r=0.5), 1), (Window(12, 2), 2), (Full(), 0)]
        for policy, sinks in cases:
            rows = measure(model, ids, policy, sinks)
            with open(os.path.join(HERE, "tiny", f"{name}.{policy.name}.metrics.csv"), "w") as file:
                file.write("layer," + ",".join(COLUMNS) + "\n")
                for layer, row in enumerate(rows):
                    file.write(f"{layer}," + ",".join(f"{row[c]:.9g}" for c in COLUMNS) + "\n")
            print(name, policy.name, {c: round(rows[-1][c], 5) for c in COLUMNS})


main()
