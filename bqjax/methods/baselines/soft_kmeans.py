"""k-means with soft assignments, as a function of its points that can be differentiated.

``a_ij = softmax_j(-|x_i - c_j|^2 / T)``, ``c_j <- sum_i a_ij x_i / sum_i a_ij``, repeated; then ``y_i = sum_j a_ij c_j``.

The attention ``a`` has ``n k`` entries and is never whole in memory: it is made anew, tile by tile, in every pass over the points,
forward and backward. What is kept for the backward pass is the points and one codebook an iteration, or just the last
codebook where gradients are those of the fixed point. Derivatives are in reverse mode only.

References:
  Cho et al., "DKM: Differentiable k-means clustering layer for neural network compression", ICLR 2022 (arXiv 2108.12659).
  Jaffe, Singh, Bullo, "IDKM: Memory efficient neural network quantization via implicit, differentiable k-means", 2023
  (arXiv 2312.07759).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import gmres

__all__ = ["Layout", "Solver", "from_tiles", "in_place", "soft_kmeans", "spread", "to_tiles", "variance"]

# Entries of the attention that are in hand at a time.
_TILE_ENTRIES = 2**15
# Points of a tile that is in place, at least.
_NARROW = 256
_WRITTEN_OUT = 4


class Layout(NamedTuple):
    """How points lie in a matrix ``[tiles / parts * d, parts * size]`` of tiles ``[d, size]``, all static.

    Attributes:
      n: number of points.
      d: coordinates of a point.
      row: weights of a row that is cut into points of ``d``; the last point of a row ends in padding where ``d`` does not divide
        it.
      tiles, size: tiles, and points of a tile.
      parts: tiles side by side.
    """

    n: int
    d: int
    row: int
    tiles: int
    size: int
    parts: int = 1


class Solver(NamedTuple):
    """How the codebook is found and differentiated, all static.

    Attributes:
      iterations: most iterations.
      tolerance: iterations end when no coordinate moves further, in units of the square root of the temperature.
      implicit: gradients of the fixed point, which the iterations should have come near; False: of the iterations as they were.
      solver_steps: steps of GMRES on the linear system of the fixed point; 0 takes its right-hand side for its solution
        (Jacobian-free).
    """

    iterations: int
    tolerance: float
    implicit: bool
    solver_steps: int


def spread(n: int, d: int, row: int, k: int) -> Layout:
    """The layout of ``n`` points for ``k`` entries."""
    tiles = -(-n // max(128, _TILE_ENTRIES // k))
    size = -(-n // tiles)
    return Layout(n, d, row, tiles, -(-size // 16) * 16)


def in_place(d: int, rows: int, columns: int, k: int) -> Layout | None:
    """The layout of a matrix ``[rows * d, columns]`` as it is, whose points are ``d`` neighbours of a column.

    None where columns cannot be cut into tiles of a good size.
    """
    for parts in range(1, columns // _NARROW + 1):
        size, left = divmod(columns, parts)
        if not left and not size % 16 and size <= max(_NARROW, _TILE_ENTRIES // k):
            return Layout(rows * columns, d, d, rows * parts, size, parts)
    return None


def _at(x: jax.Array, i: Any, layout: Layout) -> jax.Array:
    """The points ``[d, size]`` of a tile."""
    return lax.dynamic_slice(x, _corner(i, layout), (layout.d, layout.size))


def _put(x: jax.Array, i: Any, tile: jax.Array, layout: Layout) -> jax.Array:
    return lax.dynamic_update_slice(x, tile, _corner(i, layout))


def _corner(i: Any, layout: Layout) -> tuple[Any, Any]:
    return i // layout.parts * layout.d, i % layout.parts * layout.size


def to_tiles(points: jax.Array, layout: Layout) -> jax.Array:
    """``[n, d] -> [tiles * d, size]``, padded with zeros."""
    padded = jnp.pad(points, ((0, layout.tiles * layout.size - layout.n), (0, 0)))
    return padded.reshape(layout.tiles, layout.size, layout.d).transpose(0, 2, 1).reshape(-1, layout.size)


def from_tiles(x: jax.Array, layout: Layout) -> jax.Array:
    """Inverse of :func:`to_tiles`."""
    return x.reshape(-1, layout.d, layout.size).transpose(0, 2, 1).reshape(-1, layout.d)[: layout.n]


def _real(tile: jax.Array, layout: Layout) -> jax.Array:
    """``[d, size]``, or ``[1, size]`` where all coordinates agree: 1 for entries of the weight, 0 for padding."""
    point = tile * layout.size + lax.iota(jnp.int32, layout.size)
    real = (point < layout.n)[None]
    if layout.row % layout.d:
        column = (point % -(-layout.row // layout.d) * layout.d)[None] + lax.iota(jnp.int32, layout.d)[:, None]
        real = real & (column < layout.row)
    return real.astype(jnp.float32)


def _attention(x: jax.Array, real: jax.Array, codebook: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention of the points ``[d, size]`` of a tile: ``[k, size]`` yet to be normalised, and the factors ``[1, size]`` for it."""
    distance: Any = 0.0
    for i in range(x.shape[0]):
        # Squares of differences: the expanded form loses the small distances that decide at low temperatures.
        square = jnp.square(x[i][None] - codebook[:, i][:, None])
        distance = distance + (square if real.shape[0] == 1 else square * real[i][None])
    weight = jnp.exp((distance.min(0, keepdims=True) - distance) * (1 / temperature))
    return weight, 1 / weight.sum(0, keepdims=True)


_dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _few(entries: jax.Array, points: jax.Array) -> jax.Array:
    """``entries @ points``, ``[k, d]`` and ``[d, size]``; for small ``d`` written out, so that it fuses with what uses it."""
    if entries.shape[1] > _WRITTEN_OUT:
        return _dot(entries, points)
    return sum((entries[:, i][:, None] * points[i][None] for i in range(1, entries.shape[1])), entries[:, :1] * points[:1])


def _pull(
    x: jax.Array, real: jax.Array, codebook: jax.Array, temperature: jax.Array, a: jax.Array, norm: jax.Array, s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients to points and codebook, by way of the distances, of a loss whose gradient to the attention is ``s``."""
    r = a * (s - (a * s).sum(0, keepdims=True) * norm) * (norm * (2 / temperature))
    # Over the entries r adds up to nothing, so that the point's own term falls out.
    return real * _dot(codebook.T, r), _dot(r, (real * x).T) - codebook * _dot(r, jnp.broadcast_to(real, x.shape).T)


def _sums(x: jax.Array, codebook: jax.Array, temperature: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """``sum_i a_ij x_i`` and ``sum_i a_ij``, both ``[k, d]``."""

    def add(i: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        points, real = _at(x, i, layout), _real(i, layout)
        a, norm = _attention(points, real, codebook, temperature)
        counted = real * norm
        weights = jnp.broadcast_to(_dot(a, counted.T), codebook.shape)
        return total[0] + _dot(a, (counted * points).T), total[1] + weights

    zero = jnp.zeros_like(codebook)
    return lax.fori_loop(0, layout.tiles, add, (zero, zero))


def _means(total: jax.Array, mass: jax.Array, codebook: jax.Array) -> jax.Array:
    """The new codebook; an entry that no point attends to stays."""
    return jnp.where(mass > 0, total / jnp.where(mass > 0, mass, 1), codebook)


def _pull_means(
    x: jax.Array,
    codebook: jax.Array,
    means: jax.Array,
    mass: jax.Array,
    temperature: jax.Array,
    g: jax.Array,
    layout: Layout,
    into: jax.Array | None,
) -> tuple[jax.Array | None, jax.Array]:
    """From a gradient ``g`` of the means that came of ``codebook``: ``into`` plus that of the points, and that of the codebook.

    Without ``into`` the former is not worked out.
    """
    to_total = jnp.where(mass > 0, g / jnp.where(mass > 0, mass, 1), 0)
    to_mass = -to_total * means

    # A loop that writes where it read: scan's outputs would be one more array of the size of the points.
    def tile(i: Any, state: tuple[jax.Array | None, jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        into, moved = state
        points, real = _at(x, i, layout), _real(i, layout)
        a, norm = _attention(points, real, codebook, temperature)
        s = _few(to_total, real * points) + _few(to_mass, jnp.broadcast_to(real, points.shape))
        to_points, to_codebook = _pull(points, real, codebook, temperature, a, norm, s)
        if into is not None:
            into = _put(into, i, _at(into, i, layout) + to_points + real * norm * _dot(to_total.T, a), layout)
        return into, moved + to_codebook

    into, moved = lax.fori_loop(0, layout.tiles, tile, (into, jnp.zeros_like(codebook)))
    return into, moved + jnp.where(mass > 0, 0, g)


class _Path(NamedTuple):
    """What iterations leave for the backward pass, ``[iterations, k, d]`` each, or ``[1, k, d]`` at the fixed point."""

    codebook: jax.Array
    means: jax.Array
    mass: jax.Array
    done: jax.Array  # [] int32, iterations done


def _iterate(x: jax.Array, start: jax.Array, temperature: jax.Array, layout: Layout, solver: Solver) -> tuple[jax.Array, _Path]:
    kept = 1 if solver.implicit else solver.iterations
    empty = jnp.zeros((kept, *start.shape), start.dtype)
    settled = solver.tolerance * jnp.sqrt(temperature)

    def step(state: tuple[jax.Array, _Path, jax.Array]) -> tuple[jax.Array, _Path, jax.Array]:
        codebook, path, _ = state
        total, mass = _sums(x, codebook, temperature, layout)
        means = _means(total, mass, codebook)
        at = jnp.minimum(path.done, kept - 1)
        path = _Path(path.codebook.at[at].set(codebook), path.means.at[at].set(means), path.mass.at[at].set(mass), path.done + 1)
        return means, path, jnp.abs(means - codebook).max()

    def unfinished(state: tuple[jax.Array, _Path, jax.Array]) -> jax.Array:
        return (state[1].done < solver.iterations) & (state[2] > settled)

    path = _Path(empty, empty, empty, jnp.zeros((), jnp.int32))
    codebook, path, _ = lax.while_loop(unfinished, step, (start, path, jnp.full((), jnp.inf, start.dtype)))
    return codebook, path


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def soft_kmeans(
    x: jax.Array, start: jax.Array, temperature: jax.Array, layout: Layout, solver: Solver
) -> tuple[jax.Array, jax.Array]:
    """What soft k-means draws points to. Traceable; gradients go to the points alone.

    Args:
      x: float32 points in the tiles of ``layout``.
      start: ``[k, d]`` float32 codebook.
      temperature: ``[]``, above 0, in units of squared distance.
      layout, solver: static.

    Returns:
      ``y_i = sum_j a_ij c_j`` in the tiles of ``x``, and the codebook ``[k, d]``.

    Example:
      >>> layout = spread(4, 1, 4, 2)
      >>> x = to_tiles(jnp.array([[0.0], [0.2], [5.0], [5.4]]), layout)
      >>> y, codebook = soft_kmeans(x, jnp.array([[1.0], [4.0]]), jnp.float32(0.1), layout, Solver(5, 1e-4, False, 0))
      >>> [[round(float(c), 3) for c in entry] for entry in codebook]
      [[0.1], [5.2]]
    """
    return _soft_kmeans_forward(x, start, temperature, layout, solver)[0]


def _soft_kmeans_forward(x: jax.Array, start: jax.Array, temperature: jax.Array, layout: Layout, solver: Solver) -> Any:
    codebook, path = _iterate(x, start, temperature, layout, solver)

    def tile(i: Any, values: jax.Array) -> jax.Array:
        a, norm = _attention(_at(x, i, layout), _real(i, layout), codebook, temperature)
        return _put(values, i, _dot(codebook.T, a) * norm, layout)

    # All of it is written over. Not from zeros, which XLA would keep for the backward pass, whose gradients start from them.
    values = lax.fori_loop(0, layout.tiles, tile, x)
    return (values, codebook), (x, codebook, temperature, path)


def _soft_kmeans_backward(
    layout: Layout, solver: Solver, kept: Any, g: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, None]:
    x, codebook, temperature, path = kept

    def tile(i: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """From the values' gradient to the points', and to the codebook, by way of attention and of the sum over entries."""
        into, moved = state
        # Not over the values' gradient: XLA would copy all of it for each tile, to be sure to read before writing.
        points, real, own = _at(x, i, layout), _real(i, layout), _at(g[0], i, layout)
        a, norm = _attention(points, real, codebook, temperature)
        to_points, to_codebook = _pull(points, real, codebook, temperature, a, norm, _few(codebook, real * own))
        return _put(into, i, to_points, layout), moved + to_codebook + _dot(a, (real * norm * own).T)

    to_points, to_codebook = lax.fori_loop(0, layout.tiles, tile, (jnp.zeros_like(x), g[1]))
    if solver.implicit:
        return _through_the_fixed_point(x, codebook, temperature, to_codebook, layout, solver, to_points), None, None

    def step(i: Any, state: tuple[jax.Array | None, jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        into, moved = state
        at = path.done - 1 - i
        return _pull_means(x, path.codebook[at], path.means[at], path.mass[at], temperature, moved, layout, into)

    return lax.fori_loop(0, path.done, step, (to_points, to_codebook))[0], None, None


def _through_the_fixed_point(
    x: jax.Array, codebook: jax.Array, temperature: jax.Array, g: jax.Array, layout: Layout, solver: Solver, into: jax.Array
) -> jax.Array:
    """With ``c = F(x, c)``: ``into + (dF/dx)^T l`` where ``l = g + (dF/dc)^T l``."""
    total, mass = _sums(x, codebook, temperature, layout)
    means = _means(total, mass, codebook)

    def pulled(v: jax.Array) -> jax.Array:
        return _pull_means(x, codebook, means, mass, temperature, v, layout, None)[1]

    solution = g
    if solver.solver_steps:
        # As many steps as there are unknowns solve it.
        steps = min(solver.solver_steps, g.size)
        solution = gmres(lambda v: v - pulled(v), g, x0=g, tol=1e-6, restart=steps, maxiter=1, solve_method="incremental")[0]
    to_points = _pull_means(x, codebook, means, mass, temperature, solution, layout, into)[0]
    return into if to_points is None else to_points  # for the type checker: it was given something to add to


soft_kmeans.defvjp(_soft_kmeans_forward, _soft_kmeans_backward)


def variance(x: jax.Array, layout: Layout) -> jax.Array:
    """``[]`` mean squared distance of a coordinate from the mean of all, padding apart."""

    def mean_of(of_tile: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def add(i: Any, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            real = jnp.broadcast_to(_real(i, layout), (layout.d, layout.size))
            row = i // layout.parts
            return sums[0].at[row].add((of_tile(_at(x, i, layout)) * real).sum()), sums[1].at[row].add(real.sum())

        # A sum for each row of tiles, so that no accumulator sees too many.
        zero = jnp.zeros(layout.tiles // layout.parts, x.dtype)
        total, count = lax.fori_loop(0, layout.tiles, add, (zero, zero))
        return total.sum() / count.sum()

    mean = mean_of(lambda tile: tile)
    return mean_of(lambda tile: jnp.square(tile - mean))
