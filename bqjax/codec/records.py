"""The JSON of what a file says about each leaf: records of short keys, and their checks.

A record leaves out what has its default. ``x`` kind (array; ``c`` clustered, ``a`` affine, ``r`` residual, ``f`` factored),
``s`` shape, ``t`` dtype of the weight (float32). Arrays: ``n`` bytes of what is stored (as they are), ``e`` its coder where that is
``planes`` (:mod:`bqjax.codec.planes`; a zstandard frame).
Compressed leaves: ``e`` coder (ans), ``n`` bytes of the codes, ``q`` dtype of codebook or scale (float32). Clustered: ``k``
codebook entries, ``d`` weights a block (1), ``o`` axis order (0, 1, ...), ``g`` group; a group's first leaf holds the
codebook and the others have neither ``k``, ``d``, ``q`` nor ``h``. An integer codebook of floating-point weights is followed by
scale and offset in float32. ``h`` is ``[bytes, kinds]`` of a codebook of one-byte numbers which, as unsigned bytes below
``kinds``, are coded by ``adaptive`` (as they are). Affine: ``c`` dtype of the codes (int8), ``a`` axis of the scales (none), ``b``
bits of a code (8), ``z`` bytes of a zero point (4): 1 in the dtype of the codes, 0 where all are 0. Residual: ``o``, and ``p``, a
list of the stages with ``n``, ``e``, ``k``, ``d``, ``q`` and ``h`` each.
Factored: ``w`` middle dimension, ``q`` dtype of the outer diagonals, and ``p`` with ``n`` and ``e`` of the two binary matrices.
Masked (``m``): ``l``, the record of the leaf whose weights are masked, and ``p``, one record of the mask's
blocks with ``n``, ``e``, ``k``, ``d``, ``o`` and ``h``.
Scaled (``v``): ``t``, ``l``, the record of the clustered leaf in slices by rising exponent, ``a``, the axes along which exponents
differ, and ``p``, one record of the exponents, which come first, with ``n``, ``e``, ``k`` and ``h``.
Kind ``s`` is a leaf equal to an earlier one, whose name is ``r``, and has no bytes; with ``i: 1`` the two were one object.
(Releases that do not know it refuse a file that has one as of an unknown leaf kind; others are not changed by it.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Any

from bqjax.codec import entropy
from bqjax.codec.info import LeafInfo, factored_info, masked_info, residual_info, scaled_info
from bqjax.codec.structure import DTYPES
from bqjax.core.leaves.residual import MAX_STAGES

__all__ = ["parse_records", "to_record"]

_MAX_SIZE = 1 << 48  # bytes or entries of anything in one leaf: what addresses reach, so that products cannot overflow
_MAX_DIMS = 64
_TAGS = {"array": "", "clustered": "c", "affine": "a", "residual": "r", "factored": "f", "masked": "m", "scaled": "v"}
_KINDS = {tag: kind for kind, tag in _TAGS.items()}
_ARRAY_CODERS = ("planes",)  # that a record names
_KEYS = {
    "array": "sten",
    "clustered": "xstenqkdogh",
    "affine": "xstenqcabz",
    "residual": "xstop",
    "factored": "xstqwp",
    "masked": "xlp",
    "scaled": "xtlap",
}
_SAME = "s"
_PART_KEYS = {"residual": "enqkdh", "factored": "en", "masked": "enkdoh", "scaled": "enkh"}


def to_record(info: LeafInfo) -> dict[str, Any]:
    """The JSON object of a leaf. Of a group's leaves, those with ``table_bytes = 0`` refer to the one before."""
    if info.same_as is not None:
        return {"x": _SAME, "r": info.same_as} | ({"i": 1} if info.tied else {})
    if info.kind == "masked":
        leaf, mask = map(to_record, info.parts)
        return {"x": _TAGS["masked"], "l": leaf, "p": [{key: v for key, v in mask.items() if key in _PART_KEYS["masked"]}]}
    if info.kind == "scaled":
        leaf, part = map(to_record, info.parts)
        axes = [axis for axis, size in enumerate(info.parts[1].shape) if size == info.shape[axis]]
        exponents = {key: v for key, v in part.items() if key in _PART_KEYS["scaled"]}
        record = {"x": _TAGS["scaled"], "l": leaf, "a": axes, "p": [exponents]}
        return record if info.dtype == "float32" else record | {"t": info.dtype}
    order = (list(info.axis_order), list(range(len(info.shape))))
    fields: dict[str, tuple[Any, Any]] = {
        "x": (_TAGS[info.kind], ""),
        "s": (list(info.shape), None),
        "t": (info.dtype, "float32"),
    }
    if info.kind == "residual":
        fields |= {"o": order, "p": (_part_records(info), None)}
    elif info.kind == "factored":
        fields |= {"w": (info.k, None), "q": (info.table_dtype, "float32"), "p": (_part_records(info), None)}
    else:
        fields["n"] = (info.code_bytes, info.weight_bytes if info.kind == "array" else 0)
    if info.kind in ("clustered", "affine"):
        fields["e"] = (info.coder, "ans")
    if info.kind == "array" and info.coder in _ARRAY_CODERS:
        fields["e"] = (info.coder, "")
    if info.kind == "affine":
        fields |= {
            "c": (info.code_dtype, "int8"),
            "a": (info.axis, None),
            "b": (_bits(info), 8),
            "z": (info.zero_bytes, 4),
            "q": (info.table_dtype, "float32"),
        }
    if info.kind == "clustered":
        fields |= {"o": order, "g": (info.group, None)}
        if info.table_bytes:
            coded = info.table_kinds and [info.table_bytes - info.line_bytes, info.table_kinds]
            fields |= {"k": (info.k, None), "d": (info.d, 1), "q": (info.table_dtype, "float32"), "h": (coded, None)}
    return {key: value for key, (value, default) in fields.items() if value != default}


def _bits(info: LeafInfo) -> int:
    return (info.k or 1).bit_length() - 1


def _part_records(info: LeafInfo) -> list[dict[str, Any]]:
    """Records of the parts, without what the leaf says for all of them."""
    if info.kind == "factored":
        whole = [{"n": part.code_bytes, "e": part.coder} for part in info.parts]
        return [{key: v for key, v in part.items() if (key, v) != ("e", "ans")} for part in whole]
    return [{key: v for key, v in to_record(part).items() if key in _PART_KEYS["residual"]} for part in info.parts]


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
    leaves: dict[str, LeafInfo] = {}
    for name, record in zip(names, records, strict=True):
        try:
            again = type(record) is dict and record.get("x") == _SAME
            leaves[name] = _parse_same(name, record, leaves) if again else _parse(name, record, groups)
        except ValueError as error:
            raise ValueError(f"leaf {name!r}: {error}") from error
    return tuple(leaves.values())


def _parse_same(name: str, record: dict[str, Any], earlier: dict[str, LeafInfo]) -> LeafInfo:
    _known(record, "xri")
    first = record.get("r")
    if type(first) is not str or first not in earlier or earlier[first].same_as is not None:
        raise ValueError(f"it is said to equal {_short(first)}, which is no earlier leaf with bytes of its own")
    return earlier[first].again(name, tied=bool(_number(record, "i", 0, high=1)))


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
    _known(record, _KEYS[kind])
    if kind == "masked":
        return _parse_masked(name, record, groups)
    if kind == "scaled":
        return _parse_scaled(name, record)
    shape = _numbers(record, "s", None)
    dtype = _choice(record, "t", "float32", DTYPES, "dtype")
    if math.prod(max(size, 1) for size in shape) * DTYPES[dtype].itemsize > _MAX_SIZE:
        raise ValueError(f"its shape {shape} is too large for any memory")
    if kind == "array":
        size = math.prod(shape) * DTYPES[dtype].itemsize
        n = _number(record, "n", size, high=size)
        coder = "raw" if n == size else "zstd"
        if "e" in record:
            coder = _choice(record, "e", "", _ARRAY_CODERS, "coder of an array (a later version may know it)")
        info = LeafInfo(name, kind=kind, shape=shape, dtype=dtype, coder=coder, code_bytes=n)
        return _check_count(info, size)
    if kind == "affine":
        return _parse_affine(name, record, shape, dtype)
    if kind == "factored":
        return _parse_factored(name, record, shape, dtype)
    order = _numbers(record, "o", list(range(len(shape))))
    if kind == "residual":
        records = _part_list(record, "residual", 1, MAX_STAGES)
        stages = [_parse_clustered(f"{name}, stage {i}", stage, shape, dtype, order) for i, stage in enumerate(records)]
        return residual_info(name, shape, dtype, order, stages)
    group = record.get("g")
    if group is not None and type(group) is not str:
        raise ValueError(f"its group must be a string, is {_short(group)}")
    first = groups.get(group) if group is not None else None
    if first is not None and {"k", "d", "q", "h"} & set(record):
        raise ValueError(f"it describes the codebook of group {_short(group)} a second time")
    info = _parse_clustered(name, record, shape, dtype, order, first)
    if group is not None:
        info = with_fields(info, group=group)
        groups.setdefault(group, info)
    return info


def _known(record: dict[str, Any], keys: str) -> None:
    if unknown := set(record) - set(keys):
        raise ValueError(f"its record has unknown keys, {_short(min(unknown))} among them")


def _part_list(record: dict[str, Any], kind: str, low: int, high: int) -> list[dict[str, Any]]:
    parts = record.get("p")
    if type(parts) is not list or not low <= len(parts) <= high or not all(type(part) is dict for part in parts):
        raise ValueError(f"'p' must be a list of {low} to {high} JSON objects, is {_short(parts)}")
    for part in parts:
        _known(part, _PART_KEYS[kind])
    return parts


def _coded(record: dict[str, Any]) -> tuple[str, int]:
    return _choice(record, "e", "ans", entropy.CODERS, "coder"), _number(record, "n", 0)


def _parse_affine(name: str, record: dict[str, Any], shape: tuple[int, ...], dtype: str) -> LeafInfo:
    coder, code_bytes = _coded(record)
    table_dtype = _choice(record, "q", "float32", DTYPES, "dtype")
    axis = _number(record, "a", None, high=len(shape) - 1) if "a" in record else None
    zero_bytes = _number(record, "z", 4, high=4)
    if zero_bytes not in (0, 1, 4):
        raise ValueError(f"a zero point has 0, 1 or 4 bytes, not {zero_bytes}")
    info = LeafInfo(
        name,
        kind="affine",
        shape=shape,
        dtype=dtype,
        coder=coder,
        code_bytes=code_bytes,
        table_bytes=(DTYPES[table_dtype].itemsize + zero_bytes) * (1 if axis is None else shape[axis]),
        k=2 ** _number(record, "b", 8, 1, 8),
        table_dtype=table_dtype,
        code_dtype=_choice(record, "c", "int8", ("int8", "uint8"), "dtype of affine codes"),
        zero_bytes=zero_bytes,
        axis=axis,
    )
    return _check_count(info, info.n_symbols)


def _parse_factored(name: str, record: dict[str, Any], shape: tuple[int, ...], dtype: str) -> LeafInfo:
    if len(shape) < 2:
        raise ValueError(f"its shape {shape} is not that of a matrix")
    k, table_dtype = _number(record, "w", None, 1, 1 << 32), _choice(record, "q", "float32", DTYPES, "dtype")
    info = factored_info(name, shape, dtype, k, table_dtype, [_coded(part) for part in _part_list(record, "factored", 2, 2)])
    for part in info.parts:
        _check_count(part, part.n_symbols)
    return info


def _parse_masked(name: str, record: dict[str, Any], groups: dict[str, LeafInfo]) -> LeafInfo:
    inner = record.get("l")
    if type(inner) is not dict:
        raise ValueError(f"'l' must be the record of the leaf under the mask, is {_short(inner)}")
    _choice(inner, "x", "", {*_KINDS} - {_TAGS[kind] for kind in ("array", "masked", "scaled")}, "leaf kind under a mask")
    leaf = _parse(name, inner, groups)
    (part,) = _part_list(record, "masked", 1, 1)
    order = _numbers(part, "o", list(range(len(leaf.shape))))
    return masked_info(name, leaf, _parse_clustered(f"{name}, mask", part | {"q": "uint8"}, leaf.shape, "uint8", order))


def _parse_scaled(name: str, record: dict[str, Any]) -> LeafInfo:
    inner, dtype = record.get("l"), _choice(record, "t", "float32", DTYPES, "dtype")
    if type(inner) is not dict:
        raise ValueError(f"'l' must be the record of the leaf in other units, is {_short(inner)}")
    _choice(inner, "x", "", {_TAGS["clustered"]}, "leaf kind in other units")
    if "g" in inner or "o" in inner:
        raise ValueError("a leaf in other units is in C order and in no group")
    leaf, axes = _parse(name, inner, {}), _numbers(record, "a", None)
    if list(axes) != sorted(set(axes)) or not all(axis < len(leaf.shape) for axis in axes):
        raise ValueError(f"'a' must be axes of {leaf.shape}, each once, is {_short(list(axes))}")
    (part,) = _part_list(record, "scaled", 1, 1)
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(leaf.shape))
    order = tuple(range(len(shape)))
    exponents = _parse_clustered(f"{name}, exponents", part | {"q": "int8"}, shape, "int8", order)
    return scaled_info(name, dtype, leaf, exponents)


def _parse_clustered(
    name: str,
    record: dict[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    order: tuple[int, ...],
    first: LeafInfo | None = None,
) -> LeafInfo:
    """A clustered leaf, or a stage. ``first``: the leaf of its group that holds the codebook."""
    coder, code_bytes = _coded(record)
    table_dtype = _choice(record, "q", "float32", DTYPES, "dtype")
    described = record if first is None else {"k": first.k, "d": first.d}
    k, d = _number(described, "k", None, 1, 1 << 32), _number(described, "d", 1, 1)
    info = LeafInfo(
        name,
        kind="clustered",
        shape=shape,
        dtype=dtype,
        coder=coder,
        code_bytes=code_bytes,
        k=k,
        d=d,
        table_dtype=table_dtype if first is None else first.table_dtype,
        axis_order=order,
    )
    if first is None:
        size, kinds = _coded_table(record, k * d, table_dtype)
        info = with_fields(info, table_bytes=size + info.line_bytes, table_kinds=kinds)
    return _check_count(info, info.n_symbols)


def _coded_table(record: dict[str, Any], n: int, dtype: str) -> tuple[int, int | None]:
    """Bytes of a codebook of ``n`` numbers, and how many kinds of them there are where they are entropy-coded."""
    if "h" not in record:
        return n * DTYPES[dtype].itemsize, None
    said = _numbers(record, "h", None)
    one_byte = DTYPES[dtype].itemsize == 1
    if len(said) != 2 or not one_byte or not entropy.min_bytes(n) <= said[0] <= n or not 1 <= said[1] <= 256:
        raise ValueError(f"{n} numbers of {dtype} cannot be a coded codebook of {_short(list(said))}: bytes and kinds of numbers")
    return said[0], said[1]


def _check_count(info: LeafInfo, n: int) -> LeafInfo:
    if info.code_bytes < entropy.min_bytes(n) or (info.code_bytes and not n):
        raise ValueError(f"{n} symbols cannot have {info.code_bytes} bytes")
    return info
