"""IDX files, whole and damaged; the data sets that come in them."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from train.data import gray
from train.data.gray import gray_splits
from train.data.idx import idx_examples, read_idx

N_TRAIN, N_TEST = 30, 7


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    where = tmp_path / "data" / "fashion-mnist"
    where.mkdir(parents=True)
    for prefix, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        (where / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (where / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))  # one packed, one not
    return where


def test_images_and_labels(folder):
    images, labels = idx_examples(folder.parent, "fashion_mnist", "train")
    assert images.dtype == np.uint8 and images.shape == (N_TRAIN, 28, 28, 1)
    assert labels.dtype == np.int32 and labels[:3].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(images[..., 0], np.random.default_rng(0).integers(0, 256, (N_TRAIN, 28, 28), np.uint8))
    np.testing.assert_array_equal(idx_examples(folder, "fashion_mnist", "test")[1], np.arange(N_TEST))  # the folder itself


def test_parts_are_disjoint_and_all_is_in_them(folder, monkeypatch):
    monkeypatch.setattr(gray, "N_HELD_OUT", 4)
    train, held, test = gray_splits("fashion_mnist", folder.parent)
    assert [len(part[1]) for part in (train, held, test)] == [N_TRAIN - 4, 4, N_TEST]
    whole = idx_examples(folder, "fashion_mnist", "train")[0]
    rows = sorted(image.tobytes() for part in (train, held) for image in part[0])
    assert rows == sorted(image.tobytes() for image in whole)
    monkeypatch.setattr(gray, "N_HELD_OUT", N_TRAIN)
    with pytest.raises(ValueError, match="30 training images, of which 30 are held out"):
        gray_splits("fashion_mnist", folder.parent)


def test_enlarged_digits():
    small = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1) / 64
    large = gray._enlarged(small)
    assert large.shape == (1, 28, 28, 1) and large.dtype == np.uint8
    np.testing.assert_array_equal(large[0, 3:26:3, 3:26:3, 0], np.rint(255 * small[0, :, :, 0]))
    assert large[0, :2].max() == large[0, :, 26:].max() == 0


LABELS = idx(np.zeros(5, np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file: it begins with nothing"),
        (b"\x1f\x8b" + LABELS, "is no IDX file: it begins with 1f 8b 00 00"),
        (idx(np.zeros((2, 3), np.uint8)), r"in 1 dimensions, its header says type 8 in 2"),
        (b"\0\0\x0d\x01" + LABELS[4:], "its header says type 13 in 1"),
        (LABELS[:6], "cut short within its header"),
        (LABELS[:-1], r"must hold 5 bytes for the shape \(5,\) of its header, there are only 4: get it again"),
        (LABELS + b"\0", "there are more: get it again"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "its header is damaged"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path, 1)


def test_a_damaged_gzip_stream(tmp_path):
    path = tmp_path / "labels.gz"
    packed = bytearray(gzip.compress(idx(np.arange(200, dtype=np.uint8))))
    for damaged in (packed[:-10], packed[:40] + b"\xff\xff" + packed[42:], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"labels\.gz"):
            read_idx(path, 1)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(
        ValueError, match=r"no train-images-idx3-ubyte or .*\.gz in .*apt install dataset-fashion-mnist.*--data-dir DIR"
    ):
        idx_examples(tmp_path, "fashion_mnist", "train")
    with pytest.raises(ValueError, match=r"--data-dir is missing, and there is no t10k-images.*put them into DIR/mnist"):
        idx_examples(None, "mnist", "test")
    with pytest.raises(ValueError, match="no data set 'kmnist'"):
        idx_examples(tmp_path, "kmnist", "test")


@pytest.mark.parametrize(
    ("prefix", "what", "content", "message"),
    [
        ("train", "labels-idx1", np.array([9, 0, 0, 3, 0, 2, 7, 2], np.uint8), "30 images and .* 8 labels: get both again"),
        (
            "train",
            "labels-idx1",
            np.resize(np.array([5, 0, 4, 1, 9, 2, 1, 3], np.uint8), N_TRAIN),
            "holds the labels of mnist, not",
        ),
        ("t10k", "labels-idx1", np.full(N_TEST, 10, np.uint8), "labels from 0 to 9, got 10"),
        ("t10k", "images-idx3", np.zeros((N_TEST, 28, 27), np.uint8), "28 x 28 pixels, got 28 x 27"),
    ],
)
def test_files_that_do_not_fit(folder, prefix, what, content, message):
    (folder / f"{prefix}-{what}-ubyte").write_bytes(idx(content))
    with pytest.raises(ValueError, match=message):
        idx_examples(folder, "fashion_mnist", "train" if prefix == "train" else "test")
