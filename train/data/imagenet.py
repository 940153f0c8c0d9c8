"""ImageNet from TensorFlow Datasets: decoded in batches, as it does not fit into memory.

Training images are cut out at random (scale 0.08 to 1 of the area, aspect 3/4 to 4/3) and resized, as Szegedy et al. 2015
(https://arxiv.org/abs/1409.4842, section 6) and the published training of MobileNetV2 do. For evaluation the shorter side
is resized to 8/7 of the input of the network, and the middle is taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from train.data.source import Batch
from train.data.tfds import open_records

__all__ = ["ImageNet", "open_imagenet"]

N_CLASSES = 1000
IMAGE_SIZE = 224
_AREA, _ASPECT, _ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


def open_imagenet(data_dir: str | os.PathLike[str], split: str) -> ImageNet:
    """ImageNet (ILSVRC 2012) in the order of its files.

    Args:
      data_dir: the folder that holds ``tfds/imagenet2012/<version>/`` in array_record format.
      split: ``"train"`` (1,281,167 images) or ``"validation"`` (50,000).

    Raises:
      ValueError: the data set is missing, and how to get it, or cannot be opened.
      ImportError: tensorflow_datasets or pillow is not installed.
    """
    tfds_dir = Path(data_dir) / "tfds"
    if not any(tfds_dir.glob(f"imagenet2012/*/imagenet2012-{split}.*")):
        raise ValueError(
            f"there is no ImageNet ({split}) in {tfds_dir}. It cannot be downloaded without an account: get "
            f"ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org, put them into "
            f"{tfds_dir}/downloads/manual, and run, with TensorFlow installed, "
            f'tfds.builder("imagenet2012", data_dir="{tfds_dir}", file_format="array_record").download_and_prepare()'
        )
    return ImageNet(open_records(tfds_dir, "imagenet2012", split), f"ImageNet ({split}) in {tfds_dir}")


class ImageNet:
    """A :class:`train.data.source.Source` over examples with ``image`` and ``label``.

    Args:
      records: examples by number; they are asked for by several threads at once.
      name: for messages.
      size: images are ``[size, size, 3]`` uint8.
    """

    def __init__(self, records: Sequence[Any], name: str, size: int = IMAGE_SIZE):
        self.records, self.name, self.size = records, name, size
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, rows: np.ndarray, draw: tuple[int, ...] | None = None) -> Batch:
        """See :meth:`train.data.source.Source.batch`.

        Raises:
          ValueError: an example cannot be read, or is not an image with a label from 0 to 999.
        """
        found = list(self._threads.map(lambda row: self._example(int(row), draw), rows))
        return np.stack([image for image, _ in found]), np.array([label for _, label in found], np.int32)

    def _example(self, row: int, draw: tuple[int, ...] | None) -> tuple[np.ndarray, int]:
        from PIL import Image  # as in train.data: only those who read images need it

        try:
            example = self.records[row]
            pixels, label = np.asarray(example["image"]), int(example["label"])
        except Exception as error:  # whatever the readers of records and of images raise for damaged bytes
            raise ValueError(f"{self.name}: example {row} cannot be read: {error}") from error
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
            raise ValueError(f"{self.name}: image {row} must be [h, w, 3] or [h, w, 1] uint8, got {pixels.dtype} {pixels.shape}")
        if not 0 <= label < N_CLASSES:
            raise ValueError(f"{self.name}: label {row} must be from 0 to {N_CLASSES - 1}, got {label}")
        height, width = pixels.shape[:2]
        box = _middle(height, width) if draw is None else _random_box(height, width, np.random.default_rng((*draw, row)))
        image = Image.fromarray(np.broadcast_to(pixels, (height, width, 3)))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)), label


def _middle(height: int, width: int) -> tuple[float, float, float, float]:
    """``(left, top, right, bottom)`` of the square of 7/8 of the shorter side: 224 of 256."""
    side = min(height, width) * 7 / 8
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(height: int, width: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A window of random area and aspect; the largest square in the middle where ten attempts do not fit."""
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(*np.log(_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
