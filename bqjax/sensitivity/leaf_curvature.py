"""The curvature of a network's outputs in one leaf, and how the leaf's axes go to rows of weights and back.

A leaf that enters linearly, ``y = x W``, is seen as ``[G, rows, d]``: ``G`` independent problems (groups of a convolution,
experts, slices of a stacked leaf, blocks of wide inputs), each with ``rows`` outputs of ``d`` inputs. The Gauss-Newton matrix
of the outputs in it is taken as ``diag(outputs) (x) inputs``, one matrix for the inputs and one number for each output.

Reference: Martens, Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature" (arXiv 1503.05671),
here with a diagonal for the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Layout", "LeafCurvature"]


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a leaf's own axes go to ``[G, rows, d]`` and back. Static and hashable: no arrays, so it passes through ``jit``.

    Attributes:
      shape: the leaf's.
      view: the shape that the leaf is first reshaped to, where one of its axes has parts of several kinds.
      groups, rows, inputs: axes of the view, in the order in which they are merged; together they are all of its axes.
      width: inputs of one block; None takes all in one. Where it does not divide them, the last block ends with zeros that
        are no weights (:meth:`real_inputs` says which).

    Example:
      >>> layout = Layout(shape=(3, 4, 2), view=(3, 4, 2), groups=(), rows=(1, 2), inputs=(0,))  # an attention kernel
      >>> layout.rows_shape
      (1, 8, 3)
      >>> leaf = np.arange(24.0).reshape(3, 4, 2)
      >>> rows = layout.to_rows(leaf)
      >>> rows[0, 5].tolist(), bool((layout.to_leaf(rows) == leaf).all())
      ([5.0, 13.0, 21.0], True)
    """

    shape: tuple[int, ...]
    view: tuple[int, ...]
    groups: tuple[int, ...]
    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    width: int | None = None

    def __post_init__(self) -> None:
        if math.prod(self.view) != math.prod(self.shape):
            raise ValueError(f"a leaf of shape {self.shape} cannot be seen as {self.view}")
        if sorted(self.groups + self.rows + self.inputs) != list(range(len(self.view))):
            raise ValueError(
                f"groups {self.groups}, rows {self.rows} and inputs {self.inputs} must be the axes of {self.view}, each once"
            )
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")

    def _sizes(self) -> tuple[int, int, int]:
        """Groups, rows and inputs before inputs are cut to blocks."""
        groups, rows, inputs = (math.prod(self.view[i] for i in axes) for axes in (self.groups, self.rows, self.inputs))
        return groups, rows, inputs

    @property
    def blocks(self) -> int:
        """Blocks that the inputs of each group are cut to."""
        return 1 if self.width is None else -(-self._sizes()[2] // self.width)

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """``(G, rows, d)``."""
        groups, rows, inputs = self._sizes()
        return groups * self.blocks, rows, inputs if self.width is None else self.width

    def real_inputs(self) -> np.ndarray:
        """``[G, d]``, False for what fills up the last block."""
        groups, _, inputs = self._sizes()
        n, _, d = self.rows_shape
        real = np.arange(self.blocks * d).reshape(self.blocks, d) < inputs
        return np.tile(real, (groups, 1)).reshape(n, d)

    def to_rows(self, leaf: Any) -> Any:
        """An array of the leaf's shape as ``[G, rows, d]``; NumPy stays NumPy, JAX is traceable.

        Raises:
          ValueError: the array has another shape.
        """
        if tuple(np.shape(leaf)) != self.shape:
            raise ValueError(f"the leaf has shape {self.shape}, got an array of shape {tuple(np.shape(leaf))}")
        groups, rows, inputs = self._sizes()
        array = leaf.reshape(self.view).transpose(self.groups + self.rows + self.inputs).reshape(groups, rows, inputs)
        n, _, d = self.rows_shape
        if self.blocks * d > inputs:
            pad = np.pad if isinstance(array, np.ndarray) else jnp.pad
            array = pad(array, ((0, 0), (0, 0), (0, self.blocks * d - inputs)))
        return array.reshape(groups, rows, self.blocks, d).swapaxes(1, 2).reshape(n, rows, d)

    def to_leaf(self, rows: Any) -> Any:
        """The inverse of :meth:`to_rows`; what fills up the last block is dropped.

        Raises:
          ValueError: the array is not ``[G, rows, d]``.
        """
        if tuple(np.shape(rows)) != self.rows_shape:
            raise ValueError(f"the leaf's rows have shape {self.rows_shape}, got an array of shape {tuple(np.shape(rows))}")
        groups, n_rows, inputs = self._sizes()
        d = self.rows_shape[2]
        array = rows.reshape(groups, self.blocks, n_rows, d).swapaxes(1, 2).reshape(groups, n_rows, self.blocks * d)
        order = self.groups + self.rows + self.inputs
        array = array[:, :, :inputs].reshape(tuple(self.view[i] for i in order))
        return array.transpose(tuple(order.index(i) for i in range(len(order)))).reshape(self.shape)


class LeafCurvature(NamedTuple):
    """Curvature of a network's outputs in one leaf that enters them linearly.

    Second order in a change ``e [G, rows, d]`` of the leaf, the squared change of the outputs of one example is close to
    ``sum_g sum_r outputs[g, r] * e[g, r]^T inputs[g] e[g, r]``.

    Attributes:
      inputs: ``[G, d, d]`` float32, ``E[x x^T]`` over positions; not centred.
      mean: ``[G, d]`` float32, ``E[x]``.
      outputs: ``[G, rows]`` float32, how much each output matters: the importance of its weights (an example's mean), summed
        over inputs, over ``trace(inputs)``.
      rows: sampled positions behind the moments. Fewer than a few times ``d`` know directions along which nothing seems to
        happen; damp by it.
      centred: whether a bias or shift behind the leaf can take up errors along the inputs' mean, so that
        ``inputs - mean mean^T`` is what remains.
      layout: how the leaf goes to ``[G, rows, d]`` and back.
      looked_up: whether rows are looked up one at a time (an embedding): then they matter by how often, which differs by
        orders of magnitude.
    """

    inputs: np.ndarray
    mean: np.ndarray
    outputs: np.ndarray
    rows: int
    centred: bool
    layout: Layout
    looked_up: bool = False
