"""
The scorer of src/ops/score.h in PyTorch, and the compressed cache with it, token by token: what gradients of training
are held against. The parameters are one array (layers, kv_heads, row) as in the C code; autograd does the rest.
"""

import math
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "model"))
from llama import Dcm  # noqa: E402


class Layout:
    """Where the arrays of a row begin, in the order of score.h; `row` is its length."""

    def __init__(self, d, hidden, levels):
        self.d, self.hidden, self.levels = d, hidden, levels
        self.shapes = {
            "mean": (2 * d,), "scale": (2 * d,), "w1": (hidden, 2 * d), "b1": (levels, hidden), "w2": (hidden,),
            "u": (hidden, 2 * d), "r": (levels, 2 * d), "prior": (levels,), "bias": (levels,), "deviation": (), "sharp_k": (),
            "sharp_v": (),
        }
        self.at, at = {}, 0
        for name, shape in self.shapes.items():
            self.at[name] = at
            at += math.prod(shape)
        self.row = (at + 15) // 16 * 16

    def of(self, rows, name):
        """Array `name` of rows (..., row)."""
        at, shape = self.at[name], self.shapes[name]
        return rows[..., at : at + math.prod(shape)].reshape(*rows.shape[:-1], *shape)

    def set(self, rows, name, values):
        at = self.at[name]
        rows[..., at : at + math.prod(self.shapes[name])] = values.reshape(*rows.shape[:-1], -1)


def cache_order(x, interleaved):
    """Half-split channels in the order of dcm's cache: pairs (2i, 2i + 1) for llama files, unchanged for qwen2."""
    d = x.shape[-1]
    return x.reshape(*x.shape[:-1], 2, d // 2).transpose(-1, -2).reshape(x.shape) if interleaved else x


def model_order(x, interleaved):
    d = x.shape[-1]
    return x.reshape(*x.shape[:-1], d // 2, 2).transpose(-1, -2).reshape(x.shape) if interleaved else x


def score_merge(layout, rows, a, b, level):
    """One merge of a layer: rows (kv_heads, row), units a (older) and b (kv_heads, 2d) in the cache's order."""
    d, g = layout.d, min(level, layout.levels - 1)
    p = {name: layout.of(rows, name) for name in layout.shapes}

    def unit(x):
        z = (x - p["mean"]) * p["scale"]
        h = torch.nn.functional.elu(torch.einsum("khx,kx->kh", p["w1"], z) + p["b1"][:, g])
        deviation = torch.sqrt(z[:, :d].pow(2).mean(-1))
        return h, (p["w2"] * h).sum(-1) + p["deviation"] * deviation

    h_a, s_a = unit(a)
    h_b, s_b = unit(b)
    diff = s_a - s_b + p["prior"][:, g]
    m_k = torch.sigmoid(p["sharp_k"] * diff)[:, None]
    m_v = torch.sigmoid(p["sharp_v"] * diff)[:, None]
    e = (torch.einsum("khx,kh->kx", p["u"], h_a + h_b) + p["r"][:, g]) / p["scale"]
    k = m_k * a[:, :d] + (1 - m_k) * b[:, :d] + e[:, :d]
    v = m_v * a[:, d:] + (1 - m_v) * b[:, d:] + e[:, d:]
    return torch.cat([k, v], dim=-1)


class ScoredDcm(Dcm):
    """The compressed cache whose merges are the scorer's. It also keeps every token's own keys and values, and adds up
    the magnitude term, per merge and KV head (|k| / t - 1)^2, t = (|k_a| + |k_b|) / 2 taken as a constant."""

    def __init__(self, group, sinks, layout, rows, interleaved):
        super().__init__(group, sinks, None, "score")
        self.layout, self.rows, self.interleaved = layout, rows, interleaved
        self.magnitude, self.magnitude_terms = 0.0, 0

    def open(self, layers, kv_heads, d):
        super().open(layers, kv_heads, d)
        dtype = self.rows.dtype
        for units in (self.keys, self.values):
            units[:] = [u.to(dtype) for u in units]
        self.raw = [[] for _ in range(layers)]

    def begin_token(self):
        self.pair = None
        super().begin_token()
        self.edit = None  # both keys and values are needed at once: see add

    def merge_at(self, i):
        self.pair = i, (self.ratios[i]).bit_length() - 1
        super().merge_at(i)

    def merge_layer(self, layer):
        i, level = self.pair
        keys, values = self.keys[layer], self.values[layer]
        units = torch.cat([cache_order(keys[i : i + 2], self.interleaved), values[i : i + 2]], dim=-1)
        out = score_merge(self.layout, self.rows[layer], units[0], units[1], level)
        k, v = out[:, : self.layout.d], out[:, self.layout.d :]
        target = keys[i : i + 2].norm(dim=-1).mean(0).detach()
        terms = (k.norm(dim=-1) / target - 1).pow(2)
        self.magnitude, self.magnitude_terms = self.magnitude + terms.sum(), self.magnitude_terms + len(terms)
        self.keys[layer] = torch.cat([keys[:i], model_order(k, self.interleaved)[None], keys[i + 2 :]])
        self.values[layer] = torch.cat([values[:i], v[None], values[i + 2 :]])

    def add(self, layer, k, v):
        if self.pair is not None:
            self.merge_layer(layer)
        self.raw[layer].append((k, v))
        return super().add(layer, k, v)

    def biases(self, layer):
        """What is added to the scores of all units: (kv_heads, N)."""
        bias = self.layout.of(self.rows[layer], "bias")
        levels = [r.bit_length() - 1 for r in self.ratios]
        return torch.stack([bias[:, min(g, self.layout.levels) - 1] if g else torch.zeros_like(bias[:, 0]) for g in levels], 1)

    def range_ends(self):
        """Places of the newest units of all levels of the view but the last; sinks are no level."""
        r = self.ratios
        return [i for i in range(min(self.sinks, len(r)), len(r) - 1) if r[i] != r[i + 1]]


class Run:
    """The compressed forward pass of all of `ids`; logits (n, vocab) and the sums of the loss's terms."""

    def __init__(self, model, ids, policy):
        self.model, self.policy = model, policy
        self.il = []  # of each layer and query, the squared distance of its attention to that to the raw units
        self.jumps = []  # |ratio of weights - 1| at every boundary of ranges, for each head
        self.skipped = 0
        logits = []
        policy.open(model.layers, model.kv_heads, model.d)
        for token in ids:
            x = model.w["token_embd.weight"][token][None]
            policy.begin_token()
            for layer in range(model.layers):
                q, k, v = model.qkv(x, layer)
                keys, values = policy.add(layer, k[0], v[0])
                out, scores = self.attend(q[0], keys, values, policy.biases(layer))
                self.boundaries(scores)
                raw_k, raw_v = (torch.stack(part) for part in zip(*policy.raw[layer]))
                full, _ = self.attend(q[0], raw_k, raw_v)
                self.il.append((out - full.detach()).pow(2).sum() / model.heads)
                x = model.after_attention(x, out[None], layer)
            name = "output" if "output.weight" in model.w else "token_embd"
            logits.append(model.linear(model.norm(x, "output_norm.weight"), name)[0])
        self.logits = torch.stack(logits)

    def attend(self, q, keys, values, biases=None):
        """One query (heads, d) at place N - 1, biases (kv_heads, N); also the scores (kv_heads, group, N)."""
        m, n = self.model, len(keys)
        keys = m.rotate(keys, torch.arange(n))
        q = m.rotate(q[None], torch.tensor([n - 1]))[0].reshape(m.kv_heads, m.heads // m.kv_heads, m.d)
        scores = torch.einsum("hgd,nhd->hgn", q, keys) / math.sqrt(m.d)
        if biases is not None:
            scores = scores + biases[:, None]
        return torch.einsum("hgn,nhd->hgd", torch.softmax(scores, dim=-1), values).reshape(-1), scores

    def boundaries(self, scores):
        for i in self.policy.range_ends():
            ratio = torch.exp(scores[..., i] - scores[..., i + 1])
            kept = (ratio > 1e-3) & (ratio < 1e3)  # the others count in the mean, as 0
            assert bool((ratio.log().abs() - math.log(1e3)).abs().min() > 1e-2), "a ratio that rounding may skip"
            self.skipped += int((~kept).sum())
            self.jumps.append(torch.where(kept, (ratio - 1).abs(), 0.0).reshape(-1))

    def terms(self, full_log_probs, first):
        """Each of the loss's terms with weight 1: KL over tokens first.., L_IL, magnitude, boundary."""
        log_q = torch.log_softmax(self.logits, dim=-1)
        self.kl = (full_log_probs.exp() * (full_log_probs - log_q)).sum(-1)
        return {
            "kl": self.kl[first:].mean(),
            "il": torch.stack(self.il).mean(),
            "magnitude": self.policy.magnitude / self.policy.magnitude_terms,
            "boundary": torch.cat(self.jumps).mean(),
        }
