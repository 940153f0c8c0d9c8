"""Codebooks of clustered trees: taken out and put back, their gradients, and codebooks of few bits.

References:
  Stock et al. 2020 (arXiv 1907.05686), section 3.3: codebooks trained by summed gradients.
  Han, Mao, Dally 2016 (arXiv 1510.00149), section 3.2: the same for single weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.blocks import to_blocks
from bqjax.core.leaves import Clustered, index_dtype
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.assignment import weighted_sums

__all__ = [
    "clustered_leaves",
    "codebook_gradients",
    "codebook_name",
    "codebooks",
    "quantize_codebooks",
    "rounded_codebooks",
    "trimmed_codebooks",
    "with_codebooks",
]


def clustered_leaves(tree: Any) -> dict[str, Clustered]:
    """The clustered leaves of a tree by name."""
    return {name: leaf for name, leaf in named_leaves(tree).items() if isinstance(leaf, Clustered)}


def codebook_name(name: str, leaf: Clustered) -> str:
    """By what name :func:`codebooks` has the codebook of a leaf: its own, or ``"group NAME"``."""
    return name if leaf.group is None else f"group {leaf.group}"


def codebooks(tree: Any) -> dict[str, jax.Array]:
    """The codebooks ``[k, d]`` of a clustered tree by leaf name; one that a group shares is there once, as ``"group NAME"``.

    A plain dict: an optimiser's ``init`` and ``update`` take it as it is.
    """
    return {codebook_name(name, leaf): leaf.entries() for name, leaf in clustered_leaves(tree).items()}


def with_codebooks(tree: Any, new: Mapping[str, Any]) -> Any:
    """The tree with the codebooks of :func:`codebooks` replaced. Differentiable.

    Raises:
      ValueError: a codebook is missing, or has another shape.
    """
    changed = {}
    for name, leaf in clustered_leaves(tree).items():
        key = codebook_name(name, leaf)
        if key not in new or np.shape(new[key]) != np.shape(leaf.codebook):
            found = np.shape(new[key]) if key in new else "nothing"
            raise ValueError(f"codebook {key!r} must have shape {np.shape(leaf.codebook)}, got {found}")
        changed[name] = with_fields(leaf, codebook=jnp.asarray(new[key]), scale=None, offset=None)
    return replace(tree, changed)


def codebook_gradients(tree: Any, grads: Any) -> dict[str, jax.Array]:
    """The gradient of every codebook entry: the sum of the gradients of all weights that it stands for. Traceable.

    That is the gradient with respect to ``codebooks(tree)`` of a loss of ``decode(with_codebooks(tree, ...))``, from
    gradients with respect to the weights.

    Args:
      tree: clustered tree.
      grads: gradients of the decoded weights, a pytree with the same names.

    Returns:
      ``[k, d]`` by the names of :func:`codebooks`; leaves of a group are added up.

    Example:
      >>> leaf = Clustered(np.array([0, 1, 0], np.uint8), np.float32([[1.0], [5.0]]), (3,), np.float32)
      >>> codebook_gradients({"w": leaf}, {"w": np.float32([1, 2, 3])})["w"].tolist()
      [[4.0], [2.0]]
    """
    gradients = named_leaves(grads)
    total: dict[str, jax.Array] = {}
    for name, leaf in clustered_leaves(tree).items():
        g = to_blocks(jnp.asarray(gradients[name]), leaf.axis_order, leaf.d)
        summed = weighted_sums(g, jnp.ones((g.shape[0], 1), g.dtype), jnp.asarray(leaf.indices), leaf.k)[0]
        key = codebook_name(name, leaf)
        total[key] = total[key] + summed if key in total else summed
    return total


def trimmed_codebooks(tree: Any) -> Any:
    """The tree without the codebook entries that no leaf points to; leaves that share a codebook keep what any of them uses.
    Concrete.

    Example:
      >>> leaf = Clustered(np.array([2, 0, 2], np.uint8), np.float32([[1.0], [5.0], [7.0]]), (3,), np.float32)
      >>> small = trimmed_codebooks({"w": leaf})["w"]
      >>> small.indices.tolist(), small.codebook.tolist()
      ([1, 0, 1], [[1.0], [7.0]])
    """
    leaves = clustered_leaves(tree)
    used: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        key = codebook_name(name, leaf)
        used[key] = used.get(key, np.zeros(leaf.k, bool)) | (np.bincount(np.asarray(leaf.indices), minlength=leaf.k) > 0)
    new = {}
    for name, leaf in leaves.items():
        kept = used[codebook_name(name, leaf)]
        place = (np.cumsum(kept) - 1).astype(index_dtype(int(kept.sum())))
        new[name] = with_fields(leaf, indices=place[np.asarray(leaf.indices)], codebook=np.asarray(leaf.codebook)[kept])
    return replace(tree, new)


def quantize_codebooks(tree: Any, intervals: Mapping[str, tuple[Any, Any]] | None = None, *, bits: int = 8) -> Any:
    """The tree with every codebook as codes of ``bits`` bits on an even grid: ``entries = scale * (codes + offset)``.

    Of a network whose weights go through a quantizer of the same interval and bits, no output changes: the quantizer gives
    an entry and the grid point nearest to it the same code.

    Args:
      tree: clustered tree, floating-point leaves.
      intervals: ``(lower, upper)`` of the grid by the names of :func:`codebooks`, as the interval of a layer's weight
        quantizer; entries beyond it go to its ends. Codebooks without one span their own range.
      bits: of a code, 1 to 8.

    Returns:
      The tree, its codebooks uint8 with ``scale`` and ``offset``.

    Raises:
      ValueError: ``bits`` is out of range; an interval is of no codebook, not finite or empty; weights are integers.

    Example:
      >>> leaf = Clustered(np.array([0, 1], np.uint8), np.float32([[0.1, 1.0], [-1.0, 0.3]]), (2, 2), np.float32)
      >>> small = quantize_codebooks({"w": leaf}, {"w": (-1.0, 1.0)}, bits=2)["w"]
      >>> small.codebook.tolist(), np.asarray(small.decode(), np.float64).round(3).tolist()
      ([[2, 3], [0, 2]], [[0.333, 1.0], [-1.0, 0.333]])
    """
    _check_bits(bits)
    given, entries = dict(intervals or {}), codebooks(tree)
    if unknown := sorted(given.keys() - entries.keys()):
        raise ValueError(f"intervals name {unknown}; the codebooks are {sorted(entries)}")
    coded: dict[str, dict[str, Any]] = {}
    for key, values in entries.items():
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise ValueError(f"codebook {key!r} holds {values.dtype}, which is an integer type already")
        x = np.asarray(values, np.float32)
        lower, upper = (np.float32(v) for v in given.get(key, (x.min(), x.max())))
        if not (np.isfinite(lower) and np.isfinite(upper)) or (key in given and not lower < upper):
            raise ValueError(f"the interval of codebook {key!r} must be finite and not empty, got {lower} to {upper}")
        codes, scale, offset = map(np.asarray, _on_grid(x, lower, upper, bits))
        coded[key] = {"codebook": codes.astype(np.uint8), "scale": scale, "offset": offset}
    return replace(tree, {n: with_fields(leaf, **coded[codebook_name(n, leaf)]) for n, leaf in clustered_leaves(tree).items()})


def rounded_codebooks(codebooks: Mapping[str, Any], *, bits: int | None = 8) -> dict[str, jax.Array]:
    """Codebooks as :func:`quantize_codebooks` leaves them, for training: values on the grid over each one's own range, gradients
    straight through. Traceable.

    Where one entry stands for most blocks, as that near zero does below one bit a weight, rounding moves all of them to one side,
    and a network whose training did not see it loses points to 6 bits (``docs/below_one_bit.md``).

    Args:
      codebooks: ``[k, d]`` floating point, by the names of :func:`codebooks`.
      bits: of a number, 1 to 8; None leaves codebooks as they are.

    Raises:
      ValueError: ``bits`` is out of range.

    Example:
      >>> rounded_codebooks({"w": jnp.array([[-1.0], [0.1], [0.5]])}, bits=2)["w"].ravel().tolist()
      [-1.0, 0.0, 0.5]
    """
    if bits is None:
        return dict(codebooks)
    _check_bits(bits)

    def rounded(x: jax.Array) -> jax.Array:
        codes, scale, offset = _on_grid(x, x.min(), x.max(), bits)
        return x + jax.lax.stop_gradient((codes + offset) * scale - x)

    return {name: rounded(jnp.asarray(x)) for name, x in codebooks.items()}


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise ValueError(f"codes of a codebook have 1 to 8 bits, got {bits!r}")


def _on_grid(x: Any, lower: Any, upper: Any, bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes of numbers on an even grid, its scale and offset: ``scale * (codes + offset)``. Traceable."""
    levels = 2**bits - 1
    scale = (upper - lower) / levels
    # Where all entries are alike, one code stands for them.
    scale = jnp.where(scale > 0, scale, jnp.maximum(jnp.abs(lower), 1))
    return jnp.clip(jnp.round((x - lower) / scale), 0, levels), scale, lower / scale
