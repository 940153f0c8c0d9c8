"""Which relative error a file of a given size allows, by the entropy of samples of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from bqjax.methods.baselines.even import EvenConfig, even_rate

__all__ = ["Rates"]

_SAMPLE = 1 << 14  # weights of a leaf
_RANGE = (1e-4, 0.9)  # relative errors
_STEPS = 16


class Rates:
    """Bytes of even levels against the relative error of each leaf, from samples that stay in memory.

    Args:
      weights: the leaves, one at a time.
      config: whose ``lmbda`` is taken.
    """

    def __init__(self, weights: Iterable[np.ndarray], config: EvenConfig):
        self._samples: list[tuple[np.ndarray, float]] = []
        for weight in weights:
            sample = weight.reshape(-1)[:: max(1, weight.size // _SAMPLE)].copy()
            self._samples.append((sample, weight.size / max(sample.size, 1)))
        self._config = config

    def bytes(self, rtol: float) -> float:
        """About how many bytes the codes of all leaves take."""
        config = dataclasses.replace(self._config, rtol=rtol)
        return sum(share * even_rate(sample, config) for sample, share in self._samples)

    def rtol(self, target: float) -> float:
        """The least relative error at which the codes take at most ``target`` bytes; the ends of the range beyond it."""
        low, high = map(float, np.log(_RANGE))
        if self.bytes(_RANGE[0]) <= target:
            return _RANGE[0]
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.bytes(float(np.exp(middle))) <= target else (middle, high)
        return float(np.exp(high))
