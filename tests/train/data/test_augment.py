"""Flips and crops, against windows of the padded image; CutMix, against its definition."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from train.data.augment import crop_and_flip, cutmix

IMAGES = np.random.default_rng(0).integers(1, 256, (64, 8, 8, 3)).astype(np.uint8)


def test_each_image_is_a_window_of_itself_or_of_its_mirror():
    out = np.asarray(crop_and_flip(jax.random.key(0), IMAGES, pad=2, flip=True))
    assert out.dtype == np.uint8
    found = set()
    for image, moved in zip(IMAGES, out, strict=True):
        for mirrored in (False, True):
            padded = np.pad(image[:, ::-1] if mirrored else image, ((2, 2), (2, 2), (0, 0)))
            for y in range(5):
                for x in range(5):
                    if np.array_equal(padded[y : y + 8, x : x + 8], moved):
                        found.add((mirrored, y, x))
                        break
    assert len(found) > 15
    assert {mirrored for mirrored, _, _ in found} == {False, True}


def test_nothing_to_do_and_the_same_key():
    np.testing.assert_array_equal(crop_and_flip(jax.random.key(0), IMAGES, pad=0, flip=False), IMAGES)
    one, other = (crop_and_flip(jax.random.key(1), IMAGES, pad=1, flip=True) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="pad must be at least 0"):
        crop_and_flip(jax.random.key(0), IMAGES, pad=-1, flip=False)


def test_cutmix_takes_a_rectangle_of_the_image_before():
    images = np.arange(1, 257, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(6, 2)  # each of one value
    out, own = map(np.asarray, cutmix(jax.random.key(0), images[:255], probability=0.5))
    assert out.dtype == np.uint8
    partners = np.roll(np.arange(1, 256), 1)
    for image, share, mine, other in zip(out[..., 0], own, range(1, 256), partners, strict=True):
        taken = image == other
        assert (image[~taken] == mine).all() and share == pytest.approx(1 - taken.mean(), abs=1e-6)
        np.testing.assert_array_equal(taken, taken.any(1)[:, None] & taken.any(0)[None, :])
        for line in (taken.any(1), taken.any(0)):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() <= 2  # in one piece
    assert 90 < (own < 1).sum() < 150  # half of them, but for rectangles of less than a pixel
    assert 0.6 < own[own < 1].mean() < 0.75  # areas of 1/2 on the mean, a part of them outside
    same, all_own = cutmix(jax.random.key(0), images[:255], probability=0.0)
    np.testing.assert_array_equal(same, images[:255])
    np.testing.assert_array_equal(all_own, 1)
