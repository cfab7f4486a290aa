#!/usr/bin/env python3
"""Write TYPE.bin for every type of src/io/quant.h: blocks of random bytes, then the floats that the `gguf` package reads them as.

Needs numpy and gguf. Run in this folder; the files are committed, and the same seed gives the same bytes.
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

# Type: blocks, and the byte offsets of the block's f16 numbers (kept finite; first a subnormal, then a negative one).
TYPES = {
    T.F32: (64, []), T.F16: (64, []), T.BF16: (64, []), T.Q8_0: (3, [0]), T.Q4_0: (3, [0]), T.Q4_1: (3, [0, 2]),
    T.Q4_K: (2, [0, 2]), T.Q5_K: (2, [0, 2]), T.Q6_K: (2, [208]),
}

rng = np.random.default_rng(20250917)
for kind, (count, halves) in TYPES.items():
    items, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if kind in (T.F32, T.BF16):
        values = rng.standard_normal(count).astype(np.float32)
        blocks = values.view(np.uint8).reshape(count, 4)[:, 4 - size:].copy()
    if kind == T.F16:
        blocks[:, 1] &= 0xbb  # no exponent of all ones: no infinity, no NaN
    for n in range(count):
        for at in halves:
            number = [np.float16(3e-6), np.float16(-0.37), np.float16(rng.normal())][n % 3]
            blocks[n, at:at + 2] = np.frombuffer(number.tobytes(), np.uint8)
    floats = dequantize(blocks.reshape(1, -1), kind).astype("<f4")
    assert floats.size == count * items and np.isfinite(floats).all()
    with open(kind.name.lower() + ".bin", "wb") as out:
        out.write(blocks.tobytes() + floats.tobytes())
