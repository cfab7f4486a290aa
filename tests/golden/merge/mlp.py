"""The merge MLP (gate and direct heads) in PyTorch, from the published names. Shares nothing with dcm."""

import os

import torch
from safetensors.torch import load_file, save_file


def random_mlp(seed, d, blocks, head, gain=1.0, bias=0.1, head_gain=1.0):
    """Seeded weights by their published names, bfloat16. `layer_norm` is in the published files and is never used."""
    rng = torch.Generator().manual_seed(seed)
    width = 2 * d

    def normal(scale, *shape):
        return (scale * torch.randn(*shape, generator=rng)).to(torch.bfloat16)

    tensors = {}
    for i in range(blocks):
        for j in (1, 2, 3):
            tensors[f"layers.{i}.lin{j}.weight"] = normal(gain * width**-0.5, width, width)
            tensors[f"layers.{i}.lin{j}.bias"] = normal(bias, width)
        tensors[f"layers.{i}.layer_norm.weight"] = 1 + normal(0.5, width)
        tensors[f"layers.{i}.layer_norm.bias"] = normal(0.5, width)
    name, rows = ("lin1", 1) if head == "gate" else ("merge", d)
    tensors[f"{name}.weight"] = normal(head_gain * width**-0.5, rows, width)
    tensors[f"{name}.bias"] = normal(bias, rows)
    return tensors


class MergeMlp:
    """Runs in float64 on the bfloat16 weights of a safetensors file or a dict of tensors."""

    def __init__(self, source):
        tensors = load_file(source) if isinstance(source, str) else source
        tensors = {name: t.double() for name, t in tensors.items()}
        self.trunk = []
        while f"layers.{len(self.trunk) // 3}.lin1.weight" in tensors:
            i = len(self.trunk) // 3
            for j in (1, 2, 3):
                self.trunk.append((tensors[f"layers.{i}.lin{j}.weight"], tensors[f"layers.{i}.lin{j}.bias"]))
        self.gate = "merge.weight" not in tensors
        head = "lin1" if self.gate else "merge"
        self.head = (tensors[f"{head}.weight"], tensors[f"{head}.bias"])

    def forward(self, a, b, pre=None):
        """a (older), b: (rows, d) float64. `pre`, if given, collects (z, input, weight, bias) of every linear map."""
        x = torch.cat([a, b], dim=1)
        for weight, bias in self.trunk:
            z = x @ weight.T + bias
            if pre is not None:
                pre.append((z, x, weight, bias))
            x = torch.nn.functional.elu(z)
        weight, bias = self.head
        z = x @ weight.T + bias
        if pre is not None:
            pre.append((z, x, weight, bias))
        if not self.gate:
            return torch.nn.functional.elu(z)
        w = torch.sigmoid(z)
        return w * a + (1 - w) * b


def save_mlp(path, tensors):
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)
