"""What a sweep is asked and what it answers: candidates, rows with their errors, and which rows differ."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from bqjax.core.task import signed
from bqjax.sensitivity.paired import Errors, errors_between, errors_of, holm, p_values
from bqjax.sensitivity.perturb import Kind, Noise, NoiseCandidate, Perturbation

__all__ = ["Candidate", "RaceRecord", "Statement", "SweepResult", "SweepRow", "point_of", "row_of", "statements"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One perturbation to evaluate, averaged over draws.

    Attributes:
      leaf: name of the leaf.
      perturb: a kind of :class:`~bqjax.sensitivity.perturb.Noise`, or a perturbation that takes a
        :class:`~bqjax.sensitivity.perturb.NoiseCandidate`. Its ``repr`` tells it from others, in a state file too: make
        it a frozen dataclass, or a function of a module.
      magnitude: of the perturbation, in the units of its kind; not negative.
      lower, upper: bounds of the bin, ``lower <= w < upper``; all weights by default.
      draws: independent draws.
      tags: kept with the result, e.g. ``{"bin": "3"}``.
    """

    leaf: str
    perturb: Kind | Perturbation = "gaussian"
    magnitude: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf
    draws: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.magnitude >= 0 and math.isfinite(self.magnitude)) and self.perturb != "collapse":
            raise ValueError(f"leaf {self.leaf!r}: magnitude must be finite and not negative, got {self.magnitude}")
        if self.draws < 1:
            raise ValueError(f"leaf {self.leaf!r}: draws must be at least 1, got {self.draws}")
        self.described()  # an unknown kind is refused here, and what has no lasting name

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation itself."""
        return Noise(self.perturb) if isinstance(self.perturb, str) else self.perturb

    def described(self) -> str:
        """Text of what is measured, the same in every process and run: it names the lines of a state file."""
        numbers = (float(x).hex() for x in (self.magnitude, self.lower, self.upper))
        return f"({self.leaf!r}, {_lasting_name(self.perturbation)}, {', '.join(map(repr, numbers))})"

    def noise(self) -> str:
        """Text that the noise of its draws is made from: candidates of all magnitudes share it."""
        bounds = (float(x).hex() for x in (self.lower, self.upper))
        return f"({self.leaf!r}, {_lasting_name(self.perturbation)}, {', '.join(map(repr, bounds))})"


def _lasting_name(perturbation: Perturbation) -> str:
    name = repr(perturbation)
    if " at 0x" in name:  # an address, which the next run does not have
        name = f"{getattr(perturbation, '__module__', '')}.{getattr(perturbation, '__qualname__', '<unnamed>')}"
        if "<" in name:
            raise ValueError(
                f"the perturbation {perturbation!r} has no name that another run would know it by: "
                "make it a frozen dataclass, or a function of a module"
            )
    return name


def point_of(candidate: Candidate, draw: int, key: jax.Array, dtype: Any, *, mirrored: bool = False) -> NoiseCandidate:
    """A draw of a candidate in numbers. Draws of one number are the same noise at every magnitude (common random numbers).

    Args:
      candidate: what is drawn.
      draw: its number.
      key: the sweep's.
      dtype: of the leaf.
      mirrored: the noise with the opposite sign (antithetic variates), of perturbations for which that is another magnitude.
    """
    number = np.promote_types(dtype, np.float32).type
    own = _folded(key, np.uint32(zlib.crc32(candidate.noise().encode())), np.uint32(draw))
    magnitude = -candidate.magnitude if mirrored else candidate.magnitude
    return NoiseCandidate(number(candidate.lower), number(candidate.upper), number(magnitude), own)


@jax.jit
def _folded(key: jax.Array, noise: Any, draw: Any) -> jax.Array:
    # Compiled: a race makes thousands of keys, and two eager operations take as long as a layer.
    return jax.random.fold_in(jax.random.fold_in(key, noise), draw)


@dataclass(frozen=True)
class SweepRow:
    """What one candidate changed.

    Attributes:
      candidate: the candidate.
      metrics: means over its draws.
      drop: of the sweep's metric against the baseline, a mean over draws.
      standard_error: of ``drop`` over draws, on these examples; NaN for one draw.
      drops: of each draw.
      paired_error: of ``drop`` over examples, from each example's own difference; NaN where the sweep had no ``predict``.
      error: over both. Of a race it is over rounds, each of new draws on other examples.
      differences: ``[draws, n]`` float32, each example's part in ``drops``, which are the means over ``n``; None without
        ``predict``.
      predicted: what the curvature made of the candidate before it was measured; NaN where it was not asked.
    """

    candidate: Candidate
    metrics: Mapping[str, float]
    drop: float
    standard_error: float
    drops: tuple[float, ...]
    paired_error: float = math.nan
    error: float = math.nan
    differences: np.ndarray | None = field(default=None, repr=False, compare=False)
    predicted: float = math.nan

    def errors(self) -> Errors:
        """The drop with all its errors."""
        with np.errstate(invalid="ignore", over="ignore"):
            if self.differences is not None:
                return errors_of(self.differences)._replace(mean=self.drop)
            return errors_of(np.array(self.drops, np.float64)[:, None])._replace(mean=self.drop)


def row_of(
    candidate: Candidate,
    results: Sequence[Mapping[str, float]],
    baseline: Mapping[str, float],
    metric: str,
    differences: np.ndarray | None,
) -> SweepRow:
    """The row of a candidate from the metrics of its draws, and from each example's difference where it is known."""
    drops = np.array([float(signed(baseline, metric) - signed(m, metric)) for m in results])
    means = {name: float(np.mean([m[name] for m in results])) for name in baseline}
    row = SweepRow(candidate, means, float(drops.mean()), math.nan, tuple(drops.tolist()), differences=differences)
    # Of draws from the drops themselves, which do not depend on whether examples are told apart.
    error = float(drops.std(ddof=1) / math.sqrt(len(drops))) if len(drops) > 1 else math.nan
    found = row.errors()
    return SweepRow(candidate, means, row.drop, error, row.drops, found.examples, found.both, differences)


class Statement(NamedTuple):
    """Whether a row differs from zero, or two rows from each other.

    Attributes:
      first, second: places of the rows; ``second`` is None against zero.
      difference: of the drops.
      error: its standard error, over examples and draws.
      p: two-sided p-value, adjusted for all statements made together (Holm).
      differs: whether ``p`` is at most the level.
    """

    first: int
    second: int | None
    difference: float
    error: float
    p: float
    differs: bool


class RaceRecord(NamedTuple):
    """How a race ended.

    Attributes:
      until: what was asked: ``"rank"``, ``"top10"``, or a standard error.
      confidence: at which it was asked.
      settled: whether it was reached with the draws and examples there are.
      reached: what was, in words.
      order: places of the rows in each set that was compared, the largest drop first.
      open: pairs of rows whose order is not settled and would have mattered.
      evaluations: perturbed networks that were scored, in passes over all examples.
      of: what all draws of all candidates would have taken.
      budget: the part of ``of`` that might be spent, where that was fixed; None of a race until something is settled.
      sure: of a race with a budget how sure it is, by row, that the row is on its side of the border between the top and the rest:
        at most that, whatever the drops are. A lower bound, from paired tests that are corrected for all that they might have said.
    """

    until: str | float
    confidence: float
    settled: bool
    reached: str
    order: tuple[tuple[int, ...], ...]
    open: tuple[tuple[int, int], ...]
    evaluations: float
    of: int
    budget: float | None = None
    sure: tuple[float, ...] = ()


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
      metric: what drops speak of; a leading minus means that lower is better.
      baseline: metrics of the unperturbed network.
      rows: in the order of the candidates.
      unused: leaves that the score does not depend on: their drops are exactly 0.
      n_scores: how many perturbed networks were scored, and ``n_resumed`` of them answered by the state file.
      seconds: wall time, of which ``compile_seconds`` went into compiling.
      race: how it ended, where the sweep was a race.
    """

    metric: str
    baseline: Mapping[str, float]
    rows: tuple[SweepRow, ...]
    unused: tuple[str, ...]
    n_scores: int
    n_resumed: int
    seconds: float
    compile_seconds: float
    race: RaceRecord | None = None

    def against_zero(self, level: float = 0.05) -> list[Statement]:
        """Which rows differ from zero: with probability ``1 - level`` none of those said to differ is 0 in truth.

        Truth is the mean over all examples and all noise that these are samples of. A row of one draw speaks of its noise alone,
        and rows of a sweep without ``predict`` speak of these examples alone.

        Raises:
          ValueError: a level that is not between 0 and 1.
        """
        return statements([(i, None) for i in range(len(self.rows))], [row.errors() for row in self.rows], level)

    def differences(self, rows: Sequence[int] | None = None, level: float = 0.05) -> list[Statement]:
        """Which rows differ from each other, as :meth:`against_zero`; every pair of some rows, by default of all.

        Raises:
          ValueError: a level that is not between 0 and 1.
        """
        pairs = list(itertools.combinations(range(len(self.rows)) if rows is None else rows, 2))
        between = _between if self.race is None else _between_rounds
        return statements(pairs, [between(self.rows[i], self.rows[j]) for i, j in pairs], level)


def _between(a: SweepRow, b: SweepRow) -> Errors:
    """Errors of the difference of two rows."""
    common = a.candidate.noise() == b.candidate.noise() and len(a.drops) == len(b.drops)
    told = a.differences is not None and b.differences is not None
    with np.errstate(invalid="ignore", over="ignore"):
        x, y = (r.differences if told and r.differences is not None else np.array(r.drops, np.float64)[:, None] for r in (a, b))
        return errors_between(x, y, common=common)._replace(mean=a.drop - b.drop)


def _between_rounds(a: SweepRow, b: SweepRow) -> Errors:
    """As :func:`_between` for rows of a race, which saw the same examples in the rounds that both took part in."""
    rounds = min(len(a.drops), len(b.drops))
    if not rounds:
        return Errors(*[math.nan] * 5)
    return errors_of((np.array(a.drops[:rounds]) - np.array(b.drops[:rounds]))[:, None])


def statements(pairs: Sequence[tuple[int, int | None]], found: Sequence[Errors], level: float) -> list[Statement]:
    """Statements about some rows or pairs of rows from their drops or differences, adjusted for all of them together (Holm).

    Raises:
      ValueError: a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level must be between 0 and 1, got {level}")
    if not pairs:
        return []
    p = holm(p_values([e.mean for e in found], [e.both for e in found], [e.freedom for e in found]))
    return [
        Statement(i, j, e.mean, e.both, float(q), bool(q <= level))  # NaN is no statement
        for (i, j), e, q in zip(pairs, found, p, strict=True)
    ]
