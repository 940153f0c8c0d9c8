"""What other files are: real ones where the library that writes them is here, else their first bytes."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from bqjax import codec
from bqjax.core.recognize import recognize, recognize_bytes

W = np.arange(6, dtype=np.float32).reshape(2, 3)
PLAIN = safetensors.numpy.save({"w": W})


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git-lfs"),
        (b"\n  <!DOCTYPE html><html><body>404", "html"),
        (b"\xef\xbb\xbf<HTML>", "html"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "html"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "hdf5"),
        (b"GGUF\x03\0\0\0" + bytes(99), "gguf"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:", "onnx"),
        (b"\x1c\0\0\0TFL3" + bytes(99), "tflite"),
        (b"\x81\xa6params\x81\xa6kernel\xc7", "msgpack"),
        (b"\xde\0\x10\xa6params", "msgpack"),
        (pickle.dumps({"w": [1.0]}), "pickle"),
        (pickle.dumps({"w": [1.0]}, 2), "pickle"),
        (gzip.compress(PLAIN), "gzip"),
        (bytes(257) + b"ustar\0", "tar"),
        (b"just words\n", "text"),
        (b'{"a": 1}', "json"),
        (json.dumps({"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}).encode(), "index"),
        (PLAIN, "safetensors"),
        # A header of 640 bytes: the first two are those of a pickle.
        (safetensors.numpy.save({"w" * 580: W}), "safetensors"),
        (b"\xff\xfe\xfd" * 50, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_are_told_by_their_first_bytes(content, name, tmp_path):
    (tmp_path / "f").write_bytes(content)
    found = recognize(tmp_path / "f")
    assert (found and found.name) == name
    if found is not None:
        assert found.what and found.remedy


def test_archives_are_told_by_what_they_hold(tmp_path):
    np.savez(tmp_path / "npz", w=W)
    codec.save(tmp_path / "bqjax", {"w": W})
    for kind, inside in (("torch", "archive/data.pkl"), ("keras", "model.weights.h5"), ("zip", "readme")):
        with zipfile.ZipFile(tmp_path / kind, "w") as archive:
            archive.writestr(inside, "")
    (tmp_path / "npz").unlink(missing_ok=True)
    (tmp_path / "npz.npz").rename(tmp_path / "npz")
    for kind in ("npz", "torch", "keras", "zip", "bqjax"):
        assert recognize(tmp_path / kind).name == kind
    (tmp_path / "cut").write_bytes((tmp_path / "npz").read_bytes()[:100])
    assert recognize(tmp_path / "cut").name == "zip"


def test_a_length_that_looks_like_a_signature_is_a_length():
    for signature in (b"\x80\x02", b"\x80\x04", b"\x1f\x8b", b"BZh"):
        assert recognize_bytes(signature.ljust(8, b"\0") + b"{").name == "safetensors"
