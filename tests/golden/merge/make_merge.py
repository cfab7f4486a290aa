"""
Merge models with random weights, inputs and expected outputs: make_merge.py. Seconds.

NAME.safetensors is the model (bfloat16, published names), NAME.rows.safetensors its test: `x` (rows, 2d), `head` (rows, 1 or d):
the gate before its sigmoid, or the direct head's output; `bound` of the same shape: what a float32 evaluation in any order of
summation may be off, to first order. With u = 2^-24, a dot product of n terms and a bias is off by at most (n + 1) u sum |terms|,
an ELU of a negative number by 8 u (4 units in the last place of an exp); each such error reaches the output multiplied by the
output's derivative with respect to where it arises, which autograd gives. All the products' absolute values are added up.
"""

import os

import torch
from safetensors.torch import save_file

from mlp import MergeMlp, random_mlp, save_mlp

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = 37
U = 2.0**-24


def inputs(seed, d):
    """Rows like keys and values: normal, some channels far larger, then rows of zeros, of equal, tiny and huge values."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 2 * d, generator=rng)
    x[:, 3] += 12
    x[:, d + 3] += 12
    x[:, 5] *= 6
    x[0], x[1] = 0, 1.5
    x[2] *= 1e-6
    x[3] *= 50
    x[4, d:] = x[4, :d]
    return x


def evaluate(mlp, x, d):
    """Output of the head and its bound, float64."""
    pre, x = [], x.double().requires_grad_()
    out = mlp.forward(x[:, :d], x[:, d:], pre)
    head = pre[-1][0] if mlp.gate else out
    z = [p[0] for p in pre]
    hidden = [p[1] for p in pre[1:]]  # each ELU's output
    local = [(p[1].abs() @ p[2].abs().T + p[3].abs()) * (p[2].shape[1] + 1) * U for p in pre]
    elu = [(p < 0) * 8 * U for p in z[:-1]]
    columns = []
    for j in range(head.shape[1]):
        grads = torch.autograd.grad(head[:, j].sum(), z + hidden, retain_graph=True)
        terms = [g.abs() * e for g, e in zip(grads, local + elu)]
        columns.append(sum(t.sum(1) for t in terms))
    last = 0 if mlp.gate else (z[-1] < 0) * 8 * U
    return head.detach(), (torch.stack(columns, 1) + last + U * head.abs()).detach()


def single(mlp, x):
    """The same in float32 arithmetic: shows how much of the bound an honest evaluation uses."""
    for w, b in mlp.trunk:
        x = torch.nn.functional.elu(x @ w.float().T + b.float())
    x = x @ mlp.head[0].float().T + mlp.head[1].float()
    return x if mlp.gate else torch.nn.functional.elu(x)


def make(name, seed, d, blocks, head):
    path = os.path.join(HERE, name)
    save_mlp(path + ".safetensors", random_mlp(seed, d, blocks, head, gain=1.2, bias=0.3, head_gain=1.5))
    mlp, x = MergeMlp(path + ".safetensors"), inputs(seed, d)
    expected, bound = evaluate(mlp, x, d)
    used = ((single(mlp, x).double() - expected).abs() / bound).max()
    print(f"{name}: head std {expected.std():.2f}, bound {bound.median():.1e} (max {bound.max():.1e}), float32 uses {used:.3f}")
    save_file({"x": x, "head": expected.float(), "bound": bound.float()}, path + ".rows.safetensors")
    os.chmod(path + ".rows.safetensors", 0o644)


def main():
    for blocks in (1, 3, 6):
        for head in ("gate", "direct"):
            make(f"{head}_d16_b{blocks}", 20 + blocks, 16, blocks, head)
    make("gate_d64_b1", 30, 64, 1, "gate")


main()
