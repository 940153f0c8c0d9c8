"""Files for TFLM whose weights stay compressed, and their plain twins.

The twin is the squeezed model with the same weights, not encoded: LiteRT runs it, TFLM too, and it is what accuracy is measured on.
A file and its twin determine each other, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bqjax.tflite.format.records import Record, pack, unpack
from bqjax.tflite.micro.c_array import bytes_of_array, is_c_source
from bqjax.tflite.micro.choice import Limits, Weight, choose, decodable
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
      left: why other large constants stay plain, by name.
    """

    content: bytes
    twin: bytes
    model: Record
    decoded: tuple[Decoded, ...]
    plain: Mapping[int, Weight]
    left: Mapping[str, str]


def _squeezed(content: bytes, keep_names: bool) -> Record:
    model = unpack(content)
    if holds_decode(model):
        raise ValueError("the model holds DECODE operators already: `bqjax decompress` makes a plain model of it, which can be compressed")
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
    weights, _ = decodable(model)
    encoded: dict[int, Encoded] = choose(weights, limits, kinds)
    written = with_decode(model, encoded)
    packed = pack(written if keep_names else compacted(written))
    if parse_micro(packed).twin != pack(model):
        raise RuntimeError("the file does not decode to the model that was written into it")
    return packed


def parse_micro(content: bytes) -> MicroFile:
    """What a file for TFLM holds, with its weights decoded; needs no TFLM.

    Raises:
      ValueError: the content is no ``.tflite`` file, a damaged one, or encoded in a way that no kernel takes.
    """
    plain, decoded = without_decode(unpack(content))
    model = expanded(plain)
    weights, left = decodable(model)
    known = {one.tensor for one in decoded if not one.subgraph}
    return MicroFile(
        content, pack(model), model, tuple(decoded), {i: w for i, w in weights.items() if i not in known}, left
    )


def is_micro(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a ``.tflite`` model with DECODE operators, or a C array of one; damaged ones are, too, where they say so."""
    path = Path(path)
    if not path.is_file():
        return False
    if is_c_source(path):
        return True
    with path.open("rb") as file:
        start = file.read(8)
    return start[4:] == b"TFL3" and b"TFLM_DECODE" in path.read_bytes()


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
