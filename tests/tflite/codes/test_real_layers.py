"""The solver on the codes of two real models at one fixed lmbda, against what error feedback alone gave there.

The figures are those of three passes of feedback without coordinate descent, at the entropies of the last pass,
measured on the same examples with the same key.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bqjax.tflite.codes.grid import quantize_layer
from bqjax.tflite.codes.layer_stats import layer_layout, layer_stats
from bqjax.tflite.codes.search import measure_layers
from bqjax.tflite.task import tflite_task

# Model, examples, lmbda; then layers that change, distortion, bits of their indices.
BEFORE = [
    ("kws_ds_cnn_int8", "kws/kws01.npz", 2.0265990485307285e-06, 10, 0.0800538946, 133797.1),
    ("person_detect", "vww/vww_500.zip", 4.6532908545569607e-10, 8, 0.000113434596, 766077.1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "examples", "lmbda", "n_layers", "distortion", "bits"), BEFORE)
def test_costs_at_one_lmbda_are_below_those_of_feedback_alone(data_dir, model, examples, lmbda, n_layers, distortion, bits):
    pytest.importorskip("ai_edge_litert")
    task = tflite_task(data_dir / f"tflite/{model}.tflite", data_dir / examples)
    network = task.network
    measured = measure_layers(network, list(task.calibration)[:1], key=jax.random.key(0), positions=1024, draws=1, examples=50)
    found = []
    for name, layer in network.layers.items():
        leaves = network.params[name]
        codes = np.asarray(leaves["codes"]).astype(np.int64)
        rows = layer_layout(layer.kind, codes.shape).to_rows(codes)
        new = quantize_layer(rows, int(leaves["zero_point"].reshape(-1)[0]), layer_stats(measured[name]), lmbda)
        if new is not None:
            assert new.codes.min() >= codes.min() and new.codes.max() <= codes.max()
            found.append(new)
    assert len(found) == n_layers
    total, indices = sum(layer.distortion for layer in found), sum(layer.bits for layer in found)
    # The same bits to a thousandth, and less distortion: what coordinate descent adds (6 % and 4 %).
    assert indices == pytest.approx(bits, rel=2e-3)
    assert total < 0.97 * distortion
    assert total + lmbda * indices < 0.995 * (distortion + lmbda * bits)
