"""A model of one DECODE operator whose output is the graph's, for TFLM's own kernels and for our reader."""

from __future__ import annotations

import numpy as np
import pytest

from bqjax.tflite.format.records import pack
from bqjax.tflite.micro.encoded import Encoded

SKIPPED = "needs tflite-micro, which there is for Linux on x86-64: pip install 'bqjax[tflm]'"


def decoder(codes: np.ndarray, encoded: Encoded, zeros=(0,), axis=0) -> bytes:
    """The file; the output has a scale for each zero point."""
    quantization = {"scale": (0.5,) * len(zeros), "zero_point": tuple(map(int, zeros)), "axis": axis}
    constant = [{"shape": (len(part),), "type": 3, "data": part} for part in (encoded.data, encoded.ancillary)]
    x = {"shape": (1,), "type": 9, "quantization": {"scale": (1.0,), "zero_point": (0,)}, "data": None}
    out = {"shape": codes.shape, "type": {1: 9, 2: 7}[codes.dtype.itemsize], "quantization": quantization, "data": None}
    operator = {"code": 0, "inputs": (2, 3), "outputs": (1,)}
    graph = {"tensors": [x, out, *constant], "inputs": (0,), "outputs": (1,), "operators": [operator]}
    code = {"deprecated_code": 32, "code": 32, "custom_code": b"TFLM_DECODE"}
    return pack({"version": 3, "codes": [code], "subgraphs": [graph]})


def by_kernel(content: bytes, shape) -> np.ndarray:
    """What TFLM's kernel decodes; the test is skipped where TFLM is absent."""
    pytest.importorskip("tflite_micro", reason=SKIPPED)
    from bqjax.tflite.micro.runtime import run_in_tflm

    return run_in_tflm(content, [[np.zeros(1, np.int8)]])[0].reshape(shape)
