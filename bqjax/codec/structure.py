"""The shape of a pytree as JSON, and the dtypes that a file can hold.

==============================  ============================================================
JSON                            node
==============================  ============================================================
``0``                           a leaf; leaves count in the order of the document
``null``                        None
``{"key": node, ...}``          dict whose keys are all strings
``["d", key, node, ...]``       dict with integer keys among its keys
``["l", node, ...]``            list
``["t", node, ...]``            tuple
==============================  ============================================================

Dicts, lists, tuples and None are restored as they were, a dict in its own order. Any other node that JAX knows
(NamedTuple, dataclass, OrderedDict, a registered class) becomes a dict keyed by field name or index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from bqjax.core.leaves import is_compressed

__all__ = ["DTYPES", "MAX_DEPTH", "as_array", "flatten", "unflatten"]

MAX_DEPTH = 200
_MAX_KEY = 1 << 63

_NUMPY_DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_ML_DTYPES = (
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu float4_e2m1fn float6_e2m3fn float6_e3m2fn int1 int2 int4 uint1 uint2 uint4"
)

DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in _NUMPY_DTYPES.split()},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_DTYPES.split() if hasattr(ml_dtypes, name)},
}


def as_array(name: str, leaf: Any) -> np.ndarray:
    """An array leaf, or a field of a compressed leaf, as a native NumPy array in C order.

    Raises:
      ValueError: naming the leaf, where it is not an array or of a dtype that a file cannot hold.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"leaf {name!r} is traced: save outside of jit, grad and vmap")
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise ValueError(
            f"leaf {name!r} is a {type(leaf).__name__}, not an array: store np.asarray(...) of it, with the dtype you mean"
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(f"leaf {name!r} is a ShapeDtypeStruct: it has no values to store")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"leaf {name!r} was deleted, by donation to a jitted function or by delete(): save the array that the function returned"
        )
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"leaf {name!r} holds random keys ({leaf.dtype}), which cannot be stored: store jax.random.key_data of them, "
            "and make keys of that again by jax.random.wrap_key_data"
        )
    if getattr(leaf.dtype, "name", None) not in DTYPES:
        raise ValueError(f"leaf {name!r} is of dtype {leaf.dtype}, which cannot be stored: arrays of numbers and booleans can")
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def flatten(tree: Any) -> tuple[Any, dict[str, Any]]:
    """The tree as nested JSON values, and its leaves by name in the order of that document.

    Names are those of :func:`bqjax.core.tree.named_leaves`.

    Raises:
      ValueError: two leaves of one name, a dict key that is neither ``str`` nor ``int``, too deep a tree.

    Example:
      >>> flatten({"b": (1, None), "a": [2]})
      ({'b': ['t', 0, None], 'a': ['l', 0]}, {'b/0': 1, 'a/0': 2})
    """
    leaves: dict[str, Any] = {}
    return _flatten(tree, (), leaves), leaves


def _flatten(node: Any, path: tuple[str, ...], leaves: dict[str, Any]) -> Any:
    if len(path) > MAX_DEPTH:
        raise ValueError(f"the tree is nested deeper than {MAX_DEPTH} levels at {'/'.join(path[:4])!r}...")
    if node is None:
        return None
    if type(node) in (list, tuple):
        tag = "l" if type(node) is list else "t"
        return [tag, *(_flatten(child, (*path, str(i)), leaves) for i, child in enumerate(node))]
    if type(node) is dict:
        return _flatten_dict(node, path, leaves)
    name = "/".join(path) if path else "."
    if is_compressed(node) or jax.tree_util.all_leaves([node]):
        if name in leaves:
            raise ValueError(f"two leaves are named {name!r}: rename a key that contains '/'")
        leaves[name] = node
        return 0
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    return _flatten_dict({_plain_key(path[0]): child for path, child in children}, path, leaves)


def _plain_key(key: Any) -> str | int:
    for attribute in ("name", "key", "idx"):
        plain: Any = getattr(key, attribute, None)
        if type(plain) in (str, int):
            return plain
    return jax.tree_util.keystr((key,), simple=True)


def _flatten_dict(node: dict[Any, Any], path: tuple[str, ...], leaves: dict[str, Any]) -> Any:
    for key in node:
        if type(key) not in (str, int) or (type(key) is int and abs(key) >= _MAX_KEY):
            raise ValueError(f"a dict key must be a str or an int below 2**63, got {key!r} under {'/'.join(path) or '.'!r}")
    flat = {key: _flatten(child, (*path, str(key)), leaves) for key, child in node.items()}
    if all(type(key) is str for key in flat):
        return flat
    return ["d", *(x for item in flat.items() for x in item)]


def unflatten(document: Any, make: Callable[[str], Any]) -> Any:
    """Inverse of :func:`flatten`.

    Args:
      document: JSON values, trusted for nothing.
      make: called with the name of every leaf in the document's order; returns the leaf.

    Raises:
      ValueError: not such a document, or nested too deeply.

    Example:
      >>> unflatten({"b": ["t", 0, None], "a": ["l", 0]}, str.upper)
      {'b': ('B/0', None), 'a': ['A/0']}
    """
    return _unflatten(document, (), make)


def _unflatten(document: Any, path: tuple[str, ...], make: Callable[[str], Any]) -> Any:
    if len(path) > MAX_DEPTH:
        raise ValueError(f"the tree is nested deeper than {MAX_DEPTH} levels")
    if document is None:
        return None
    if type(document) is int and document == 0:
        return make("/".join(path) if path else ".")
    if type(document) is dict:
        return {key: _unflatten(child, (*path, key), make) for key, child in document.items()}
    tag = document[0] if type(document) is list and document else None
    if tag == "l" or tag == "t":
        children = [_unflatten(child, (*path, str(i)), make) for i, child in enumerate(document[1:])]
        return children if tag == "l" else tuple(children)
    if tag == "d" and len(document) % 2:
        keys = document[1::2]
        if not all(type(key) in (str, int) for key in keys) or len(set(keys)) < len(keys):
            raise ValueError("the tree has a dict with a key that is no string or integer, or with one key twice")
        pairs = zip(keys, document[2::2], strict=True)
        return {key: _unflatten(child, (*path, str(key)), make) for key, child in pairs}
    raise ValueError(f"the tree has a {type(document).__name__} that stands for no node")
