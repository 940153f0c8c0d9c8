"""Data sets of 28 x 28 grey images in three parts: to train on, held out, and to test on."""

from __future__ import annotations

import os

import numpy as np

from train.data.digits import digits_splits
from train.data.idx import idx_examples

__all__ = ["gray_splits"]

Examples = tuple[np.ndarray, np.ndarray]
# Of the training images; nothing is trained on them: checkpoints are chosen, and methods calibrated, by them.
N_HELD_OUT = 2000
HELD_OUT_SEED = 1


def gray_splits(dataset: str, data_dir: str | os.PathLike[str] | None) -> tuple[Examples, Examples, Examples]:
    """Training, held-out and test examples, disjoint and always the same: images ``[n, 28, 28, 1]`` uint8, labels int32.

    Args:
      dataset: ``"fashion_mnist"`` or ``"mnist"``, whose 60,000 training images give 58,000 and 2,000; or ``"digits28"``,
        scikit-learn's digits (see :func:`train.data.digits.digits_splits`), each pixel as 3 x 3 of them with a margin of 2.
      data_dir: see :func:`train.data.idx.idx_examples`; not used for the digits.

    Raises:
      ValueError: see :func:`train.data.idx.idx_examples`; there are too few training images to hold some out.
      ImportError: scikit-learn is not installed, for the digits.
    """
    if dataset == "digits28":
        train, held, test = ((_enlarged(images), labels) for images, labels in digits_splits())
        return train, held, test
    images, labels = idx_examples(data_dir, dataset, "train")
    if len(labels) <= N_HELD_OUT:
        raise ValueError(f"{dataset}: {len(labels)} training images, of which {N_HELD_OUT} are held out: there must be more")
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(labels))
    held_out, rest = order[:N_HELD_OUT], order[N_HELD_OUT:]
    return (images[rest], labels[rest]), (images[held_out], labels[held_out]), idx_examples(data_dir, dataset, "test")


def _enlarged(images: np.ndarray) -> np.ndarray:
    """``[n, 8, 8, 1]`` in [0, 1] as ``[n, 28, 28, 1]`` uint8."""
    large = np.repeat(np.repeat(images, 3, axis=1), 3, axis=2)
    return np.rint(255 * np.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)))).astype(np.uint8)
