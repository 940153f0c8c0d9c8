"""Trained networks for CIFAR-10 as tasks: weights, training images to calibrate on, test images to report on.

from train.tasks.cifar import resnet_task
task = resnet_task("data", depth=20)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import batches, classification_outputs, classification_predict, classification_score
from bqjax.core.task import Task
from bqjax.models.resnet import load_resnet, resnet_inputs
from train.data.tfds import cifar10

__all__ = ["resnet_task"]

# One subset for every caller: results on equally many images are on the same images.
SUBSET_SEED = 0
BATCH_SIZE = 250


def resnet_task(data_dir: str | os.PathLike[str], depth: int = 20, n_calibration: int = 1000, n_test: int | None = None) -> Task:
    """A trained CIFAR ResNet with images of the training set to calibrate on and of the test set to report on.

    The subsets are fixed, and a smaller one is part of every larger one. The network has seen the calibration images in
    training: they tell how much a change costs, not how well the network does.

    Args:
      data_dir: the folder with ``weights/resnet<depth>_cifar10.safetensors`` and ``tfds/cifar10``.
      depth: of the network, 20 or 56 for the published weights.
      n_calibration: number of training images, not augmented.
      n_test: number of test images; None takes all 10,000.

    Raises:
      ValueError: a file is missing or damaged (see :func:`~bqjax.models.resnet.load_resnet` and
        :func:`train.data.tfds.cifar10`), the weights are of another depth, or there are not so many images.
      ImportError: TensorFlow Datasets is not installed and the images are not cached yet.
    """
    path = Path(data_dir) / "weights" / f"resnet{depth}_cifar10.safetensors"
    model = load_resnet(path)
    if model.depth != depth:
        raise ValueError(f"{path} holds a network of depth {model.depth}, not {depth}")
    train, test = cifar10(data_dir, "train"), cifar10(data_dir, "test")
    calibration_rows = _subset(len(train[1]), n_calibration, "n_calibration")
    test_rows = _subset(len(test[1]), len(test[1]) if n_test is None else n_test, "n_test")
    apply = nnx_apply(model)
    return Task(
        name=f"CIFAR-10 ResNet-{depth}",
        params=nnx_params(model),
        score=classification_score(apply),
        predict=classification_predict(apply),
        outputs=classification_outputs(apply),
        calibration=batches(resnet_inputs(train[0][calibration_rows]), train[1][calibration_rows], BATCH_SIZE),
        test=batches(resnet_inputs(test[0][test_rows]), test[1][test_rows], BATCH_SIZE),
        calibration_name=f"{n_calibration:,} CIFAR-10 training images",
        test_name=f"{len(test_rows):,} CIFAR-10 test images",
    )


def _subset(n: int, size: int, what: str) -> np.ndarray:
    """Indices ``[size]`` of a fixed random subset of ``n`` examples."""
    if not 1 <= size <= n:
        raise ValueError(f"{what} must be from 1 to {n}, got {size}")
    return np.random.default_rng(SUBSET_SEED).permutation(n)[:size]
