"""Damaged models and containers, by seeded mutations: a ValueError in little time, or a model."""

from __future__ import annotations

import hashlib
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import kinds
from ai_edge_litert import schema_py_generated as schema
from builder import Builder

from bqjax.codec import header
from bqjax.tflite.container import load_model, save_lossless, save_model, stored_constants
from bqjax.tflite.format.constants import constants
from bqjax.tflite.format.model import parse_model, rewritten

SECONDS = 2  # of one file


def small():
    b = Builder(np.int8)
    x = b.activation([1, 4, 4, 6])
    h = b.conv(x, [6, 1, 1, 6], [1, 4, 4, 6], per_channel=True)
    return b.finish(x, b.depthwise(h, [1, 3, 3, 6], [1, 4, 4, 6]))


def mutations(content, n, seed):
    """Bit flips, truncations and 4-byte splices by turns, of one to three places."""
    rng = np.random.default_rng(seed)
    words = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(content), len(content) // 2]
    for i in range(n):
        new = bytearray(content)
        if i % 3 == 0:
            del new[int(rng.integers(len(new))) :]
        for _ in range(int(rng.integers(1, 4)) if i % 3 else 0):
            at = int(rng.integers(len(new) - 4))
            if i % 3 == 1:
                new[at] ^= 1 << int(rng.integers(8))
            else:
                at -= at % 4
                source = int(rng.integers(len(new) - 4))
                word = words[int(rng.integers(len(words)))].to_bytes(4, "little")
                new[at : at + 4] = word if rng.random() < 0.5 else content[source : source + 4]
        yield bytes(new)


def attempt(what, read):
    """Whether a file is refused, which must be by ValueError and soon."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            read()
        return False
    except ValueError as error:
        assert str(error), what
        return True
    finally:
        assert time.process_time() - start < SECONDS, what


def read_and_rewrite(content):
    model = parse_model(content)
    assert rewritten(model, model.params) == content


def test_damaged_models_are_refused():
    content = small()
    refused = sum(attempt(i, lambda c=c: read_and_rewrite(c)) for i, c in enumerate(mutations(content, 1500, 0)))
    assert 500 < refused < 1500  # the rest has other weights or names


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.__name__)
def test_damaged_files_of_any_kind_are_refused_or_listed(kind):
    content = kind()

    def read(c):
        for constant in constants(c):
            assert 0 <= constant.start <= constant.start + constant.size <= len(c)

    refused = sum(attempt(i, lambda c=c: read(c)) for i, c in enumerate(mutations(content, 300, 3)))
    assert 100 <= refused < 300


def test_damaged_files_are_refused_or_restored_without_loss(tmp_path):
    path = tmp_path / "a.bq.safetensors"

    def keep(c):
        save_lossless(path, c, coder="ans", force=True)
        assert load_model(path) == c
        stored_constants(path)

    for kind in (kinds.signatures, kinds.four_bits, kinds.recurrent):
        for i, c in enumerate(mutations(kind(), 20, 4)):
            attempt(i, lambda c=c: keep(c))


@pytest.mark.parametrize(
    ("tables", "field"), [("Tensors", 10), ("Tensors", 4), ("Operators", 6)], ids=["names", "shapes", "inputs"]
)
def test_vectors_that_tables_share_are_refused_soon(tables, field):
    """Many tables may point to one long vector: its bytes are there once, but each table would read them again."""
    b = Builder(np.int8)
    for _ in range(2000):
        b.operator("ADD", [b.tensor([1])], b.tensor([1]))
    content = bytearray(b.finish_many([], []))
    long = len(content)
    content += (50_000).to_bytes(4, "little") + bytes(200_000)
    subgraph = schema.Model.GetRootAs(content).Subgraphs(0)
    for i in range(2000):
        tab = getattr(subgraph, tables)(i)._tab
        place = tab.Pos + tab.Offset(field)
        content[place : place + 4] = (long - place).to_bytes(4, "little")
    assert attempt(tables, lambda: constants(bytes(content)))


@pytest.mark.data
def test_damaged_files_of_real_models_are_refused(data_dir):
    content = (data_dir / "tflite" / "kws_ds_cnn_int8.tflite").read_bytes()
    refused = sum(attempt(i, lambda c=c: read_and_rewrite(c)) for i, c in enumerate(mutations(content, 300, 1)))
    assert refused > 100


@pytest.mark.parametrize("checksum", [False, True], ids=["as it is", "made to fit"])
def test_damaged_containers_are_refused(checksum, tmp_path):
    content, path = small(), tmp_path / "a.bq.safetensors"
    save_model(path, parse_model(content))
    stored = path.read_bytes()
    with path.open("rb") as file:
        head = header.read(file)
    whole = stored[head.data_offset :]

    def read():
        assert load_model(path) == content  # what is not refused is what was saved

    for i, body in enumerate(mutations(whole if checksum else stored, 150, 2)):
        if checksum:
            data = min(head.data_bytes, len(body))
            body = header.Header(data, len(body) - data, hashlib.sha256(body).hexdigest()).to_bytes() + body
        path.write_bytes(body)
        attempt(i, read)
