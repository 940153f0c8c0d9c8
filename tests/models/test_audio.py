"""MFCCs against TensorFlow's and against a loop over frames and bins in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.models.audio import (
    MfccConfig,
    SpectrogramConfig,
    dct_matrix,
    hann_window,
    log_spectrogram,
    mel_filterbank,
    mfcc,
    normalized,
    spec_augment,
)

mfcc_of = jax.jit(mfcc, static_argnums=1)

SMALL = MfccConfig(
    sample_rate=8_000,
    frame_length=200,
    frame_step=80,
    fft_length=256,
    lower_hz=80.0,
    upper_hz=3_800.0,
    n_mels=15,
    n_coefficients=9,
    floor=1e-6,
)


def oracle(clip, c):
    """One clip in float64: a naive Fourier sum, each bin shared between the two filters beside it, a naive cosine sum."""

    def mel(hz):
        return 1127.0 * math.log(1.0 + hz / 700.0)

    spacing = (mel(c.upper_hz) - mel(c.lower_hz)) / (c.n_mels + 1)
    hz_per_bin = c.sample_rate / c.fft_length
    t = np.arange(c.frame_length)
    window = 0.5 * (1 - np.cos(2 * np.pi * t / c.frame_length))
    rows = []
    for start in range(0, len(clip) - c.frame_length + 1, c.frame_step):
        frame = clip[start : start + c.frame_length] * window
        energies = np.zeros(c.n_mels)
        for k in range(int(1.5 + c.lower_hz / hz_per_bin), int(c.upper_hz / hz_per_bin) + 1):
            magnitude = abs(np.sum(frame * np.exp(-2j * np.pi * k * t / c.fft_length)))
            position = (mel(k * hz_per_bin) - mel(c.lower_hz)) / spacing - 1  # filter c has its centre at position c
            below = math.floor(position)
            for filter_, share in ((below, below + 1 - position), (below + 1, position - below)):
                if 0 <= filter_ < c.n_mels:
                    energies[filter_] += share * magnitude
        logs = [math.log(max(e, c.floor)) for e in energies]
        rows.append(
            [
                math.sqrt(2 / c.n_mels) * sum(v * math.cos(math.pi / c.n_mels * i * (j + 0.5)) for j, v in enumerate(logs))
                for i in range(c.n_coefficients)
            ]
        )
    return np.asarray(rows)


@pytest.mark.parametrize(("config", "samples"), [(MfccConfig(), 900), (SMALL, 777)])
def test_agrees_with_the_oracle(config, samples):
    rng = np.random.default_rng(1)
    pcm = (rng.normal(size=(2, samples)) * [[3000.0], [100.0]]).astype(np.int16)
    expected = np.stack([oracle(clip / 32768.0, config) for clip in pcm])
    got = mfcc_of(pcm, config)
    assert got.dtype == jnp.float32
    assert got.shape == (2, config.n_frames(samples), config.n_coefficients)
    np.testing.assert_allclose(got, expected, atol=5e-5)


@pytest.mark.data
def test_agrees_with_tensorflow(data_dir):
    with np.load(data_dir / "speech" / "golden_spc.npz") as golden:
        np.testing.assert_allclose(mel_filterbank(MfccConfig()), golden["mel_filterbank"], atol=1e-12)
        np.testing.assert_allclose(hann_window(480), golden["hann"], atol=1e-12)
        np.testing.assert_allclose(dct_matrix(40, 40), golden["dct"], atol=1e-12)
        np.testing.assert_allclose(mfcc_of(golden["pcm16"], MfccConfig()), golden["mfcc"], atol=5e-5)


def test_floating_point_input_is_taken_as_it_is():
    pcm = np.random.default_rng(0).integers(-20_000, 20_000, (2, 900)).astype(np.int16)
    np.testing.assert_array_equal(*(mfcc_of(clips, MfccConfig()) for clips in (pcm, pcm.astype(np.float32) / 32768)))


def test_silence_gives_the_floor():
    got = mfcc_of(np.zeros((2, 900), np.int16), MfccConfig())
    np.testing.assert_allclose(got[0, 0, 0], math.sqrt(2 / 40) * 40 * math.log(1e-12), rtol=1e-6)
    np.testing.assert_allclose(got[0, 0, 1:], 0.0, atol=2e-4)


def test_filters_are_triangles_that_share_each_bin():
    weights = mel_filterbank(MfccConfig())
    assert weights.shape == (257, 40)
    assert weights.min() == 0
    inner = weights[4:100]
    np.testing.assert_allclose(inner.sum(axis=1), 1.0, atol=1e-12)
    assert (np.count_nonzero(inner, axis=1) <= 2).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_step": 0}, "frame_step must be positive"),
        ({"floor": 0.0}, "floor must be positive"),
        ({"fft_length": 256}, "hold a frame of 480 samples, got 256"),
        ({"fft_length": 513}, "even"),
        ({"upper_hz": 9_000.0}, "half the sample rate"),
        ({"lower_hz": 4_000.0}, "lower_hz < upper_hz"),
        ({"n_coefficients": 41}, "40 mel filters"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        MfccConfig(**fields)


def test_more_filters_than_the_transform_resolves():
    with pytest.raises(ValueError, match="lies between the bins"):
        mel_filterbank(MfccConfig(n_mels=120))


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.zeros(16_000, np.int16), r"\[n, samples\]"),
        (np.zeros((1, 479), np.int16), "479 samples is shorter"),
        (np.zeros((1, 16_000), np.int32), "int32"),
    ],
)
def test_bad_sound(pcm, message):
    with pytest.raises(ValueError, match=message):
        mfcc(pcm)


@pytest.mark.parametrize("n_mels", [0, 40])
def test_log_spectrogram_by_definition(n_mels):
    config = SpectrogramConfig(n_mels=n_mels)
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1000))
    frames = np.stack([pcm[:, s : s + 320] for s in range(0, 681, 160)], axis=1) * hann_window(320)[None, None]
    magnitude = np.abs(np.fft.rfft(frames, 320))
    expected = np.log(np.maximum(magnitude @ mel_filterbank(config) if n_mels else magnitude, 1e-5))
    found = jax.jit(log_spectrogram, static_argnums=1)(pcm, config)
    assert found.shape == (2, config.n_frames(1000), config.features)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_normalized_over_each_utterance():
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 4)).astype(np.float32)
    found = jax.jit(normalized)(x, jnp.array([5, 2]))
    np.testing.assert_allclose(found[1, :2], (x[1, :2] - x[1, :2].mean()) / x[1, :2].std(), atol=1e-5)
    assert not found[1, 2:].any()
    assert not jax.jit(normalized)(np.full((2, 5, 4), 7.0), jnp.array([5, 2])).any()


def test_spec_augment_masks_stretches_and_bands():
    x = jnp.ones((64, 50, 30))
    lengths = jnp.full(64, 40).at[0].set(4)
    arguments = {"time_masks": 1, "time_width": 12, "frequency_masks": 1, "frequency_width": 6}
    augmented = jax.jit(lambda key: spec_augment(key, x, lengths, **arguments))
    out = np.asarray(augmented(jax.random.key(0)))
    np.testing.assert_array_equal(out, augmented(jax.random.key(0)))
    assert not np.array_equal(out, augmented(jax.random.key(1)))
    assert set(np.unique(out)) == {0.0, 1.0}
    frames, bands = (out == 0).all(axis=2).sum(axis=1), (out == 0).all(axis=1).sum(axis=1)
    assert frames[0] == 0  # a fifth of four frames is none
    assert frames.max() == 8  # a fifth of forty
    assert bands.max() == 6
    assert frames.min() == bands.min() == 0
    assert all(row.sum() == 0 or np.ptp(np.flatnonzero(row)) + 1 == row.sum() for row in (out == 0).all(axis=2))
    assert not (out == 0).all(axis=2)[:, 40:].any()
    with pytest.raises(ValueError, match="must be at least 0"):
        spec_augment(jax.random.key(0), x, lengths, time_masks=-1)


@pytest.mark.parametrize("change", [{"n_mels": -1}, {"floor": 0.0}, {"fft_length": 200}])
def test_spectrogram_fields(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SpectrogramConfig(**change)
