"""Files for TFLM whose weights stay compressed, and their plain twins.

The twin is the squeezed model with the same weights, not encoded: LiteRT runs it, TFLM too, and it is what accuracy is measured on.
A file and its twin determine each other, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bqjax.tflite.format.records import Record, pack, unpack
from bqjax.tflite.micro.c_source import bytes_of_array, is_c_source
from bqjax.tflite.micro.choice import Limits, Weight, choose, decodable, refuse_uint8
from bqjax.tflite.micro.encoded import Encoded
from bqjax.tflite.micro.operators import Decoded, holds_decode, with_decode, without_decode
from bqjax.tflite.micro.squeeze import compacted, expanded, squeezed

__all__ = ["MicroFile", "is_micro", "micro_content", "parse_micro", "plain_twin", "read_micro"]


@dataclass(frozen=True)
class MicroFile:
    """What a file for TFLM holds.

    Attributes:
      content: its bytes.
      twin: the plain model's bytes.
      model: the plain model's records.
      decoded: the encoded weights.
      plain: weights that could be encoded and are not, by tensor.
      short: whether the file is for TFLM alone: weights are encoded, or left out what :func:`~.squeeze.expanded` restores.
      left: why other large constants stay plain, and their bytes, by name.
    """

    content: bytes
    twin: bytes
    model: Record
    decoded: tuple[Decoded, ...]
    plain: Mapping[int, Weight]
    left: Mapping[str, tuple[str, int]]
    short: bool


@contextlib.contextmanager
def _damaged() -> Iterator[None]:
    """What the tables of a damaged file lead to, as the ``ValueError`` that it is."""
    try:
        yield
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"damaged .tflite file ({type(error).__name__}: {error}): get a whole copy") from error


def _squeezed(content: bytes, keep_names: bool) -> Record:
    with _damaged():
        model = unpack(content)
        if holds_decode(model):
            raise ValueError(
                "the model holds DECODE operators already: `bqjax decompress` makes a plain one of it, to be compressed"
            )
        return squeezed(model, keep_names=keep_names)


def plain_twin(content: bytes, *, keep_names: bool = False) -> bytes:
    """The squeezed plain model of a ``.tflite`` file.

    Raises:
      ValueError: the content is no ``.tflite`` file, a damaged one, or one that holds DECODE operators.
    """
    return pack(_squeezed(content, keep_names))


def micro_content(
    content: bytes,
    *,
    keep_names: bool = False,
    limits: Limits | None = None,
    kinds: tuple[str, ...] = ("lut", "huffman", "pruning"),
) -> bytes:
    """The file for TFLM of a ``.tflite`` model: the same weights, encoded where that is smaller.

    Args:
      content: of the ``.tflite`` file.
      keep_names: names, metadata, signatures and the biases' scales stay; ``min`` and ``max`` go.
      limits: what decoding may cost.
      kinds: the encodings that are tried.

    Raises:
      ValueError: as :func:`plain_twin`; a network that TFLM has no kernels for.
      RuntimeError: the file would not decode to the model.
    """
    model = _squeezed(content, keep_names)
    refuse_uint8(model)
    weights, left = decodable(model)
    if not weights:
        largest = max(left.items(), key=lambda item: item[1][1], default=None)
        what = "" if largest is None else f" (its largest constant is {largest[0]!r}, {largest[1][0]})"
        raise ValueError(
            f"the model has no int8 weights of convolutions or dense layers that TFLM could decode{what}: quantize it to int8, "
            "or leave --target tflm out for the .bq.safetensors container"
        )
    packed = _smallest(model, choose(weights, limits, kinds), keep_names)
    if parse_micro(packed).twin != pack(model):
        raise RuntimeError("the file does not decode to the model that was written into it")
    return packed


def _smallest(model: Record, options: Mapping[int, tuple[Encoded | None, ...]], keep_names: bool) -> bytes:
    """The file with the first of each weight's encodings, or with another one where the whole file is smaller with it."""
    chosen = {index: found[0] for index, found in options.items()}

    def packed(encodings: Mapping[int, Encoded | None]) -> bytes:
        written = with_decode(model, {index: one for index, one in encodings.items() if one is not None})
        return pack(written if keep_names else compacted(written))

    best = packed(chosen)
    for index, others in options.items():
        for other in others[1:]:
            if len(tried := packed({**chosen, index: other})) < len(best):
                best, chosen = tried, {**chosen, index: other}
    return best


def parse_micro(content: bytes) -> MicroFile:
    """What a file for TFLM holds, with its weights decoded; needs no TFLM.

    Raises:
      ValueError: the content is no ``.tflite`` file, a damaged one, or encoded in a way that no kernel takes.
    """
    with _damaged():
        plain, decoded = without_decode(unpack(content))
        model = expanded(plain)
        weights, left = decodable(model)
        twin = pack(model)
    known = {one.tensor for one in decoded if not one.subgraph}
    short = bool(decoded) or model != plain
    plain_ones = {index: weight for index, weight in weights.items() if index not in known}
    return MicroFile(content, twin, model, tuple(decoded), plain_ones, left, short)


def is_micro(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a ``.tflite`` model, or by its name C source, which may hold one."""
    path = Path(path)
    if not path.is_file():
        return False
    if is_c_source(path):
        return True
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"


def read_micro(path: str | os.PathLike[str]) -> MicroFile:
    """As :func:`parse_micro`, from a ``.tflite`` file or a C array.

    Raises:
      ValueError: naming the file, as :func:`parse_micro`.
      OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        return parse_micro(bytes_of_array(path.read_text(errors="replace")) if is_c_source(path) else path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
