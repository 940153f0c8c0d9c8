"""Speech Commands: the convolutional network of TensorFlow's "simple audio recognition", its weights and its features.

The network (after ``cnn-trad-fpool3`` of Sainath and Parada 2015) takes 98 frames of 40 MFCCs:

    [98, 40, 1] -> conv 20x8, 64, relu -> max pool 2x2 -> conv 10x4, 64, relu -> flatten [62720] -> dense [11]

Of its 864,139 parameters 689,931 lie in the dense layer.
"""

from __future__ import annotations

import os

import jax
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_load
from bqjax.adapters.safetensors import read_weights
from bqjax.models.audio import MfccConfig, mfcc

__all__ = ["FEATURES", "SpeechConv", "load_spc", "spc_features"]

FEATURES = MfccConfig()
N_LABELS = 11
# Measured on 2 cores: 10 to 320 clips a batch take the same time, and 40 divides both splits without padding.
BATCH_SIZE = 40

_TENSORS = {
    "conv1/kernel": "first_weights",
    "conv1/bias": "first_bias",
    "conv2/kernel": "second_weights",
    "conv2/bias": "second_bias",
    "fc/kernel": "final_fc_weights",
    "fc/bias": "final_fc_bias",
}


class SpeechConv(nnx.Module):
    """The Speech Commands ``conv`` network.

    Its parameters are ``conv1``, ``conv2`` and ``fc``, each with ``kernel`` and ``bias``.

    Args:
      frames: frames of a clip.
      coefficients: coefficients of a frame.
      classes: number of labels.
      rngs: random numbers for the initial weights.

    Example:
      >>> nnx.eval_shape(lambda: SpeechConv(8, 4, classes=3, rngs=nnx.Rngs(0))(np.zeros((2, 8, 4, 1), np.float32))).shape
      (2, 3)
    """

    def __init__(self, frames: int = 98, coefficients: int = 40, classes: int = N_LABELS, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 64, (20, 8), padding="SAME", rngs=rngs)
        self.conv2 = nnx.Conv(64, 64, (10, 4), padding="SAME", rngs=rngs)
        self.fc = nnx.Linear(-(-frames // 2) * -(-coefficients // 2) * 64, classes, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """What the dense layer sees: ``[n, frames, coefficients, 1] -> [n, frames / 2 * coefficients / 2 * 64]``."""
        x = nnx.relu(self.conv1(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        x = nnx.relu(self.conv2(x))
        return x.reshape(x.shape[0], -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, classes]`` of MFCCs ``[n, frames, coefficients, 1]``."""
        return self.fc(self.features(x))


def load_spc(path: str | os.PathLike[str]) -> SpeechConv:
    """The network with the weights of a safetensors file in TensorFlow's layout, as float32.

    Args:
      path: a file with the tensors ``first_weights [20, 8, 1, 64]``, ``second_weights [10, 4, 64, 64]``,
        ``final_fc_weights [62720, 11]`` and ``first_bias``, ``second_bias``, ``final_fc_bias``.

    Raises:
      ValueError: the file is missing or damaged, or its tensors do not fit; the message lists those.
    """
    # Shapes only: weights that are about to be replaced need no drawing.
    model = nnx.eval_shape(lambda: SpeechConv(rngs=nnx.Rngs(0)))
    return nnx_load(model, read_weights(path), _TENSORS.__getitem__, source=str(path))


def spc_features(pcm: np.ndarray) -> np.ndarray:
    """Features (MFCC) of clips: ``[n, 16000]`` int16 to ``[n, 98, 40, 1]`` float32, computed in pieces of bounded memory."""
    front_end = jax.jit(lambda clips: mfcc(clips, FEATURES))
    # Pieces of one shape compile once; the last one overlaps its neighbour where the size does not divide.
    size = min(BATCH_SIZE, len(pcm))
    out = np.empty((len(pcm), FEATURES.n_frames(pcm.shape[1]), FEATURES.n_coefficients, 1), np.float32)
    for i in range(0, len(pcm), size):
        start = min(i, len(pcm) - size)
        out[start : start + size, :, :, 0] = front_end(pcm[start : start + size])
    return out
