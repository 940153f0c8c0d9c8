"""Flips and crops, against windows of the padded image."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from train.data.augment import crop_and_flip

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
