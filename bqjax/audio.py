"""Mel-frequency cepstral coefficients (MFCC): the front end of small speech networks, as TensorFlow computes them.

Frames are windowed, their magnitude spectra are gathered by triangular mel filters, and the logarithms go through a
cosine transform. All matrices are computed from :class:`MfccConfig`; the defaults are those of TensorFlow's "simple
audio recognition" networks with a 512-point transform.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["MfccConfig", "dct_matrix", "hann_window", "mel_filterbank", "mfcc"]

INT16_SCALE = 32768.0


@dataclass(frozen=True, kw_only=True)
class MfccConfig:
    """How sound becomes coefficients.

    Attributes:
      sample_rate: Hz.
      frame_length: samples per frame.
      frame_step: samples between the starts of neighbouring frames.
      fft_length: points of the transform; frames are padded with zeros up to it.
      lower_hz: where the first mel filter begins, Hz.
      upper_hz: where the last mel filter ends, Hz.
      n_mels: number of mel filters.
      n_coefficients: number of cosine coefficients kept.
      floor: filter outputs below it are raised to it before the logarithm.

    Raises:
      ValueError: a field is out of range.
    """

    sample_rate: int = 16_000
    frame_length: int = 480
    frame_step: int = 160
    fft_length: int = 512
    lower_hz: float = 20.0
    upper_hz: float = 4_000.0
    n_mels: int = 40
    n_coefficients: int = 40
    floor: float = 1e-12

    def __post_init__(self) -> None:
        for field in ("sample_rate", "frame_length", "frame_step", "n_mels", "n_coefficients", "floor"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.fft_length < self.frame_length or self.fft_length % 2:
            raise ValueError(f"fft_length must be even and hold a frame of {self.frame_length} samples, got {self.fft_length}")
        if not 0 <= self.lower_hz < self.upper_hz <= self.sample_rate / 2:
            raise ValueError(
                f"need 0 <= lower_hz < upper_hz <= half the sample rate {self.sample_rate}, got {self.lower_hz} and {self.upper_hz}"
            )
        if self.n_coefficients > self.n_mels:
            raise ValueError(f"{self.n_mels} mel filters have at most as many coefficients, got {self.n_coefficients}")

    def n_frames(self, n_samples: int) -> int:
        """Whole frames in ``n_samples``; samples behind the last one are not used.

        >>> MfccConfig().n_frames(16_000)
        98
        """
        return max(0, 1 + (n_samples - self.frame_length) // self.frame_step)


def hann_window(length: int) -> np.ndarray:
    """The periodic Hann window, ``0.5 - 0.5 cos(2 pi i / length)``, ``[length]`` float64.

    >>> hann_window(4).round(3).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _mel(hz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


def mel_filterbank(config: MfccConfig) -> np.ndarray:
    """Triangular filters, equally wide on the scale ``mel = 1127 ln(1 + Hz / 700)``.

    Filter ``c`` rises from 0 at the centre of filter ``c - 1`` to 1 at its own and falls to 0 at that of filter
    ``c + 1``; the first begins at ``lower_hz`` and the last ends at ``upper_hz``. Bins outside of the limits, and always
    the constant one, have weight 0, as in TensorFlow's ``MfccMelFilterbank`` (which follows HTK).

    Args:
      config: the front end.

    Returns:
      ``[fft_length / 2 + 1, n_mels]`` float64, to multiply magnitudes with.

    Raises:
      ValueError: a filter covers no bin: ``n_mels`` is too large for ``fft_length``.
    """
    n_bins = config.fft_length // 2 + 1
    hz_per_bin = config.sample_rate / config.fft_length
    edges = np.linspace(_mel(config.lower_hz), _mel(config.upper_hz), config.n_mels + 2)
    mel = _mel(np.arange(n_bins) * hz_per_bin)[:, None]
    left, center, right = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    weights = np.maximum(0.0, np.minimum((mel - left) / (center - left), (right - mel) / (right - center)))
    first = int(1.5 + config.lower_hz / hz_per_bin)  # TensorFlow's rounding: never bin 0
    last = int(config.upper_hz / hz_per_bin)
    weights[:first] = 0.0
    weights[last + 1 :] = 0.0
    empty = np.flatnonzero(weights.sum(axis=0) == 0)
    if empty.size:
        raise ValueError(
            f"mel filter {empty[0]} of {config.n_mels} lies between the bins of a {config.fft_length}-point transform: "
            "lower n_mels or raise fft_length"
        )
    return weights


def dct_matrix(n_coefficients: int, n_inputs: int) -> np.ndarray:
    """The cosine transform, ``sqrt(2 / N) cos(pi / N i (j + 1/2))``, ``[n_coefficients, n_inputs]`` float64."""
    i, j = np.arange(n_coefficients)[:, None], np.arange(n_inputs)[None, :]
    return np.sqrt(2.0 / n_inputs) * np.cos(np.pi / n_inputs * i * (j + 0.5))


def mfcc(pcm: jax.Array | np.ndarray, config: MfccConfig | None = None) -> jax.Array:
    """Mel-frequency cepstral coefficients of clips of sound.

    ``coefficients = dct @ log(max(|rfft(hann * frame)| @ mel, floor))`` for each frame. Traceable in ``pcm``.
    float32 throughout: rounding in the transform moves coefficients by up to some 3e-5, most where a frame is quiet.

    Args:
      pcm: ``[n, samples]``; int16, which is divided by 32768, or floating point in [-1, 1].
      config: the front end; None is :class:`MfccConfig` with its defaults.

    Returns:
      ``[n, frames, n_coefficients]`` float32.

    Raises:
      ValueError: ``pcm`` is of another shape or dtype, or shorter than one frame.

    Example:
      >>> mfcc(np.zeros((2, 16_000), np.int16)).shape
      (2, 98, 40)
    """
    config = MfccConfig() if config is None else config
    pcm = jnp.asarray(pcm)
    if pcm.ndim != 2:
        raise ValueError(f"pcm must be [n, samples], got shape {pcm.shape}")
    n_frames = config.n_frames(pcm.shape[1])
    if not n_frames:
        raise ValueError(f"a clip of {pcm.shape[1]} samples is shorter than one frame of {config.frame_length}")
    if pcm.dtype == jnp.int16:
        sound = pcm.astype(jnp.float32) / INT16_SCALE
    elif jnp.issubdtype(pcm.dtype, jnp.floating):
        sound = pcm.astype(jnp.float32)
    else:
        raise ValueError(f"pcm must be int16 or floating point, got {pcm.dtype}")
    where = config.frame_step * np.arange(n_frames)[:, None] + np.arange(config.frame_length)[None, :]
    frames = sound[:, where] * jnp.asarray(hann_window(config.frame_length), jnp.float32)[None, None, :]
    magnitude = jnp.abs(jnp.fft.rfft(frames, n=config.fft_length, axis=-1))
    # Accelerators multiply float32 at lower precision by default, which the logarithm of a quiet frame does not forgive.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    mel = product(magnitude, jnp.asarray(mel_filterbank(config), jnp.float32))
    return product(
        jnp.log(jnp.maximum(mel, config.floor)), jnp.asarray(dct_matrix(config.n_coefficients, config.n_mels).T, jnp.float32)
    )
