"""Data sets as NumPy arrays: read once through TensorFlow Datasets, then from a cache of plain ``.npz`` files.

TensorFlow Datasets is used without TensorFlow, as ``tfds.data_source`` over a folder of array_record files. Decoding
10,000 images takes about a second, so that the arrays are cached: in the folder that the environment variable
BQJAX_CACHE names, or in ``~/.cache/bqjax``. A cache file is named after a fingerprint of the files that it was made of;
one that is damaged, or does not hold what it should, is made again.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bqjax.core.files import atomic_write

__all__ = ["cache_dir", "cifar10", "open_records"]

N_CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)
SPLITS = ("train", "test")
# Part of the cache's file name: count up when what is stored, or its order, changes.
_CACHE_VERSION = 1


def cache_dir() -> Path:
    """The folder of cached arrays: BQJAX_CACHE, or ``~/.cache/bqjax``."""
    return Path(os.environ.get("BQJAX_CACHE") or Path.home() / ".cache" / "bqjax")


def cifar10(data_dir: str | os.PathLike[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images of CIFAR-10 in the order of their ids, which does not depend on how the files are cut.

    Args:
      data_dir: the folder that holds ``tfds/cifar10/<version>/`` in array_record format.
      split: ``"train"`` (50,000 images) or ``"test"`` (10,000).

    Returns:
      ``(images, labels)``: ``[n, 32, 32, 3]`` uint8 in RGB and ``[n]`` int32 from 0 to 9.

    Raises:
      ValueError: ``split`` is unknown; the data set is missing, cannot be read or does not hold what it should.
      ImportError: tensorflow_datasets, or what it needs to decode images, is not installed, and the arrays are not
        cached yet.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    tfds_dir = Path(data_dir) / "tfds"
    fingerprint = _fingerprint(tfds_dir, split)
    cached = cache_dir() / f"cifar10-{split}-v{_CACHE_VERSION}-{fingerprint[:16]}.npz"
    arrays = _read_cache(cached, fingerprint)
    if arrays is None:
        arrays = _decode(tfds_dir, split)
        try:
            with atomic_write(cached, force=True) as file:
                np.savez(file, images=arrays[0], labels=arrays[1], fingerprint=np.array(fingerprint))
        except OSError as error:
            # A read-only home or a full disk costs time at the next call, and nothing else.
            warnings.warn(f"CIFAR-10 is not cached: {error}; BQJAX_CACHE can name another folder", stacklevel=2)
    return arrays


def _fingerprint(tfds_dir: Path, split: str) -> str:
    """SHA-256 over the contents of a split's files: 0.3 s for the training images, against seconds to decode them."""
    files = sorted(tfds_dir.glob(f"cifar10/*/cifar10-{split}.*"))
    if not files:
        raise ValueError(
            f"there is no CIFAR-10 ({split}) in {tfds_dir}. Copy an array_record folder of TensorFlow Datasets there (as "
            f"{tfds_dir}/cifar10/3.0.2/cifar10-{split}.array_record-00000-of-00004), or download it, with TensorFlow "
            f'installed, by tfds.builder("cifar10", data_dir="{tfds_dir}", file_format="array_record").download_and_prepare()'
        )
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_cache(path: Path, fingerprint: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The arrays of a cache file, or None where there is none or it is not as it was written (zip checks its CRCs)."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            images, labels, made_of = file["images"], file["labels"], file["fingerprint"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, AttributeError, TypeError):
        # np.load gives a bare array, no context manager, for an .npy file under this name: AttributeError, TypeError.
        return None
    if made_of.shape != () or str(made_of) != fingerprint or _wrong(images, labels):
        return None
    return images, labels


def _wrong(images: np.ndarray, labels: np.ndarray) -> str:
    """What is wrong with the arrays; empty where nothing is."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
        return f"images must be [n, 32, 32, 3] uint8, got {images.dtype} {images.shape}"
    if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        return f"there must be {len(images)} int32 labels, got {labels.dtype} {labels.shape}"
    if not len(labels) or labels.min() < 0 or labels.max() >= N_CLASSES:
        return f"labels must be at least one and from 0 to {N_CLASSES - 1}"
    return ""


def _decode(tfds_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    source = open_records(tfds_dir, "cifar10", split)
    n = len(source)
    images, labels, ids = np.empty((n, *IMAGE_SHAPE), np.uint8), np.empty(n, np.int32), []
    try:
        for i in range(n):
            example = source[i]
            image = np.asarray(example["image"])
            if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
                raise ValueError(f"image {i} is {image.dtype} {image.shape}")
            images[i], labels[i] = image, example["label"]
            ids.append(example["id"])
    except ImportError as error:
        raise _not_installed(error) from error
    except Exception as error:  # whatever the readers of records and of PNGs raise for damaged bytes
        raise ValueError(f"CIFAR-10 ({split}) in {tfds_dir} cannot be read: {error}") from error
    order = sorted(range(n), key=ids.__getitem__)
    images, labels = images[order], labels[order]
    if wrong := _wrong(images, labels):
        raise ValueError(f"CIFAR-10 ({split}) in {tfds_dir}: {wrong}")
    return images, labels


def open_records(tfds_dir: Path, name: str, split: str) -> Any:
    """The examples of a data set of TensorFlow Datasets, by number; nothing is downloaded.

    Raises:
      ValueError: it cannot be opened.
      ImportError: tensorflow_datasets is not installed.
    """
    try:
        # Imported here: it takes a second, and a cached data set does not need it.
        import tensorflow_datasets as tfds

        return tfds.data_source(name, split=split, data_dir=str(tfds_dir), download=False)
    except ImportError as error:
        raise _not_installed(error) from error
    except (ValueError, NotImplementedError, AssertionError, RuntimeError, OSError, KeyError) as error:
        raise ValueError(
            f"TensorFlow Datasets cannot open {name} in {tfds_dir}, which must be complete (with dataset_info.json and "
            f"features.json) and in array_record format: {error}"
        ) from error


def _not_installed(error: ImportError) -> ImportError:
    return ImportError(f'reading this data needs tensorflow_datasets, and pillow for images: pip install "bqjax[train]" ({error})')
