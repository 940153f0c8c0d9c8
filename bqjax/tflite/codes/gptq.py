"""Values for the weights of a layer, chosen one input after the other, later weights making good what earlier ones lost.

Rounding every weight by itself ignores that errors of weights with correlated inputs can cancel. Here the inputs of a
layer are gone through in turn: each weight takes the value that is cheapest for it, by the output error that is left
when all later weights are moved as well as they can be and by the bits of its index, and the later weights are moved so.

With a layer's weights ``w [rows, d]``, its inputs' second moment ``H [d, d]`` and the importance ``g [rows]`` of its
outputs, this descends on ``sum_r g_r / 2 (w_r - v_r)^T H (w_r - v_r) + lmbda * bits(v)``.

References:
  Hassibi, Stork, "Second order derivatives for network pruning: optimal brain surgeon", NeurIPS 1992.
  Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023 (arXiv 2210.17323): the order, and the Cholesky form.
  Chou, Lookabaugh, Gray, "Entropy-constrained vector quantization", IEEE Transactions on ASSP 37(1), 1989.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["compensated_values", "inverse_factor"]


def inverse_factor(moment: jax.Array, damping: float = 0.01) -> tuple[jax.Array, jax.Array]:
    """The order in which inputs are gone through, and the factor that says how errors are passed on. Traceable.

    Args:
      moment: ``[d, d]`` second moment of the inputs, symmetric, positive semidefinite.
      damping: share of the mean of its diagonal that is added to the diagonal: inputs seen never, or always together,
        leave the inverse undefined.

    Returns:
      ``order [d]``, inputs of largest second moment first, and ``u [d, d]``, upper triangular in that order, with
      ``u^T u = (H + damping I)^-1``.
    """
    d = moment.shape[0]
    diagonal = jnp.diagonal(moment)
    order = jnp.argsort(-diagonal, stable=True)
    scale = jnp.mean(diagonal)
    scale = jnp.where(scale > 0, scale, 1.0)
    h = moment[order][:, order] / scale + damping * jnp.eye(d, dtype=moment.dtype)
    # The upper factor of the inverse is the inverse of the lower factor taken from the other end.
    flipped = jnp.linalg.cholesky(h[::-1, ::-1])
    inverse = jax.scipy.linalg.solve_triangular(flipped, jnp.eye(d, dtype=h.dtype), lower=True)
    return order, inverse[::-1, ::-1] / jnp.sqrt(scale)


@partial(jax.jit, static_argnames="compensate")
def compensated_values(
    weights: jax.Array,
    order: jax.Array,
    factor: jax.Array,
    importance: jax.Array,
    values: jax.Array,
    bits: jax.Array,
    lmbda: Any,
    compensate: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Chooses a value for every weight. Pure and traceable.

    Args:
      weights: ``[rows, d]`` float32.
      order, factor: of the inputs, from :func:`inverse_factor`.
      importance: ``[rows]``, of the outputs; non-negative.
      values: ``[k]`` or ``[rows, k]``, what a weight may become.
      bits: of the shape of ``values``, what the index of each value costs; infinite for a value that may not be taken.
      lmbda: of a bit, in units of ``importance * output^2``.
      compensate: False chooses by the same costs and moves no weight.

    Returns:
      Indices ``[rows, d]`` into ``values`` (of the row), int32, and for every row ``e^T H e`` (damped), its error, ``[rows]``.
    """
    rows, d = weights.shape
    values, charge = (jnp.broadcast_to(x, (rows, x.shape[-1])) for x in (values, lmbda * bits))

    def column(state: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        w, error = state
        j, row, pivot = at
        now = jax.lax.dynamic_index_in_dim(w, j, axis=1, keepdims=False)
        squares = jnp.square(now[:, None] - values)
        cost = (importance[:, None] / (2 * jnp.square(pivot))) * squares + charge
        chosen = jnp.argmin(cost, axis=1)
        lost = (now - jnp.take_along_axis(values, chosen[:, None], axis=1)[:, 0]) / pivot
        if compensate:
            w = w - lost[:, None] * row[None, :]
        return (w, error + jnp.square(lost)), chosen

    start = weights[:, order], jnp.zeros(rows, weights.dtype)
    (_, error), chosen = jax.lax.scan(column, start, (jnp.arange(d), factor, jnp.diagonal(factor)))
    return jnp.zeros((rows, d), jnp.int32).at[:, order].set(chosen.T.astype(jnp.int32)), error
