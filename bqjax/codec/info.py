"""What a file says it holds: a description of every leaf, and of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from bqjax.codec.structure import DTYPES
from bqjax.core import blocks

__all__ = ["FileInfo", "LeafInfo", "factored_info", "masked_info", "residual_info", "scaled_info"]


@dataclass(frozen=True)
class LeafInfo:
    """One leaf of a file.

    Attributes:
      name: as :func:`bqjax.core.tree.named_leaves` gives it.
      kind: ``"array"``, ``"clustered"``, ``"affine"``, ``"residual"``, ``"factored"``, ``"masked"`` or ``"scaled"``;
        ``"bits"`` for a part.
      shape: shape of the weight.
      dtype: name of the weight's dtype.
      coder: coder of the codes; of an array ``"raw"``, ``"zstd"`` or ``"planes"``; those of all parts.
      code_bytes: bytes of the codes, or of the array.
      table_bytes: bytes of codebook, scales, offset and zero points; 0 where an earlier leaf of the group holds them.
      k: how many different codes there can be; None for arrays and sums, the middle dimension of factors.
      d: weights per code.
      group: the group whose codebook the leaf shares.
      table_dtype: name of the dtype of codebook or scale.
      table_kinds: how many different numbers an entropy-coded codebook may hold; None where its numbers are as they are.
      code_dtype: dtype of affine codes.
      zero_bytes: of an affine zero point: 4, 1 in the dtype of the codes, or 0 where all are 0 and none is stored.
      parts: the streams of a leaf that has several: the stages of a residual leaf; the binary matrices of a factored one,
        whose number of columns, or rows, is ``k``; the leaf under a mask, and the mask; the leaf in other units, and the exponents
        of these. Bytes of the leaf are those of its parts together, and of its own table.
      axis: axis of affine scales.
      axis_order: axis order of clustered leaves.
      same_as: name of an earlier leaf that holds the bytes of this one, too, which then takes none; None where it has its own.
      tied: whether the two were one object, as they are again when the file is read.
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
    table_kinds: int | None = None
    code_dtype: str = "int8"
    zero_bytes: int = 4
    axis: int | None = None
    axis_order: tuple[int, ...] = ()
    parts: tuple[LeafInfo, ...] = ()
    same_as: str | None = None
    tied: bool = False

    def again(self, name: str, *, tied: bool) -> LeafInfo:
        """The description of a leaf that equals this one."""
        parts = tuple(replace(part, code_bytes=0, table_bytes=0) for part in self.parts)
        return replace(self, name=name, code_bytes=0, table_bytes=0, parts=parts, same_as=self.name, tied=tied)

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
    def line_bytes(self) -> int:
        """Bytes of that scale and that offset."""
        return 8 if self.on_line else 0

    @property
    def n_symbols(self) -> int:
        """Number of codes."""
        if self.parts:
            return sum(part.n_symbols for part in self.parts)
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


def _coders(parts: Sequence[LeafInfo]) -> str:
    return ", ".join(dict.fromkeys(part.coder for part in parts))


def residual_info(name: str, shape: tuple[int, ...], dtype: str, order: tuple[int, ...], stages: Sequence[LeafInfo]) -> LeafInfo:
    """The description of a sum from those of its stages."""
    return LeafInfo(
        name,
        kind="residual",
        shape=shape,
        dtype=dtype,
        coder=_coders(stages),
        code_bytes=sum(stage.code_bytes for stage in stages),
        table_bytes=sum(stage.table_bytes for stage in stages),
        axis_order=order,
        parts=tuple(stages),
    )


def factored_info(
    name: str, shape: tuple[int, ...], dtype: str, k: int, table_dtype: str, streams: Sequence[tuple[str, int]]
) -> LeafInfo:
    """The description of a product: ``streams`` are coder and bytes of the left and of the right binary matrix."""
    m, n = math.prod(shape[:-1]), shape[-1]
    parts = tuple(
        LeafInfo(name, kind="bits", shape=sides, dtype="uint8", coder=coder, code_bytes=size, k=2)
        for sides, (coder, size) in zip(((m, k), (k, n)), streams, strict=True)
    )
    return LeafInfo(
        name,
        kind="factored",
        shape=shape,
        dtype=dtype,
        coder=_coders(parts),
        code_bytes=sum(part.code_bytes for part in parts),
        table_bytes=(m + n) * DTYPES[table_dtype].itemsize + 2 * k,
        k=k,
        table_dtype=table_dtype,
        parts=parts,
    )


def masked_info(name: str, leaf: LeafInfo, mask: LeafInfo) -> LeafInfo:
    """The description of a leaf and of the mask over it."""
    return LeafInfo(
        name,
        kind="masked",
        shape=leaf.shape,
        dtype=leaf.dtype,
        coder=_coders((leaf, mask)),
        code_bytes=leaf.code_bytes + mask.code_bytes,
        table_bytes=leaf.table_bytes + mask.table_bytes,
        k=leaf.k,
        d=leaf.d,
        group=leaf.group,
        table_dtype=leaf.table_dtype,
        parts=(leaf, mask),
    )


def scaled_info(name: str, dtype: str, leaf: LeafInfo, exponents: LeafInfo) -> LeafInfo:
    """The description of a leaf from that of its indices and of the exponents of its slices."""
    return replace(masked_info(name, leaf, exponents), kind="scaled", dtype=dtype)
