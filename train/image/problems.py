"""The networks and data sets that a config names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.models.digits import DigitsConv
from bqjax.models.mnist import MNIST_NETWORKS, MnistConv
from bqjax.models.mobilenet import MobileNetV2
from bqjax.models.resnet import MEAN, STD, CifarResNet, load_resnet
from train.data.digits import digits_splits
from train.data.gray import gray_splits
from train.data.idx import IDX_DATASETS
from train.data.imagenet import open_imagenet
from train.data.source import Arrays, Batch, Part, Source
from train.data.tfds import cifar10
from train.image.config import TrainConfig
from train.image.transfer import load_network

__all__ = ["Problem", "float_network", "problem", "teacher_network"]

# Of the training images of a data set; the best checkpoint is chosen by them, and nothing is trained on them.
N_VALIDATION = {"cifar10": 1000, "imagenet2012": 10_000}
VALIDATION_SEED = 1
# One draw for every config: results on equally many test images are on the same images.
TEST_SEED = 0


@dataclass(frozen=True, eq=False)
class Problem:
    """Data and what is done to it.

    Attributes:
      train, validation, test: disjoint; images as stored.
      inputs: what the network takes, of a batch of images; traceable.
      pad, flip: of the augmentation, see :func:`train.data.augment.crop_and_flip`.
    """

    train: Source
    validation: Source
    test: Source
    inputs: Callable[[jax.Array], jax.Array]
    pad: int
    flip: bool


def problem(config: TrainConfig, data_dir: str | os.PathLike[str] | None) -> Problem:
    """The data of a config.

    Raises:
      ValueError: the data set needs a folder and there is none, or it is not in it; the message says how to get it. It has
        fewer training or test examples than the config asks for.
      ImportError: a package that reads the data is not installed.
    """
    found = _problem(config, data_dir)
    train = _drawn("train_examples", found.train, config.train_examples, config.seed)
    test = _drawn("test_examples", found.test, config.test_examples, TEST_SEED)
    pad = found.pad if config.crop_padding is None else config.crop_padding
    return dataclasses.replace(found, train=train, test=test, pad=pad)


def _drawn(field: str, source: Source, size: int | None, seed: int) -> Source:
    if size is None:
        return source
    if size > len(source):
        raise ValueError(f"{field} is {size}, but there are {len(source)} examples")
    return Part(source, np.random.default_rng(seed).permutation(len(source))[:size])


def _arrays(splits: Sequence[Batch]) -> tuple[Arrays, Arrays, Arrays]:
    train, validation, test = (Arrays(*split) for split in splits)
    return train, validation, test


def _problem(config: TrainConfig, data_dir: str | os.PathLike[str] | None) -> Problem:
    if config.dataset == "digits":
        return Problem(*_arrays(digits_splits()), inputs=lambda x: x, pad=1, flip=False)
    if config.dataset in (*IDX_DATASETS, "digits28"):
        fashion = config.dataset == "fashion_mnist"  # clothes can be mirrored, digits cannot
        splits = _arrays(gray_splits(config.dataset, data_dir))
        return Problem(*splits, inputs=lambda x: x.astype(jnp.float32) / 255, pad=1, flip=fashion)
    if data_dir is None:
        raise ValueError(f"--data-dir is missing: it must name a folder with tfds/{config.dataset}")
    whole: Source
    tested: Source
    if config.dataset == "imagenet2012":
        whole, tested, pad = open_imagenet(data_dir, "train"), open_imagenet(data_dir, "validation"), 0
    else:
        whole, tested, pad = Arrays(*cifar10(data_dir, "train")), Arrays(*cifar10(data_dir, "test")), 4
    order = np.random.default_rng(VALIDATION_SEED).permutation(len(whole))
    held = N_VALIDATION[config.dataset]
    return Problem(Part(whole, order[held:]), Part(whole, order[:held]), tested, _normalised, pad=pad, flip=True)


def _normalised(images: jax.Array) -> jax.Array:
    """:func:`bqjax.models.resnet.resnet_inputs`, traceable."""
    mean, std = (jnp.asarray(a).reshape(1, 1, 1, 3) for a in (MEAN, STD))
    return (images.astype(jnp.float32) / 255 - mean) / std


def float_network(config: TrainConfig, data_dir: str | os.PathLike[str] | None) -> Any:
    """The config's network with its first weights, in training mode.

    Raises:
      ValueError: the weights are missing or of another network.
    """
    rngs = nnx.Rngs(config.seed)
    if config.anew and config.initial is None:
        raise ValueError("anew says what is not taken from the file of initial: name that, too")
    if config.weights is not None:
        depth = {"resnet20": 20, "resnet56": 56}.get(config.model)
        if depth is None:
            raise ValueError(f"weights are for resnet20 and resnet56 only, not {config.model}: leave the field out")
        if data_dir is None:
            raise ValueError(f"--data-dir is missing: it must name a folder with {config.weights}")
        model = load_resnet(Path(data_dir) / config.weights)
        if model.depth != depth:
            raise ValueError(f"{config.weights} holds a network of depth {model.depth}, not {depth}")
        return nnx.view(model, use_running_average=False)
    model = _fresh(config.model, config.dataset, rngs)
    return model if config.initial is None else load_network(model, config.initial, config.anew)


def teacher_network(config: TrainConfig, data_dir: str | os.PathLike[str] | None = None) -> Any:
    """The network of ``config.teacher`` or ``config.teacher_weights``.

    Raises:
      ValueError: there is no such file, or it is of another network.
    """
    if config.teacher_weights is not None:
        if data_dir is None:
            raise ValueError(f"--data-dir is missing: it must name a folder with {config.teacher_weights}")
        return load_resnet(Path(data_dir) / config.teacher_weights)
    if config.teacher is None:
        raise ValueError("the config names no teacher")
    return load_network(_fresh(config.teacher_model or config.model, config.dataset, nnx.Rngs(config.seed)), config.teacher)


def _fresh(model: str, dataset: str, rngs: nnx.Rngs) -> Any:
    if model == "digits":
        return DigitsConv(rngs=rngs)
    if model in MNIST_NETWORKS:
        return MnistConv(model, rngs=rngs)
    if model == "mobilenet_v2":
        large = dataset == "imagenet2012"
        return MobileNetV2(classes=1000 if large else 10, small_images=not large, rngs=rngs)
    return CifarResNet(20 if model == "resnet20" else 56, rngs=rngs)
