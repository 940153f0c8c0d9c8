"""Rules that choose the leaves a method compresses, by name; the first match wins.

Nothing is chosen or passed over in silence: a rule that matches no leaf is an error, and every leaf that is left alone is listed
with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import is_compressed
from bqjax.core.names import NameIndex
from bqjax.core.tree import T, named_leaves, suggest

__all__ = ["Rule", "Selection", "check_compressible", "select"]


def grouped(taken: Mapping[str, Rule[Any]]) -> list[tuple[str | None, list[str]]]:
    """Leaves that share bins, in order of their first member: ``(group or None, names)``."""
    members: dict[Any, list[str]] = {}
    for name, rule in taken.items():
        members.setdefault(("group", rule.group) if rule.group is not None else ("leaf", name), []).append(name)
    return [(key[1] if key[0] == "group" else None, names) for key, names in members.items()]


def group_setting(group: str | None, names: Sequence[str], taken: Mapping[str, Rule[Any]]) -> Any:
    """The one setting of a group's leaves; ``ValueError`` where their rules disagree."""
    settings = [taken[name].setting for name in names]
    if any(s != settings[0] for s in settings):
        raise ValueError(f"group {group!r} has leaves with different settings {settings}: give its rules the same setting")
    return settings[0]


@dataclass(frozen=True)
class Rule(Generic[T]):
    """What to do with the leaves whose name matches a pattern.

    Attributes:
      pattern: the leaf's name as it is, or a shell-style pattern for the whole name; ``*`` also matches ``/`` (``"*/kernel"``,
        ``"conv?/*"``). A name is tried first, so that those with brackets can be written as they are (``"a[0].weight"``).
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


def _unfit(leaf: Any, integers: bool = True) -> str | None:
    """Why a leaf cannot be compressed, or None; 8-bit integers are taken only where they are named."""
    if is_compressed(leaf):
        return "already compressed"
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}, not an array"
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
        return "deleted, by donation to a jitted function or by delete(): take the array that the function returned, or a copy"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return f"random keys ({leaf.dtype}), not numbers"
    if jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits <= 8:
        return f"{leaf.dtype} has {jnp.finfo(leaf.dtype).bits} bits already: convert it to float32 first to compress it further"
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

    index = NameIndex(leaves)
    matches = [index.matching(rule.pattern) for rule in rules]
    decider: dict[str, int] = {}
    for i, names in enumerate(matches):
        for name in names:
            decider.setdefault(name, i)
    for name, leaf in leaves.items():
        if name not in decider:
            left[name] = "no rule matches it"
            continue
        rule = rules[decider[name]]
        if rule.skip:
            left[name] = f"skipped by rule {rule.pattern!r}"
        elif reason := _unfit(leaf):
            raise ValueError(
                f"rule {rule.pattern!r} chooses leaf {name!r}, which cannot be compressed: {reason}; "
                f"narrow the pattern or put Rule({name!r}, skip=True) before it"
            )
        else:
            taken[name] = rule
    decided = set(decider.values())
    for i, (r, names) in enumerate(zip(rules, matches, strict=True)):
        if not names:
            raise ValueError(f"rule {r.pattern!r} matches no leaf{suggest(r.pattern, list(leaves))}")
        if i not in decided:
            raise ValueError(f"rule {r.pattern!r} has no effect: earlier rules decide for every leaf that it matches")
    return Selection(taken, left)


def check_compressible(name: str, leaf: Any) -> None:
    """Raises ``ValueError`` where a leaf is not a non-empty array of floating-point numbers, int8 or uint8."""
    if reason := _unfit(leaf):
        raise ValueError(f"leaf {name!r} cannot be compressed: {reason}")
