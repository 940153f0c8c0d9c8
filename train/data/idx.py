"""MNIST and Fashion-MNIST from the four IDX files that both come in, packed with gzip or not.

An IDX file is a big-endian header (two zero bytes, a byte for the type of the numbers, one for the number of dimensions,
then each dimension in four bytes) and the numbers.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["IDX_DATASETS", "idx_examples", "read_idx"]

N_CLASSES = 10
IMAGE_SIZE = 28
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UNSIGNED_BYTE = 8
_MAX_BYTES = 2**31
# Folders that are looked into under the data folder, before itself; what else there is to try; how to get the files.
_WHERE = {
    "fashion_mnist": (
        ("fashion-mnist", "fashion_mnist"),
        (Path("/usr/share/datasets/fashion-mnist"),),
        "On Debian and Ubuntu `apt install dataset-fashion-mnist` puts them into /usr/share/datasets/fashion-mnist, where they are "
        "found without --data-dir; elsewhere, download them from https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": (("mnist", "MNIST/raw"), (), "Download them from a copy of http://yann.lecun.com/exdb/mnist"),
}
IDX_DATASETS = tuple(_WHERE)
# The two data sets have files of the same names, shapes and lengths; the first training labels tell them apart.
_FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3], "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2]}


def read_idx(path: str | os.PathLike[str], ndim: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes; a name that ends in ``.gz`` is unpacked.

    Args:
      path: of the file.
      ndim: dimensions that it must have.

    Returns:
      uint8 array of ``ndim`` dimensions.

    Raises:
      ValueError: the file is missing, is no IDX file of unsigned bytes with ``ndim`` dimensions, holds fewer or more bytes than
        its header says, or its gzip stream is damaged or cut short.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path, ndim)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}; get it again") from error


def _read(file: BinaryIO, path: Path, ndim: int) -> np.ndarray:
    head = file.read(4 + 4 * ndim)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise ValueError(f"{path} is no IDX file: it begins with {head[:4].hex(' ') or 'nothing'}, not with two zero bytes")
    if head[2] != _UNSIGNED_BYTE or head[3] != ndim:
        raise ValueError(
            f"{path} must hold unsigned bytes (type 8) in {ndim} dimensions, its header says type {head[2]} in {head[3]}"
        )
    if len(head) < 4 + 4 * ndim:
        raise ValueError(f"{path} is cut short within its header: get it again")
    shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4))
    size = math.prod(shape)
    if size > _MAX_BYTES:
        raise ValueError(f"{path} says that it holds {size:,} bytes: its header is damaged")
    data = file.read(size + 1)
    if len(data) != size:
        there = f"only {len(data):,}" if len(data) < size else "more"
        raise ValueError(f"{path} must hold {size:,} bytes for the shape {shape} of its header, there are {there}: get it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def idx_examples(data_dir: str | os.PathLike[str] | None, dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of MNIST or of a data set in its layout.

    Args:
      data_dir: the folder that holds the four files, or holds ``mnist/`` or ``fashion-mnist/`` with them; names may end in
        ``.gz``. None looks where Debian's package puts Fashion-MNIST.
      dataset: ``"fashion_mnist"`` or ``"mnist"``.
      split: ``"train"`` (60,000 examples) or ``"test"`` (10,000).

    Returns:
      ``(images, labels)``: ``[n, 28, 28, 1]`` uint8 and ``[n]`` int32 from 0 to 9.

    Raises:
      ValueError: the files are missing (the message says how to get them), damaged, or not what they should be.
    """
    if dataset not in _WHERE or split not in _FILES:
        raise ValueError(f"no data set {dataset!r} with a split {split!r}: there are {', '.join(_WHERE)}, train and test")
    images_path, labels_path = (_find(data_dir, dataset, name) for name in _FILES[split])
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"{images_path} must hold images of 28 x 28 pixels, got {images.shape[1]} x {images.shape[2]}")
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"{images_path} holds {len(images):,} images and {labels_path} {len(labels):,} labels: get both again")
    if labels.max() >= N_CLASSES:
        raise ValueError(f"{labels_path} must hold labels from 0 to {N_CLASSES - 1}, got {labels.max()}")
    for other, first in _FIRST_LABELS.items():
        if split == "train" and other != dataset and labels[: len(first)].tolist() == first:
            raise ValueError(f"{labels_path} holds the labels of {other}, not of {dataset}: name another folder")
    return images[..., None], labels.astype(np.int32)


def _find(data_dir: str | os.PathLike[str] | None, dataset: str, name: str) -> Path:
    folders, elsewhere, how = _WHERE[dataset]
    places = [*elsewhere] if data_dir is None else [*(Path(data_dir) / folder for folder in folders), Path(data_dir)]
    for place in places:
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    said = "--data-dir is missing, and " if data_dir is None else ""
    tried = f" in {', '.join(map(str, places))}" if places else ""
    raise ValueError(
        f"{said}there is no {name} or {name}.gz{tried}. {dataset} is four such files. {how}, put them into DIR/{folders[0]} and "
        "pass --data-dir DIR"
    )
