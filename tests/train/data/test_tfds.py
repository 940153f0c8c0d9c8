"""CIFAR-10 from TensorFlow Datasets and from the cache: order, validation, repair, and errors that say what to do."""

from __future__ import annotations

import sys
import types
import zipfile

import numpy as np
import pytest

from train.data import tfds as data
from train.data.tfds import cifar10

N = 6


class Source(list):
    """A data source as ``tfds.data_source`` gives one."""


def examples(n=N):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    return [{"id": f"test_{i:05d}".encode(), "image": images[i], "label": np.int64(i % 10)} for i in range(n)]


class FakeTfds(types.ModuleType):
    """tensorflow_datasets with a data source of given examples, which counts how often it is opened."""

    def __init__(self, found):
        super().__init__("tensorflow_datasets")
        self.found, self.calls = found, []

    def data_source(self, name, *, split, data_dir, download):
        self.calls.append((name, split, data_dir, download))
        if isinstance(self.found, Exception):
            raise self.found
        return Source(self.found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one file of each split, whose bytes only the fingerprint reads, and a cache of its own."""
    records = tmp_path / "data" / "tfds" / "cifar10" / "3.0.2"
    records.mkdir(parents=True)
    for split in ("train", "test"):
        (records / f"cifar10-{split}.array_record-00000-of-00001").write_bytes(f"records of {split}".encode())
    monkeypatch.setenv("BQJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def tfds(monkeypatch):
    # Out of order, as TensorFlow Datasets shuffles.
    module = FakeTfds(examples()[::-1])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def the_cache(split="test"):
    (path,) = data.cache_dir().glob(f"cifar10-{split}-*.npz")
    return path


def assert_right(arrays):
    images, labels = arrays
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(images, [example["image"] for example in examples()])
    assert labels.tolist() == list(range(N))


def test_decodes_once_in_the_order_of_ids(folder, tfds):
    assert_right(cifar10(folder, "test"))
    assert tfds.calls == [("cifar10", "test", str(folder / "tfds"), False)]
    assert_right(cifar10(str(folder), "test"))
    assert len(tfds.calls) == 1
    cifar10(folder, "train")
    assert [call[1] for call in tfds.calls] == ["test", "train"]
    assert len(list(data.cache_dir().iterdir())) == 2  # no temporary files


def test_a_cached_split_needs_no_tensorflow_datasets(folder, tfds, monkeypatch):
    cifar10(folder, "test")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert_right(cifar10(folder, "test"))


def test_other_records_are_decoded_anew(folder, tfds):
    cifar10(folder, "test")
    (record,) = folder.rglob("cifar10-test*")
    record.write_bytes(b"records of tesT")
    cifar10(folder, "test")
    assert len(tfds.calls) == 2


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(path, **change):
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file) | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def as_npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def with_pickle(path):
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"labels": np.array([{}] * N, object)})


@pytest.mark.parametrize(
    "distortion",
    [
        flip,
        as_npy,
        with_pickle,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"something else"),
        lambda path: zipfile.ZipFile(path, "w").close(),
        lambda path: rewrite(path, labels=None),
        lambda path: rewrite(path, labels=np.zeros(N - 1, np.int32)),
        lambda path: rewrite(path, labels=np.full(N, 10, np.int32)),
        lambda path: rewrite(path, images=np.zeros((N, 32, 32, 3), np.float32)),
        lambda path: rewrite(path, images=np.uint8(0)),
        lambda path: rewrite(path, fingerprint=np.array("of other files")),
        lambda path: rewrite(path, fingerprint=np.zeros(3)),
    ],
)
def test_a_damaged_cache_is_made_again(folder, tfds, distortion):
    cifar10(folder, "test")
    distortion(the_cache())
    assert_right(cifar10(folder, "test"))
    assert len(tfds.calls) == 2
    assert_right(cifar10(folder, "test"))
    assert len(tfds.calls) == 2


def test_a_cache_that_cannot_be_written_is_only_slow(folder, tfds, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BQJAX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not cached.*BQJAX_CACHE can name another folder"):
        assert_right(cifar10(folder, "test"))


def test_the_default_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BQJAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_dir() == tmp_path / ".cache" / "bqjax"


def test_missing_data_set(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no CIFAR-10 \(train\) in .*/tfds\. Copy an array_record folder.*download_and_prep"
    ):
        cifar10(tmp_path, "train")


@pytest.mark.parametrize("error", [NotImplementedError("TFRECORD is not supported"), AssertionError("no data"), ValueError("old")])
def test_data_set_that_cannot_be_opened(folder, tfds, error):
    tfds.found = error
    with pytest.raises(ValueError, match=f"cannot open cifar10 in .*array_record format: {error}"):
        cifar10(folder, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((28, 28, 1), np.uint8)}, r"cannot be read: image 0 is uint8 \(28, 28, 1\)"),
        ({"image": np.zeros((32, 32, 3), np.float32)}, "cannot be read: image 0 is float32"),
        ({"label": 10}, "labels must be .* from 0 to 9"),
    ],
)
def test_examples_that_are_not_cifar10(folder, tfds, change, message):
    tfds.found = [examples()[0] | change, *examples()[1:]]
    with pytest.raises(ValueError, match=message):
        cifar10(folder, "test")


def test_an_empty_data_set(folder, tfds):
    tfds.found = []
    with pytest.raises(ValueError, match="labels must be at least one"):
        cifar10(folder, "test")


def test_split_that_does_not_exist(folder):
    with pytest.raises(ValueError, match="split must be one of train, test, got 'validation'"):
        cifar10(folder, "validation")


def test_without_tensorflow_datasets(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "bqjax\[train\]"'):
        cifar10(folder, "test")


@pytest.mark.slow  # decodes 10,000 images
@pytest.mark.data
def test_the_real_test_images(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("BQJAX_CACHE", str(tmp_path))
    for _ in range(2):  # decoded, then from the cache
        images, labels = cifar10(data_dir, "test")
        assert (images.shape, labels.shape) == ((10_000, 32, 32, 3), (10_000,))
        assert np.bincount(labels).tolist() == [1000] * 10
        # The first images of the canonical order: cat, ship, ship, airplane, frog, frog, automobile, frog, cat, automobile.
        assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)) / 255, [0.494, 0.485, 0.450], atol=1e-3)
