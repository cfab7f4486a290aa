"""
Gradients of the scorer's parameters through the whole compressed cache: make.py. Seconds. README.md says what is in
the files.
"""

import os

import numpy as np
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from scorer import Layout, Run, ScoredDcm, cache_order

import llama  # scorer puts its folder into the path

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB, TOKENS = 96, 48
TERMS = ("kl", "il", "magnitude", "boundary")


class Case:
    def __init__(self, name, seed, arch, heads, kv_heads, ffn, tied, group, sinks, levels):
        hidden, d, layers = 32, 16, 2
        self.name, self.arch, self.layers, self.kv_heads, self.d = name, arch, layers, kv_heads, d
        self.group, self.sinks, self.first = group, sinks, 2 * group - 1 + sinks
        self.layout = Layout(d, 16, levels)
        self.path = os.path.join(HERE, name)
        os.makedirs(self.path, exist_ok=True)
        self.rng = np.random.default_rng(seed)
        w = self.w = GGUFWriter(os.path.join(self.path, "model.gguf"), arch)
        w.add_name("train " + name)
        w.add_block_count(layers)
        w.add_context_length(512)
        w.add_embedding_length(hidden)
        w.add_feed_forward_length(ffn)
        w.add_head_count(heads)
        w.add_head_count_kv(kv_heads)
        w.add_key_length(d)
        w.add_value_length(d)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(10000.0)
        w.add_vocab_size(VOCAB)
        self.matrix("token_embd", VOCAB, hidden, 2.5 * hidden**-0.5 if tied else 1.0)
        self.vector("output_norm.weight", hidden, 1)
        if not tied:
            self.matrix("output", VOCAB, hidden, 2.5 * hidden**-0.5)
        for i in range(layers):
            self.layer(f"blk.{i}.", hidden, heads * d, kv_heads * d, ffn)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        self.ids = self.rng.integers(0, VOCAB, TOKENS).tolist()

    def layer(self, b, hidden, q, kv, ffn):
        s = hidden**-0.5
        self.vector(b + "attn_norm.weight", hidden, 1)
        for part, rows, gain in (("q", q, 1.2), ("k", kv, 1.2), ("v", kv, 1.0)):
            self.matrix(b + "attn_" + part, rows, hidden, gain * s)
            if self.arch == "qwen2":
                self.vector(b + "attn_" + part + ".bias", rows, 0)
        self.matrix(b + "attn_output", hidden, q, q**-0.5)
        self.vector(b + "ffn_norm.weight", hidden, 1)
        self.matrix(b + "ffn_gate", ffn, hidden, 1.5 * s)
        self.matrix(b + "ffn_up", ffn, hidden, 1.5 * s)
        self.matrix(b + "ffn_down", hidden, ffn, ffn**-0.5)

    def vector(self, name, n, middle):
        self.w.add_tensor(name, (middle + 0.3 * self.rng.standard_normal(n)).astype(np.float32))

    def matrix(self, name, rows, cols, std):
        self.w.add_tensor(name + ".weight", (std * self.rng.standard_normal((rows, cols))).astype(np.float16))

    def parameters(self, raw):
        """Random ones, as float32 has them; mean and scale measured from every token's own keys and values."""
        l, x = self.layout, 2 * self.d
        rows = torch.zeros(self.layers, self.kv_heads, l.row, dtype=torch.float64)
        units = torch.stack([torch.stack([torch.cat([cache_order(k, self.arch == "llama"), v], -1) for k, v in layer])
                             for layer in raw], 0)  # (layers, tokens, kv_heads, 2d)
        l.set(rows, "mean", units.mean(1))
        l.set(rows, "scale", 1 / units.std(1))
        shape = rows.shape[:2]
        for name, middle, std in (("w1", 0, 1.2 * x**-0.5), ("b1", 0, 0.3), ("w2", 0, 1.5 * l.hidden**-0.5),
                                  ("u", 0, 0.15 * l.hidden**-0.5), ("r", 0, 0.1), ("prior", -0.2, 0.4), ("bias", -0.5, 0.5),
                                  ("deviation", 0.8, 0.3), ("sharp_k", 1.5, 0.3), ("sharp_v", 0.9, 0.3)):
            values = middle + std * self.rng.standard_normal((*shape, *l.shapes[name]))
            l.set(rows, name, torch.from_numpy(np.asarray(values)))
        return rows.float().double()

    def policy(self, rows):
        return ScoredDcm(self.group, self.sinks, self.layout, rows, self.arch == "llama")


def full_pass(model, case):
    """The same code with nothing merged: every token sees all raw units."""
    rows = torch.zeros(model.layers, model.kv_heads, case.layout.row, dtype=llama.DOUBLE)
    policy = case.policy(rows)
    policy.group = 1 << 20
    run = Run(model, case.ids, policy)
    return torch.log_softmax(run.logits, dim=-1).detach(), policy.raw


def check_full(model, case, log_probs):
    """Against the causal pass of llama.py."""
    chosen = log_probs[torch.arange(TOKENS - 1), torch.tensor(case.ids[1:])].tolist()
    assert max(abs(a - b) for a, b in zip(chosen, model.run_full(case.ids))) < 1e-10


def check_newer(model, case, rows):
    """A scorer that always keeps the newer unit is the merge `newer`, which dcm's other goldens hold."""
    newer = torch.zeros_like(rows)
    case.layout.set(newer, "scale", torch.ones(*rows.shape[:2], 2 * case.d, dtype=rows.dtype))
    case.layout.set(newer, "prior", torch.full((*rows.shape[:2], case.layout.levels), -1e4, dtype=rows.dtype))
    for name in ("sharp_k", "sharp_v"):
        case.layout.set(newer, name, torch.ones(rows.shape[:2], dtype=rows.dtype))
    log_probs = torch.log_softmax(Run(model, case.ids, case.policy(newer)).logits, dim=-1)
    chosen = log_probs[torch.arange(TOKENS - 1), torch.tensor(case.ids[1:])].tolist()
    expected = model.run(case.ids, [llama.Dcm(case.group, case.sinks, llama.newer, "newer")])[0]
    assert max(abs(a - b) for a, b in zip(chosen, expected)) < 1e-10


def gradients(model, case, rows, log_probs):
    rows = rows.clone().requires_grad_()
    run = Run(model, case.ids, case.policy(rows))
    terms = run.terms(log_probs, case.first)
    grads = {}
    for name in TERMS:
        (g,) = torch.autograd.grad(terms[name], rows, retain_graph=True)
        for measured in ("mean", "scale"):
            case.layout.set(g, measured, torch.zeros(*rows.shape[:2], 2 * case.d, dtype=g.dtype))
        grads[name] = g
    return run, terms, grads


def check_differences(model, case, rows, log_probs, grads):
    """Each array's gradient along a random direction against a central difference."""
    rng = torch.Generator().manual_seed(1)
    for name in list(case.layout.shapes)[2:]:
        step = torch.zeros_like(rows)
        case.layout.set(step, name, torch.randn(case.layout.of(rows, name).shape, generator=rng, dtype=rows.dtype))
        with torch.no_grad():
            up, down = (Run(model, case.ids, case.policy(rows + e * step)).terms(log_probs, case.first)
                        for e in (1e-5, -1e-5))
        slope, expected = float(up["kl"] - down["kl"]) / 2e-5, float((grads["kl"] * step).sum())
        assert abs(slope - expected) < 1e-6 * max(1, abs(expected)), (name, slope, expected)


def in_float(case, rows):
    """The same in float32 throughout: what rounding alone does to a gradient."""
    llama.DOUBLE = torch.float32
    model = llama.Model(os.path.join(case.path, "model.gguf"))
    log_probs, _ = full_pass(model, case)
    _, terms, grads = gradients(model, case, rows.float(), log_probs)
    llama.DOUBLE = torch.float64
    return terms, grads


def make(case):
    model = llama.Model(os.path.join(case.path, "model.gguf"))
    with torch.no_grad():
        log_probs, raw = full_pass(model, case)
        rows = case.parameters(raw)
        check_full(model, case, log_probs)
        check_newer(model, case, rows)
    run, terms, grads = gradients(model, case, rows, log_probs)
    terms = {name: t.detach() for name, t in terms.items()}
    check_differences(model, case, rows, log_probs, grads)
    rough_terms, rough = in_float(case, rows)
    print(f"{case.name}: {len(run.policy.ratios)} units, {run.policy.merges} merges, "
          f"{sum(len(j) for j in run.jumps)} ratios at boundaries, {run.skipped} skipped")
    rounding = []
    for name in TERMS:
        worst = 0.0
        for array in list(case.layout.shapes)[2:]:
            g, r = case.layout.of(grads[name], array), case.layout.of(rough[name], array).double()
            worst = max(worst, float((g - r).abs().max() / g.abs().max()))
        off = abs(float(rough_terms[name].detach() - terms[name]))
        print(f"  {name} {terms[name]:.6f}: float32 is {off:.1e} off, its gradients {worst:.1e} of an array's largest")
        rounding.append(worst)
    tensors = {"params": rows, "kl": run.kl, "terms": torch.stack([terms[name] for name in TERMS])}
    tensors.update({"grad." + name: grads[name] for name in TERMS})
    tensors["rounding"] = torch.tensor(rounding)
    tensors["facts"] = torch.tensor([case.group, case.sinks, case.layout.hidden, case.layout.levels])
    path = os.path.join(case.path, "train.safetensors")
    save_file({name: t.detach().float().contiguous() for name, t in tensors.items()}, path)
    os.chmod(path, 0o644)
    llama.save_ids(os.path.join(case.path, "ids.txt"), case.ids)


def main():
    torch.set_num_threads(1)
    make(Case("llama", 1, "llama", heads=4, kv_heads=2, ffn=48, tied=False, group=4, sinks=2, levels=3))
    make(Case("qwen2", 2, "qwen2", heads=3, kv_heads=1, ffn=32, tied=True, group=8, sinks=0, levels=2))


if __name__ == "__main__":
    main()
