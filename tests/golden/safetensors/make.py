#!/usr/bin/env python3
"""Write small.safetensors with the `safetensors` package: what tests/unit/test_safetensors.c reads. Needs torch. Run in this folder."""
import torch
from safetensors.torch import save_file

values = [1.5, -2.0, 0.0078125, 3.140625, -0.0, 128.0]
save_file({
    "f32": torch.tensor(values, dtype=torch.float32).reshape(2, 3),
    "f16": torch.tensor(values, dtype=torch.float16).reshape(3, 2),
    "layers.0.lin1.weight": torch.tensor(values, dtype=torch.bfloat16).reshape(1, 6),
    "f64": torch.tensor(values, dtype=torch.float64),
    "ids": torch.tensor([7, -8], dtype=torch.int64),
    "scalar": torch.tensor(0.5, dtype=torch.float32),
    "empty": torch.zeros((0, 4), dtype=torch.float32),
    "naïve \"name\"": torch.ones((1, 1, 1, 1, 1), dtype=torch.float32),
}, "small.safetensors", metadata={"base": "smollm2", "note": "two\nlines, ünicode"})
