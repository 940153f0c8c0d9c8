"""What a file says about each leaf: records of short keys, and their checks.

A record leaves out what has its default. ``x`` kind (array; ``c`` clustered, ``a`` affine), ``s`` shape, ``t`` dtype of
the weight (float32). Arrays: ``n`` bytes of the zstandard frame (stored as they are). Compressed leaves: ``e`` coder
(ans), ``n`` bytes of the codes, ``q`` dtype of codebook or scale (float32). Clustered: ``k`` codebook entries, ``d`` weights
a block (1), ``o`` axis order (0, 1, ...), ``g`` group; a group's first leaf holds the codebook and the others have
neither ``k``, ``d`` nor ``q``. An integer codebook of floating-point weights is followed by scale and offset in float32.
Affine: ``c`` dtype of the codes (int8), ``a`` axis of the scales (none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

from bqjax import blocks
from bqjax.codec import entropy
from bqjax.codec.structure import DTYPES

__all__ = ["FileInfo", "LeafInfo", "parse_records", "to_record"]

_MAX_SIZE = 1 << 48  # bytes or entries of anything in one leaf: what addresses reach, so that products cannot overflow
_MAX_DIMS = 64
_LINE_BYTES = 8  # scale and offset of an integer codebook
_TAGS = {"array": "", "clustered": "c", "affine": "a"}
_KINDS = {tag: kind for kind, tag in _TAGS.items()}
_KEYS = {"array": "stn", "clustered": "xstenqkdog", "affine": "xstenqca"}


@dataclass(frozen=True)
class LeafInfo:
    """One leaf of a file.

    Attributes:
      name: as :func:`bqjax.tree.named_leaves` gives it.
      kind: ``"array"``, ``"clustered"`` or ``"affine"``.
      shape: shape of the weight.
      dtype: name of the weight's dtype.
      coder: coder of the codes; of an array ``"raw"`` or ``"zstd"``.
      code_bytes: bytes of the codes, or of the array.
      table_bytes: bytes of codebook, scales, offset and zero points; 0 where an earlier leaf of the group holds them.
      k: how many different codes there can be; None for arrays.
      d: weights per code.
      group: the group whose codebook the leaf shares.
      table_dtype: name of the dtype of codebook or scale.
      code_dtype: dtype of affine codes.
      axis: axis of affine scales.
      axis_order: axis order of clustered leaves.
    """

    name: str
    _: KW_ONLY
    kind: str = "array"
    shape: tuple[int, ...]
    dtype: str = "float32"
    coder: str = "ans"
    code_bytes: int = 0
    table_bytes: int = 0
    k: int | None = None
    d: int = 1
    group: str | None = None
    table_dtype: str = "float32"
    code_dtype: str = "int8"
    axis: int | None = None
    axis_order: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the array that the leaf decodes to."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        """Bytes in the file, without the leaf's record."""
        return self.code_bytes + self.table_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file per weight, 0 for an empty leaf."""
        return 8 * self.bytes / max(self.size, 1)

    @property
    def on_line(self) -> bool:
        """Whether a codebook holds integers that a scale and an offset turn into weights."""
        return self.table_dtype in ("int8", "uint8") and self.dtype not in ("int8", "uint8")

    @property
    def n_symbols(self) -> int:
        """Number of codes."""
        return blocks.n_blocks(self.shape, self.axis_order, self.d) if self.kind == "clustered" else self.size


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a file holds; :func:`bqjax.codec.save` returns what :func:`bqjax.codec.inspect` reads.

    Attributes:
      path: the file.
      version: of the format.
      file_bytes: size of the file; the truth that every ratio is computed from.
      leaves: the leaves in the order of the tree.
      metadata: the user's.
      sha256: checksum of all that follows the header, as stated.
    """

    path: Path
    version: str
    file_bytes: int
    leaves: tuple[LeafInfo, ...]
    metadata: Mapping[str, str]
    sha256: str

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of compressed leaves."""
        return sum(leaf.code_bytes for leaf in self.leaves if leaf.kind != "array")

    @property
    def table_bytes(self) -> int:
        """Bytes of codebooks, scales and zero points."""
        return sum(leaf.table_bytes for leaf in self.leaves)

    @property
    def array_bytes(self) -> int:
        """Bytes of leaves that are not compressed."""
        return sum(leaf.code_bytes for leaf in self.leaves if leaf.kind == "array")

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the header and the tree's description."""
        return self.file_bytes - self.code_bytes - self.table_bytes - self.array_bytes

    @property
    def weights(self) -> int:
        """Number of weights, those of array leaves included."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the arrays that the tree decodes to."""
        return sum(leaf.weight_bytes for leaf in self.leaves)

    @property
    def bits_per_weight(self) -> float:
        """All bits of the file over all weights."""
        return 8 * self.file_bytes / max(self.weights, 1)

    @property
    def ratio(self) -> float:
        """Bytes of the decoded arrays over bytes of the file."""
        return self.weight_bytes / self.file_bytes


def to_record(info: LeafInfo) -> dict[str, Any]:
    """The JSON object of a leaf. Of a group's leaves, those with ``table_bytes = 0`` refer to the one before."""
    fields: dict[str, tuple[Any, Any]] = {
        "x": (_TAGS[info.kind], ""),
        "s": (list(info.shape), None),
        "t": (info.dtype, "float32"),
        "n": (info.code_bytes, info.weight_bytes if info.kind == "array" else 0),
    }
    if info.kind != "array":
        fields["e"] = (info.coder, "ans")
    if info.kind == "affine":
        fields |= {"c": (info.code_dtype, "int8"), "a": (info.axis, None), "q": (info.table_dtype, "float32")}
    if info.kind == "clustered":
        fields |= {"o": (list(info.axis_order), list(range(len(info.shape)))), "g": (info.group, None)}
        if info.table_bytes:
            fields |= {"k": (info.k, None), "d": (info.d, 1), "q": (info.table_dtype, "float32")}
    return {key: value for key, (value, default) in fields.items() if value != default}


def parse_records(names: Sequence[str], records: Any) -> tuple[LeafInfo, ...]:
    """Leaves from their JSON objects, checked so far as that goes without the data.

    Afterwards every size is a non-negative number below ``2**48`` that follows from the record, and no leaf claims more
    symbols than 1,024 per byte of its codes.

    Raises:
      ValueError: naming the leaf and what is wrong with its record.
    """
    if type(records) is not list or len(records) != len(names):
        raise ValueError(f"the tree has {len(names)} leaves, its list of leaves does not")
    if len(set(names)) < len(names):
        raise ValueError("two leaves of the tree have one name")
    groups: dict[str, LeafInfo] = {}
    leaves = []
    for name, record in zip(names, records, strict=True):
        try:
            leaves.append(_parse(name, record, groups))
        except ValueError as error:
            raise ValueError(f"leaf {name!r}: {error}") from error
    return tuple(leaves)


def _number(record: dict[str, Any], key: str, default: int | None, low: int = 0, high: int = _MAX_SIZE) -> int:
    value = record.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key!r} must be an integer from {low} to {high}, is {_short(value)}")
    return value


def _numbers(record: dict[str, Any], key: str, default: list[int] | None) -> tuple[int, ...]:
    value = record.get(key, default)
    if type(value) is not list or len(value) > _MAX_DIMS or not all(type(v) is int and 0 <= v <= _MAX_SIZE for v in value):
        raise ValueError(f"{key!r} must be at most {_MAX_DIMS} integers from 0 to 2**48, is {_short(value)}")
    return tuple(value)


def _choice(record: dict[str, Any], key: str, default: str, choices: Any, what: str) -> str:
    value = record.get(key, default)
    if type(value) is not str or value not in choices:
        raise ValueError(f"unknown {what} {_short(value)}")
    return value


def _short(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > _MAX_SIZE:
        return "a huge number"
    return repr(value)[:60]


def _parse(name: str, record: Any, groups: dict[str, LeafInfo]) -> LeafInfo:
    if type(record) is not dict:
        raise ValueError("its record is no JSON object")
    kind = _KINDS[_choice(record, "x", "", _KINDS, "leaf kind")]
    if unknown := set(record) - set(_KEYS[kind]):
        raise ValueError(f"its record has unknown keys, {_short(min(unknown))} among them")
    shape = _numbers(record, "s", None)
    dtype = _choice(record, "t", "float32", DTYPES, "dtype")
    if math.prod(max(size, 1) for size in shape) * DTYPES[dtype].itemsize > _MAX_SIZE:
        raise ValueError(f"its shape {shape} is too large for any memory")
    if kind == "array":
        size = math.prod(shape) * DTYPES[dtype].itemsize
        n = _number(record, "n", size, high=size)
        info = LeafInfo(name, kind=kind, shape=shape, dtype=dtype, coder="raw" if n == size else "zstd", code_bytes=n)
        return _check_count(info, size)
    coder = _choice(record, "e", "ans", entropy.CODERS, "coder")
    code_bytes = _number(record, "n", 0)
    table_dtype = _choice(record, "q", "float32", DTYPES, "dtype")
    width = DTYPES[table_dtype].itemsize
    if kind == "affine":
        code_dtype = _choice(record, "c", "int8", ("int8", "uint8"), "dtype of affine codes")
        axis = _number(record, "a", None, high=len(shape) - 1) if "a" in record else None
        info = LeafInfo(
            name,
            kind=kind,
            shape=shape,
            dtype=dtype,
            coder=coder,
            code_bytes=code_bytes,
            table_bytes=(width + 4) * (1 if axis is None else shape[axis]),
            k=256,
            table_dtype=table_dtype,
            code_dtype=code_dtype,
            axis=axis,
        )
        return _check_count(info, info.n_symbols)
    group = record.get("g")
    if group is not None and type(group) is not str:
        raise ValueError(f"its group must be a string, is {_short(group)}")
    first = groups.get(group) if group is not None else None
    if first is not None and {"k", "d", "q"} & set(record):
        raise ValueError(f"it describes the codebook of group {_short(group)} a second time")
    described = record if first is None else {"k": first.k, "d": first.d}
    k, d = _number(described, "k", None, 1, 1 << 32), _number(described, "d", 1, 1)
    info = LeafInfo(
        name,
        kind=kind,
        shape=shape,
        dtype=dtype,
        coder=coder,
        code_bytes=code_bytes,
        k=k,
        d=d,
        group=group,
        table_dtype=table_dtype if first is None else first.table_dtype,
        axis_order=_numbers(record, "o", list(range(len(shape)))),
    )
    if first is None:
        info = with_fields(info, table_bytes=k * d * width + (_LINE_BYTES if info.on_line else 0))
    if group is not None:
        groups.setdefault(group, info)
    return _check_count(info, info.n_symbols)


def _check_count(info: LeafInfo, n: int) -> LeafInfo:
    if info.code_bytes < entropy.min_bytes(n) or (info.code_bytes and not n):
        raise ValueError(f"{n} symbols cannot have {info.code_bytes} bytes")
    return info
