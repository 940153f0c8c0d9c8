"""Named leaves of parameter pytrees.

A leaf's name is its path with ``/`` between the keys: ``{"conv": {"kernel": w}}`` has the leaf ``conv/kernel``, a
tuple's third entry under ``layers`` is ``layers/2``. A tree that is one leaf names it ``.``;
``{"": w}`` has a leaf of an empty name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import is_compressed

__all__ = ["by_size", "check_finite", "named_leaves", "replace"]

T = TypeVar("T")
_PIECE = 2**20


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, in the tree's order; compressed leaves count as leaves.

    Raises:
      ValueError: two leaves have one name, as ``{"a": {"b": x}, "a/b": y}`` would; a dict whose keys cannot be sorted.

    Example:
      >>> list(named_leaves({"conv": {"kernel": 1, "bias": 2}, "layers": [3]}))
      ['conv/bias', 'conv/kernel', 'layers/0']
    """
    named: dict[str, Any] = {}
    try:
        flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)[0]
    except ValueError as error:
        if "sorting" not in str(error):
            raise
        raise ValueError(
            "a dict has keys that cannot be sorted, as strings and numbers: JAX takes none; make all keys of a dict strings"
        ) from error
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator="/") if path else "."
        if name in named:
            raise ValueError(f"two leaves are named {name!r}: rename a key that contains '/'")
        named[name] = leaf
    return named


def replace(tree: Any, new: Mapping[str, Any]) -> Any:
    """The tree with the named leaves replaced.

    Raises:
      ValueError: a name that the tree does not have.
    """
    names = named_leaves(tree)
    for name in new:
        if name not in names:
            raise ValueError(f"no leaf is named {name!r}{suggest(name, list(names))}")
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_compressed)
    return jax.tree.unflatten(treedef, [new.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)])


def by_size(tree: Any, names: Sequence[str]) -> list[str]:
    """``names`` in descending order of their leaves' size; equals keep the tree's order (III-B of the paper)."""
    leaves = named_leaves(tree)
    order = {name: i for i, name in enumerate(leaves)}
    return sorted(names, key=lambda name: (-int(np.prod(np.shape(leaves[name]))), order[name]))


def suggest(pattern: str, names: Sequence[str]) -> str:
    """What to add to an error about a name or pattern that is not among ``names``."""
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else f"; the leaves are {', '.join(map(repr, names[:8]))}"


def check_finite(name: str, leaf: Any) -> None:
    """Raises ``ValueError`` where a concrete floating-point array holds NaN or infinities; tracers pass unchecked."""
    if isinstance(leaf, jax.core.Tracer):
        return
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(
            f"leaf {name!r} was deleted, by donation to a jitted function or by delete(): take what the function returned"
        )
    if isinstance(leaf, np.ndarray):  # in pieces and without a copy: leaves may be large
        flat = leaf.reshape(-1)
        finite = sum(int(np.count_nonzero(np.isfinite(flat[i : i + _PIECE]))) for i in range(0, flat.size, _PIECE))
    else:
        finite = int(jnp.isfinite(leaf).sum())
    bad = np.size(leaf) - finite
    if bad:
        raise ValueError(f"leaf {name!r} holds {bad} NaN or infinite values of {np.size(leaf)}: repair it or skip it by a rule")
