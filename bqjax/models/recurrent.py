"""Recurrent layers over padded sequences: GRU and LSTM, in one direction or both, as one ``lax.scan`` each.

The product of inputs and input weights is taken for all frames at once, before the scan: that is where most of the
arithmetic is, and it is what lets :mod:`bqjax.sensitivity.slicing` keep it when recurrent weights are perturbed.

``valid`` says which frames belong to a sequence. A frame of padding leaves the state as it is and gives zeros, so that
outputs do not depend on how far a sequence was padded; the backward direction starts, behind the padding, from a state
that is still zero.

References:
  Cho et al. Learning Phrase Representations using RNN Encoder-Decoder. EMNLP 2014. https://arxiv.org/abs/1406.1078
  Hochreiter, Schmidhuber. Long Short-Term Memory. Neural Computation 9(8), 1997.
  Amodei et al. Deep Speech 2. ICML 2016, section 3.2: BatchNorm of the input product. https://arxiv.org/abs/1512.02595
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

__all__ = ["GRU", "LSTM", "Bidirectional", "valid_frames"]


def valid_frames(lengths: jax.Array, n_frames: int) -> jax.Array:
    """Which frames belong to sequences of these lengths: ``[n] -> [n, n_frames]`` booleans.

    Example:
      >>> valid_frames(jnp.array([1, 3]), 3).tolist()
      [[True, False, False], [True, True, True]]
    """
    return jnp.arange(n_frames)[None, :] < lengths[:, None]


class _Recurrent(nnx.Module):
    """What GRU and LSTM share: weights, BatchNorm, and the scan.

    Its parameters are ``input/kernel``, ``recurrent/kernel``, and ``input/bias``, or with BatchNorm ``norm/scale`` and
    ``norm/bias`` in its place.

    Args:
      cin: features of a frame.
      cells: of the state and of the output.
      normalize: BatchNorm of the inputs' product, over the valid frames of all sequences.
      reverse: from the last frame to the first.
      rngs: random numbers for the initial weights.
    """

    gates: ClassVar[int]

    def __init__(self, cin: int, cells: int, *, normalize: bool = False, reverse: bool = False, rngs: nnx.Rngs):
        self.cells, self.reverse = cells, reverse
        self.input = nnx.Linear(cin, self.gates * cells, use_bias=not normalize, rngs=rngs)
        self.norm = nnx.BatchNorm(self.gates * cells, momentum=0.9, rngs=rngs) if normalize else None
        init = nnx.initializers.orthogonal()
        self.recurrent = nnx.Linear(cells, self.gates * cells, use_bias=False, kernel_init=init, rngs=rngs)

    def start(self, n: int, dtype: Any) -> Any:
        """State before the first frame."""
        raise NotImplementedError

    def update(self, state: Any, product: jax.Array, kernel: jax.Array) -> tuple[Any, jax.Array]:
        """State after a frame and its output, from the input product ``[n, gates * cells]`` and the recurrent kernel."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """``[n, t, cin] -> [n, t, cells]``, zero where ``valid`` ``[n, t]`` is False."""
        product = self.input(x)
        if self.norm is not None:
            product = self.norm(product, mask=valid[:, :, None])
        kernel = self.recurrent.kernel[...]

        def step(state: Any, frame: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            new, out = self.update(state, frame[0], kernel)
            here = frame[1][:, None]
            return jax.tree.map(lambda a, b: jnp.where(here, a, b), new, state), jnp.where(here, out, 0)

        frames = product.swapaxes(0, 1), valid.swapaxes(0, 1)
        return jax.lax.scan(step, self.start(len(x), product.dtype), frames, reverse=self.reverse)[1].swapaxes(0, 1)


class GRU(_Recurrent):
    """Gated recurrent units.

    With the input product ``p = W x + b`` and the recurrent one ``q = U h``, in thirds for the gates:
    ``r = sigmoid(p_r + q_r)``, ``z = sigmoid(p_z + q_z)``, ``h' = (1 - z) tanh(p_n + r q_n) + z h``. These are the equations,
    and the order of gates, of ``nnx.GRUCell``. Args are those of ``LSTM``.

    Example:
      >>> nnx.eval_shape(lambda: GRU(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool))).shape
      (2, 4, 5)
    """

    gates = 3

    def start(self, n: int, dtype: Any) -> jax.Array:
        """``h = 0``."""
        return jnp.zeros((n, self.cells), dtype)

    def update(self, state: jax.Array, product: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The equations above."""
        p_r, p_z, p_n = jnp.split(product, 3, axis=1)
        q_r, q_z, q_n = jnp.split(state @ kernel, 3, axis=1)
        z = jax.nn.sigmoid(p_z + q_z)
        new = (1 - z) * jnp.tanh(p_n + jax.nn.sigmoid(p_r + q_r) * q_n) + z * state
        return new, new


class LSTM(_Recurrent):
    """Long short-term memory.

    With ``p = W x + b + U h`` in quarters ``i, f, g, o``: ``c' = sigmoid(p_f) c + sigmoid(p_i) tanh(p_g)``,
    ``h' = sigmoid(p_o) tanh(c')``, as in ``nnx.OptimizedLSTMCell``.

    Args:
      cin: features of a frame.
      cells: of the state and of the output.
      normalize: BatchNorm of ``W x`` over the valid frames of all sequences, in place of the bias.
      reverse: from the last frame to the first.
      rngs: random numbers for the initial weights.

    Example:
      >>> nnx.eval_shape(lambda: LSTM(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool))).shape
      (2, 4, 5)
    """

    gates = 4

    def start(self, n: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """``c = h = 0``."""
        return jnp.zeros((n, self.cells), dtype), jnp.zeros((n, self.cells), dtype)

    def update(self, state: Any, product: jax.Array, kernel: jax.Array) -> tuple[Any, jax.Array]:
        """The equations above."""
        c, h = state
        i, f, g, o = jnp.split(product + h @ kernel, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


class Bidirectional(nnx.Module):
    """The sum of a layer that runs forward and one that runs backward, as in DeepSpeech 1 and 2.

    Its parameters are those of the two under ``forward`` and ``backward``.

    Args:
      layer: :class:`GRU` or :class:`LSTM`.
      cin: features of a frame.
      cells: of each direction, and of the sum.
      normalize: see :class:`LSTM`.
      rngs: random numbers for the initial weights.

    Example:
      >>> nnx.eval_shape(lambda: Bidirectional(GRU, 3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool))).shape
      (2, 4, 5)
    """

    def __init__(self, layer: Callable[..., Any], cin: int, cells: int, *, normalize: bool = False, rngs: nnx.Rngs):
        self.forward = layer(cin, cells, normalize=normalize, rngs=rngs)
        self.backward = layer(cin, cells, normalize=normalize, reverse=True, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """``[n, t, cin] -> [n, t, cells]``, zero where ``valid`` ``[n, t]`` is False."""
        return self.forward(x, valid) + self.backward(x, valid)
