"""The table of a file for TFLM: every byte of the file is in it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import kinds
from builder import Builder

from bqjax.report.micro import micro_table, stored_table
from bqjax.tflite.micro import micro_content, parse_micro


def test_bytes_add_up_and_what_stays_plain_is_said(tmp_path):
    b = Builder()
    x = b.activation([1, 64])
    w = b.tensor([64, 64], scale=0.01, data=np.tile(np.arange(-4, 4), 512).astype(np.int8))
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 64]), "FullyConnectedOptions")
    h = b.operator("SVDF", [h, b.constant([48, 64]), b.constant([48, 24]), -1], b.activation([1, 64]), "SVDFOptions")
    content = micro_content(b.finish(x, b.dense(h, [10, 64])))
    table = micro_table(parse_micro(content), "a title")
    number = table.columns.index("bytes")
    sizes = [int(line[number].replace(",", "")) for line in table.rows]
    assert sum(sizes[:-1]) == sizes[-1] == len(content)
    encodings = [line[table.columns.index("encoding")] for line in table.rows]
    assert "lut, 3 bits" in encodings and "plain" in encodings and "plain: INT8, input 1 of SVDF" in encodings
    assert table.rows[-1][1] == f"{64 * 64 + 48 * 64 + 48 * 24 + 640:,} weights"
    path = tmp_path / "net.tflite"
    path.write_bytes(kinds.floats())
    assert "FLOAT32 weight of FULLY_CONNECTED" in str(stored_table(path, path.name).rows)
