"""Lloyd's algorithm in one dimension: nearest entries, sums over their values, and the iterations.

Reference:
  Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bqjax.core.leaves import index_dtype
from bqjax.kmeans.segments import Sums, over_pieces, pairwise, scattered_sums

__all__ = ["ascending", "assign", "lloyd", "lloyd_on_points"]

# Up to this k comparing with every midpoint beats a binary search.
_ASSIGN_BY_COMPARING_MAX_K = 64
# Up to this k comparing with all boundaries beats adding up by index.
_SUM_BY_COMPARING_MAX_K = 32
_ROWS, _LANES = 64, 256
# Points of a block in Lloyd's iterations on ascending points.
_BLOCK = 256


def middles(codebook: jax.Array) -> jax.Array:
    """``[k - 1]`` largest values, or nearly so, that are nearer to the lower of two neighbours or equally near."""
    lower, upper = codebook[:-1], codebook[1:]
    middle = lower + (upper - lower) / 2
    # Between neighbouring floats the middle rounds to one of them: the upper one must stay above it.
    middle = jnp.where(middle >= upper, lower, middle)
    return jnp.where(lower == codebook[-1], jnp.inf, middle)  # surplus entries take nothing


def assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """``[n]`` index of the nearest entry of an ascending codebook; of equals, the first. Any index for NaN."""
    k, middle = codebook.shape[0], middles(codebook)
    if k <= _ASSIGN_BY_COMPARING_MAX_K:
        return (x[None, :] > middle[:, None]).sum(0, dtype=index_dtype(k))
    return jnp.searchsorted(middle, x, method="scan_unrolled").astype(index_dtype(k))


def _sums(x: jax.Array, weights: jax.Array | None, codebook: jax.Array) -> Sums:
    """Sums over the values nearest to each entry; NaN counts nowhere."""
    k = codebook.shape[0]
    if k > _SUM_BY_COMPARING_MAX_K:

        def read(x: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
            return (
                jnp.where(jnp.isnan(x), 0, x),
                jnp.where(jnp.isnan(x), k, assign(x, codebook).astype(index_dtype(k + 1))),
                *weights,
            )

        return scattered_sums(read, codebook, x, *(() if weights is None else (weights,)))
    middle = middles(codebook)
    above = jnp.concatenate([jnp.full(1, -jnp.inf, x.dtype), middle])[:, None]
    upto = jnp.concatenate([middle, jnp.full(1, jnp.inf, x.dtype)])[:, None]
    lanes = min(_LANES, x.size)

    def lines(a: jax.Array, fill: float) -> jax.Array:
        a = jnp.pad(a, (0, -a.size % lanes), constant_values=fill).reshape(-1, lanes)
        rows = min(_ROWS, a.shape[0])
        return jnp.pad(a, ((0, -a.shape[0] % rows), (0, 0)), constant_values=fill).reshape(-1, rows, lanes)

    def chunk_sums(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        def add(i: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            value = chunk[0][i][None]
            hit = (value > above) & (value <= upto)
            w = chunk[1][i][None] if len(chunk) > 1 else jnp.ones((), x.dtype)
            mass = total[0] + (hit if len(chunk) == 1 else jnp.where(hit, w, 0))
            return mass, total[1] + jnp.where(hit, w * (value - codebook[:, None]), 0)

        zero = jnp.zeros((k, lanes), x.dtype)
        return lax.fori_loop(0, chunk[0].shape[0], add, (zero.astype(jnp.int32) if len(chunk) == 1 else zero, zero))

    operands = (lines(x, jnp.nan),) + (() if weights is None else (lines(weights, 0),))
    return Sums(*(pairwise(pairwise(total).T).astype(x.dtype) for total in lax.map(chunk_sums, operands)))


def ascending(means: jax.Array) -> jax.Array:
    """Sorted, with the largest finite entry in place of infinite ones."""
    means = jnp.sort(means)
    return jnp.where(jnp.isinf(means), jnp.where(jnp.isinf(means), -jnp.inf, means).max(), means)


_Triple = tuple[jax.Array, jax.Array, jax.Array]


class _State(NamedTuple):
    codebook: jax.Array  # [k] ascending, surplus entries repeat the largest
    moved: jax.Array  # [] largest move of an entry in the last iteration
    split: jax.Array  # [] whether the last iteration split clusters to fill empty ones
    iterations: jax.Array  # []
    last: jax.Array  # [] the iteration to stop at: a split grants more


def lloyd(
    x: jax.Array, weights: jax.Array | None, codebook: jax.Array, passes: Any, after_split: Any, settled: Any
) -> tuple[jax.Array, jax.Array]:
    """Lloyd iterations from an ascending codebook: the codebook and how many iterations it took.

    They end after ``passes``, or ``after_split`` further ones where clusters were split, or when no entry moves further than
    ``settled``.
    """
    k = codebook.shape[0]

    def split(means: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The clusters of the largest error that hold more than one value are halved, one for each empty cluster. Their
        # extremes are the new entries: both halves then have a member for certain.
        def measure(found: _Triple, _: Any, x: jax.Array, *weights: jax.Array) -> _Triple:
            low, high, square = found
            left_out = weights[0] <= 0 if weights else jnp.isnan(x)
            segments = jnp.where(left_out, k, assign(x, before).astype(jnp.int32))
            squares = jnp.square(x - before[segments])
            return (
                low.at[segments].min(x, mode="drop"),
                high.at[segments].max(x, mode="drop"),
                square.at[segments].add(weights[0] * squares if weights else squares, mode="drop"),
            )

        start = jnp.full(k, jnp.inf, x.dtype), jnp.full(k, -jnp.inf, x.dtype), jnp.zeros(k, x.dtype)
        low, high, square = over_pieces(measure, start, x, *(() if weights is None else (weights,)))
        divisible = high > low
        order = jnp.argsort(jnp.where(divisible, -square, jnp.inf))
        empty = jnp.isinf(means)
        n_split = jnp.minimum(divisible.sum(), empty.sum())
        place = jnp.cumsum(empty) - 1
        target = order[jnp.clip(place, 0, k - 1)]
        halved = jnp.zeros(k, bool).at[order].set(lax.iota(jnp.int32, k) < n_split)
        means = jnp.where(halved, low, means)
        return ascending(jnp.where(empty & (place < n_split), high[target], means)), n_split > 0

    def step(state: _State) -> _State:
        mass, residual = _sums(x, weights, state.codebook)
        means = jnp.where(mass > 0, state.codebook + residual / jnp.where(mass > 0, mass, 1), jnp.inf)
        means, was_split = lax.cond(
            (mass > 0).all(), lambda means, _: (lax.cummax(means), jnp.array(False)), split, means, state.codebook
        )
        moved = jnp.abs(means - state.codebook).max()
        iterations = state.iterations + 1
        last = jnp.where(was_split, iterations + after_split, state.last)
        return _State(means, moved, was_split, iterations, last)

    def unfinished(state: _State) -> jax.Array:
        # A split leaves every cluster with a member, so that fewer are empty each time: splitting ends by itself.
        return (state.split | (state.moved > settled)) & (state.iterations < state.last)

    start = _State(codebook, jnp.zeros((), x.dtype), jnp.array(True), jnp.zeros((), jnp.int32), jnp.asarray(passes, jnp.int32))
    end = lax.while_loop(unfinished, step, start)
    return end.codebook, end.iterations


_Quadruple = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def lloyd_on_points(
    points: jax.Array, mass: jax.Array, codebook: jax.Array, max_iterations: Any, tolerance: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lloyd iterations on ascending points: the codebook, the distance of moves that do not count, the iterations.

    A cluster is a run of points: whole blocks of them, known by their mass and mean, and parts of two more. An iteration
    costs ``k * sqrt(points)`` instead of ``k * points``, and adds up only terms about the entry, where differences of prefix
    sums would cancel. Entries without members stay where they are.
    """
    size, k = points.size, codebook.shape[0]
    width = min(_BLOCK, size)
    points = jnp.append(points, jnp.broadcast_to(points[-1], -size % width)).reshape(-1, width)
    mass = jnp.append(mass, jnp.zeros(-size % width, mass.dtype)).reshape(-1, width)
    blocks = points.shape[0]
    block_mass = mass.sum(1)
    offset = (mass * (points - points[:, :1])).sum(1) / jnp.where(block_mass > 0, block_mass, 1)
    block_mean = points[:, 0] + offset
    block, place = lax.iota(jnp.int32, blocks)[None], lax.iota(jnp.int32, width)[None]
    total = block_mass.sum()

    def sums(codebook: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        middle = middles(codebook)
        row = jnp.maximum((points[None, :, 0] <= middle[:, None]).sum(1, dtype=jnp.int32) - 1, 0)
        within = (points[row] <= middle[:, None]).sum(1, dtype=jnp.int32)
        first = jnp.append(0, row)[:, None], jnp.append(0, within)[:, None]
        last = jnp.append(row, blocks - 1)[:, None], jnp.append(within, width)[:, None]
        same = first[0] == last[0]
        whole = jnp.where((block > first[0]) & (block < last[0]), block_mass[None], 0)
        head = jnp.where((place >= first[1]) & (~same | (place < last[1])), mass[first[0][:, 0]], 0)
        tail = jnp.where((place < last[1]) & ~same, mass[last[0][:, 0]], 0)
        w = jnp.concatenate([whole, head, tail], 1)
        x = (
            jnp.concatenate([jnp.broadcast_to(block_mean[None], (k, blocks)), points[first[0][:, 0]], points[last[0][:, 0]]], 1)
            - codebook[:, None]
        )
        return w.sum(1), (w * x).sum(1), (w * x * x).sum()

    def step(state: _Quadruple) -> _Quadruple:
        codebook, _, _, iterations = state
        member_mass, residual, square = sums(codebook)
        means = lax.cummax(codebook + residual / jnp.where(member_mass > 0, member_mass, 1))
        return means, jnp.abs(means - codebook).max(), tolerance * jnp.sqrt(square / total), iterations + 1

    zero = jnp.zeros((), points.dtype)
    codebook, _, settled, iterations = lax.while_loop(
        lambda state: (state[1] > state[2]) & (state[3] < max_iterations),
        step,
        (codebook, zero + 1, zero, jnp.zeros((), jnp.int32)),
    )
    return codebook, settled, iterations
