"""Error feedback and coordinate descent for blocks of weights: vector quantization under a layer's curvature, entropy-constrained.

As :mod:`bqjax.methods.rate_distortion.feedback`, with a block of ``d`` inputs of one output in place of one weight. Blocks of
inputs are gone through in turn. With ``u`` the factor of the inverse moment of the inputs (``u^T u = H^-1``, upper triangular in
the order of the blocks) and ``u_JJ`` its ``d x d`` part at a block ``J``, the error ``e_J`` that a block keeps costs

    ``|u_JJ^-T e_J|^2``

when all later blocks are moved as well as they can be, which is by ``-u_JF^T u_JJ^-T e_J``. Each block takes the codebook entry of
least ``g_r / 2`` times that plus ``lmbda`` times the bits of its index. At ``d = 1`` this is the scalar rule.

References:
  Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (arXiv 2210.17323): the Cholesky form.
  van Baalen et al., "GPTVQ", 2024 (arXiv 2402.15319): error feedback over blocks of columns.
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.methods.rate_distortion.blocks import BlockLayout
from bqjax.sensitivity.leaf_curvature import LeafCurvature

__all__ = ["BlockStats", "block_errors", "block_stats", "compensated_blocks", "descended_blocks", "to_columns"]


class BlockStats(NamedTuple):
    """What the solver needs of a leaf in blocks; its ``D = B d`` inputs are in the order in which blocks are gone through.

    Attributes:
      order: ``[G, B]`` numbers of the blocks of a row (of :class:`~bqjax.methods.rate_distortion.blocks.BlockLayout`) in that
        order.
      inputs: ``[G, D]`` inputs of the leaf's rows; padding points to a zero behind them.
      real: ``[G, D]`` False for padding, whose moment is that of an input by itself.
      whitener: ``[G, B, d, d]``, ``u_JJ^-T`` of each block.
      factor: ``[G, D, D]``, upper triangular, ``factor^T factor = moment^-1``; None where only coordinate descent goes on.
      moment: ``[G, D, D]``, damped.
      importance: ``[G, rows]``, positive.
    """

    order: jax.Array
    inputs: jax.Array
    real: jax.Array
    whitener: jax.Array
    factor: jax.Array | None
    moment: jax.Array
    importance: jax.Array


def block_stats(curvature: LeafCurvature, layout: BlockLayout, *, centred: bool = False, damping: float = 0.01) -> BlockStats:
    """Statistics of a leaf in blocks from its curvature.

    Args:
      curvature: of the leaf.
      layout: how its rows are cut to blocks.
      centred, damping: see :func:`bqjax.methods.rate_distortion.leaf.leaf_stats`.
    """
    second, mean = jnp.asarray(curvature.inputs, jnp.float32), jnp.asarray(curvature.mean, jnp.float32)
    moment = second - mean[:, :, None] * mean[:, None, :] if centred else second
    share = jnp.float32(damping + mean.shape[1] / max(1, curvature.rows))
    outputs = np.asarray(curvature.outputs, np.float64)
    # What calibration never reached is not known to be worthless.
    outputs = outputs + 0.01 * outputs.mean() + 1e-30
    order, inputs, real, whitener, factor, damped = _factored(moment, jnp.asarray(layout.inputs), share)
    return BlockStats(order, inputs, real, whitener, factor, damped, jnp.asarray(outputs, jnp.float32))


@jax.jit
def _factored(moment: jax.Array, inputs: jax.Array, share: jax.Array) -> tuple[jax.Array, ...]:
    """Everything but the importance, group by group."""

    def one(at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        h, blocks = at
        n, d = blocks.shape
        diagonal = jnp.diagonal(h)
        scale = jnp.mean(diagonal)
        scale = jnp.where(scale > 0, scale, 1.0)
        # Largest first, as for single inputs; padding is a zero behind the inputs.
        loud = jnp.append(diagonal, 0.0)[blocks].sum(1)
        order = jnp.argsort(-loud, stable=True)
        flat = blocks[order].reshape(-1)
        real = flat < len(diagonal)
        both = real[:, None] & real[None, :]
        h = jnp.where(both, jnp.pad(h, (0, 1))[flat][:, flat] / scale, 0.0)
        h = h + jnp.diag(jnp.where(real, share, 1.0).astype(h.dtype))
        # The upper factor of the inverse is the inverse of the lower factor taken from the other end.
        flipped = jnp.linalg.cholesky(h[::-1, ::-1])
        eye = jnp.eye(n * d, dtype=h.dtype)
        factor = jax.scipy.linalg.solve_triangular(flipped, eye, lower=True)[::-1, ::-1] / jnp.sqrt(scale)
        own = factor.reshape(n, d, n, d)[jnp.arange(n), :, jnp.arange(n), :]
        whitener = jnp.linalg.inv(own).swapaxes(1, 2)
        return order, flat, real, whitener, factor, h * scale

    return jax.lax.map(one, (moment, inputs))


def to_columns(rows: jax.Array, stats: BlockStats) -> jax.Array:
    """Weights ``[G, rows, inputs]`` in the order of the statistics, ``[G, rows, D]``, padding as zeros. Traceable."""
    padded = jnp.pad(rows, ((0, 0), (0, 0), (0, 1)))
    return jnp.take_along_axis(padded, stats.inputs[:, None, :], axis=2)


def _values(codebook: jax.Array, chosen: jax.Array, real: jax.Array) -> jax.Array:
    """``[rows, D]`` of indices ``[rows, B]``, zero where there is only padding."""
    return jnp.where(real[None, :], codebook[chosen].reshape(len(chosen), -1), 0.0)


def block_errors(columns: jax.Array, chosen: jax.Array, codebook: jax.Array, stats: BlockStats) -> jax.Array:
    """``sum g / 2 e^T H e`` of indices ``[G, rows, B]`` in the order of the statistics. Traceable."""
    values = jax.vmap(_values, (None, 0, 0))(codebook, chosen, stats.real)
    e = columns - values
    return (stats.importance * (jnp.matmul(e, stats.moment) * e).sum(-1)).sum() / 2


@partial(jax.jit, static_argnames="compensate")
def compensated_blocks(
    columns: jax.Array, stats: BlockStats, codebook: jax.Array, bits: jax.Array, lmbda: Any, *, compensate: bool = True
) -> jax.Array:
    """Chooses a codebook entry for every block. Pure and traceable.

    Args:
      columns: ``[G, rows, D]`` float32, see :func:`to_columns`.
      stats: of the leaf.
      codebook: ``[k, d]``.
      bits: ``[k]``, what the index of each entry costs; infinite for an entry that may not be taken.
      lmbda: of a bit, in units of ``importance * output^2``.
      compensate: False moves no later block.

    Returns:
      Indices ``[G, rows, B]`` int32, blocks in the order of the statistics.
    """
    charge = lmbda * bits

    def one(at: tuple[jax.Array, ...]) -> jax.Array:
        w, real, whitener, factor, importance = at
        n, d, _ = whitener.shape

        def block(w: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            j, real, white, onward = at
            now = jax.lax.dynamic_slice_in_dim(w, j * d, d, axis=1) @ white.T
            entries = jnp.where(real[None, :], codebook, 0.0) @ white.T
            # |now - entry|^2 without |now|^2, which is the same for all.
            far = jnp.square(entries).sum(1)[None, :] - 2 * now @ entries.T
            chosen = jnp.argmin(importance[:, None] / 2 * far + charge[None, :], axis=1)
            if compensate:
                w = w - (now - entries[chosen]) @ onward
            return w, chosen.astype(jnp.int32)

        at = jnp.arange(n), real.reshape(n, d), whitener, factor.reshape(n, d, n * d)
        return jax.lax.scan(block, w, at)[1].T

    return jax.lax.map(one, (columns, stats.real, stats.whitener, stats.factor, stats.importance))


@partial(jax.jit, static_argnames="sweeps")
def descended_blocks(
    columns: jax.Array, chosen: jax.Array, stats: BlockStats, codebook: jax.Array, bits: jax.Array, lmbda: Any, *, sweeps: int = 1
) -> jax.Array:
    """Coordinate descent: each block in turn takes the entry that is cheapest while all others stay. Pure and traceable.

    Args:
      columns, stats, codebook, bits, lmbda: as :func:`compensated_blocks`.
      chosen: ``[G, rows, B]`` indices to start from.
      sweeps: over all blocks.

    Returns:
      Indices as :func:`compensated_blocks`; distortion plus ``lmbda`` times bits is never above what it starts from, but for
      rounding.
    """
    charge = lmbda * bits

    def one(at: tuple[jax.Array, ...]) -> jax.Array:
        w, chosen, real, moment, importance = at
        n = chosen.shape[1]
        d = len(real) // n

        def block(pull: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            j, old, real, row, own = at
            entries = jnp.where(real[None, :], codebook, 0.0)
            through = entries @ own
            # Of e + old - new, as a function of new.
            toward = jax.lax.dynamic_slice_in_dim(pull, j * d, d, axis=1) + through[old]
            far = (through * entries).sum(1)[None, :] - 2 * toward @ entries.T
            cost = importance[:, None] / 2 * far + charge[None, :]
            new = jnp.argmin(cost, axis=1).astype(jnp.int32)
            # An entry that is no better, but for rounding, is not taken.
            rows = jnp.arange(len(new))
            new = jnp.where(cost[rows, new] < cost[rows, old], new, old)
            return pull - (entries[new] - entries[old]) @ row, new

        def sweep(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            pull, levels = state
            blocks = moment.reshape(n, d, n * d)
            own = moment.reshape(n, d, n, d)[jnp.arange(n), :, jnp.arange(n), :]
            return jax.lax.scan(block, pull, (jnp.arange(n), levels, real.reshape(n, d), blocks, own))

        pull = (w - _values(codebook, chosen, real)) @ moment
        return jax.lax.fori_loop(0, sweeps, sweep, (pull, chosen.T.astype(jnp.int32)))[1].T

    return jax.lax.map(one, (columns, chosen, stats.real, stats.moment, stats.importance))
