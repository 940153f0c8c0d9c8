"""All constants of a ``.tflite`` file: where each lies, what uses it, and why compression with loss leaves it as it is.

Any number of subgraphs, any operators and types; needs no ai-edge-litert.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bqjax.tflite.format.checks import verify
from bqjax.tflite.format.names import operator_name, type_bits, type_name
from bqjax.tflite.format.tables import Table, root

__all__ = ["BYTE_TYPES", "LARGE", "WEIGHTED", "Constant", "Use", "constants", "reported"]

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operators whose input 1 is a weight and whose input 2, where there is one, is a bias."""

LARGE = 1024
"""Constants of more bytes than this have a row of their own in reports, whatever they are."""

BYTE_TYPES = ("INT8", "UINT8", "INT4", "UINT4", "INT2")
"""Types whose bytes an entropy coder takes as symbols; those of 4 and 2 bits with two and four values a byte."""

_MAX_DIMENSIONS = 32  # beyond what any runtime takes


class Use(NamedTuple):
    """An operator's input; without an operator, the kind is empty."""

    subgraph: int
    kind: str
    operand: int


@dataclass(frozen=True)
class Constant:
    """The values of one buffer.

    Attributes:
      name: of the first tensor that has them, unique in the file.
      shape: of that tensor.
      type: its type by the schema's name, as ``"INT8"``.
      start, size: first byte in the file, and number of bytes.
      n_weights: number of values.
      uses: all inputs of operators that have these values.
      left: why compression with loss leaves them as they are; empty for the weights that it takes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    size: int
    n_weights: int
    uses: tuple[Use, ...]
    left: str

    @property
    def weight(self) -> bool:
        """Whether a convolution or a dense layer has it as its weight."""
        return any(_is_weight(use) for use in self.uses)


@dataclass(frozen=True)
class _Tensor:
    """A tensor that has values, as the file describes it."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int
    sparse: bool
    scaled: bool
    inside: bool


def constants(content: bytes) -> tuple[Constant, ...]:
    """Every buffer of values, once: weights of layers in order of operators, then what other operators use, then the rest.

    Raises:
      ValueError: the content is no ``.tflite`` file, or a damaged one.
    """
    verify(content)
    try:
        return tuple(_constants(content))
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"damaged .tflite file ({type(error).__name__}: {error}): get a whole copy") from error


def reported(found: Iterable[Constant]) -> list[Constant]:
    """Those that reports list and count: weights that are compressed with loss, and all that is larger than :data:`LARGE`."""
    return [c for c in found if not c.left or c.size > LARGE]


def _constants(content: bytes) -> Iterator[Constant]:
    model = root(content)
    places = [_place(buffer, len(content)) for buffer in model.tables(4)]
    kinds = [operator_name(max(code.number(0, "<b"), code.number(3))) for code in model.tables(1)]
    first: dict[tuple[int, int], tuple[str, _Tensor]] = {}
    uses: dict[tuple[int, int], list[Use]] = {}
    later: list[tuple[str, _Tensor]] = []
    for number, subgraph in enumerate(model.tables(2)):
        tensors = [_tensor(table, places) for table in subgraph.tables(0)]
        counts = Counter(tensor.name for tensor in tensors)
        names = [t.name if counts[t.name] == 1 else f"{t.name}#{i}" for i, t in enumerate(tensors)]
        others = set(range(len(tensors)))
        for operator in subgraph.tables(3):
            kind = kinds[operator.number(0, "<I")]
            for operand, index in enumerate(operator.integers(1)):
                if not -1 <= index < len(tensors):
                    raise ValueError(
                        "an operator names a tensor that does not exist: the .tflite file is damaged; get a whole copy"
                    )
                if index < 0 or not tensors[index].size:
                    continue
                others.discard(index)
                span = tensors[index].start, tensors[index].size
                uses.setdefault(span, []).append(Use(number, kind, operand))
                if kind in WEIGHTED and operand == 1:
                    first.setdefault(span, (names[index], tensors[index]))
                else:
                    later.append((names[index], tensors[index]))
        for index in sorted(others):
            if tensors[index].size:
                uses.setdefault((tensors[index].start, tensors[index].size), []).append(Use(number, "", -1))
                later.append((names[index], tensors[index]))
    for name, tensor in later:
        first.setdefault((tensor.start, tensor.size), (name, tensor))
    taken: set[str] = set()
    for span, (name, tensor) in first.items():
        if name in taken:
            name = f"{name} of subgraph {uses[span][0].subgraph}"
        while name in taken:
            name = f"{name} at byte {tensor.start}"
        taken.add(name)
        found = tuple(uses[span])
        kind_of = type_name(tensor.type)
        yield Constant(name, tensor.shape, kind_of, *span, _n_weights(tensor), found, _left(tensor, kind_of, found))


def _place(buffer: Table, size: int) -> tuple[int, int, bool]:
    """First byte and number of bytes of a buffer, and whether it lies in the flatbuffer; behind it, above 2 GB."""
    start, count = buffer.vector(0)
    outside = buffer.number(1, "<Q")
    if count or outside < 2:
        return start, count, True
    if outside + (count := buffer.number(2, "<Q")) > size:
        raise ValueError(f"the .tflite file is truncated: a buffer ends at byte {outside + count} of {size}; get a whole copy")
    return outside, count, False


def _tensor(table: Table, places: list[tuple[int, int, bool]]) -> _Tensor:
    number, name = table.number(2, "<I"), table.text(3)
    if number >= len(places) and number:
        raise ValueError(f"tensor {name!r} names buffer {number} of {len(places)}: the .tflite file is damaged; get a whole copy")
    start, size, inside = places[number] if places else (0, 0, True)
    quantization = table.table(4)
    scaled = quantization is not None and quantization.vector(2)[1] > 0
    sparse = table.table(6) is not None
    return _Tensor(name, table.integers(0), table.number(1, "<b"), start, size, sparse, scaled, inside)


def _n_weights(tensor: _Tensor) -> int:
    """Values that are stored: those of the shape, where the bytes fit it."""
    bits = type_bits(tensor.type)
    if not tensor.sparse and len(tensor.shape) <= _MAX_DIMENSIONS and min(tensor.shape, default=0) >= 0:
        n = math.prod(tensor.shape)
        if bits and -(-n * bits // 8) == tensor.size:
            return n
    return tensor.size * 8 // bits if bits else 0


def _left(tensor: _Tensor, kind: str, uses: tuple[Use, ...]) -> str:
    weight = next((use for use in uses if _is_weight(use)), None)
    if weight is None:
        use = next((use for use in uses if use.kind), None)
        if use is None:
            return f"{kind}, used by no operator"
        if use.kind in WEIGHTED and use.operand == 2:
            return f"bias of {use.kind}"
        return f"{kind}, input {use.operand} of {use.kind}"
    if tensor.sparse:
        return f"sparse {kind} weight of {weight.kind}"
    if kind not in ("INT8", "UINT8"):
        return f"{kind} weight of {weight.kind}"
    if not tensor.scaled:
        return f"{kind} weight of {weight.kind} without a scale of its own"
    if not tensor.inside:
        return f"{kind} weight of {weight.kind} behind the flatbuffer, as in files above 2 GB"
    other = next((use for use in uses if not _is_weight(use)), None)
    if other is None:
        return ""
    what = f"input {other.operand} of {other.kind}" if other.kind else "another tensor"
    return f"{kind} weight of {weight.kind} that shares its buffer with {what}"


def _is_weight(use: Use) -> bool:
    return use.kind in WEIGHTED and use.operand == 1
