"""Perturbations: what is done to a leaf before the network is scored again.

A perturbation is a hashable function of the weights and of a *candidate*, a small pytree of numbers (bounds,
magnitude, key). Thousands of candidates cost no memory; the perturbed weights exist only inside the mapped
function that scores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["KINDS", "Codebook", "Kind", "Noise", "NoiseCandidate", "Perturbation", "Quantize"]

Kind = Literal["gaussian", "relative", "uniform", "collapse"]
KINDS: tuple[str, ...] = get_args(Kind)


@runtime_checkable
class Perturbation(Protocol):
    """``perturbation(weights, candidate) -> weights``: pure, traceable, hashable (it keys the compilation cache)."""

    def __call__(self, weights: jax.Array, candidate: Any) -> jax.Array: ...

    def __hash__(self) -> int: ...


class NoiseCandidate(NamedTuple):
    """Noise on the weights ``w`` with ``lower <= w < upper``.

    Attributes:
      lower, upper: bounds of the bin, ``[]``; minus and plus infinity take the whole leaf.
      magnitude: ``[]``; its meaning depends on the kind of noise.
      key: a ``jax.random`` key.
    """

    lower: jax.Array | np.ndarray
    upper: jax.Array | np.ndarray
    magnitude: jax.Array | np.ndarray
    key: jax.Array


@dataclass(frozen=True)
class Noise:
    """Perturbs one bin of a leaf, or all of it.

    With ``m`` the candidate's magnitude:

    - ``"gaussian"``: ``w + m * normal`` (figure 2, first row, of the paper)
    - ``"relative"``: ``w * (1 + m)`` or ``w * (1 - m)``, a fair coin each (figure 2, second row: ``m = 0.5``)
    - ``"uniform"``: ``w + m * uniform(-1, 1)``
    - ``"collapse"``: ``m``, the bin's representative: what compressing this bin alone would do
    """

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of perturbation must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def __call__(self, weights: jax.Array, candidate: NoiseCandidate) -> jax.Array:
        w = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        m = candidate.magnitude.astype(w.dtype)
        if self.kind == "gaussian":
            new = w + m * jax.random.normal(candidate.key, w.shape, w.dtype)
        elif self.kind == "relative":
            new = w + w * jnp.where(jax.random.bernoulli(candidate.key, shape=w.shape), m, -m)
        elif self.kind == "uniform":
            new = w + m * jax.random.uniform(candidate.key, w.shape, w.dtype, -1.0, 1.0)
        else:
            new = jnp.full_like(w, m)
        inside = (w >= candidate.lower.astype(w.dtype)) & (w < candidate.upper.astype(w.dtype))
        return jnp.where(inside, new, w).astype(weights.dtype)


class Codebook(NamedTuple):
    """Scalar bins and their values, for the weights ``w`` with ``lower <= w < upper``.

    Attributes:
      edges: ``[k - 1]`` ascending, padded with +inf.
      values: ``[k]``.
      lower, upper: ``[]``; other weights are left alone.
    """

    edges: jax.Array | np.ndarray
    values: jax.Array | np.ndarray
    lower: jax.Array | np.ndarray | np.floating = np.float32(-np.inf)
    upper: jax.Array | np.ndarray | np.floating = np.float32(np.inf)


@dataclass(frozen=True)
class Quantize:
    """Replaces weights by the values of their bins: what compressing the whole leaf, or one bin of it, would do."""

    def __call__(self, weights: jax.Array, candidate: Codebook) -> jax.Array:
        w = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        index = jnp.searchsorted(candidate.edges.astype(w.dtype), w.reshape(-1), side="right", method="compare_all")
        inside = (w >= candidate.lower.astype(w.dtype)) & (w < candidate.upper.astype(w.dtype))
        return jnp.where(inside, candidate.values[index].reshape(w.shape), w).astype(weights.dtype)
