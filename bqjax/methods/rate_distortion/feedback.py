"""GPTQ error feedback with an entropy constraint: each weight takes its cheapest level, and later weights make good the error.

Rounding every weight by itself ignores that errors of weights with correlated inputs can cancel. Here the inputs of a
layer are gone through in turn: each weight takes the level that is cheapest for it, by the output error that is left
when all later weights are moved as well as they can be and by the bits of its index, and the later weights are moved so.

With a layer's weights ``w [rows, d]``, its inputs' second moment ``H [d, d]`` and the importance ``g [rows]`` of its
outputs, this descends on ``sum_r g_r / 2 (w_r - v_r)^T H (w_r - v_r) + lmbda * bits(v)``. :func:`descended_values` goes on from
there by coordinate descent, which cannot raise it.

References:
  Hassibi, Stork, "Second order derivatives for network pruning: optimal brain surgeon", NeurIPS 1992.
  Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (arXiv 2210.17323): the order, the Cholesky form, lazy updates.
  Behdin et al. 2023 (arXiv 2309.01885), "QuantEase": coordinate descent on the layer's quadratic form.
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["compensated_values", "descended_values", "inverse_factor", "ordered"]


def ordered(moment: jax.Array, damping: Any = 0.01) -> tuple[jax.Array, jax.Array]:
    """The order in which inputs are gone through, and their damped second moment. Traceable.

    Args:
      moment: ``[d, d]`` second moment of the inputs, symmetric, positive semidefinite.
      damping: share of the mean of its diagonal that is added to the diagonal: inputs seen never, or always together,
        leave the inverse undefined.

    Returns:
      ``order [d]``, inputs of largest second moment first, and ``[d, d]`` the damped moment in that order.
    """
    order, h, scale = _damped(moment, damping)
    return order, h * scale


def _damped(moment: jax.Array, damping: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Order, the damped moment in it in units of its mean diagonal, and that mean."""
    diagonal = jnp.diagonal(moment)
    order = jnp.argsort(-diagonal, stable=True)
    scale = jnp.mean(diagonal)
    scale = jnp.where(scale > 0, scale, 1.0)
    return order, moment[order][:, order] / scale + damping * jnp.eye(moment.shape[0], dtype=moment.dtype), scale


def inverse_factor(moment: jax.Array, damping: Any = 0.01) -> tuple[jax.Array, jax.Array]:
    """The order in which inputs are gone through, and the factor that says how errors are passed on. Traceable.

    Args:
      moment, damping: see :func:`ordered`.

    Returns:
      ``order [d]``, inputs of largest second moment first, and ``u [d, d]``, upper triangular in that order, with
      ``u^T u = (H + damping I)^-1``.
    """
    order, h, scale = _damped(moment, damping)
    # The upper factor of the inverse is the inverse of the lower factor taken from the other end.
    flipped = jnp.linalg.cholesky(h[::-1, ::-1])
    inverse = jax.scipy.linalg.solve_triangular(flipped, jnp.eye(len(order), dtype=h.dtype), lower=True)
    return order, inverse[::-1, ::-1] / jnp.sqrt(scale)


def _charge(bits: jax.Array, lmbda: Any) -> jax.Array:
    """``lmbda * bits``, infinite where bits are, also at ``lmbda = 0``."""
    return jnp.where(jnp.isfinite(bits), lmbda * bits, jnp.inf)


def _cheapest(now: jax.Array, weight: jax.Array, values: jax.Array, charge: jax.Array, near: int | None, zero: Any) -> jax.Array:
    """The level ``b`` of least ``weight (now - values_b)^2 + charge_b`` for every row.

    Args:
      now, weight: ``[rows]``.
      values, charge: ``[k]`` or ``[rows, k]``; evenly spread where only those nearby are looked at.
      near: levels on each side of the nearest that are looked at beside ``zero``; None looks at all.
      zero: index of a level that is always looked at, where ``near`` is given.

    Returns:
      Indices ``[rows]``.
    """
    if near is None:
        return jnp.argmin(weight[:, None] * jnp.square(now[:, None] - values) + charge, axis=1)
    k = values.shape[-1]
    step = (values[..., -1] - values[..., 0]) / max(1, k - 1)
    position = jnp.round((now - values[..., 0]) / jnp.where(step > 0, step, 1.0)).astype(jnp.int32)
    # Beyond the levels that may be taken the nearest of them is the last one, not zero.
    allowed = jnp.isfinite(charge)
    first, last = jnp.argmax(allowed, axis=-1), k - 1 - jnp.argmax(allowed[..., ::-1], axis=-1)
    if charge.ndim > 1:
        first, last = first[:, None], last[:, None]
    tried = jnp.clip(position[:, None] + jnp.arange(-near, near + 1)[None, :], first, last)
    tried = jnp.concatenate([tried, jnp.broadcast_to(jnp.asarray(zero, jnp.int32), (len(now), 1))], axis=1)
    cost = weight[:, None] * jnp.square(now[:, None] - _taken(values, tried)) + _taken(charge, tried)
    return jnp.take_along_axis(tried, jnp.argmin(cost, axis=1)[:, None], axis=1)[:, 0]


def _taken(table: jax.Array, index: jax.Array) -> jax.Array:
    """Entries ``[rows, c]`` of a table ``[k]`` or ``[rows, k]``."""
    return table[index] if table.ndim == 1 else jnp.take_along_axis(table, index, axis=1)


@partial(jax.jit, static_argnames=("compensate", "near", "block"))
def compensated_values(
    weights: jax.Array,
    order: jax.Array,
    factor: jax.Array,
    importance: jax.Array,
    values: jax.Array,
    bits: jax.Array,
    lmbda: Any,
    compensate: bool = True,
    *,
    near: int | None = None,
    zero: Any = 0,
    block: int | None = None,
    held: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses a level for every weight. Pure and traceable.

    Args:
      weights: ``[rows, d]`` float32.
      order, factor: of the inputs, from :func:`inverse_factor`.
      importance: ``[rows]``, of the outputs; non-negative.
      values: ``[k]`` or ``[rows, k]``, what a weight may become.
      bits: of the shape of ``values``, what the index of each level costs; infinite for a level that may not be taken.
      lmbda: of a bit, in units of ``importance * output^2``.
      compensate: False chooses by the same costs and moves no weight.
      near: only so many levels on each side of the nearest, and the level ``zero``, are looked at: the time does not grow with
        ``k``. Levels must then rise, and be close to an even grid; those that may be taken lie side by side. None looks at all.
      zero: index of the level that is always looked at, where ``near`` is given.
      block: inputs whose errors are passed on to those of later blocks together, as one product of matrices; None passes on each by
        itself. What is chosen is the same but for rounding.
      held: ``[rows, d]`` booleans, weights that take the level ``zero`` whatever it costs; None holds none.

    Returns:
      Indices ``[rows, d]`` into ``values`` (of the row), int32, and for every row ``e^T H e`` (damped), its error, ``[rows]``.
    """
    rows, d = weights.shape
    charge = _charge(bits, lmbda)
    if near is None:
        values, charge = (jnp.broadcast_to(x, (rows, x.shape[-1])) for x in (values, charge))

    def column(state: tuple[jax.Array, jax.Array], at: tuple[Any, ...]) -> Any:
        w, error = state
        j, row, pivot, hold = at
        now = jax.lax.dynamic_index_in_dim(w, j, axis=1, keepdims=False)
        chosen = _cheapest(now, importance / (2 * jnp.square(pivot)), values, charge, near, zero)
        chosen = chosen if hold is None else jnp.where(hold, zero, chosen)
        lost = (now - _taken(values, chosen[:, None])[:, 0]) / pivot
        if compensate:
            w = w - lost[:, None] * row[None, :]
        return (w, error + jnp.square(lost)), (chosen, lost)

    start, none = weights[:, order], jnp.zeros(rows, weights.dtype)
    hold = _held(held, order)
    if block is None or block >= d:
        (_, error), (chosen, _) = jax.lax.scan(column, (start, none), (jnp.arange(d), factor, jnp.diagonal(factor), hold))
    else:
        chosen, error = _by_blocks(column, start, factor, hold, block, compensate)
    return jnp.zeros((rows, d), jnp.int32).at[:, order].set(chosen.T.astype(jnp.int32)), error


def _held(held: jax.Array | None, order: jax.Array) -> jax.Array | None:
    """``[d, rows]`` in the order in which inputs are gone through."""
    return None if held is None else held[:, order].T


def _by_blocks(
    column: Any, start: jax.Array, factor: jax.Array, hold: jax.Array | None, block: int, compensate: bool
) -> tuple[jax.Array, jax.Array]:
    """Chosen ``[d, rows]`` and error ``[rows]``, errors passed on to later blocks by one product a block."""
    rows, d = start.shape
    padding = -d % block
    real = jnp.arange(d + padding) < d
    whole = jnp.pad(factor, ((0, padding), (0, padding))) + jnp.diag(jnp.where(real, 0.0, 1.0).astype(factor.dtype))

    def one(w: jax.Array, piece: tuple[jax.Array, jax.Array | None]) -> Any:
        number, hold = piece
        first = number * block
        below = jax.lax.dynamic_slice_in_dim(whole, first, block, axis=0)  # [block, d]
        own = jax.lax.dynamic_slice_in_dim(below, first, block, axis=1)
        part = jax.lax.dynamic_slice_in_dim(w, first, block, axis=1)
        at = jnp.arange(block), own, jnp.diagonal(own), hold
        _, (chosen, lost) = jax.lax.scan(column, (part, jnp.zeros(rows, w.dtype)), at)
        if compensate:
            w = w - lost.T @ below
        return w, (chosen, lost)

    padded = jnp.pad(start, ((0, 0), (0, padding)))
    blocks = (d + padding) // block
    hold = None if hold is None else jnp.pad(hold, ((0, padding), (0, 0))).reshape(blocks, block, rows)
    _, (chosen, lost) = jax.lax.scan(one, padded, (jnp.arange(blocks), hold))
    return chosen.reshape(d + padding, rows)[:d], jnp.square(lost.reshape(d + padding, rows)[:d]).sum(0)


@partial(jax.jit, static_argnames=("near", "sweeps"))
def descended_values(
    weights: jax.Array,
    chosen: jax.Array,
    order: jax.Array,
    moment: jax.Array,
    importance: jax.Array,
    values: jax.Array,
    bits: jax.Array,
    lmbda: Any,
    *,
    near: int | None = None,
    zero: Any = 0,
    sweeps: int = 1,
    held: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Coordinate descent: each weight in turn takes the level that is cheapest while all others stay. Pure and traceable.

    Args:
      weights, importance, values, bits, lmbda, near, zero: as :func:`compensated_values`.
      chosen: ``[rows, d]`` levels to start from.
      order, moment: from :func:`ordered`.
      sweeps: over all inputs.
      held: ``[rows, d]`` booleans, weights that stay at the level they start from; None: all may move.

    Returns:
      As :func:`compensated_values`; ``importance / 2 error + lmbda bits`` is never above what it starts from, but for rounding.
    """
    rows, d = weights.shape
    charge = _charge(bits, lmbda)
    if near is None:
        values, charge = (jnp.broadcast_to(x, (rows, x.shape[-1])) for x in (values, charge))

    def cost(own: jax.Array, target: jax.Array, level: jax.Array) -> jax.Array:
        value, price = (_taken(table, level[:, None])[:, 0] for table in (values, charge))
        return importance * own / 2 * jnp.square(target - value) + price

    def column(pull: jax.Array, at: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        j, old, row, own, hold = at
        value = _taken(values, old[:, None])[:, 0]
        target = value + jax.lax.dynamic_index_in_dim(pull, j, axis=1, keepdims=False) / own
        new = _cheapest(target, importance * own / 2, values, charge, near, zero)
        # The level that a weight has is not always among those looked at.
        better = cost(own, target, new) < cost(own, target, old)
        new = jnp.where(better if hold is None else better & ~hold, new, old)
        moved = _taken(values, new[:, None])[:, 0] - value
        return pull - moved[:, None] * row[None, :], new

    def sweep(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        pull, levels = state
        return jax.lax.scan(column, pull, (jnp.arange(d), levels, moment, jnp.diagonal(moment), _held(held, order)))

    def errors(levels: jax.Array) -> jax.Array:
        return start - _taken(values, levels.T)

    start, levels = weights[:, order], chosen[:, order].T.astype(jnp.int32)
    pull, levels = jax.lax.fori_loop(0, sweeps, sweep, (errors(levels) @ moment, levels))
    return jnp.zeros((rows, d), jnp.int32).at[:, order].set(levels.T), jnp.sum(errors(levels) * pull, axis=1)
