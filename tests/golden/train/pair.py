"""
Gradients of the pair MLP's parameters through the whole compressed cache, on the models and tokens that make.py made:
pair.py. Seconds. README.md says what is in the files.
"""

import os

import torch
from safetensors.torch import save_file

from scorer import Run, ScoredDcm

import llama  # scorer puts its folder into the path

HERE = os.path.dirname(os.path.abspath(__file__))
TERMS = ("kl", "il", "boundary")


class PairDcm(ScoredDcm):
    """The compressed cache whose merges are the MLP's: of keys before RoPE and of values, a row a head."""

    def __init__(self, group, sinks, shapes, params, direct):
        super().__init__(group, sinks, None, params, False)
        parts = torch.split(params, [s.numel() for s in shapes])
        self.maps = [p.reshape(s.shape) for p, s in zip(parts, shapes)]
        self.direct = direct
        self.magnitude, self.magnitude_terms = torch.zeros(()), 1

    def biases(self, layer):
        return None

    def mlp(self, a, b):
        x = torch.cat([a, b], dim=-1)
        for weight, bias in zip(self.maps[:-2:2], self.maps[1:-2:2]):
            x = torch.nn.functional.elu(x @ weight.T + bias)
        x = x @ self.maps[-2].T + self.maps[-1]
        if self.direct:
            return torch.nn.functional.elu(x)
        w = torch.sigmoid(x)
        return w * a + (1 - w) * b

    def merge_layer(self, layer):
        i, _ = self.pair
        for units in (self.keys, self.values):
            u = units[layer]
            units[layer] = torch.cat([u[:i], self.mlp(u[i], u[i + 1])[None], u[i + 2 :]])


def shapes_of(d, blocks, direct):
    """Weight and bias of each linear map, the head last."""
    x, out = 2 * d, d if direct else 1
    shapes = []
    for rows in [x] * (3 * blocks) + [out]:
        shapes += [torch.empty(rows, x), torch.empty(rows)]
    return shapes


def draw(shapes, seed):
    rng = torch.Generator().manual_seed(seed)
    parts = [torch.randn(s.shape, generator=rng) * (1.3 * s.shape[-1] ** -0.5 if s.dim() == 2 else 0.2) for s in shapes]
    return torch.cat([p.reshape(-1) for p in parts]).double()


def gradients(model, ids, policy, params, log_probs, first):
    params = params.clone().requires_grad_()
    run = Run(model, ids, policy(params))
    terms = run.terms(log_probs, first)
    grads = {name: torch.autograd.grad(terms[name], params, retain_graph=True)[0] for name in TERMS}
    return run, {name: terms[name].detach() for name in TERMS}, grads


def check_differences(model, ids, policy, params, log_probs, first, shapes, grads):
    """Each array's gradient along a random direction against a central difference."""
    rng = torch.Generator().manual_seed(1)
    at = 0
    for s in shapes:
        step = torch.zeros_like(params)
        step[at : at + s.numel()] = torch.randn(s.numel(), generator=rng, dtype=params.dtype)
        at += s.numel()
        with torch.no_grad():
            up, down = (Run(model, ids, policy(params + e * step)).terms(log_probs, first) for e in (1e-5, -1e-5))
        slope, expected = float(up["kl"] - down["kl"]) / 2e-5, float((grads["kl"] * step).sum())
        assert abs(slope - expected) < 1e-6 * max(1, abs(expected)), (at, slope, expected)


def full_pass(model, ids, shapes, params, direct):
    with torch.no_grad():
        run = Run(model, ids, PairDcm(1 << 20, 0, shapes, params, direct))
        return torch.log_softmax(run.logits, dim=-1)


def in_float(path, ids, policy, params, first, shapes, direct):
    """The same in float32 throughout: what rounding alone does to a gradient."""
    llama.DOUBLE = torch.float32
    model = llama.Model(path)
    log_probs = full_pass(model, ids, shapes, params.float(), direct)
    _, _, grads = gradients(model, ids, policy, params.float(), log_probs, first)
    llama.DOUBLE = torch.float64
    return grads


def make(name, seed, group, sinks, blocks, direct):
    folder = os.path.join(HERE, name)
    path = os.path.join(folder, "model.gguf")
    with open(os.path.join(folder, "ids.txt"), encoding="ascii") as f:
        ids = [int(i) for i in f.read().split(",")]
    model = llama.Model(path)
    shapes, first = shapes_of(model.d, blocks, direct), 2 * group - 1 + sinks
    params = draw(shapes, seed)

    def policy(p):
        return PairDcm(group, sinks, shapes, p, direct)

    log_probs = full_pass(model, ids, shapes, params, direct)
    run, terms, grads = gradients(model, ids, policy, params, log_probs, first)
    check_differences(model, ids, policy, params, log_probs, first, shapes, grads)
    rough = in_float(path, ids, policy, params, first, shapes, direct)
    sizes, rounding = [s.numel() for s in shapes], []
    for term in TERMS:
        pairs = zip(torch.split(grads[term], sizes), torch.split(rough[term].double(), sizes))
        rounding.append(max(float((g - r).abs().max() / g.abs().max()) for g, r in pairs))
        print(f"{name} {term} {terms[term]:.6f}: float32's gradients are {rounding[-1]:.1e} of an array's largest off")
    none = torch.zeros((), dtype=torch.float64)
    tensors = {"params": params, "kl": run.kl, "terms": torch.stack([terms["kl"], terms["il"], none, terms["boundary"]])}
    tensors.update({"grad." + t: grads[t] for t in TERMS})
    tensors["rounding"] = torch.tensor([rounding[0], rounding[1], 0.0, rounding[2]])
    tensors["facts"] = torch.tensor([group, sinks, blocks, int(direct)])
    path = os.path.join(folder, "pair.safetensors")
    save_file({k: t.detach().float().contiguous() for k, t in tensors.items()}, path)
    os.chmod(path, 0o644)


def main():
    torch.set_num_threads(1)
    make("llama", 1, group=4, sinks=2, blocks=2, direct=False)
    make("qwen2", 2, group=8, sinks=0, blocks=1, direct=True)


if __name__ == "__main__":
    main()
