"""Inputs of the 8-bit models as NumPy arrays: images in a zip file with their labels, and spectra of spoken words.

A zip holds image files and ``labels.csv`` with the columns ``file`` and ``label`` (or ``label1001``, ImageNet's classes after a
background class). An ``.npz`` holds what the model takes, as it is.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from bqjax.tflite.format.graph import Tensor

__all__ = [
    "Examples",
    "grey_int8",
    "read_examples",
    "read_images",
    "read_spectra",
    "to_int8",
]

LABEL_COLUMNS = ("label1001", "label")


class Examples(NamedTuple):
    """``inputs [n, ...]`` in the dtype that the model takes, and ``labels [n]``, int32."""

    inputs: np.ndarray
    labels: np.ndarray


def read_examples(path: str | os.PathLike[str], source: Tensor) -> Examples:
    """Examples for a model, in the form that its input has.

    Args:
      path: an ``.npz`` file with ``x`` and ``y`` (:func:`read_spectra`), or a ``.zip`` of images (:func:`read_images`), which are
        resized to the input, turned to grey where it has one channel, and moved down by 128 where it is int8.
      source: the model's input.

    Raises:
      ValueError: the file cannot be read, or the model does not take images of this kind.
    """
    if os.fspath(path).endswith(".npz"):
        x, y = read_spectra(path, source.dtype)
        x = x.reshape(len(x), *source.shape[1:]) if x[0].size == int(np.prod(source.shape[1:])) else x
    else:
        if len(source.shape) != 4 or source.shape[1] != source.shape[2] or source.shape[3] not in (1, 3):
            raise ValueError(
                f"the model takes {source.shape}, not square images of 1 or 3 channels: give its inputs as an .npz file"
            )
        x, y = read_images(path, source.shape[1])
        if source.shape[3] == 1:
            x = grey_int8(x) if source.dtype == np.int8 else (grey_int8(x).view(np.uint8) ^ 128)
        elif source.dtype == np.int8:
            x = to_int8(x)
    if x.dtype != source.dtype or x.shape[1:] != source.shape[1:]:
        raise ValueError(f"the model takes {source.dtype} {source.shape[1:]}, {path} gives {x.dtype} {x.shape[1:]}")
    return Examples(x, y)


def read_images(zip_path: str | os.PathLike[str], size: int, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a zip file, in the order of its ``labels.csv``.

    Args:
      zip_path: the file.
      size: height and width to give; square images that are larger are resized bilinearly.
      n: the first so many images; None takes all.

    Returns:
      ``(images, labels)``: uint8 ``[n, size, size, 3]`` in RGB and int32 ``[n]``.

    Raises:
      ValueError: the file is no zip file, ``labels.csv`` is missing or lacks a column or a number, a member is missing or cannot be
        read, or an image is not square or is smaller than ``size``. The message names the member.
      ImportError: Pillow is not installed.
    """
    from PIL import Image

    try:
        with zipfile.ZipFile(zip_path) as archive:
            rows = _labels(archive, zip_path)[:n]
            images = np.empty((len(rows), size, size, 3), np.uint8)
            for i, (name, _) in enumerate(rows):
                try:
                    with Image.open(io.BytesIO(archive.read(name))) as opened:
                        if opened.width != opened.height or opened.width < size:
                            raise ValueError(f"it must be square and at least {size} wide, it is {opened.width} x {opened.height}")
                        image = opened.convert("RGB")
                except (
                    KeyError,
                    OSError,
                    ValueError,
                    SyntaxError,
                    zlib.error,
                    zipfile.BadZipFile,
                    Image.DecompressionBombError,
                ) as error:
                    raise ValueError(f"image {name!r} of {zip_path} cannot be used: {error}") from error
                images[i] = np.asarray(image if image.width == size else image.resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{zip_path} is not a zip file of images: {error}") from error
    return images, np.array([label for _, label in rows], np.int32)


def _labels(archive: zipfile.ZipFile, zip_path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    try:
        table = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    except (KeyError, UnicodeDecodeError, csv.Error, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{zip_path} must have a labels.csv of text: {error}") from error
    column = next((c for c in LABEL_COLUMNS if table and table[0].get(c) is not None), None)
    if column is None or "file" not in table[0]:
        raise ValueError(f"labels.csv of {zip_path} must have rows with 'file' and one of {', '.join(LABEL_COLUMNS)}")
    rows = []
    for row in table:
        try:
            rows.append((row["file"], int(row[column])))
        except (TypeError, ValueError) as error:
            raise ValueError(f"labels.csv of {zip_path} has no label for {row['file']!r}: {row[column]!r}") from error
    return rows


def read_spectra(npz_path: str | os.PathLike[str], dtype: Any = np.int8) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of an ``.npz`` file, as spectra of spoken words: its ``x`` ``[n, ...]`` of a dtype and ``y`` as int32 ``[n]``.

    Raises:
      ValueError: the file cannot be read, or a member is missing or of another kind; the message names it.
    """
    try:
        with np.load(npz_path, allow_pickle=False) as file:
            missing = [name for name in ("x", "y") if name not in file]
            if missing:
                raise ValueError(f"it lacks the member {missing[0]!r}")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{npz_path} cannot be used: {error}") from error
    if x.dtype != dtype or not x.ndim or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        got = f"{x.dtype} {x.shape}, {y.dtype} {y.shape}"
        raise ValueError(f"{npz_path} must hold 'x' {np.dtype(dtype)} [n, ...] and 'y' integers [n], got {got}")
    return x, y.astype(np.int32)


def to_int8(images: np.ndarray) -> np.ndarray:
    """uint8 ``[...]`` moved down by 128, as int8."""
    return (images ^ 128).view(np.int8)


def grey_int8(images: np.ndarray) -> np.ndarray:
    """uint8 RGB ``[n, h, w, 3]`` as grey, ``round(0.299 R + 0.587 G + 0.114 B) - 128``, int8 ``[n, h, w, 1]``."""
    return to_int8(np.round(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8))[..., None]
