"""Sums, ranges and means of numbered segments of a vector, careful about rounding.

Memory stays linear in the number of values: no array of ``n * k`` entries exists at any time.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.leaves import index_dtype

__all__ = ["segment_means"]

# Up to this k comparing with every segment's number beats a scatter.
_COMPARING_MAX_K = 16
CHUNK = 2**14
LANES = 64
_SCATTER_ROWS = 64
# Sizes of the largest value between which nothing overflows or vanishes in float32, and the power of two that a larger one gets:
# no smaller than need be, since what is small beside it loses digits.
_USUAL = (2.0**-60, 2.0**100)
_LARGE = 30
# Values that a pass works on at a time: what it holds of them is small beside the values.
_PIECE = 2**18


def check_k(k: int) -> int:
    try:
        k = operator.index(k)
    except TypeError:
        raise ValueError(f"k must be an integer, got {k!r}") from None
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def check_values(values: Any, what: str = "values") -> jax.Array:
    """The values as a float32 or float64 vector."""
    values = jnp.asarray(values)
    if values.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"{what} must not be empty")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{what} must be floating point, got {values.dtype}")
    # Few in NumPy: every eager operation of JAX would be compiled for every size.
    finite = np.isfinite(np.asarray(values)) if concrete(values) and values.size <= 2**15 else jnp.isfinite(values)
    if concrete(values) and not bool(finite.all()):
        raise ValueError(f"{what} holds {int((~finite).sum())} NaN or infinite entries of {values.size}")
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def exponent_of(x: Any) -> Any:
    """Power of two to divide values by, so that their squares and sums stay within the dtype; 0 for all but extreme values.

    NaN (padding) counts nowhere. While tracing, extreme values are told by a comparison, and the smallest (denormals) not at all.
    """
    if not concrete(x):
        largest = jnp.nanmax(jnp.abs(x))
        outside = (largest > _USUAL[1]) | ((largest < _USUAL[0]) & (largest > 0))
        return jnp.where(outside, jnp.frexp(largest)[1] - jnp.where(largest > 1, _LARGE, 0), 0)
    few = x.size <= 2**15
    if _USUAL[0] <= float(np.nanmax(np.abs(np.asarray(x))) if few else _largest(x)) <= _USUAL[1]:
        return 0
    largest = np.nanmax(np.abs(np.asarray(x)))  # XLA takes denormals for zeros
    return int(np.frexp(largest)[1]) - (_LARGE if largest > 1 else 0) if largest > 0 else 0


@jax.jit
def _largest(x: jax.Array) -> jax.Array:
    return jnp.nanmax(jnp.abs(x))


def times_power(x: Any, exponent: Any) -> Any:
    """``x * 2 ** exponent``, exact where the result has the digits; of concrete arrays also where it is denormal."""
    if not concrete(x) or not concrete(exponent):
        return jnp.ldexp(x, exponent)
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.ldexp(np.asarray(x), exponent)
    return jnp.asarray(scaled) if isinstance(x, np.ndarray) else jax.device_put(scaled, x.sharding)


def check_weights(weights: Any, values: jax.Array) -> jax.Array | None:
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape != values.shape:
        raise ValueError(f"weights must have the shape of values, {values.shape}, got {weights.shape}")
    if concrete(weights):
        if not bool(jnp.isfinite(weights).all()):
            raise ValueError(f"weights holds {int((~jnp.isfinite(weights)).sum())} NaN or infinite entries of {weights.size}")
        if bool((weights < 0).any()):
            raise ValueError(f"weights must not be negative, the smallest is {float(weights.min())}")
    return weights.astype(values.dtype)


def uniform_if_zero(weights: jax.Array) -> jax.Array:
    """Weights scaled to a largest of 1, so that products neither overflow nor vanish; ones where all are zero."""
    largest = weights.max()
    return jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1), 1)


def _chunked(x: jax.Array, fill: Any) -> jax.Array:
    """``[n]`` -> ``[chunks, 1, rows, lanes]``, padded."""
    chunk = min(CHUNK, -(-x.size // LANES) * LANES)
    return jnp.pad(x, (0, -x.size % chunk), constant_values=fill).reshape(-1, 1, chunk // LANES, LANES)


def pairwise(x: jax.Array) -> jax.Array:
    """Sum over axis 0 by groups of 32, whose rounding error grows with the logarithm of the length."""
    while x.shape[0] > 32:
        x = jnp.pad(x, ((0, -x.shape[0] % 32), *[(0, 0)] * (x.ndim - 1)))
        x = x.reshape(-1, 32, *x.shape[1:]).sum(1)
    return x.sum(0)


def lane_sums(x: jax.Array) -> jax.Array:
    """``[chunks, lanes]``: sums of short chunks of a vector, the first step of :func:`total_of`."""
    return _chunked(x, 0).sum((1, 2))


def total_of_lanes(lanes: jax.Array) -> jax.Array:
    return pairwise(pairwise(lanes))


def total_of(x: jax.Array) -> jax.Array:
    """Sum of a vector, pairwise over short chunks."""
    return total_of_lanes(lane_sums(x))


def over_pieces(step: Callable[..., Any], carry: Any, *arrays: jax.Array) -> Any:
    """``carry = step(carry, start, *pieces)`` over pieces, from ``start`` on, of arrays of one length; the last may be shorter."""
    n = arrays[0].shape[0]
    whole = n // _PIECE

    def one(i: Any, carry: Any) -> Any:
        return step(carry, i * _PIECE, *(lax.dynamic_slice_in_dim(a, i * _PIECE, _PIECE) for a in arrays))

    carry = lax.fori_loop(0, whole, one, carry) if whole else carry
    return step(carry, whole * _PIECE, *(a[whole * _PIECE :] for a in arrays)) if n % _PIECE else carry


def map_pieces(f: Callable[..., jax.Array], dtype: Any, *arrays: jax.Array) -> jax.Array:
    """``f`` of vectors, value by value, in pieces."""

    def put(out: jax.Array, start: Any, *pieces: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(out, f(*pieces).astype(dtype), start, 0)

    return over_pieces(put, jnp.zeros(arrays[0].shape, dtype), *arrays)


class Sums(NamedTuple):
    mass: jax.Array  # [k] sum of weights
    residual: jax.Array  # [k] sum of weight * (value - offset of its segment)


def scattered_sums(read: Callable[..., tuple[jax.Array, ...]], offset: jax.Array, *arrays: jax.Array) -> Sums:
    """Sums about an offset for each segment, piece by piece.

    Args:
      read: of pieces of ``arrays``, their values, segment numbers (``k`` counts nowhere) and, where there are any, weights.
      offset: ``[k]``.
    """
    k, dtype, weighted = offset.shape[0], offset.dtype, len(jax.eval_shape(read, *arrays)) > 2

    def add(tables: tuple[jax.Array, jax.Array], _: Any, *piece: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, segments, *weights = read(*piece)
        # Rows bound the number of additions into any one accumulator.
        rows = lax.iota(jnp.int32, x.size) % _SCATTER_ROWS * (k + 1) + segments.astype(jnp.int32)
        r = x - offset[jnp.minimum(segments, np.array(k - 1, segments.dtype))]
        terms = (weights[0], weights[0] * r) if weights else (np.int32(1), r)
        mass, residual = (t.at[rows].add(term, mode="promise_in_bounds") for t, term in zip(tables, terms, strict=True))
        return mass, residual

    size = _SCATTER_ROWS * (k + 1)
    start = jnp.zeros(size, dtype if weighted else jnp.int32), jnp.zeros(size, dtype)
    return Sums(*(pairwise(t.reshape(_SCATTER_ROWS, k + 1))[:k].astype(dtype) for t in over_pieces(add, start, *arrays)))


def segment_sums(x: jax.Array, segments: jax.Array, weights: jax.Array | None, offset: jax.Array) -> Sums:
    """Sums about an offset for each segment, so that rounding is relative to the spread and not to the values.

    Segments numbered ``k`` count nowhere.
    """
    k, dtype = offset.shape[0], x.dtype
    segments = segments.astype(index_dtype(k + 1))
    if k > _COMPARING_MAX_K:
        operands = (x, segments) + (() if weights is None else (weights,))
        return scattered_sums(lambda *piece: piece, offset, *operands)

    numbers = lax.iota(segments.dtype, k)[:, None, None]
    centre = offset[:, None, None]

    def sums(chunk: tuple[jax.Array, ...]) -> Sums:
        hit, r = chunk[1] == numbers, chunk[0] - centre
        if weights is None:
            return Sums(hit.sum(1, dtype=jnp.int32), jnp.where(hit, r, 0).sum(1))
        return Sums(jnp.where(hit, chunk[2], 0).sum(1), jnp.where(hit, chunk[2] * r, 0).sum(1))

    operands = (_chunked(x, 0), _chunked(segments, k)) + (() if weights is None else (_chunked(weights, 0),))
    return Sums(*(pairwise(pairwise(total).T).astype(dtype) for total in lax.map(sums, operands)))


def segment_range(x: jax.Array, segments: jax.Array, weights: jax.Array | None, k: int) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of positive weight in each segment: ``inf`` and ``-inf`` where there is none."""
    segments = segments.astype(index_dtype(k + 1))
    if weights is not None:
        segments = jnp.where(weights > 0, segments, np.array(k, segments.dtype))
    if k > _COMPARING_MAX_K:
        low = jnp.full(k + 1, jnp.inf, x.dtype).at[segments].min(x, mode="promise_in_bounds")
        high = jnp.full(k + 1, -jnp.inf, x.dtype).at[segments].max(x, mode="promise_in_bounds")
        return low[:k], high[:k]
    numbers = lax.iota(segments.dtype, k)[:, None, None]

    def extremes(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hit = chunk[1] == numbers
        return jnp.where(hit, chunk[0], jnp.inf).min(1), jnp.where(hit, chunk[0], -jnp.inf).max(1)

    low, high = lax.map(extremes, (_chunked(x, 0), _chunked(segments, k)))
    return low.min((0, 2)), high.max((0, 2))


def segment_means(values: Any, segments: Any, k: int, weights: Any | None = None, *, fill: float = 0.0) -> jax.Array:
    """Mean of the values in each segment, careful about rounding.

    ``mean_j = c_j + sum_{i in j} w_i (x_i - c_j) / sum_{i in j} w_i``, with ``c_j`` first a member of the segment and then
    the mean so found. Sums run pairwise over short chunks. A segment of equal values gives exactly that value, and
    elsewhere the error is near one rounding of the segment's *spread*, however many values there are.

    Args:
      values: ``[n]`` floating point; float16 and bfloat16 are computed in float32. Traceable.
      segments: ``[n]`` integers in ``[0, k)``. Under ``jit`` other numbers are not noticed and count nowhere.
      k: number of segments, static.
      weights: ``[n]``, not negative, or None for equal weights. Where all weights of a segment are zero its values count equally.
      fill: what an empty segment gets.

    Returns:
      ``[k]`` means, float32, or float64 for float64 values.

    Raises:
      ValueError: ``k`` below 1, shapes that differ, values that are empty, not floating point, NaN or infinite; negative
        weights; segment numbers outside ``[0, k)``. What concerns the content is checked on concrete arrays only.

    Example:
      >>> import numpy as np
      >>> segment_means(np.float32([1, 3, 0.1, 0.1, 0.1]), np.array([0, 0, 2, 2, 2]), 3).tolist() == [2, 0, np.float32(0.1)]
      True
    """
    k = check_k(k)
    x = check_values(values)
    segments = jnp.asarray(segments)
    if segments.shape != x.shape:
        raise ValueError(f"segments must have the shape of values, {x.shape}, got {segments.shape}")
    if not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(f"segments must be integers, got {segments.dtype}")
    if concrete(segments):
        low, high = int(segments.min()), int(segments.max())
        if low < 0 or high >= k:
            raise ValueError(f"segments must lie in [0, {k}), got numbers from {low} to {high}")
    weights = check_weights(weights, x)
    if all(map(concrete, (x, segments, weights, fill))) and (exponent := exponent_of(x)):
        means = _segment_means(times_power(x, -exponent), segments, weights, k, np.nan)
        return jnp.where(jnp.isnan(means), jnp.asarray(fill, x.dtype), times_power(means, exponent))
    return _segment_means(x, segments, weights, k, fill)


@functools.partial(jax.jit, static_argnames="k")
def _segment_means(x: jax.Array, segments: jax.Array, weights: jax.Array | None, k: int, fill: Any) -> jax.Array:
    # Compared in the segments' own type, whose range may end below k.
    valid = segments >= 0 if k > jnp.iinfo(segments.dtype).max else (segments >= 0) & (segments < k)
    segments = jnp.where(valid, segments.astype(index_dtype(k + 1)), np.array(k, index_dtype(k + 1)))
    if weights is not None:
        weights = uniform_if_zero(weights)
        mass = segment_sums(weights, segments, None, jnp.zeros(k, x.dtype)).residual
        weights = jnp.where(jnp.append(mass > 0, True)[segments], weights, 1)
    low, high = segment_range(x, segments, weights, k)
    found = low <= high
    centre = jnp.where(found, low, 0)
    for _ in range(2):
        mass, residual = segment_sums(x, segments, weights, centre)
        centre = jnp.clip(centre + residual / jnp.where(found, mass, 1), low, high)
    return jnp.where(found, centre, jnp.asarray(fill, x.dtype))
