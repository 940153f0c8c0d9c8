"""scikit-learn's digits, split into images to train, calibrate and test on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["DigitsSplits", "digits_splits"]


N_CALIBRATION = 300


N_TEST = 600


# One split for every training seed: networks of different seeds are reported on the same images.
SPLIT_SEED = 0


class DigitsSplits(NamedTuple):
    """The 1797 digits in three disjoint parts, each ``(images [n, 8, 8, 1] float32 in [0, 1], labels [n] int32)``."""

    train: tuple[np.ndarray, np.ndarray]
    calibration: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def digits_splits() -> DigitsSplits:
    """897 images to train on, 300 to calibrate on and 600 to test on, stratified by digit and always the same.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "bqjax[demo]"') from error
    digits = load_digits()
    images = (digits.images[..., None] / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int32)
    rest, test = train_test_split(np.arange(len(labels)), test_size=N_TEST, stratify=labels, random_state=SPLIT_SEED)
    train, calibration = train_test_split(rest, test_size=N_CALIBRATION, stratify=labels[rest], random_state=SPLIT_SEED)
    return DigitsSplits(*((images[part], labels[part]) for part in (train, calibration, test)))
