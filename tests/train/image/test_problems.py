"""Data of image configs, on the digits."""

from __future__ import annotations

import numpy as np
import pytest

from train.image.config import TrainConfig
from train.image.problems import problem


def config(**fields):
    return TrainConfig(**{"model": "digits", "dataset": "digits", "float_epochs": 1, **fields})


def test_padding_is_the_configs_or_what_is_usual():
    assert [problem(config(crop_padding=pad), None).pad for pad in (None, 0, 3)] == [1, 0, 3]


def test_examples_are_drawn_by_the_seed_and_tests_are_not():
    first, other = (problem(config(train_examples=20, test_examples=10, seed=seed), None) for seed in (0, 1))
    for part, same in (("train", False), ("test", True)):
        a, b = (np.asarray(getattr(each, part).batch(np.arange(10))[0]) for each in (first, other))
        assert np.array_equal(a, b) is same
    with pytest.raises(ValueError, match="test_examples is 601, but there are 600 examples"):
        problem(config(test_examples=601), None)
