"""Inputs of 8-bit models from small zip and npz files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("ai_edge_litert")

from PIL import Image

from bqjax.tflite.examples import grey_int8, read_examples, read_images, read_spectra, to_int8
from bqjax.tflite.format.graph import Tensor


def source(shape, dtype):
    return Tensor("x", tuple(shape), np.dtype(dtype), np.array([0.05], np.float32), np.array([0]), None, None, 0)


def pixels(n=3, size=8):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def labelled(path, images, column="label", **others):
    rows = "".join(f"{i}.png,{7 * i}\n" for i in range(len(images)))
    members = {f"{i}.png": png(image) for i, image in enumerate(images)}
    return archive(path, {**members, "labels.csv": f"file,{column}\n{rows}", **others})


@pytest.mark.parametrize("column", ["label", "label1001"])
def test_images_come_in_the_order_of_their_labels(tmp_path, column):
    images = pixels()
    path = labelled(tmp_path / "a.zip", images, column)
    got, labels = read_images(path, 8)
    np.testing.assert_array_equal(got, images)
    assert labels.dtype == np.int32 and labels.tolist() == [0, 7, 14]
    assert [len(part) for part in read_images(path, 8, n=2)] == [2, 2]


def test_larger_images_are_resized(tmp_path):
    flat = np.full((1, 8, 8, 3), 90, np.uint8)
    np.testing.assert_array_equal(read_images(labelled(tmp_path / "a.zip", flat), 4)[0], flat[:, :4, :4])


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 8, 8, 3), np.uint8, lambda x: x),
        ((1, 8, 8, 3), np.int8, lambda x: (x.astype(int) - 128).astype(np.int8)),
        ((1, 8, 8, 1), np.int8, lambda x: (np.round(x @ [0.299, 0.587, 0.114]) - 128).astype(np.int8)[..., None]),
        ((1, 8, 8, 1), np.uint8, lambda x: np.round(x @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None]),
    ],
)
def test_images_in_the_form_of_the_input(tmp_path, shape, dtype, expected):
    images = pixels()
    got = read_examples(labelled(tmp_path / "a.zip", images), source(shape, dtype))
    assert got.inputs.dtype == dtype and got.labels.tolist() == [0, 7, 14]
    np.testing.assert_array_equal(got.inputs, expected(images))


def test_codes_at_the_ends():
    assert to_int8(np.array([0, 127, 128, 255], np.uint8)).tolist() == [-128, -1, 0, 127]
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1).repeat(3, -1)
    assert grey_int8(ends).reshape(-1).tolist() == [-128, 127]


def test_spectra_are_given_the_shape_of_the_input(tmp_path):
    x = np.arange(24, dtype=np.int8).reshape(2, 12)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([1, 0]))
    got = read_examples(tmp_path / "a.npz", source((1, 4, 3, 1), np.int8))
    np.testing.assert_array_equal(got.inputs, x.reshape(2, 4, 3, 1))
    assert got.labels.dtype == np.int32 and got.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"the model takes int8 \(5,\), .* gives int8 \(12,\)"):
        read_examples(tmp_path / "a.npz", source((1, 5), np.int8))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, int)},
        {"x": np.zeros((2, 3), np.uint8), "y": np.zeros(2, int)},
        {"x": np.zeros((2, 3), np.int8), "y": np.zeros(2)},
        {"x": np.zeros((2, 3), np.int8), "y": np.zeros(3, int)},
    ],
)
def test_spectra_of_another_kind(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"a\.npz must hold 'x' int8 \[n, \.\.\.\] and 'y' integers \[n\], got"):
        read_spectra(tmp_path / "a.npz")


def test_spectra_that_cannot_be_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2), np.int8))
    with pytest.raises(ValueError, match=r"a\.npz cannot be used: it lacks the member 'y'"):
        read_spectra(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.array([{}], object), y=np.zeros(1, int))
    (tmp_path / "c.npz").write_bytes(b"not a file of arrays")
    for name in ("b.npz", "c.npz", "absent.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be used"):
            read_spectra(tmp_path / name)


def test_the_image_that_cannot_be_used_is_named(tmp_path):
    images = pixels()
    cut = png(images[1])[:40]
    bad = {"cut.zip": cut, "text.zip": b"no image", "wide.zip": png(np.zeros((8, 9, 3), np.uint8))}
    for name, content in bad.items():
        members = {"0.png": png(images[0]), "1.png": content, "labels.csv": "file,label\n0.png,0\n1.png,1\n"}
        with pytest.raises(ValueError, match=rf"image '1\.png' of .*{name} cannot be used"):
            read_images(archive(tmp_path / name, members), 8)
    missing = {"0.png": png(images[0]), "labels.csv": "file,label\n0.png,0\ngone.png,1\n"}
    with pytest.raises(ValueError, match=r"image 'gone\.png' of .* cannot be used"):
        read_images(archive(tmp_path / "missing.zip", missing), 8)
    with pytest.raises(ValueError, match=r"image '0\.png' .*square and at least 9 wide, it is 8 x 8"):
        read_images(labelled(tmp_path / "small.zip", images), 9)


def test_a_damaged_member_is_named(tmp_path):
    path = labelled(tmp_path / "a.zip", pixels())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 255  # of 0.png, which is stored: its checksum fails
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image '0\.png' of .* cannot be used"):
        read_images(path, 8)


def test_files_that_are_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no zip")
    for name in ("a.zip", "absent.zip"):
        with pytest.raises(ValueError, match=f"{name} is not a zip file of images"):
            read_images(tmp_path / name, 8)


def test_labels_that_cannot_be_used(tmp_path):
    image = {"0.png": png(pixels()[0])}
    with pytest.raises(ValueError, match=r"must have a labels\.csv"):
        read_images(archive(tmp_path / "a.zip", image), 8)
    with pytest.raises(ValueError, match=r"must have a labels\.csv of text"):
        read_images(archive(tmp_path / "b.zip", {**image, "labels.csv": b"\xff\xfe\x00"}), 8)
    for i, table in enumerate(("", "file,label\n", "file,class\n0.png,1\n", "name,label\n0.png,1\n")):
        with pytest.raises(ValueError, match=r"must have rows with 'file' and one of label1001, label"):
            read_images(archive(tmp_path / f"c{i}.zip", {**image, "labels.csv": table}), 8)
    for i, label in enumerate(("cat", "", "1.5")):
        table = f"file,label\n0.png,{label}\n"
        with pytest.raises(ValueError, match=rf"has no label for '0\.png': '{label}'"):
            read_images(archive(tmp_path / f"d{i}.zip", {**image, "labels.csv": table}), 8)


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (1, 8, 8, 2), (1, 490)])
def test_a_model_that_takes_no_images(tmp_path, shape):
    with pytest.raises(ValueError, match=r"not square images of 1 or 3 channels: give its inputs as an \.npz file"):
        read_examples(labelled(tmp_path / "a.zip", pixels()), source(shape, np.int8))


def test_a_model_of_another_dtype(tmp_path):
    with pytest.raises(ValueError, match=r"the model takes float32 .* gives uint8"):
        read_examples(labelled(tmp_path / "a.zip", pixels()), source((1, 8, 8, 3), np.float32))
