"""Log-mel spectrograms and mel-frequency cepstral coefficients (MFCC): the front ends of speech networks.

Frames are windowed, their magnitude spectra are gathered by triangular mel filters, and the logarithms, for MFCC, go
through a cosine transform. All matrices are computed from :class:`SpectrogramConfig` and :class:`MfccConfig`, whose
defaults are those of DeepSpeech 2 and of TensorFlow's "simple audio recognition" networks with a 512-point transform.

References:
  Park et al. SpecAugment. Interspeech 2019. https://arxiv.org/abs/1904.08779
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "MfccConfig",
    "SpectrogramConfig",
    "dct_matrix",
    "hann_window",
    "log_spectrogram",
    "mel_filterbank",
    "mfcc",
    "normalized",
    "spec_augment",
]

INT16_SCALE = 32768.0


@dataclass(frozen=True, kw_only=True)
class SpectrogramConfig:
    """Settings of log-mel spectrograms.

    Attributes:
      sample_rate: Hz.
      frame_length: samples per frame.
      frame_step: samples between the starts of neighbouring frames.
      fft_length: points of the transform; frames are padded with zeros up to it.
      n_mels: number of mel filters; 0 keeps all ``fft_length / 2 + 1`` bins of the transform.
      lower_hz: where the first mel filter begins, Hz.
      upper_hz: where the last mel filter ends, Hz.
      floor: magnitudes, or filter outputs, below it are raised to it before the logarithm.
      lowest_bin: whether filters reach down to the bin above ``lower_hz``, rather than to the one above that, where TensorFlow's
        begin.

    Raises:
      ValueError: a field is out of range.
    """

    sample_rate: int = 16_000
    frame_length: int = 320
    frame_step: int = 160
    fft_length: int = 320
    n_mels: int = 0
    lower_hz: float = 20.0
    upper_hz: float = 8_000.0
    floor: float = 1e-5
    lowest_bin: bool = False

    def __post_init__(self) -> None:
        for field in ("sample_rate", "frame_length", "frame_step", "floor"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.n_mels < 0:
            raise ValueError(f"n_mels must be positive, or 0 for no filters, got {self.n_mels}")
        if self.fft_length < self.frame_length or self.fft_length % 2:
            raise ValueError(f"fft_length must be even and hold a frame of {self.frame_length} samples, got {self.fft_length}")
        if not 0 <= self.lower_hz < self.upper_hz <= self.sample_rate / 2:
            raise ValueError(
                f"need 0 <= lower_hz < upper_hz <= half the sample rate {self.sample_rate}, got {self.lower_hz} and {self.upper_hz}"
            )

    @property
    def features(self) -> int:
        """Numbers of a frame of :func:`log_spectrogram`."""
        return self.n_mels or self.fft_length // 2 + 1

    def n_frames(self, n_samples: int) -> int:
        """Whole frames in ``n_samples``; samples behind the last one are not used.

        >>> MfccConfig().n_frames(16_000)
        98
        """
        return max(0, 1 + (n_samples - self.frame_length) // self.frame_step)


@dataclass(frozen=True, kw_only=True)
class MfccConfig(SpectrogramConfig):
    """Settings of mel-frequency cepstral coefficients.

    Attributes:
      n_coefficients: number of cosine coefficients kept; the other fields are those of :class:`SpectrogramConfig`.

    Raises:
      ValueError: a field is out of range.
    """

    frame_length: int = 480
    fft_length: int = 512
    n_mels: int = 40
    upper_hz: float = 4_000.0
    floor: float = 1e-12
    n_coefficients: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("n_mels", "n_coefficients"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.n_coefficients > self.n_mels:
            raise ValueError(f"{self.n_mels} mel filters have at most as many coefficients, got {self.n_coefficients}")


def hann_window(length: int) -> np.ndarray:
    """The periodic Hann window, ``0.5 - 0.5 cos(2 pi i / length)``, ``[length]`` float64.

    >>> hann_window(4).round(3).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _mel(hz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)


def mel_filterbank(config: SpectrogramConfig) -> np.ndarray:
    """Mel filterbank: triangular filters, equally wide on the scale ``mel = 1127 ln(1 + Hz / 700)``.

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
    first = int((1.0 if config.lowest_bin else 1.5) + config.lower_hz / hz_per_bin)  # TensorFlow's rounding: never bin 0
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
    """The discrete cosine transform (DCT-II), ``sqrt(2 / N) cos(pi / N i (j + 1/2))``, ``[n_coefficients, n_inputs]`` float64."""
    i, j = np.arange(n_coefficients)[:, None], np.arange(n_inputs)[None, :]
    return np.sqrt(2.0 / n_inputs) * np.cos(np.pi / n_inputs * i * (j + 0.5))


def _product(a: jax.Array, b: np.ndarray) -> jax.Array:
    # Accelerators multiply float32 at lower precision by default, which the logarithm of a quiet frame does not forgive.
    return jnp.matmul(a, jnp.asarray(b, jnp.float32), precision=jax.lax.Precision.HIGHEST)


def log_spectrogram(pcm: jax.Array | np.ndarray, config: SpectrogramConfig | None = None) -> jax.Array:
    """Log spectrogram: logarithms of the magnitude spectrum, or of its mel filter outputs, of clips of sound.

    ``log(max(|rfft(hann * frame)| [@ mel], floor))`` for each frame. Traceable in ``pcm``; float32 throughout.

    Args:
      pcm: ``[n, samples]``; int16, which is divided by 32768, or floating point in [-1, 1].
      config: the front end; None is :class:`SpectrogramConfig` with its defaults.

    Returns:
      ``[n, frames, config.features]`` float32.

    Raises:
      ValueError: ``pcm`` is of another shape or dtype, or shorter than one frame.

    Example:
      >>> log_spectrogram(np.zeros((2, 16_000), np.int16)).shape
      (2, 99, 161)
    """
    config = SpectrogramConfig() if config is None else config
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
    if config.n_mels:
        magnitude = _product(magnitude, mel_filterbank(config))
    return jnp.log(jnp.maximum(magnitude, config.floor))


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
    return _product(log_spectrogram(pcm, config), dct_matrix(config.n_coefficients, config.n_mels).T)


def normalized(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """Normalized features: of each utterance, with mean 0 and standard deviation 1 over its own frames, 0 in the padding.

    Args:
      x: ``[n, t, features]``.
      lengths: ``[n]`` frames of each utterance.

    Returns:
      ``[n, t, features]`` float32; an utterance whose features are all equal becomes 0.

    Example:
      >>> normalized(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([2])).tolist()
      [[[-1.0], [1.0], [0.0]]]
    """
    valid = (jnp.arange(x.shape[1])[None, :] < lengths[:, None])[:, :, None]
    x = jnp.asarray(x, jnp.float32)
    count = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None, None] * x.shape[2]
    mean = jnp.sum(jnp.where(valid, x, 0), axis=(1, 2), keepdims=True) / count
    centred = jnp.where(valid, x - mean, 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(centred), axis=(1, 2), keepdims=True) / count)
    return centred / jnp.where(deviation > 1e-6, deviation, 1)


@functools.partial(jax.jit, static_argnames=("time_masks", "time_width", "frequency_masks", "frequency_width"))
def spec_augment(
    key: jax.Array,
    x: jax.Array,
    lengths: jax.Array,
    *,
    time_masks: int = 2,
    time_width: int = 40,
    frequency_masks: int = 2,
    frequency_width: int = 15,
) -> jax.Array:
    """SpecAugment: sets stretches of time and bands of frequency to 0, the mean of :func:`normalized` features.

    Each mask's width is drawn from 0 to its limit, and then its place. A stretch of time is at most a fifth of its
    utterance, so that short ones stay legible.

    Args:
      key: of the draws.
      x: ``[n, t, features]``.
      lengths: ``[n]`` frames of each utterance.
      time_masks: masks of time in each utterance.
      time_width: the most frames that one covers.
      frequency_masks: masks of frequency in each utterance.
      frequency_width: the most features that one covers.

    Returns:
      ``[n, t, features]``.

    Raises:
      ValueError: a number is negative.

    Example:
      >>> x = spec_augment(jax.random.key(0), jnp.ones((1, 100, 20)), jnp.array([100]), time_width=20, frequency_width=5)
      >>> x.shape, bool((x == 0).any())
      ((1, 100, 20), True)
    """
    if min(time_masks, time_width, frequency_masks, frequency_width) < 0:
        raise ValueError(
            f"masks and widths must be at least 0, got {time_masks}, {time_width}, {frequency_masks}, {frequency_width}"
        )
    time_key, frequency_key = jax.random.split(key)

    def covered(key: jax.Array, masks: int, size: int, width: jax.Array, within: jax.Array) -> jax.Array:
        """``[n, size]``, from limits of width and place ``[n]``."""
        width_key, start_key = jax.random.split(key)
        shape = (masks, len(x))
        drawn = jnp.floor(jax.random.uniform(width_key, shape) * (width + 1)[None, :])
        start = jnp.floor(jax.random.uniform(start_key, shape) * (within[None, :] - drawn + 1))
        at = jnp.arange(size)[None, None, :]
        return jnp.any((at >= start[:, :, None]) & (at < (start + drawn)[:, :, None]), axis=0)

    frames, features = x.shape[1:]
    widest = jnp.minimum(time_width, lengths // 5)
    in_time = covered(time_key, time_masks, frames, widest, lengths)
    band = jnp.full(len(x), min(frequency_width, features))
    in_frequency = covered(frequency_key, frequency_masks, features, band, jnp.full(len(x), features))
    return jnp.where(in_time[:, :, None] | in_frequency[:, None, :], 0, x)
