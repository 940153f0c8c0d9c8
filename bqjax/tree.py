"""Named leaves of parameter pytrees, and rules that choose among them.

A leaf's name is its path with ``/`` between the keys: ``{"conv": {"kernel": w}}`` has the leaf ``conv/kernel``, a
tuple's third entry under ``layers`` is ``layers/2``. Rules are matched against these names; the first match wins.
Nothing is chosen or passed over in silence: a rule that matches no leaf is an error, and every leaf that is left
alone is listed with the reason.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.leaves import is_compressed

__all__ = ["Rule", "Selection", "by_size", "check_compressible", "check_finite", "named_leaves", "replace", "select"]

T = TypeVar("T")
_PIECE = 2**20


@dataclass(frozen=True)
class Rule(Generic[T]):
    """What to do with the leaves whose name matches a pattern.

    Attributes:
      pattern: a shell-style pattern for the whole name; ``*`` also matches ``/`` (``"*/kernel"``, ``"conv?/*"``).
      setting: the method's own setting for these leaves (a number of bins, a config); None takes the method's default.
      group: leaves of one group share their bins or codebook.
      skip: leave these leaves as they are.
    """

    pattern: str
    setting: T | None = None
    _: KW_ONLY
    group: str | None = None
    skip: bool = False


@dataclass(frozen=True)
class Selection(Generic[T]):
    """Which leaves a method takes. ``taken`` maps names to the rule that chose them, ``left`` to a reason."""

    taken: Mapping[str, Rule[T]]
    left: Mapping[str, str]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, in the tree's order; compressed leaves count as leaves.

    Raises:
      ValueError: two leaves have one name, as ``{"a": {"b": x}, "a/b": y}`` would.

    Example:
      >>> list(named_leaves({"conv": {"kernel": 1, "bias": 2}, "layers": [3]}))
      ['conv/bias', 'conv/kernel', 'layers/0']
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "."
        if name in named:
            raise ValueError(f"two leaves are named {name!r}: rename a key that contains '/'")
        named[name] = leaf
    return named


def replace(tree: Any, new: Mapping[str, Any]) -> Any:
    """The tree with the named leaves replaced.

    Raises:
      ValueError: a name that the tree does not have.
    """
    names = list(named_leaves(tree))
    for name in new:
        if name not in names:
            raise ValueError(f"no leaf is named {name!r}{_suggest(name, names)}")
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_compressed)
    return jax.tree.unflatten(treedef, [new.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)])


def by_size(tree: Any, names: Sequence[str]) -> list[str]:
    """``names`` in descending order of their leaves' size; equals keep the tree's order (III-B of the paper)."""
    leaves = named_leaves(tree)
    order = {name: i for i, name in enumerate(leaves)}
    return sorted(names, key=lambda name: (-int(np.prod(np.shape(leaves[name]))), order[name]))


def _suggest(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else f"; the leaves are {', '.join(map(repr, names[:8]))}"


def _unfit(leaf: Any, integers: bool = True) -> str | None:
    """Why a leaf cannot be compressed, or None; 8-bit integers are taken only where they are named."""
    if is_compressed(leaf):
        return "already compressed"
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}, not an array"
    if not jnp.issubdtype(leaf.dtype, jnp.floating) and not (integers and leaf.dtype in (np.int8, np.uint8)):
        return f"{leaf.dtype} is not floating point"
    if leaf.size == 0:
        return f"empty (shape {tuple(leaf.shape)})"
    return None


def select(tree: Any, rules: Sequence[Rule[T]] | None = None) -> Selection[T]:
    """Chooses the leaves that a method compresses.

    Args:
      tree: parameters.
      rules: the first rule whose pattern matches a leaf's name decides; leaves that none matches are left alone.
        Without rules, floating-point leaves of two or more dimensions are taken.

    Returns:
      The chosen leaves and, with the reason, those left alone.

    Raises:
      ValueError: a rule that decides for no leaf, or one that chooses a leaf that cannot be compressed
        (neither floating point nor int8 or uint8, empty, already compressed).
    """
    leaves = named_leaves(tree)
    taken: dict[str, Rule[T]] = {}
    left: dict[str, str] = {}
    if rules is None:
        rule: Rule[T] = Rule("*")
        for name, leaf in leaves.items():
            reason = _unfit(leaf, integers=False) or ("fewer than two dimensions" if leaf.ndim < 2 else None)
            if reason:
                left[name] = reason
            else:
                taken[name] = rule
        return Selection(taken, left)

    matched = dict.fromkeys(range(len(rules)), False)
    decided = dict.fromkeys(range(len(rules)), False)
    for name, leaf in leaves.items():
        hits = [i for i, r in enumerate(rules) if fnmatch.fnmatchcase(name, r.pattern)]
        for i in hits:
            matched[i] = True
        if not hits:
            left[name] = "no rule matches it"
            continue
        rule = rules[hits[0]]
        decided[hits[0]] = True
        if rule.skip:
            left[name] = f"skipped by rule {rule.pattern!r}"
        elif reason := _unfit(leaf):
            raise ValueError(
                f"rule {rule.pattern!r} chooses leaf {name!r}, which cannot be compressed: {reason}; "
                f"narrow the pattern or put Rule({name!r}, skip=True) before it"
            )
        else:
            taken[name] = rule
    for i, r in enumerate(rules):
        if not matched[i]:
            raise ValueError(f"rule {r.pattern!r} matches no leaf{_suggest(r.pattern, list(leaves))}")
        if not decided[i]:
            raise ValueError(f"rule {r.pattern!r} has no effect: earlier rules decide for every leaf that it matches")
    return Selection(taken, left)


def check_compressible(name: str, leaf: Any) -> None:
    """Raises ``ValueError`` where a leaf is not a non-empty array of floating-point numbers, int8 or uint8."""
    if reason := _unfit(leaf):
        raise ValueError(f"leaf {name!r} cannot be compressed: {reason}")


def check_finite(name: str, leaf: Any) -> None:
    """Raises ``ValueError`` where a concrete floating-point array holds NaN or infinities; tracers pass unchecked."""
    if isinstance(leaf, jax.core.Tracer):
        return
    if isinstance(leaf, np.ndarray):  # in pieces and without a copy: leaves may be large
        flat = leaf.reshape(-1)
        finite = sum(int(np.count_nonzero(np.isfinite(flat[i : i + _PIECE]))) for i in range(0, flat.size, _PIECE))
    else:
        finite = int(jnp.isfinite(leaf).sum())
    bad = np.size(leaf) - finite
    if bad:
        raise ValueError(f"leaf {name!r} holds {bad} NaN or infinite values of {np.size(leaf)}: repair it or skip it by a rule")
