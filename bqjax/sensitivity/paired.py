"""Standard errors of paired differences over examples and over draws, and tests that hold for many of them at once.

A drop is a mean over two samples: the examples, and the draws of noise. Both are samples of something larger, and both leave an
error. The difference between perturbed and unperturbed network is taken example by example, so that what is common to both (easy
and hard examples) cancels.

References:
  Cameron, Gelbach, Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29(2), 2011.
  Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2(6), 1946.
  Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

__all__ = ["Errors", "errors_between", "errors_of", "holm", "p_values", "t_quantile"]


class Errors(NamedTuple):
    """A mean over draws and examples with its standard errors.

    Attributes:
      mean: of all differences.
      examples: standard error over examples, at the draws that were made; NaN where examples are not told apart.
      draws: standard error over draws, on the examples that there were; NaN for one draw.
      both: over examples and draws; where one of them is NaN it is the other alone.
      freedom: degrees of freedom behind ``both``.
    """

    mean: float
    examples: float
    draws: float
    both: float
    freedom: float


def errors_of(differences: np.ndarray) -> Errors:
    """Two-way standard error of the mean of paired differences.

    The variance over examples of means over draws, and that over draws of means over examples, each contain the part that belongs
    to neither alone; it is taken off once.

    Args:
      differences: ``[draws, n]``, unperturbed less perturbed.

    Example:
      >>> found = errors_of(np.array([[1.0, 0.0], [3.0, 2.0]]))
      >>> found.mean, found.examples, found.draws, found.both
      (1.5, 0.5, 1.0, 1.118033988749895)
    """
    d = np.asarray(differences, np.float64)
    return _combined(float(d.mean()), _over_examples(d.mean(0)), _over_draws(d), _interaction(d), d.shape)


def errors_between(a: np.ndarray, b: np.ndarray, *, common: bool) -> Errors:
    """Two-way standard error of the difference of two means over the same examples.

    Args:
      a, b: ``[draws, n]``; the numbers of draws may differ unless ``common``.
      common: whether draw ``j`` of both is the same noise, so that the draws are paired as well.

    Raises:
      ValueError: other examples, or common draws of another number.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape[1] != b.shape[1] or (common and len(a) != len(b)):
        raise ValueError(f"differences of shapes {a.shape} and {b.shape} are not paired")
    if common:
        return errors_of(a - b)
    examples = _over_examples(a.mean(0) - b.mean(0))
    draws, both = _over_draws(a) + _over_draws(b), _interaction(a) + _interaction(b)
    return _combined(float(a.mean() - b.mean()), examples, draws, both, (min(len(a), len(b)), a.shape[1]))


def _over_examples(means: np.ndarray) -> float:
    return float(means.var(ddof=1)) / len(means) if len(means) > 1 else math.nan


def _over_draws(d: np.ndarray) -> float:
    return float(d.mean(1).var(ddof=1)) / len(d) if len(d) > 1 else math.nan


def _interaction(d: np.ndarray) -> float:
    """Variance of the mean that is left when neither examples nor draws are to blame."""
    n_draws, n = d.shape
    if n_draws < 2 or n < 2:
        return 0.0
    rest = d - d.mean(0)[None] - d.mean(1)[:, None] + d.mean()
    return float(np.square(rest).sum()) / ((n_draws - 1) * (n - 1) * n_draws * n)


def _combined(mean: float, examples: float, draws: float, interaction: float, shape: tuple[int, int]) -> Errors:
    """From variances over examples and over draws, each NaN where it is not known."""
    parts = [(v, size - 1) for v, size in ((examples, shape[1]), (draws, shape[0])) if not math.isnan(v)]
    if not parts:
        return Errors(mean, math.nan, math.nan, math.nan, math.nan)
    # Never less than either alone: the estimate of what they share may exceed what they hold.
    variance = max(sum(v for v, _ in parts) - (interaction if len(parts) == 2 else 0.0), *(v for v, _ in parts))
    squares = sum(v * v / freedom for v, freedom in parts)
    freedom = sum(v for v, _ in parts) ** 2 / squares if squares > 0 else float(min(freedom for _, freedom in parts))
    # The one NaN of math, so that equal rows compare equal.
    examples, draws = (math.nan if math.isnan(v) else math.sqrt(v) for v in (examples, draws))
    return Errors(mean, examples, draws, math.sqrt(variance), freedom)


def p_values(means: Sequence[float], errors: Sequence[float], freedoms: Sequence[float]) -> np.ndarray:
    """Two-sided p-values of Student's t for means against 0; a mean of 0 has 1, one that is certain 0, one with no error NaN.

    Example:
      >>> p_values([2.0, 0.0], [1.0, 0.0], [10.0, 3.0]).round(4).tolist()
      [0.0734, 1.0]
    """
    m, e, v = (np.asarray(x, np.float64) for x in (means, errors, freedoms))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(v, -np.abs(m / e))
    return np.where(np.isnan(e) | np.isnan(m), np.nan, np.where(m == 0, 1.0, p))


def t_quantile(p: float, freedom: float) -> float:
    """The value that Student's t exceeds in absolute terms with probability ``p``."""
    return float(-stdtrit(freedom, p / 2))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: those at most ``level`` are all true at once with probability ``1 - level``.

    Args:
      p: ``[n]``; NaN stays NaN and counts as a test.

    Example:
      >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
      [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(np.where(np.isnan(p), np.inf, p), kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.maximum.accumulate(stepped)
    return out
