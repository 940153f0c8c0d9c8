"""Any safetensors file, as a hypothesis strategy: the header written here, byte by byte, and not by the code under test."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np

# Every dtype of the format, with the bits of an entry, and one that is still to come.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F5_TO_COME": 8,
}
COMPRESSIBLE = ("F16", "BF16", "F32", "F64")
_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
NAMES = st.sampled_from(
    [
        "",
        ".",
        "a",
        "a/b",
        "/",
        "layers.0.weight",
        "a[0].weight",
        "['params']['Dense_0']['kernel']",
        "*",
        "w?",
        "[a-c]",
        "[!a]",
        "[",
        "gewicht-ß",
        "重み",
    ]
) | st.text(_CHARACTERS, max_size=8)


class Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class File(NamedTuple):
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def to_bytes(self) -> bytes:
        entries, end = {}, 0
        for name, tensor in self.tensors.items():
            start, end = end, end + len(tensor.data)
            entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        header = json.dumps(({"__metadata__": self.metadata} if self.metadata else {}) | entries).encode()
        return len(header).to_bytes(8, "little") + header + b"".join(tensor.data for tensor in self.tensors.values())


def parsed(content: bytes) -> File:
    """Reads a file as the format's description says, without a check."""
    length = int.from_bytes(content[:8], "little")
    entries, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = entries.pop("__metadata__", {})
    return File(
        {name: Tensor(e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])]) for name, e in entries.items()}, metadata
    )


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(BITS)))
    # Few sizes, so that compiled code is shared: leaves of two or more dimensions, which are compressed, have few shapes.
    shape = draw(st.sampled_from([(), (0,), (1,), (5,), (0, 3), (4, 2), (2, 1, 4), (2, 2, 1, 2), (1, 2, 2, 1, 2)]))
    n = -(-math.prod(shape) * BITS[dtype] // 8)
    rng = np.random.default_rng(draw(st.integers(0, 3)))  # few, so that some are equal
    if dtype in COMPRESSIBLE and len(shape) > 1:
        values = rng.normal(size=math.prod(shape))
        if dtype == "BF16":
            return Tensor(dtype, shape, (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes())
        return Tensor(dtype, shape, values.astype(f"<f{BITS[dtype] // 8}").tobytes())
    # What is left alone is any bytes: NaN of every kind among them.
    return Tensor(dtype, shape, rng.integers(0, 2 if dtype == "BOOL" else 256, n, np.uint8).tobytes())


@st.composite
def files(draw: st.DrawFn) -> File:
    """At least one tensor that the default compresses, others of every kind, some of them twice, and metadata."""
    found = draw(st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), tensors(), max_size=6))
    weight = np.random.default_rng(7).normal(size=(4, 2)).astype("<f4").tobytes()
    found[draw(NAMES)] = Tensor("F32", (4, 2), weight)
    for name in draw(st.lists(st.sampled_from(sorted(found)), max_size=2)):
        found.setdefault(draw(NAMES), found[name])
    return File(found, draw(st.dictionaries(st.text(_CHARACTERS, max_size=5), st.text(_CHARACTERS, max_size=5), max_size=2)))
