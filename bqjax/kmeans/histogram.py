"""Few points that stand for many values: histograms whose cells follow the data, and the exact optimum for few points.

A cell is a range of the values' ordered bit patterns, so it is narrow in relative terms, whatever the scale, and the
cells that hold most of the expected error are split further.

References:
  Wang and Song, "Ckmeans.1d.dp: optimal k-means clustering in one dimension by dynamic programming", R Journal 3(2), 2011.
  Panter and Dite, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels", Proceedings
  of the IRE 39(1), 1951.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.kmeans.segments import over_pieces

__all__ = ["coarsen", "histogram", "optimal_groups"]

# First-level cells are the leading 14 bits of a value's ordered bit pattern: 32 cells an octave in float32.
_COARSE_BITS = 14
# Cells handed out by the second level, on top of one for every first-level cell in use.
_FINE_CELLS = 2**16
# Values looked at to divide the cells.
_SAMPLE = 2**16


def _to_key(x: jax.Array) -> jax.Array:
    """The leading 32 bits of each value, as uint32 in the order of the values."""
    if x.dtype == jnp.float64:
        wide = lax.bitcast_convert_type(x, jnp.uint64) >> 32
        pattern = wide.astype(jnp.uint32)
    else:
        pattern = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(pattern >> 31 == 1, ~pattern, pattern | jnp.uint32(1 << 31))


def _from_key(key: jax.Array, dtype: Any) -> jax.Array:
    pattern = jnp.where(key >> 31 == 1, key & jnp.uint32(2**31 - 1), ~key)
    if dtype == jnp.float64:
        return lax.bitcast_convert_type(pattern.astype(jnp.uint64) << 32, jnp.float64)
    return lax.bitcast_convert_type(pattern, jnp.float32)


def _sample(x: jax.Array) -> jax.Array:
    """Places of about ``2^16`` values spread over a vector: one, as if drawn at random, of each of as many equal stretches."""
    stretch = max(1, x.size // _SAMPLE)
    stretches = lax.iota(jnp.uint32, x.size // stretch)
    mixed = stretches * jnp.uint32(2654435761)
    return stretches * jnp.uint32(stretch) + (mixed ^ (mixed >> 15)) % jnp.uint32(stretch)


def histogram(x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Cells that stand for many values: ascending representatives and masses, both ``[2^14 + 2^16]``, those of mass first.

    The first level divides the values by the leading bits of their keys. The second divides those cells by their next 16
    bits into equal parts, half of them handed out by mass and half by ``(mass * width^2)^(1/3)``, the allotment that
    minimises the squared error of rounding values to cells. The masses that decide so are those of a sample: a cell that
    it misses still has one part, and what is in it counts in full.

    Args:
      x: ``[n]`` float32 or float64, finite; NaN counts nowhere.
      weights: ``[n]``, not negative, or None.
    """
    n_coarse, dtype = 2**_COARSE_BITS, x.dtype
    rest_shift = 32 - _COARSE_BITS - 16
    size = n_coarse + _FINE_CELLS

    edges = _from_key(lax.iota(jnp.uint32, n_coarse) << (32 - _COARSE_BITS), dtype)
    # The patterns of NaN lie beyond those of the infinities.
    finite = jnp.isfinite(edges) | jnp.isfinite(jnp.append(edges[1:], edges[-1]))
    sample = _sample(x)
    heights = jnp.ones(sample.shape, dtype) if weights is None else weights[sample]
    mass = jnp.zeros(n_coarse, dtype).at[_to_key(x[sample]) >> (32 - _COARSE_BITS)].add(heights, mode="promise_in_bounds")
    mass = jnp.where(finite, mass, 0)
    width = jnp.where(mass > 0, jnp.abs(jnp.append(edges[1:], edges[-1]) - edges), 0)
    width = jnp.where(jnp.isfinite(width), width, jnp.finfo(dtype).max / 4)
    mass_share = mass / jnp.maximum(mass.sum(), jnp.finfo(dtype).tiny)
    error_share = jnp.cbrt(mass_share) * jnp.square(jnp.cbrt(width / jnp.maximum(width.max(), jnp.finfo(dtype).tiny)))
    share = mass_share / 2 + error_share / jnp.maximum(error_share.sum(), jnp.finfo(dtype).tiny) / 2
    # Numbers of parts are powers of two, so that one table with the first cell and a shift says where a value belongs.
    log_parts = 31 - lax.clz(1 + jnp.floor(share * (_FINE_CELLS - 1)).astype(jnp.int32))
    end = jnp.cumsum(jnp.int32(1) << log_parts)
    base = end - (jnp.int32(1) << log_parts)
    table = base.astype(jnp.uint32) << 5 | (16 - log_parts).astype(jnp.uint32)

    def count_piece(counts: jax.Array, _: Any, x: jax.Array, *weights: jax.Array) -> jax.Array:
        key = _to_key(x)
        entry = table.at[key >> (32 - _COARSE_BITS)].get(mode="promise_in_bounds")
        rest = (key >> rest_shift) & jnp.uint32(2**16 - 1)
        return counts.at[(entry >> 5) + (rest >> (entry & 31))].add(weights[0] if weights else 1, mode="promise_in_bounds")

    # Counts are integers: a float32 accumulator would stop at 2^24 equal values.
    empty = jnp.zeros(size, jnp.int32 if weights is None else dtype)
    counted = over_pieces(count_piece, empty, x, *(() if weights is None else (weights,))).astype(dtype)

    # The first-level cell of each cell: marks at the first cells, summed up.
    cell = lax.iota(jnp.int32, size)
    parent = jnp.cumsum(jnp.zeros(size, jnp.int32).at[base].set(1, mode="promise_in_bounds")) - 1
    position = (cell - base[parent]).astype(jnp.uint32)
    middle = ((2 * position + 1) << (15 - log_parts[parent]).astype(jnp.uint32)) << rest_shift
    representative = _from_key((parent.astype(jnp.uint32) << (32 - _COARSE_BITS)) + middle, dtype)
    inside = (cell < end[-1]) & finite[parent]
    counted = jnp.where(inside, counted, 0)
    # Cells that hold nothing, some of them not even finite, go to the end.
    representative, counted = lax.sort((jnp.where(counted > 0, representative, jnp.inf), counted), num_keys=1)
    return jnp.where(counted > 0, representative, jnp.where(counted > 0, representative, -jnp.inf).max()), counted


def coarsen(x: jax.Array, mass: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Joins ascending points, those of mass first, into ``size`` neighbouring groups: their means and masses.

    Nothing is lost where ``size`` groups suffice.
    """
    used = mass > 0
    low, high = x[0], x[-1]
    before, after = jnp.append(low, x[:-1]), jnp.append(x[1:], high)
    # Widths are gaps between points of some mass: cells of sparse tails are mostly empty and much narrower than the gaps.
    error_share = jnp.cbrt(mass) * jnp.square(jnp.cbrt((after - before) / 2))
    share = error_share / jnp.maximum(error_share.sum(), jnp.finfo(x.dtype).tiny)
    new = (used & (x != before)).astype(x.dtype)
    rank, level = jnp.cumsum(jnp.stack([new, share]), 1)
    level = level - share / 2
    group = jnp.where(rank[-1] < size, rank, jnp.clip(level * size, 0, size - 1)).astype(jnp.int32)
    first = jnp.full(size, jnp.inf, x.dtype).at[group].min(jnp.where(used, x, jnp.inf))
    first = jnp.where(jnp.isinf(first), 0, first)
    total = jnp.zeros(size, x.dtype).at[group].add(mass)
    offset = jnp.zeros(size, x.dtype).at[group].add(mass * (x - first[group]))
    return first + offset / jnp.where(total > 0, total, 1), total


_Triple = tuple[jax.Array, jax.Array, jax.Array]


def optimal_groups(x: jax.Array, mass: jax.Array, k: int) -> jax.Array:
    """Exact k-means of few ascending points by dynamic programming: the group, in ``[0, k)``, of each point."""
    m = x.shape[0]
    place = lax.iota(jnp.int32, m)

    def extend(carry: _Triple, point: _Triple) -> tuple[_Triple, jax.Array]:
        # Error of the intervals [i, j] for all i at once, from that of [i, j - 1]: only sums of positive terms, where
        # differences of prefix sums would cancel.
        total, mean, error = carry
        j, xj, wj = point
        inside = place <= j
        grown = total + wj
        portion = jnp.where(grown > 0, wj / jnp.where(grown > 0, grown, 1), 0)
        delta = xj - mean
        error = jnp.where(inside, error + delta * delta * portion * total, jnp.inf)
        total = jnp.where(inside, grown, 0)
        mean = jnp.where(inside, mean + delta * portion, 0)
        return (total, mean, jnp.where(inside, error, 0)), error

    zero = jnp.zeros(m, x.dtype)
    _, cost = lax.scan(extend, (zero, zero, zero), (place, x, mass))  # cost[j, i]: points i..j in one group

    def add_group(best: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        before = jnp.append(jnp.inf, best[:-1])
        return (before[None, :] + cost).min(1), before

    _, before = lax.scan(add_group, cost[:, 0], None, length=k - 1)  # before[q, i]: points 0..i-1 in q + 1 groups

    def walk_back(last: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.argmin(row + cost[last]).astype(jnp.int32)
        return first - 1, first

    _, firsts = lax.scan(walk_back, jnp.int32(m - 1), before, reverse=True)
    return (place[None, :] >= firsts[:, None]).sum(0, dtype=jnp.int32)
