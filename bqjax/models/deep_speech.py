"""DeepSpeech 1 and 2: from frames of sound to logits over characters, for CTC.

Sizes are the constructors' arguments; the defaults are the networks at full size. Both take features of padded
utterances and their lengths in frames, and what they give for an utterance does not depend on how far it was padded.

Published figures of 181 MB and 158 MB for the two are met within 3 % and 1 % when a megabyte is 2^20 bytes: DeepSpeech 1
here has 46,178,333 parameters (176.2 MiB), DeepSpeech 2 41,181,533 (157.1 MiB). The published DeepSpeech 1 of 2,048
LSTM cells in one direction only, ``DeepSpeech1(cells=2048, bidirectional=False)``, has 47,224,861 (180.1 MiB). With
directions in both ways, 1,280 cells each have about as many.

References:
  Hannun et al. Deep Speech: Scaling up end-to-end speech recognition. 2014. https://arxiv.org/abs/1412.5567
  Amodei et al. Deep Speech 2: End-to-End Speech Recognition in English and Mandarin. ICML 2016.
  https://arxiv.org/abs/1512.02595
  Sizes of DeepSpeech 1: https://github.com/mozilla/DeepSpeech, of DeepSpeech 2: https://github.com/SeanNaren/deepspeech.pytorch
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from bqjax.models.recurrent import GRU, LSTM, Bidirectional, valid_frames

__all__ = ["DeepSpeech1", "DeepSpeech2", "clipped_relu"]

# Blank, apostrophe, space and 26 letters.
N_CHARACTERS = 29


def clipped_relu(x: jax.Array) -> jax.Array:
    """``min(max(x, 0), 20)``, the activation of both papers."""
    return jnp.clip(x, 0.0, 20.0)


class DeepSpeech1(nnx.Module):
    """Three dense layers over windows of frames, a recurrent layer, two dense layers.

    Its parameters are ``dense1``, ``dense2``, ``dense3``, ``dense5`` and ``output``, each with ``kernel`` and ``bias``, and
    ``lstm/forward``, ``lstm/backward``, each with ``input/kernel``, ``input/bias`` and ``recurrent/kernel``. Layers are
    counted as in the paper, where the recurrent one is the fourth.

    Args:
      features: coefficients of a frame.
      characters: outputs, the blank among them.
      hidden: outputs of the dense layers.
      cells: LSTM cells of each direction.
      context: frames on each side that the first layer sees, zeros beyond the ends.
      bidirectional: whether there is a backward direction, whose outputs are added.
      dropout: rate behind each clipped relu of the dense layers, in training mode.
      rngs: random numbers for the initial weights and for dropout.

    Raises:
      ValueError: a size is not positive, or the context is negative.

    Example:
      >>> def shapes():  # of the results alone: nothing is computed
      ...     model = DeepSpeech1(4, 5, hidden=8, cells=8, context=1, rngs=nnx.Rngs(0))
      ...     return nnx.view(model, deterministic=True)(jnp.zeros((2, 6, 4)), jnp.array([6, 3]))
      >>> logits, lengths = nnx.eval_shape(shapes)
      >>> logits.shape, lengths.shape
      ((2, 6, 5), (2,))
    """

    def __init__(
        self,
        features: int = 26,
        characters: int = N_CHARACTERS,
        *,
        hidden: int = 2048,
        cells: int = 1280,
        context: int = 9,
        bidirectional: bool = True,
        dropout: float = 0.05,
        rngs: nnx.Rngs,
    ):
        _check_sizes(features=features, characters=characters, hidden=hidden, cells=cells)
        if context < 0:
            raise ValueError(f"context must be at least 0 frames, got {context}")
        self.features, self.context = features, context
        self.dense1 = nnx.Linear(features * (2 * context + 1), hidden, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.dense3 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.lstm = Bidirectional(LSTM, hidden, cells, rngs=rngs) if bidirectional else LSTM(hidden, cells, rngs=rngs)
        self.dense5 = nnx.Linear(cells, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, characters, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of characters.

        Args:
          x: ``[n, t, features]``; what lies behind an utterance's length is not read.
          lengths: ``[n]`` frames of each utterance.

        Returns:
          ``[n, t, characters]``, meaningless behind the lengths, and ``lengths`` as they are.

        Raises:
          ValueError: ``x`` or ``lengths`` have another shape.
        """
        _check_inputs(x, lengths, self.features)
        valid = valid_frames(lengths, x.shape[1])
        x = jnp.where(valid[:, :, None], x, 0)
        padded = jnp.pad(x, ((0, 0), (self.context, self.context), (0, 0)))
        x = jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(2 * self.context + 1)], axis=2)
        for layer in (self.dense1, self.dense2, self.dense3):
            x = self.dropout(clipped_relu(layer(x)))
        x = self.lstm(x, valid)
        x = self.dropout(clipped_relu(self.dense5(x)))
        return self.output(x), lengths


class _Convolution(nnx.Module):
    """Convolution of time and frequency, BatchNorm over what is valid, clipped relu, zeros in the padding.

    The same number of zeros lies on both sides, as many as half the kernel has: "SAME" would add fewer before the start
    of a sequence of even length than of odd, and outputs would depend on the padding.
    """

    def __init__(self, cin: int, cout: int, kernel: tuple[int, int], strides: tuple[int, int], *, rngs: nnx.Rngs):
        padding = [(size // 2, size // 2) for size in kernel]
        init = nnx.initializers.he_normal()
        self.conv = nnx.Conv(cin, cout, kernel, strides, padding=padding, use_bias=False, kernel_init=init, rngs=rngs)
        self.norm = nnx.BatchNorm(cout, momentum=0.9, rngs=rngs)
        self.stride = strides[0]

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``[n, t, f, cin] -> [n, ceil(t / stride), ..., cout]`` and the lengths there."""
        y = self.conv(x)
        lengths = -(-lengths // self.stride)
        valid = jnp.broadcast_to(valid_frames(lengths, y.shape[1])[:, :, None, None], (*y.shape[:3], 1))
        return jnp.where(valid, clipped_relu(self.norm(y, mask=valid)), 0), lengths


class DeepSpeech2(nnx.Module):
    """Convolutions over a spectrogram, bidirectional GRUs with BatchNorm, a dense layer.

    Its parameters are ``conv/0/conv/kernel`` and ``conv/0/norm/scale``, ``bias``, and so on; ``rnn/0/forward/input/kernel``,
    ``recurrent/kernel``, ``norm/scale``, ``norm/bias`` and the same of ``backward``, and so on; ``norm/scale``, ``norm/bias``
    before, and ``output/kernel``, ``output/bias`` of the dense layer.

    Args:
      features: frequencies of a frame.
      characters: outputs, the blank among them.
      channels: of each convolution.
      kernels: of each convolution, ``(time, frequency)``, odd.
      strides: of each convolution, ``(time, frequency)``.
      layers: recurrent layers.
      cells: GRU cells of each direction.
      dropout: rate behind each recurrent layer, in training mode.
      rngs: random numbers for the initial weights and for dropout.

    Raises:
      ValueError: a size is not positive, a kernel is even, or the convolutions' arguments differ in length.

    Example:
      >>> def shapes():  # of the results alone: nothing is computed
      ...     model = DeepSpeech2(16, 5, channels=(2,), kernels=((3, 3),), strides=((2, 2),), layers=1, cells=8, rngs=nnx.Rngs(0))
      ...     model = nnx.view(model, use_running_average=True, deterministic=True)
      ...     return model(jnp.zeros((2, 6, 16)), jnp.array([6, 3]))
      >>> logits, lengths = nnx.eval_shape(shapes)
      >>> logits.shape, lengths.shape
      ((2, 3, 5), (2,))
    """

    def __init__(
        self,
        features: int = 161,
        characters: int = N_CHARACTERS,
        *,
        channels: Sequence[int] = (32, 32),
        kernels: Sequence[tuple[int, int]] = ((11, 41), (11, 21)),
        strides: Sequence[tuple[int, int]] = ((2, 2), (1, 2)),
        layers: int = 5,
        cells: int = 800,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        _check_sizes(features=features, characters=characters, layers=layers, cells=cells)
        if not len(channels) == len(kernels) == len(strides):
            raise ValueError(f"channels, kernels and strides must be as many, got {channels}, {kernels} and {strides}")
        if any(size < 1 or not size % 2 for kernel in kernels for size in kernel):
            raise ValueError(f"kernels must be odd, so that they have a middle, got {kernels}")
        self.features = features
        convolutions, cin, frequencies = [], 1, features
        for cout, kernel, stride in zip(channels, kernels, strides, strict=True):
            convolutions.append(_Convolution(cin, cout, kernel, stride, rngs=rngs))
            cin, frequencies = cout, -(-frequencies // stride[1])
        self.conv = nnx.List(convolutions)
        widths = [cin * frequencies, *[cells] * (layers - 1)]
        self.rnn = nnx.List([Bidirectional(GRU, width, cells, normalize=True, rngs=rngs) for width in widths])
        self.norm = nnx.BatchNorm(cells, momentum=0.9, rngs=rngs)
        self.output = nnx.Linear(cells, characters, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def out_lengths(self, lengths: jax.Array) -> jax.Array:
        """Frames that come out for utterances of ``lengths`` frames."""
        for layer in self.conv:
            lengths = -(-lengths // layer.stride)
        return lengths

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of characters.

        Args:
          x: ``[n, t, features]``; what lies behind an utterance's length is not read.
          lengths: ``[n]`` frames of each utterance.

        Returns:
          ``[n, t', characters]``, meaningless behind the new lengths, and these ``[n]``; ``t'`` is ``t`` over the strides,
          rounded up after each.

        Raises:
          ValueError: ``x`` or ``lengths`` have another shape.
        """
        _check_inputs(x, lengths, self.features)
        y = jnp.where(valid_frames(lengths, x.shape[1])[:, :, None], x, 0)[..., None]
        for layer in self.conv:
            y, lengths = layer(y, lengths)
        y = y.reshape(*y.shape[:2], -1)
        valid = valid_frames(lengths, y.shape[1])
        for layer in self.rnn:
            y = self.dropout(layer(y, valid))
        return self.output(self.norm(y, mask=valid[:, :, None])), lengths


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_inputs(x: jax.Array, lengths: jax.Array, features: int) -> None:
    if x.ndim != 3 or x.shape[2] != features or lengths.shape != x.shape[:1]:
        raise ValueError(f"inputs must be [n, t, {features}] and lengths [n], got {x.shape} and {lengths.shape}")
