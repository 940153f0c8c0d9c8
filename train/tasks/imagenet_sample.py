"""SqueezeNet 1.1 on a thousand images of ImageNet, one a class: one half to calibrate and search on, the other to report on.

The images are very likely of ImageNet's training set: what a network loses on them is a difference, no accuracy on ImageNet.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import batches, classification_task
from bqjax.core.task import Task
from bqjax.models.squeezenet import IMAGE_SIZE, load_squeezenet, squeezenet_inputs
from bqjax.tflite.examples import read_images

__all__ = ["sample_images", "squeezenet_task"]

_STORED_SIZE = 224
BATCH_SIZE = 50


def sample_images(data_dir: str | os.PathLike[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and their classes, in the order of classes.

    Args:
      data_dir: the folder with ``imagenet_sample/imagenet_sample_224.zip``.
      size: height and width to give, by bilinear interpolation of the stored 224.

    Returns:
      ``(images, labels)``: uint8 ``[1000, size, size, 3]`` in RGB and int32 ``[1000]`` from 0 to 999.

    Raises:
      ValueError: the file is missing or damaged, see :func:`~bqjax.tflite.examples.read_images`.
      ImportError: Pillow is not installed.
    """
    from PIL import Image  # only those who read images need it

    path = Path(data_dir) / "imagenet_sample" / "imagenet_sample_224.zip"
    images, labels = read_images(path, _STORED_SIZE)
    if size != _STORED_SIZE:
        resized = (Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images)
        images = np.stack([np.asarray(image) for image in resized])
    # The file counts classes from 1, after a background class.
    return images, labels - 1


def squeezenet_task(data_dir: str | os.PathLike[str], *, swapped: bool = False) -> Task:
    """SqueezeNet 1.1 with every other image to calibrate on and the others to report on.

    Args:
      data_dir: the folder with ``weights/squeezenet11.safetensors`` and ``imagenet_sample/``.
      swapped: which half is which: False calibrates on images 0, 2, 4 and so on, True on 1, 3, 5.

    Raises:
      ValueError: a file is missing or damaged (see :func:`~bqjax.models.squeezenet.load_squeezenet` and :func:`sample_images`).
      ImportError: Pillow is not installed.
    """
    model = load_squeezenet(Path(data_dir) / "weights" / "squeezenet11.safetensors")
    images, labels = sample_images(data_dir, IMAGE_SIZE)
    halves = [batches(squeezenet_inputs(images[i::2]), labels[i::2], BATCH_SIZE) for i in (0, 1)]
    names = ["500 ImageNet images (even)", "500 ImageNet images (odd)"]
    calibration, test = (1, 0) if swapped else (0, 1)
    return classification_task(
        nnx_apply(model),
        nnx_params(model),
        halves[calibration],
        halves[test],
        name="SqueezeNet 1.1",
        calibration_name=names[calibration],
        test_name=names[test],
    )
