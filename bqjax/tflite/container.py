"""A ``.tflite`` model in the container: coded weights, and the rest of the file in one compressed array.

Weights of one byte or less have streams of their own, whatever operator uses them; float weights and all else go into the array.
The file says at which byte each weight lies, so that restoring it needs no flatbuffer code.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import lzma
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bqjax import codec
from bqjax.codec import entropy
from bqjax.core.leaves import Clustered, decode, is_compressed
from bqjax.tflite.format.constants import BYTE_TYPES, LARGE, Constant, constants, reported
from bqjax.tflite.format.model import Model, rewritten

__all__ = [
    "Stored",
    "described",
    "exact",
    "load_model",
    "save_lossless",
    "save_model",
    "searched_layers",
    "stored_constants",
]

KIND = "tflite"
# Biases and scales are 4-byte numbers: contexts by position within 4 bytes (lp, pb) make them and 8-bit codes smaller.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2, "pb": 2, "dict_size": 1 << 24}]
_INLINE = (0, 2048, 8192, 1 << 31)  # plain weights of fewer bytes may cost less within the rest than with a table of their own
_ONE_TRY = 1 << 25  # bytes of a file that is packed once, at one limit: each try takes seconds for a few megabytes
_MAX_RATIO = 8192  # restored bytes to a stored one; what compresses further is padded
_MAX_BYTES = 1 << 31  # offsets of a flatbuffer have 31 bits


class Stored(NamedTuple):
    """A constant that a file restores, and the leaf that holds it: None where it lies within the leaf ``flatbuffer``."""

    constant: Constant
    leaf: str | None


def exact(codes: np.ndarray) -> Clustered:
    """8-bit integer codes as a leaf that decodes to them: its codebook is the values that occur."""
    flat = codes.reshape(-1)
    values = np.unique(flat) if flat.size < 256 else np.arange(256).astype(np.uint8).view(codes.dtype)
    if flat.size >= 256:  # no sort of all codes, which large layers would feel
        values = np.sort(values[np.bincount(flat.view(np.uint8), minlength=256) > 0])
    index = np.zeros(256, np.uint8)
    index[values.view(np.uint8)] = np.arange(len(values))
    return Clustered(index[flat.view(np.uint8)], values[:, None], codes.shape, codes.dtype)


def _cost(leaf: Any) -> int:
    """Bytes of a layer in the file, about: codes by ``ans``, codebook, record."""
    return len(entropy.encode(np.asarray(leaf.indices), leaf.k, "ans")[1]) + leaf.table_bits() // 8 + 30


def _by_class(codes: np.ndarray, numbers: np.ndarray) -> dict[str, Clustered]:
    """The outputs of each class as a leaf of their own, ``[outputs of the class, weights of an output]``."""
    rows = codes.reshape(codes.shape[0], -1)
    return {f"outputs of class {c}": exact(rows[numbers == c]) for c in range(int(numbers.max()) + 1)}


def _joined(parts: Mapping[str, Clustered], numbers: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_by_class`; nothing of the file is trusted."""
    rows = [np.asarray(decode(part)) for part in parts.values()]
    if any(r.ndim != 2 or r.shape[1:] != rows[0].shape[1:] or r.dtype != rows[0].dtype for r in rows):
        raise ValueError("the classes of a layer's outputs are of different kinds")
    whole = np.empty((len(numbers), rows[0].shape[1]), rows[0].dtype)
    for c, of_class in enumerate(rows):
        at = np.flatnonzero(numbers == c)
        if len(at) != len(of_class):
            raise ValueError(f"class {c} of a layer's outputs has {len(of_class)} of them, {len(at)} are listed")
        whole[at] = of_class
    return whole


def save_model(
    path: str | os.PathLike[str],
    model: Model,
    tree: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    classes: Mapping[str, np.ndarray] | None = None,
    searched: Mapping[str, tuple[str, float | None]] | None = None,
    coder: str = "auto",
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> codec.FileInfo:
    """Writes a model with compressed weights.

    Args:
      path: the file to write.
      model: the model.
      tree: as ``model.params``, where ``codes`` may be compressed leaves and ``bias`` may differ; None stores it as it is.
      classes: of outputs, ``[outputs]`` integers from 0 without gaps, for layers whose codes have the outputs first (not depthwise
        ones). The codes of a class are coded by themselves, with values of their own, where that takes fewer bytes.
      searched: what a search did to each layer, and what that alone cost (None: not measured); ``bqjax inspect`` shows it.
      coder: of the weights, see :mod:`bqjax.codec.entropy`.
      force: overwrite an existing file.
      metadata: further strings by name.

    Raises:
      ValueError: as :func:`bqjax.tflite.format.model.rewritten` and :func:`bqjax.codec.save`.
    """
    tree = model.params if tree is None else tree
    plain = {n: {f: np.asarray(decode(v) if is_compressed(v) else v) for f, v in layer.items()} for n, layer in tree.items()}
    content = rewritten(model, plain)
    spans: dict[str, tuple[int, int]] = {}
    for name in model.params:
        span = model.spans[name, "codes"]
        if span not in spans.values():  # a shared buffer is stored once
            spans[name] = span
    coded: dict[str, Any] = {}
    for name in spans:
        leaf = tree.get(name, model.params[name]).get("codes", model.params[name]["codes"])
        coded[name] = leaf if is_compressed(leaf) else exact(np.asarray(leaf))
    compressed = {name for name in spans if is_compressed(tree.get(name, {}).get("codes"))}
    split = {}
    for name in compressed & set(classes or {}):
        parts = _by_class(plain[name]["codes"], numbers := (classes or {})[name])
        if sum(map(_cost, parts.values())) + math.log2(len(parts)) * len(numbers) / 8 < _cost(coded[name]):
            split[name] = parts
    known = {start for start, _ in spans.values()}
    for name, c in _byte_weights(model.constants).items():
        if c.start not in known and name not in spans:
            spans[name], coded[name] = (c.start, c.size), _leaf(content, c)
    names, packed = _best(content, spans, coded, compressed)
    stored = dict(metadata or {})
    if searched:
        short = {name: (what, None if drop is None else round(drop, 4)) for name, (what, drop) in searched.items()}
        stored["layers"] = json.dumps(short, separators=(",", ":"), allow_nan=False)
    parts_of: dict[str, Any] = {"weights": {n: split.get(n, coded[n]) for n in names}}
    if split:
        parts_of["classes"] = exact(np.concatenate([(classes or {})[n] for n in names if n in split]).astype(np.uint8))
    return _write(path, content, spans, names, packed, parts_of, coder=coder, force=force, metadata=stored)


def save_lossless(
    path: str | os.PathLike[str],
    content: bytes,
    *,
    coder: str = "auto",
    force: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> codec.FileInfo:
    """Writes any ``.tflite`` file, to be restored byte for byte: any operators, types and number of subgraphs.

    Args:
      path: the file to write.
      content: of the ``.tflite`` file.
      coder, force, metadata: as :func:`save_model`.

    Raises:
      ValueError: the content is no ``.tflite`` file, or a damaged one; as :func:`bqjax.codec.save`.
    """
    if len(content) > _MAX_BYTES:
        raise ValueError(f"a .tflite file of {len(content):,} bytes: more than {_MAX_BYTES:,} cannot be stored in one file")
    found = _byte_weights(constants(content))
    spans, coded = {name: (c.start, c.size) for name, c in found.items()}, {name: _leaf(content, c) for name, c in found.items()}
    names, packed = _best(content, spans, coded, set())
    parts = {"weights": {name: coded[name] for name in names}}
    return _write(path, content, spans, names, packed, parts, coder=coder, force=force, metadata=dict(metadata or {}))


def _byte_weights(found: tuple[Constant, ...]) -> dict[str, Constant]:
    """Constants that streams of their own may hold, by name: of layers or large, of one byte or less, none on top of another."""
    starts, ends, chosen = list[int](), list[int](), {}  # of the chosen ones, ascending
    for c in found:
        layer = not c.left or (c.type in ("INT8", "UINT8") and c.weight)
        at, end = bisect.bisect(starts, c.start), c.start + c.size
        free = (not at or ends[at - 1] <= c.start) and (at == len(starts) or end <= starts[at])
        if c.type in BYTE_TYPES and (layer or c.size > LARGE) and free:
            starts.insert(at, c.start)
            ends.insert(at, end)
            chosen[c.name] = c
    return chosen


def _leaf(content: bytes, c: Constant) -> Clustered:
    """A constant's bytes as a leaf; two or four values of fewer bits are one symbol."""
    codes = np.frombuffer(content, np.int8 if c.type == "INT8" else np.uint8, c.size, c.start)
    whole = c.type in ("INT8", "UINT8") and c.n_weights == c.size == math.prod(c.shape)
    return exact(codes.reshape(c.shape) if whole else codes)


def _best(
    content: bytes, spans: Mapping[str, tuple[int, int]], coded: Mapping[str, Any], compressed: set[str]
) -> tuple[list[str], bytes]:
    """Names of the weights that get leaves of their own, such that the file is smallest, and the rest, packed."""
    best: tuple[int, list[str], bytes] | None = None
    tried: list[list[str]] = []
    for limit in _INLINE if len(content) < _ONE_TRY else (2048,):
        names = [name for name, (_, size) in spans.items() if name in compressed or size >= limit]
        if names in tried:
            continue
        tried.append(names)
        keep = np.ones(len(content), bool)
        for name in names:
            keep[spans[name][0] : sum(spans[name])] = False
        packed = lzma.compress(np.frombuffer(content, np.uint8)[keep].tobytes(), lzma.FORMAT_RAW, filters=_FILTERS)
        total = len(packed) + sum(_cost(coded[name]) for name in names)
        if best is None or total < best[0]:
            best = total, names, packed
    _, names, packed = best if best is not None else (0, [], b"")
    # LZMA ignores what follows its end; bytes that no coder takes away keep the file within the ratio that is believed on reading.
    fewest = len(content) // _MAX_RATIO + 1
    return names, packed if len(packed) > 64 * fewest else packed + hashlib.shake_256(b"").digest(fewest)


def _write(
    path: str | os.PathLike[str],
    content: bytes,
    spans: Mapping[str, tuple[int, int]],
    names: list[str],
    packed: bytes,
    parts: Mapping[str, Any],
    *,
    coder: str,
    force: bool,
    metadata: dict[str, str],
) -> codec.FileInfo:
    """Writes the container: leaves, the packed rest, and what restoring needs to know."""
    within = [name for name in spans if name not in set(names)]
    stated = {
        "kind": KIND,
        "content_sha256": hashlib.sha256(content).hexdigest(),
        "content_bytes": str(len(content)),
        "offsets": json.dumps([spans[name][0] for name in names], separators=(",", ":")),
    }
    if within:  # for releases whose tables do not list them
        stated["within"] = f"{len(within)} {sum(spans[name][1] for name in within)}"
    layers = {"layers": metadata.pop("layers")} if "layers" in metadata else {}
    tree = {"flatbuffer": np.frombuffer(packed, np.uint8), **parts}
    return codec.save(path, tree, coder=coder, force=force, metadata={**metadata, **stated, **layers})


def searched_layers(metadata: Mapping[str, str]) -> dict[str, tuple[str, float | None]]:
    """What a search did to each layer and what that alone cost, as a file states it; empty where it states nothing."""
    try:
        found = json.loads(metadata.get("layers", "{}")) if metadata.get("kind") == KIND else {}
        return {
            str(name): (str(what), None if drop is None else float(drop))
            for name, (what, drop) in found.items()
            if len(name) < 1000
        }
    except (AttributeError, TypeError, ValueError, RecursionError):
        return {}


def described(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata as ``bqjax inspect`` shows them: without what its table says."""
    if metadata.get("kind") != KIND:
        return dict(metadata)
    return {name: value for name, value in metadata.items() if name not in ("offsets", "within", "layers")}


def _layers(tree: Mapping[str, Any]) -> list[np.ndarray]:
    """The codes of every layer that has leaves of its own."""
    numbers = np.asarray(decode(tree["classes"])) if "classes" in tree else np.zeros(0, np.uint8)
    layers, start = [], 0
    for leaf in tree["weights"].values():
        if isinstance(leaf, dict):
            n = sum(part.shape[0] for part in leaf.values())
            layers.append(_joined(leaf, numbers[start : start + n]))
            start += n
        else:
            layers.append(np.asarray(decode(leaf)))
    if start != numbers.size:
        raise ValueError(f"{numbers.size} outputs have classes, the layers have {start}")
    return layers


def load_model(path: str | os.PathLike[str]) -> bytes:
    """Restores the ``.tflite`` file, byte for byte; needs no ai-edge-litert.

    Raises:
      ValueError: naming the file, where it holds no ``.tflite`` model or is damaged.
      OSError: the file cannot be read.
    """
    return _restored(path)[0]


def stored_constants(path: str | os.PathLike[str]) -> list[Stored]:
    """The constants that the model in a file has, as reports list them: those that are compressed with loss, and all large ones.

    Raises:
      ValueError: as :func:`load_model`.
      OSError: the file cannot be read.
    """
    content, leaves = _restored(path)
    try:
        found = constants(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: restores what cannot be listed: {error}") from error
    return [Stored(c, leaves.get(c.start)) for c in found if c.start in leaves or reported([c])]


def _restored(path: str | os.PathLike[str]) -> tuple[bytes, dict[int, str]]:
    """The ``.tflite`` file, and the names of the leaves by the first bytes of what they hold."""
    where = os.fspath(path)
    metadata = codec.inspect(path).metadata
    if metadata.get("kind") != KIND:
        raise ValueError(f"{where}: holds weights, not a .tflite model: bqjax decompress gives them as .safetensors")
    try:
        offsets, size = json.loads(metadata["offsets"]), int(metadata["content_bytes"])
        tree = codec.load(path)
        rest, layers = tree["flatbuffer"], _layers(tree)
        spans = list(zip(offsets, layers, strict=True))
        if not 0 <= size <= min(_MAX_BYTES, _MAX_RATIO * Path(path).stat().st_size):
            raise ValueError(f"claims {size} bytes")
        unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(rest.tobytes(), size + 1)
        rest = np.frombuffer(unpacked, np.uint8)
        if size != rest.size + sum(codes.nbytes for codes in layers):
            raise ValueError("the parts do not add up to the stated size")
        content, keep = np.zeros(size, np.uint8), np.ones(size, bool)
        for start, codes in spans:
            if type(start) is not int or not 0 <= start <= size - codes.nbytes or not keep[start : start + codes.nbytes].all():
                raise ValueError("the weights do not lie in the file one beside the other")
            content[start : start + codes.nbytes] = codes.reshape(-1).view(np.uint8)
            keep[start : start + codes.nbytes] = False
        content[keep] = rest
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{where}: damaged .tflite container ({error})") from error
    restored = content.tobytes()
    if hashlib.sha256(restored).hexdigest() != metadata.get("content_sha256"):
        raise ValueError(f"{where}: does not restore the model that was saved (sha256 differs)")
    return restored, {start: f"weights/{name}" for start, name in zip(offsets, tree["weights"], strict=True)}
