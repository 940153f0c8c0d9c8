"""Perturbations of several leaves at once, or of one among several: which leaf is a number of the candidate, not of the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.sensitivity.candidates import stacked
from bqjax.sensitivity.perturb import NoiseCandidate, Perturbation

__all__ = ["Joint", "Jointly", "joint_of"]


class Joint(NamedTuple):
    """Several candidates at once.

    Attributes:
      points: of all of them, stacked ``[k, ...]``.
      places: ``[k]``, which leaf each is about.
    """

    points: NoiseCandidate
    places: jax.Array | np.ndarray


@dataclass(frozen=True)
class Jointly:
    """A perturbation of several leaves by those of several candidates that are about each.

    The context of a leaf is its place, and what the perturbation itself takes as a context (None for one that takes none).
    """

    perturbation: Perturbation

    def __call__(self, weights: jax.Array, candidate: Joint, context: tuple[Any, Any] = (0, None)) -> jax.Array:
        place, own = context

        def step(i: Any, changed: jax.Array) -> jax.Array:
            def perturbed() -> jax.Array:
                point = jax.tree.map(lambda x: x[i], candidate.points)
                new = self.perturbation(weights, point) if own is None else self.perturbation(weights, point, own)  # type: ignore[call-arg]
                # From the weights as they were: one that a bin's noise moves into another bin is not moved again.
                return jnp.where(changed != weights, changed, new)

            return jax.lax.cond(candidate.places[i] == place, perturbed, lambda: changed)

        return jax.lax.fori_loop(0, candidate.places.shape[0], step, weights)


def joint_of(points: Sequence[NoiseCandidate], places: Sequence[int]) -> Joint:
    """Some candidates as one, each with the place of its leaf."""
    return Joint(jax.tree.map(lambda *xs: stacked(xs), *points), np.array(places, np.int32))
