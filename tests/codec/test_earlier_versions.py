"""Files that an earlier version wrote load and decode to the same bits.

The three files under ``earlier/`` were written by the version before the modules moved into rooms: bins of a network for
scikit-learn's digits, its GWK file, and a small ``.tflite`` model with eight values a layer. That version took the checksums,
over names, dtypes, shapes and bytes of what it decoded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.tree import named_leaves

EARLIER = Path(__file__).parent / "earlier"
DECODED = {
    "bins": "e805dcb46be09401d50875a3ef4bca847d4ec92b23f16ae132ba8c623528457b",
    "gwk": "eb6c5cf5822ca1ba727f828990a00f2dcaac18c75d1f8980d37fa972a03d8521",
    "integer_codes": "f162a025e236664c1c62c3e9f1834d1b1a40cad5697e28feef45d2fb2ecb9429",
}


def path_of(name):
    return EARLIER / f"{name}.bq.safetensors"


@pytest.mark.parametrize("name", DECODED)
def test_decodes_to_the_same_bits(name):
    found = hashlib.sha256()
    for leaf_name, leaf in sorted(named_leaves(decode(codec.load(path_of(name)))).items()):
        array = np.asarray(leaf)
        found.update(f"{leaf_name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    assert found.hexdigest() == DECODED[name]


def test_the_model_is_restored_to_the_same_bytes():
    pytest.importorskip("ai_edge_litert")
    from bqjax.tflite.container import load_model

    content = load_model(path_of("integer_codes"))
    assert hashlib.sha256(content).hexdigest() == "cdedb57375cc29d4a2973fd0c004a90ae2d9ec2e04da7bbf418eb6af35332e3a"


@pytest.mark.parametrize("name", DECODED)
def test_its_description_is_read(name):
    info = codec.inspect(path_of(name))
    assert info.leaves and info.file_bytes == path_of(name).stat().st_size
