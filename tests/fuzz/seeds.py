"""The files that are damaged: small ones of every leaf kind, coder, dtype and kind of model."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bqjax import codec
from bqjax.adapters.safetensors import write_weights
from bqjax.core.leaves import Affine, Clustered, Factored, Residual, Scaled, exponents_of, mask_zeros

__all__ = ["containers", "micro_files", "models", "stored_models", "weights"]


_DTYPES = (np.float32, np.float16, jnp.bfloat16, np.int8, np.uint16, np.int64, jnp.float8_e4m3fn, np.complex64)


def _leaves() -> dict[str, Any]:
    """A tree for every kind of leaf."""
    rng = np.random.default_rng(0)

    def clustered(shape: tuple[int, ...], k: int, d: int = 1, order: Any = None, **fields: Any) -> Clustered:
        n = int(np.prod(shape)) // d
        book = rng.normal(size=(k, d)).astype(fields.pop("book", np.float32))
        kind = np.uint8 if k <= 256 else np.uint16
        return Clustered(rng.integers(0, k, n).astype(kind), book, shape, fields.pop("dtype", np.float32), order, **fields)

    shared = [clustered((6, 8), 5, group="g"), clustered((12,), 5, group="g")]
    shared[1] = Clustered(shared[1].indices, shared[0].codebook, (12,), np.float16, None, "g")
    blocks = clustered((8, 12), 6, 4, (1, 0))
    whole = Clustered(rng.integers(0, 9, 90).astype(np.uint8), np.arange(9, dtype=np.int8)[:, None], (9, 10), np.float32)
    bits = [rng.integers(0, 2, shape).astype(np.uint8) for shape in ((6, 3), (3, 5))]
    ones = np.ones(6, np.float32), np.ones(5, np.float32)
    planes = rng.normal(size=1500).astype(np.float32)
    return {
        "values": {"w": clustered((20, 30), 8), "b": np.zeros(7, np.float32)},
        "many values": {"w": clustered((20, 30), 300)},
        "blocks": [blocks, clustered((4, 8), 3, 2, (1, 0), dtype=jnp.bfloat16, book=jnp.bfloat16)],
        "on a line": (
            Clustered(whole.indices, whole.codebook, (9, 10), np.float32, None, None, np.asarray(np.float32(0.5)), np.float32(1)),
        ),
        "group": {"a": shared, 3: clustered((5, 5), 4)},
        "affine": {
            "w": Affine(rng.integers(-9, 9, (8, 6)).astype(np.int8), np.ones(6, np.float32), np.zeros(6, np.int32), 1),
            "v": Affine(rng.integers(0, 16, 40).astype(np.uint8), np.float16(1), np.int32(3), bits=4),
            "far": Affine(rng.integers(0, 16, 40).astype(np.uint8), np.float16(1), np.int32(300), bits=4),
        },
        "units": {"w": Scaled(clustered((20, 30), 8), exponents_of(rng.integers(-2, 3, (20, 1))), np.dtype(np.float32))},
        "sum": {"w": Residual([clustered((8, 12), 5, 4, (1, 0)), clustered((8, 12), 3, 2, (1, 0))])},
        "product": {"w": Factored(ones[0], bits[0], np.array([-5, 0, 9], np.int16), bits[1], ones[1], (2, 3, 5))},
        "mask": {
            "w": mask_zeros(blocks, rng.random((8, 12)) < 0.5),
            "g": [mask_zeros(s, rng.random(s.shape) < 0.7) for s in shared],
        },
        "arrays": {
            "planes": planes,
            "half": planes[:1100].astype(jnp.bfloat16),
            "again": planes,
            "zeros": np.zeros((40, 5), np.int64),
            "none": None,
            "": np.float32(3),
            "empty": np.zeros((0, 3), np.float16),
        },
    }


@functools.cache
def containers() -> list[bytes]:
    """Each kind of leaf by each coder that suits it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        for name, tree in _leaves().items():
            for coder in codec.entropy.CODERS if name != "arrays" else ("ans",):
                codec.save(path, tree, coder=coder, force=True, metadata={"method": "seed"} if name == "values" else None)
                found[name, coder] = path.read_bytes()
    return list(dict.fromkeys(found.values()))


@functools.cache
def weights() -> list[bytes]:
    """Plain safetensors files of every dtype, with metadata, equal tensors and odd names; and an index."""
    rng = np.random.default_rng(0)
    kinds: dict[str, Any] = {
        f"layer.{i}['{np.dtype(kind).name}']": rng.integers(0, 100, (3, 4)).astype(kind)
        for i, kind in enumerate(
            (np.float32, np.float16, jnp.bfloat16, np.int8, np.uint16, np.int64, jnp.float8_e4m3fn, np.complex64)
        )
    }
    few = {"w": rng.normal(size=(4, 6)).astype(np.float32), "tied": rng.normal(size=(4, 6)).astype(np.float32), "": np.zeros(())}
    header = {
        "a": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]},
        "b": {"dtype": "X9", "shape": [2], "data_offsets": [3, 9]},
    }
    odd = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for tensors in (kinds, few):
            path = Path(folder) / "w"
            write_weights(path, tensors, metadata={"format": "pt"}, force=True)
            found.append(path.read_bytes())
    return [*found, len(odd).to_bytes(8, "little") + odd + bytes(range(9))]


@functools.cache
def models() -> list[bytes]:
    """Small ``.tflite`` models of every kind; none without LiteRT, whose schema writes them."""
    try:
        import kinds
        from builder import Builder
    except ImportError:
        return []
    b = Builder(np.int8)
    x = b.activation([1, 4, 4, 6])
    h = b.conv(x, [6, 1, 1, 6], [1, 4, 4, 6], per_channel=True)
    return [b.finish(x, b.depthwise(h, [1, 3, 3, 6], [1, 4, 4, 6])), *(kind() for kind in kinds.KINDS)]


@functools.cache
def stored_models() -> dict[bytes, bytes]:
    """Containers of models, and the models."""
    from bqjax.tflite.container import save_lossless, save_model
    from bqjax.tflite.format.model import parse_model

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        for i, model in enumerate(models()):
            save_lossless(path, model, coder="ans", force=True)
            found[path.read_bytes()] = model
            if not i:
                save_model(path, parse_model(model), coder="adaptive", force=True)
                found[path.read_bytes()] = model
    return found


@functools.cache
def micro_files() -> list[bytes]:
    """Files for TFLM with each encoding, and the plain twin; none without LiteRT."""
    try:
        from builder import Builder
    except ImportError:
        return []
    from bqjax.tflite.format.model import parse_model, rewritten
    from bqjax.tflite.micro import Limits, micro_content, plain_twin

    b = Builder(np.int8)
    b.rng = np.random.default_rng(1)
    x = b.activation([1, 4, 4, 20])
    h = b.conv(x, [64, 1, 1, 20], [1, 4, 4, 64], per_channel=True)
    content = b.finish(x, b.conv(h, [32, 1, 1, 64], [1, 4, 4, 32], per_channel=False))
    model = parse_model(content)  # few values, mostly zeros, as weights that are worth encoding have
    few = {
        name: layer | {"codes": np.where(abs(c := layer["codes"]) < 40, 0, c // 40 * 40)} for name, layer in model.params.items()
    }
    content = rewritten(model, few)
    kinds = ("lut",), ("huffman",), ("pruning",)
    return [plain_twin(content), *(micro_content(content, limits=Limits(), kinds=kind) for kind in kinds)]
