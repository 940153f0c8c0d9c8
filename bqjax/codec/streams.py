"""The bytes of one leaf: its codes and its codebook or scales, or its values; little-endian, in C order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bqjax.codec import entropy, structure
from bqjax.codec.header import read_exactly
from bqjax.codec.info import LeafInfo, factored_info, masked_info, residual_info, scaled_info
from bqjax.codec.planes import decode_planes, encode_planes
from bqjax.core.leaves import Affine, Clustered, CompressedLeaf, Factored, Masked, Residual, Scaled, is_compressed, slice_order

__all__ = ["ReadGroup", "WrittenGroup", "decode_leaf", "encode_leaf"]

_THOROUGH_BYTES = 1 << 20  # up to which zstandard's level 19 takes less than a second
_SMALL_BYTES = 1 << 12  # up to which any coder takes no time, and planes hardly pay
_RECORD_BYTES = 16  # what naming another coder in the leaf's record costs, at most

_Table = tuple[str, tuple[int, ...], bytes]  # dtype and shape of a codebook, and its bytes with scale and offset


class WrittenGroup(NamedTuple):
    """What a group's first leaf has written for all, and how often each entry was used in its leaves so far (None: too many)."""

    first: str
    table: _Table
    counts: np.ndarray | None


class ReadGroup(NamedTuple):
    """The codebook of a group, with scale and offset where it has them, and how often each entry was used so far."""

    table: list[np.ndarray]
    counts: np.ndarray | None


def _no_counts(k: int) -> np.ndarray | None:
    return np.zeros(k, np.int64) if k <= entropy.MODEL_LIMIT else None


def _counted(counts: np.ndarray | None, symbols: np.ndarray) -> None:
    if counts is not None:
        counts += entropy.count_symbols(symbols, counts.size)


def _bytes_of(array: np.ndarray) -> memoryview:
    """The little-endian bytes of a native array in C order, without a copy on little-endian machines."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


def encode_leaf(
    name: str, leaf: Any, coder: str, groups: dict[str, WrittenGroup], thorough: bool = True
) -> tuple[LeafInfo, list[bytes | memoryview]]:
    """A leaf's description and its bytes: codes (or values), then table.

    Args:
      name: of the leaf.
      leaf: an array or a compressed leaf.
      coder: for codes.
      groups: those of the leaves so far; grows.
      thorough: look for repetitions in all arrays. False: in those of integers and in small ones only.

    Raises:
      ValueError: naming the leaf, where it is not valid or cannot be stored.
    """
    if not is_compressed(leaf):
        return _encode_array(name, structure.as_array(name, leaf), thorough)
    if leaf.dtype.name not in structure.DTYPES:
        raise ValueError(f"leaf {name!r} decodes to dtype {leaf.dtype}, which cannot be stored")
    if isinstance(leaf, Clustered):
        return _encode_clustered(name, leaf, coder, groups)
    if isinstance(leaf, Affine):
        return _encode_affine(name, leaf, coder)
    if isinstance(leaf, Residual):
        leaf.validate(name)
        stages = [_encode_clustered(f"{name}, stage {i}", stage, coder, {}) for i, stage in enumerate(leaf.stages)]
        first = stages[0][0]
        info = residual_info(name, first.shape, first.dtype, first.axis_order, [info for info, _ in stages])
        return info, [part for _, parts in stages for part in parts]
    if isinstance(leaf, Factored):
        return _encode_factored(name, leaf, coder)
    if isinstance(leaf, Masked):
        leaf.validate(name)
        parts = encode_leaf(name, leaf.leaf, coder, groups), _encode_clustered(f"{name}, mask", leaf.kept, coder, {})
        return masked_info(name, parts[0][0], parts[1][0]), [*parts[0][1], *parts[1][1]]
    if isinstance(leaf, Scaled):
        return _encode_scaled(name, leaf, coder)
    raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}, which this version of the format cannot store")


def _encode_array(name: str, array: np.ndarray, thorough: bool) -> tuple[LeafInfo, list[bytes | memoryview]]:
    """The smallest of an array as it is, its zstandard frame and its byte planes."""
    plain = _bytes_of(array)
    parts: list[bytes | memoryview]
    used, parts, size, least = "raw", [plain], array.nbytes, entropy.min_bytes(array.nbytes)
    if thorough or array.nbytes <= _SMALL_BYTES or array.dtype.kind in "biu":
        # Float weights hardly shrink; level 19 would spend a minute on 100 MB of them.
        level = 19 if thorough and array.nbytes <= _THOROUGH_BYTES else 3
        small = entropy.zstd(plain, level=level).ljust(least, b"\0")
        if len(small) < size:
            used, parts, size = "zstd", [small], len(small)
        del small
    # Of single bytes level 19 leaves little, and of small arrays planes save no more than their lengths take.
    wide = array.dtype.itemsize > 1 and array.nbytes > _SMALL_BYTES
    if wide or not thorough or array.nbytes > _THOROUGH_BYTES:
        planes: list[bytes | memoryview] = [*encode_planes(plain, array.dtype)]
        taken = sum(map(len, planes))
        planes.append(bytes(max(0, least - taken)))
        if (taken := max(taken, least)) + _RECORD_BYTES < size:
            used, parts, size = "planes", planes, taken
    return LeafInfo(name, shape=array.shape, dtype=array.dtype.name, coder=used, code_bytes=size), parts


def _encode_scaled(name: str, leaf: Scaled, coder: str) -> tuple[LeafInfo, list[bytes | memoryview]]:
    leaf.validate(name)
    exponents, parts = _encode_clustered(f"{name}, exponents", leaf.exponents, coder, {})
    order = slice_order(leaf.shape, leaf.exponents)
    sorted_leaf = with_fields(leaf.leaf, indices=order.sort(structure.as_array(name, leaf.leaf.indices)))
    info, own = _encode_clustered(name, sorted_leaf, coder, {}, order.breaks)
    return scaled_info(name, leaf.dtype.name, info, exponents), [*parts, *own]


def _encode_clustered(
    name: str, leaf: Clustered, coder: str, groups: dict[str, WrittenGroup], breaks: Sequence[int] = ()
) -> tuple[LeafInfo, list[bytes | memoryview]]:
    indices, codebook = structure.as_array(name, leaf.indices), structure.as_array(name, leaf.codebook)
    shape, order = tuple(map(int, leaf.shape)), tuple(map(int, leaf.axis_order))
    on_line = [None if x is None else structure.as_array(name, x) for x in (leaf.scale, leaf.offset)]
    leaf = Clustered(indices, codebook, shape, leaf.dtype, order, leaf.group, *on_line)
    leaf.validate(name)
    whole = [_bytes_of(x) for x in (codebook, *on_line) if x is not None]
    kinds, table = _smallest_table(codebook, whole) if _holds_codebook(name, leaf, whole, groups) else (None, [])
    counts = None if leaf.group is None else groups[leaf.group].counts
    used, codes = entropy.encode(indices, leaf.k, coder, None if table else counts, breaks)
    _counted(counts, indices)
    info = LeafInfo(
        name,
        kind="clustered",
        shape=shape,
        dtype=leaf.dtype.name,
        coder=used,
        code_bytes=len(codes),
        table_bytes=sum(map(len, table)),
        k=leaf.k,
        d=leaf.d,
        group=leaf.group,
        table_dtype=codebook.dtype.name,
        table_kinds=kinds,
        axis_order=order,
    )
    return info, [codes, *table]


def _smallest_table(codebook: np.ndarray, whole: list[memoryview]) -> tuple[int | None, list[bytes | memoryview]]:
    """How many kinds of numbers a codebook has where entropy coding makes it smaller (else None), and its bytes.

    Numbers of few bits have an entropy well below these: most lie in the middle of their range.
    """
    if codebook.dtype.itemsize == 1:
        kinds = int(codebook.view(np.uint8).max()) + 1
        coded = entropy.encode(codebook.view(np.uint8), kinds, "adaptive")[1]
        if len(coded) + _RECORD_BYTES < codebook.nbytes:
            return kinds, [coded, *whole[1:]]
    return None, [*whole]


def _encode_affine(name: str, leaf: Affine, coder: str) -> tuple[LeafInfo, list[bytes | memoryview]]:
    codes8, scale, zero_point = (structure.as_array(name, x) for x in (leaf.codes, leaf.scale, leaf.zero_point))
    axis = None if leaf.axis is None else int(leaf.axis)
    leaf = Affine(codes8, scale, zero_point, axis, leaf.dtype, leaf.bits)
    leaf.validate(name)
    zeros = leaf.stored_zero_point()
    ((symbols, k),) = leaf.streams()
    used, codes = entropy.encode(np.asarray(symbols), k, coder)
    info = LeafInfo(
        name,
        kind="affine",
        shape=codes8.shape,
        dtype=leaf.dtype.name,
        coder=used,
        code_bytes=len(codes),
        table_bytes=scale.nbytes + zeros.nbytes,
        k=k,
        table_dtype=scale.dtype.name,
        code_dtype=codes8.dtype.name,
        zero_bytes=zeros.itemsize if zeros.size else 0,
        axis=axis,
    )
    return info, [codes, _bytes_of(scale), _bytes_of(zeros)]


def _encode_factored(name: str, leaf: Factored, coder: str) -> tuple[LeafInfo, list[bytes | memoryview]]:
    arrays = [structure.as_array(name, x) for x in (leaf.rows, leaf.left, leaf.middle, leaf.right, leaf.columns)]
    rows, left, middle, right, columns = arrays
    shape = tuple(map(int, leaf.shape))
    Factored(rows, left, middle, right, columns, shape, leaf.dtype).validate(name)
    coded = [entropy.encode(bits, 2, coder) for bits in (left, right)]
    streams = [(used, len(codes)) for used, codes in coded]
    info = factored_info(name, shape, leaf.dtype.name, middle.size, rows.dtype.name, streams)
    return info, [*(codes for _, codes in coded), _bytes_of(rows), _bytes_of(middle), _bytes_of(columns)]


def _holds_codebook(name: str, leaf: Clustered, table: list[memoryview], groups: dict[str, WrittenGroup]) -> bool:
    """Whether the leaf is the first of its group, or in none. Compares the codebook with the group's."""
    if leaf.group is None:
        return True
    if type(leaf.group) is not str:
        raise ValueError(f"leaf {name!r}: a group is named by a string, got {leaf.group!r}")
    codebook = (leaf.codebook.dtype.name, leaf.codebook.shape, b"".join(table))
    if leaf.group not in groups:
        groups[leaf.group] = WrittenGroup(name, codebook, _no_counts(leaf.k))
        return True
    first, shared, _ = groups[leaf.group]
    if shared != codebook:
        raise ValueError(f"leaves {first!r} and {name!r} name one group, {leaf.group!r}, but their codebooks differ")
    return False


def _read_array(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = structure.DTYPES[dtype]
    return _from_bytes(read_exactly(file, kind.itemsize * int(np.prod(shape, dtype=object))), kind, shape)


def _from_bytes(data: bytes | bytearray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    # A copy where arrays on top of bytes would be read-only.
    stored = np.frombuffer(data, dtype.newbyteorder("<"))
    return stored.astype(dtype, copy=isinstance(data, bytes)).reshape(shape)


def decode_leaf(file: BinaryIO, info: LeafInfo, groups: dict[str, ReadGroup]) -> np.ndarray | CompressedLeaf:
    """Reads the leaf that begins at the file's position.

    Args:
      file: open for reading.
      info: its description, checked by :func:`bqjax.codec.records.parse_records`.
      groups: those of the leaves so far; grows.

    Raises:
      ValueError: naming the leaf, where its stream is damaged or it breaks an invariant.
    """
    if info.kind == "array":
        data = read_exactly(file, info.code_bytes)
        try:
            if info.coder == "planes":
                plain: bytes | bytearray = decode_planes(data, info.weight_bytes, structure.DTYPES[info.dtype])
            else:
                plain = entropy.unzstd(data, info.weight_bytes) if info.coder == "zstd" else data
        except ValueError as error:
            raise ValueError(f"leaf {info.name!r}: {error}") from error
        return _from_bytes(plain, structure.DTYPES[info.dtype], info.shape)
    if info.kind == "masked":
        within = decode_leaf(file, info.parts[0], groups)
        if not isinstance(within, CompressedLeaf):
            raise ValueError(f"leaf {info.name!r}: a mask is over a compressed leaf")
        masked = Masked(within, _read_clustered(file, info.parts[1], {}))
        masked.validate(info.name)
        return masked
    leaf: CompressedLeaf
    dtype = structure.DTYPES[info.dtype]
    if info.kind == "scaled":
        return _read_scaled(file, info)
    if info.kind == "affine":
        integers = _read_symbols(file, info).reshape(info.shape)
        slices = () if info.axis is None else (info.shape[info.axis],)
        scale, zero_point = _read_array(file, info.table_dtype, slices), _read_zero_point(file, info, slices)
        bits = (info.k or 1).bit_length() - 1
        leaf = Affine.from_symbols(integers, structure.DTYPES[info.code_dtype], scale, zero_point, info.axis, dtype, bits)
    elif info.kind == "residual":
        leaf = Residual([_read_clustered(file, stage, {}) for stage in info.parts])
    elif info.kind == "factored":
        left, right = (_read_symbols(file, part).reshape(part.shape) for part in info.parts)
        (m, k), n = left.shape, right.shape[1]
        rows, middle, columns = (
            _read_array(file, kind, (size,)) for kind, size in ((info.table_dtype, m), ("int16", k), (info.table_dtype, n))
        )
        leaf = Factored(rows, left, middle, right, columns, info.shape, dtype)
    else:
        leaf = _read_clustered(file, info, groups)
    leaf.validate(info.name)
    return leaf


def _read_zero_point(file: BinaryIO, info: LeafInfo, slices: tuple[int, ...]) -> np.ndarray:
    if not info.zero_bytes:
        return np.zeros(slices, np.int32)
    return _read_array(file, "int32" if info.zero_bytes == 4 else info.code_dtype, slices).astype(np.int32)


def _read_scaled(file: BinaryIO, info: LeafInfo) -> Scaled:
    inner, dtype = info.parts[0], structure.DTYPES[info.dtype]
    exponents = _read_clustered(file, info.parts[1], {})
    exponents.validate(f"{info.name}, exponents")  # first: indices beyond their codebook have no order
    order = slice_order(inner.shape, exponents)
    found = _read_clustered(file, inner, {}, order.breaks)
    scaled = Scaled(with_fields(found, indices=order.unsort(np.asarray(found.indices))), exponents, dtype)
    scaled.validate(info.name)
    return scaled


def _read_symbols(file: BinaryIO, info: LeafInfo, earlier: np.ndarray | None = None, breaks: Sequence[int] = ()) -> np.ndarray:
    codes = read_exactly(file, info.code_bytes)
    try:
        return entropy.decode(codes, info.n_symbols, info.k or 1, info.coder, earlier, breaks)
    except ValueError as error:
        raise ValueError(f"leaf {info.name!r}: {error}") from error


def _read_codebook(file: BinaryIO, info: LeafInfo) -> np.ndarray:
    shape = (info.k or 1, info.d)
    if info.table_kinds is None:
        return _read_array(file, info.table_dtype, shape)
    coded = read_exactly(file, info.table_bytes - info.line_bytes)
    try:
        numbers = entropy.decode(coded, shape[0] * shape[1], info.table_kinds, "adaptive")
    except ValueError as error:
        raise ValueError(f"leaf {info.name!r}: {error} in its codebook") from error
    return numbers.view(structure.DTYPES[info.table_dtype]).reshape(shape)


def _read_clustered(file: BinaryIO, info: LeafInfo, groups: dict[str, ReadGroup], breaks: Sequence[int] = ()) -> Clustered:
    if info.table_bytes:
        symbols = _read_symbols(file, info, breaks=breaks)
        table = [_read_codebook(file, info)]
        if info.on_line:
            table += [_read_array(file, "float32", ()) for _ in range(2)]
        group = ReadGroup(table, None if info.group is None else _no_counts(info.k or 1))
        if info.group is not None:
            groups[info.group] = group
    else:
        group = groups[info.group or ""]
        symbols = _read_symbols(file, info, group.counts)
    _counted(group.counts, symbols)
    dtype = structure.DTYPES[info.dtype]
    return Clustered(symbols, group.table[0], info.shape, dtype, info.axis_order, info.group, *group.table[1:])
