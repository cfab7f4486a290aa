"""
Models of the llama family in PyTorch, float64, with the caches of METHOD in their most direct form: every unit keeps its keys
before RoPE, and at every token all keys are rotated by their place in the history. Slow, and meant to be read.
Only the reading and dequantising of GGUF files is borrowed, from the Python package `gguf`.
"""

import math

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

DOUBLE = torch.float64


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        arch = meta["general.architecture"]
        self.layers = meta[f"{arch}.block_count"]
        self.heads = meta[f"{arch}.attention.head_count"]
        self.kv_heads = meta.get(f"{arch}.attention.head_count_kv", self.heads)
        hidden = meta[f"{arch}.embedding_length"]
        self.d = meta.get(f"{arch}.attention.key_length", hidden // self.heads)
        self.eps = meta[f"{arch}.attention.layer_norm_rms_epsilon"]
        self.w = {}
        for t in reader.tensors:
            values = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
            self.w[t.name] = torch.from_numpy(values).to(DOUBLE).reshape([int(n) for n in reversed(t.shape)])
        if arch == "llama":  # its files hold Q and K rows in interleaved order; back to the half-split order of the model
            for name in self.w:
                if ".attn_q." in name or ".attn_k." in name:
                    w = self.w[name]
                    self.w[name] = w.reshape(-1, self.d // 2, 2, w[0].numel()).transpose(1, 2).reshape(w.shape)
        pairs = torch.arange(self.d // 2, dtype=DOUBLE)
        self.freq = meta.get(f"{arch}.rope.freq_base", 10000.0) ** (-2 * pairs / self.d)
        if meta.get(f"{arch}.rope.scaling.type") == "linear":
            self.freq = self.freq / meta[f"{arch}.rope.scaling.factor"]
        if "rope_freqs.weight" in self.w:
            self.freq = self.freq / self.w["rope_freqs.weight"]

    def rotate(self, x, places):
        """x (..., units, heads, d) turned by its places (units): channel i pairs with i + d/2."""
        angle = places.to(DOUBLE)[:, None, None] * self.freq
        cos, sin = torch.cos(angle), torch.sin(angle)
        a, b = x[..., : self.d // 2], x[..., self.d // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def norm(self, x, name):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def qkv(self, x, layer):
        h = self.norm(x, f"blk.{layer}.attn_norm.weight")
        q = self.linear(h, f"blk.{layer}.attn_q").reshape(-1, self.heads, self.d)
        k = self.linear(h, f"blk.{layer}.attn_k").reshape(-1, self.kv_heads, self.d)
        v = self.linear(h, f"blk.{layer}.attn_v").reshape(-1, self.kv_heads, self.d)
        return q, k, v

    def after_attention(self, x, out, layer):
        x = x + self.linear(out, f"blk.{layer}.attn_output")
        h = self.norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = torch.nn.functional.silu(self.linear(h, f"blk.{layer}.ffn_gate"))
        return x + self.linear(gate * self.linear(h, f"blk.{layer}.ffn_up"), f"blk.{layer}.ffn_down")

    def log_probs(self, x):
        name = "output" if "output.weight" in self.w else "token_embd"
        return torch.log_softmax(self.linear(self.norm(x, "output_norm.weight"), name), dim=-1)

    def attend(self, q, keys, values, bias):
        """One query (heads, d) at place N - 1 over keys and values (N, kv_heads, d); bias (N)."""
        n, group = len(keys), self.heads // self.kv_heads
        keys = self.rotate(keys, torch.arange(n))
        q = self.rotate(q[None], torch.tensor([n - 1]))[0].reshape(self.kv_heads, group, self.d)
        scores = torch.einsum("hgd,nhd->hgn", q, keys) / math.sqrt(self.d) + bias
        return torch.einsum("hgn,nhd->hgd", torch.softmax(scores, dim=-1), values).reshape(-1)

    def run_full(self, ids):
        """Log-probability of ids[i] given ids[:i], i from 1: one pass, causal mask, no cache."""
        ids = torch.tensor(ids)
        n, group = len(ids), self.heads // self.kv_heads
        x = self.w["token_embd.weight"][ids]
        mask = torch.full((n, n), -math.inf, dtype=DOUBLE).triu(1)
        for layer in range(self.layers):
            q, k, v = self.qkv(x, layer)
            q, k = self.rotate(q, torch.arange(n)), self.rotate(k, torch.arange(n))
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(self.d) + mask
            out = torch.einsum("hij,jhd->ihd", torch.softmax(scores, dim=-1), v).reshape(n, -1)
            x = self.after_attention(x, out, layer)
        return self.log_probs(x)[torch.arange(n - 1), ids[1:]].tolist()

    def run(self, ids, policies):
        """The same token by token, all policies side by side: one list of log-probabilities a policy."""
        results = [[] for _ in policies]
        for p in policies:
            p.open(self.layers, self.kv_heads, self.d)
        for here, following in zip(ids[:-1], ids[1:]):
            x = self.w["token_embd.weight"][here].repeat(len(policies), 1)
            for p in policies:
                p.begin_token()
            for layer in range(self.layers):
                q, k, v = self.qkv(x, layer)
                out = []
                for i, p in enumerate(policies):
                    keys, values = p.add(layer, k[i], v[i])
                    out.append(self.attend(q[i], keys, values, p.bias()))
                x = self.after_attention(x, torch.stack(out), layer)
            chosen = self.log_probs(x)[:, following].tolist()
            for result, value in zip(results, chosen):
                result.append(value)
        return results


class Full:
    """One unit a token. The base of the other caches."""

    name = "full"

    def open(self, layers, kv_heads, d):
        self.keys = [torch.zeros(0, kv_heads, d, dtype=DOUBLE) for _ in range(layers)]
        self.values = [torch.zeros(0, kv_heads, d, dtype=DOUBLE) for _ in range(layers)]
        self.ratios = []  # tokens behind each unit, oldest first; this token's included after begin_token
        self.edit = None  # what happens to every layer's units before this token's is appended

    def begin_token(self):
        self.ratios.append(1)

    def add(self, layer, k, v):
        if self.edit is not None:
            self.keys[layer], self.values[layer] = self.edit(self.keys[layer], self.values[layer])
        self.keys[layer] = torch.cat([self.keys[layer], k[None]])
        self.values[layer] = torch.cat([self.values[layer], v[None]])
        assert len(self.keys[layer]) == len(self.ratios)
        return self.keys[layer], self.values[layer]

    def bias(self):
        return 0.0


class Window(Full):
    """At most `window` units, this token's and the first `sinks` included; the oldest other one is evicted first."""

    def __init__(self, window, sinks):
        self.window, self.sinks, self.name = window, sinks, f"window_W{window}_S{sinks}"

    def begin_token(self):
        self.edit = None
        if len(self.ratios) == self.window:
            s = self.sinks
            del self.ratios[s]
            self.edit = lambda k, v: (torch.cat([k[:s], k[s + 1 :]]), torch.cat([v[:s], v[s + 1 :]]))
        self.ratios.append(1)


def mean(a, b):
    return (a + b) / 2


def newer(a, b):
    return b


class Dcm(Full):
    """The paper's rule, by a scan of the near queue before every token. `merge` is given (rows, d) twice, the older first.

    dcm's own: units of L tokens together weigh as FAR_LIMIT (for L up to 128) of them at most.
    """

    FAR_LIMIT = 16

    def __init__(self, group, sinks, merge, name, log_r=0.0):
        self.group, self.sinks, self.merge, self.log_r = group, sinks, merge, log_r
        self.limits = []  # by place from the newest unit: L times 1, L/2 times 2, ... once L
        size, limit = group, 1
        while size:
            self.limits += [limit] * size
            size, limit = size // 2, limit * 2
        self.name = f"dcm_L{group}_S{sinks}_{name}"
        self.merges, self.far = 0, 0

    def begin_token(self):
        self.edit = None
        first = self.sinks + self.far  # oldest unit of the near queue
        near = self.ratios[first:]
        if len(near) == 2 * self.group - 1:
            below = [r for r, limit in zip(reversed(near), self.limits) if r < limit]
            if below:
                self.merge_at(first + near.index(below[0]))
            else:
                assert near[0] == self.group
                self.far += 1
        self.ratios.append(1)
        assert all(r <= limit for r, limit in zip(reversed(self.ratios[self.sinks + self.far :]), self.limits))

    def merge_at(self, i):
        assert self.ratios[i] == self.ratios[i + 1]
        self.ratios[i : i + 2] = [2 * self.ratios[i]]
        self.merges += 1

        def merged(x):
            return torch.cat([x[:i], self.merge(x[i], x[i + 1])[None], x[i + 2 :]])

        self.edit = lambda k, v: (merged(k), merged(v))

    def bias(self):
        ratios = torch.tensor(self.ratios, dtype=DOUBLE)
        far = ratios == self.group
        return self.log_r * torch.log(ratios) - far * math.log(max(1, far.sum().item() / self.FAR_LIMIT))


def save_csv(path, ids, log_probs):
    with open(path, "w") as file:
        file.write("index,token,logprob\n")
        for i, value in enumerate(log_probs, 1):
            file.write(f"{i},{ids[i]},{value:.7f}\n")


def save_ids(path, ids):
    """As `dcm tokenize --ids` prints them."""
    with open(path, "w") as file:
        file.write(",".join(map(str, ids)) + "\n")
