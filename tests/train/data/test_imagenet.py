"""ImageNet in batches: what is cut out, that it depends on row and draw alone, and errors that say what to do."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from train.data.imagenet import ImageNet, open_imagenet
from train.image import problems
from train.image.config import TrainConfig

rng = np.random.default_rng(0)
SHAPES = [(64, 64, 3), (64, 100, 3), (90, 64, 1), (64, 72, 3), (80, 80, 3), (70, 65, 3)]
EXAMPLES = [{"image": rng.integers(0, 256, shape).astype(np.uint8), "label": np.int64(100 * i)} for i, shape in enumerate(SHAPES)]
ROWS = np.array([3, 0, 5])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a file of each split, and a TensorFlow Datasets that reads six examples from it."""
    records = tmp_path / "tfds" / "imagenet2012" / "5.1.0"
    records.mkdir(parents=True)
    for split in ("train", "validation"):
        (records / f"imagenet2012-{split}.array_record-00000-of-00001").touch()
    module = types.ModuleType("tensorflow_datasets")
    module.data_source = lambda name, *, split, data_dir, download: list(EXAMPLES)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return tmp_path


def test_for_evaluation_the_middle(folder):
    source = open_imagenet(folder, "validation")
    source.size = 56  # seven eighths of 64: no pixel has to be interpolated
    images, labels = source.batch(np.array([1, 0, 2]))
    assert len(source) == 6
    assert (images.shape, images.dtype, labels.dtype, labels.tolist()) == ((3, 56, 56, 3), np.uint8, np.int32, [100, 0, 200])
    np.testing.assert_array_equal(images[0], EXAMPLES[1]["image"][4:60, 22:78])
    np.testing.assert_array_equal(images[1], EXAMPLES[0]["image"][4:60, 4:60])
    np.testing.assert_array_equal(images[2], np.repeat(EXAMPLES[2]["image"][17:73, 4:60], 3, axis=2))


def test_crops_follow_from_draw_and_row_alone():
    source = ImageNet(EXAMPLES, "six", size=16)
    images, _ = source.batch(ROWS, (0, 7))
    for i in (2, 0, 1):
        np.testing.assert_array_equal(source.batch(ROWS[[i]], (0, 7))[0][0], images[i])
    for other in ((0, 8), (1, 7), None):
        assert (source.batch(ROWS, other)[0] != images).any(axis=(1, 2, 3)).all()


def test_crops_lie_within_and_vary():
    """Of an image whose pixels are their own places, a crop tells where it came from."""
    y, x = np.mgrid[:200, :250].astype(np.uint8)
    source = ImageNet([{"image": np.stack([y, x, x], axis=2), "label": 0}] * 40, "places", size=8)
    images = source.batch(np.arange(40), (0, 0))[0].astype(int)
    heights, widths = (np.ptp(images[..., c], axis=(1, 2)) * 8 / 7 for c in (0, 1))
    area, aspect = heights * widths / (200 * 250), widths / heights
    assert 0.07 < area.min() < 0.3 < 0.7 < area.max() <= 1.01
    assert 0.73 < aspect.min() < 0.9 < 1.1 < aspect.max() < 1.37


def test_the_problem_of_a_config(folder, monkeypatch):
    monkeypatch.setitem(problems.N_VALIDATION, "imagenet2012", 2)
    config = TrainConfig(model="mobilenet_v2", dataset="imagenet2012", float_epochs=1, train_examples=3, test_examples=5)
    found = problems.problem(config, folder)
    parts = [part.batch(np.arange(len(part))) for part in (found.train, found.validation, found.test)]
    assert [images.shape for images, _ in parts] == [(n, 224, 224, 3) for n in (3, 2, 5)]
    assert not set(parts[0][1]) & set(parts[1][1])
    with pytest.raises(ValueError, match="test_examples is 7, but there are 6 examples"):
        problems.problem(TrainConfig(model="mobilenet_v2", dataset="imagenet2012", float_epochs=1, test_examples=7), folder)


def test_missing(tmp_path):
    with pytest.raises(ValueError, match=r"there is no ImageNet \(train\) in .*ILSVRC2012_img_train\.tar.*downloads/manual"):
        open_imagenet(tmp_path, "train")
    with pytest.raises(ValueError, match="model 'resnet20' does not fit data set 'imagenet2012'"):
        TrainConfig(dataset="imagenet2012", float_epochs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((8, 8), np.uint8)}, r"six: image 0 must be .* got uint8 \(8, 8\)"),
        ({"image": np.zeros((8, 8, 3))}, r"got float64 \(8, 8, 3\)"),
        ({"label": 1000}, "six: label 0 must be from 0 to 999, got 1000"),
        ({"label": None}, "six: example 0 cannot be read"),
    ],
)
def test_examples_that_are_not_imagenet(change, message):
    with pytest.raises(ValueError, match=message):
        ImageNet([EXAMPLES[0] | change], "six", size=8).batch(np.array([0]))
