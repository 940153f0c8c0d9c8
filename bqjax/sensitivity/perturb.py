"""Perturbations: what is done to a leaf before the network is scored again.

A perturbation is a hashable function of the weights and of a *candidate*, a small pytree of numbers (bounds,
magnitude, key). Thousands of candidates cost no memory; the perturbed weights exist only inside the mapped
function that scores them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import round_to

__all__ = [
    "KINDS",
    "Choice",
    "ChosenNoise",
    "CodeNoise",
    "Codebook",
    "HalfNoise",
    "Kind",
    "Noise",
    "NoiseCandidate",
    "Perturbation",
    "Quantize",
    "mirrors",
]

Kind = Literal["gaussian", "relative", "uniform", "collapse"]
KINDS: tuple[str, ...] = get_args(Kind)
Choice = Literal["random", "largest"]


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

    New values of an integer leaf are rounded to nearest and saturated; see :class:`CodeNoise` for codes with a zero point.
    """

    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of perturbation must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def __call__(self, weights: jax.Array, candidate: NoiseCandidate, context: Any = None) -> jax.Array:
        del context  # a sweep gives it to all perturbations of a leaf or to none
        w = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        m = candidate.magnitude.astype(w.dtype)
        if self.kind == "gaussian":
            new = w + m * jax.random.normal(candidate.key, w.shape, w.dtype)
        elif self.kind == "relative":
            new = w + w * jnp.where(_coins(candidate.key, w.shape), m, -m)
        elif self.kind == "uniform":
            new = w + m * jax.random.uniform(candidate.key, w.shape, w.dtype, -1.0, 1.0)
        else:
            new = jnp.full_like(w, m)
        inside = (w >= candidate.lower.astype(w.dtype)) & (w < candidate.upper.astype(w.dtype))
        return round_to(jnp.where(inside, new, w), weights.dtype)


@dataclass(frozen=True)
class CodeNoise:
    """:class:`Noise` on the integer codes of a quantized leaf, counted from the code that stands for 0.

    With zero point ``z``, ``Noise(kind)`` is taken of ``codes - z``, the candidate's bounds and magnitude in steps of the codes;
    then ``z`` is added again, and the codes are rounded to nearest and saturated. Noise of less than half a step changes nothing:
    relative noise of 3 % leaves the codes within 16 steps of ``z`` as they are.

    Attributes:
      kind: of the noise.
      zero_point: the zero point, or one for each channel.
      shape: to which ``zero_point`` is brought, so that it broadcasts against the codes: ``()`` for one number, ``(c, 1, 1, 1)``
        for one for each of ``c`` rows of a kernel.
    """

    kind: Kind
    zero_point: tuple[int, ...] = (0,)
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        Noise(self.kind)  # refuses an unknown kind
        if math.prod(self.shape) != len(self.zero_point):
            raise ValueError(f"zero points of shape {self.shape} are {math.prod(self.shape)}, got {len(self.zero_point)} of them")

    def __call__(self, weights: jax.Array, candidate: NoiseCandidate, context: Any = None) -> jax.Array:
        if not jnp.issubdtype(weights.dtype, jnp.integer):
            raise ValueError(f"a zero point goes with integer codes, the leaf is {weights.dtype}: use Noise({self.kind!r})")
        zero = jnp.asarray(self.zero_point, jnp.float32).reshape(self.shape)
        return round_to(Noise(self.kind)(weights.astype(jnp.float32) - zero, candidate) + zero, weights.dtype)


def _coins(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A fair coin for each weight, 32 from a random word: random numbers are what cheap suffixes spend their time on."""
    n = math.prod(shape)
    words = jax.random.bits(key, (-(-n // 32), 1), jnp.uint32)
    return ((words >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1 == 0).reshape(-1)[:n].reshape(shape)


@dataclass(frozen=True)
class HalfNoise:
    """:class:`Noise` on a share of a leaf's weights: chosen at random, or those that matter most (figure 5 of the paper).

    Exactly ``round(share * n)`` of the leaf's ``n`` weights are chosen. The candidate's bounds hold as well: a chosen weight
    outside of them stays as it is.

    Attributes:
      kind: of the noise.
      by: ``"random"`` chooses by the candidate's key, anew in every draw; ``"largest"`` takes the weights of largest
        ``|context|``, e.g. of the loss's gradient, the first ones among equals. Of a mapping it is the entry ``"gradient"``.
      share: of the weights, from 0 to 1.
    """

    kind: Kind
    by: Choice = "random"
    share: float = 0.5

    def __post_init__(self) -> None:
        Noise(self.kind)  # refuses an unknown kind
        if self.by not in get_args(Choice):
            raise ValueError(f"by must be one of {', '.join(get_args(Choice))}, got {self.by!r}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {self.share}")

    def __call__(self, weights: jax.Array, candidate: NoiseCandidate, context: Any = None) -> jax.Array:
        n = weights.size
        if isinstance(context, Mapping):
            context = context.get("gradient")
        if self.by == "random":
            # Which weights and what noise are independent of each other.
            noise_key, choice_key = jax.random.split(candidate.key)
            candidate = candidate._replace(key=noise_key)
            order = jax.random.permutation(choice_key, n)
        else:
            if context is None or jnp.shape(context) != weights.shape:
                got = "none" if context is None else f"one of shape {jnp.shape(context)}"
                raise ValueError(
                    f"by='largest' takes the weights of largest |context| and needs a context of shape {weights.shape}, got {got}: "
                    "pass context={leaf: gradient}"
                )
            order = jnp.argsort(-jnp.abs(context).reshape(-1), stable=True)
        # By rank, not by a threshold, so that ties do not change the count.
        chosen = jnp.zeros(n, bool).at[order[: round(self.share * n)]].set(True).reshape(weights.shape)
        return jnp.where(chosen, Noise(self.kind)(weights, candidate), weights)


@dataclass(frozen=True)
class ChosenNoise:
    """:class:`Noise` on the share of a leaf's weights for which a statistic is largest: does it find the weights that matter?

    Attributes:
      kind: of the noise.
      statistic: the entry of the context, a mapping of arrays of the leaf's shape, that ranks the weights by its absolute value.
      share: of the weights, from 0 to 1; see :class:`HalfNoise`.
    """

    kind: Kind
    statistic: str
    share: float = 0.5

    def __post_init__(self) -> None:
        HalfNoise(self.kind, "largest", self.share)  # refuses what it refuses

    def __call__(self, weights: jax.Array, candidate: NoiseCandidate, context: Mapping[str, jax.Array] | None = None) -> jax.Array:
        if not isinstance(context, Mapping) or self.statistic not in context:
            raise ValueError(
                f"the noise takes the weights by {self.statistic!r}: pass context={{leaf: {{{self.statistic!r}: array}}}}"
            )
        return HalfNoise(self.kind, "largest", self.share)(weights, candidate, context[self.statistic])


def mirrors(perturbation: Perturbation) -> bool:
    """Whether a negative magnitude is the same noise with the opposite sign, and as likely as the noise itself."""
    return isinstance(perturbation, Noise | CodeNoise | HalfNoise | ChosenNoise) and perturbation.kind != "collapse"


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
