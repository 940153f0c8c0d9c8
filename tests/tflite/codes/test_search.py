"""The search of integer codes, on a small integer network written out in NumPy's terms."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bqjax.tflite.codes.search
from bqjax.core.classification import batches, classification_score
from bqjax.tflite.codes.search import QuantizedConfig, QuantizedNetwork, measure_layers, search_codes

KEY = jax.random.key(0)


def network(n=300, classes=6, seed=0):
    """Two dense layers on codes; labels are what the network itself says."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-40, 80, (n, 24)).astype(np.int8)
    params = {
        "first": {
            "codes": np.clip(np.round(rng.normal(0, 40, (40, 24))), -128, 127).astype(np.int8),
            "zero_point": np.int32([0]),
            "bias": rng.integers(-3000, 3000, 40).astype(np.int32),
        },
        "last": {
            "codes": np.clip(np.round(rng.normal(5, 40, (classes, 40))), -128, 127).astype(np.int8),
            "zero_point": np.int32([5]),
        },
    }

    def hidden(params, x):
        first = params["first"]
        y = x.astype(jnp.float32) @ first["codes"].astype(jnp.float32).T + first["bias"].astype(jnp.float32)[None]
        return jnp.clip(y / 256, 0, 127)

    def logits(params, x):
        h = jnp.round(hidden(params, x))
        return h @ (params["last"]["codes"].astype(jnp.float32) - 5).T / 2000

    def real(params, batch):
        return hidden(params, batch["inputs"]) @ (params["last"]["codes"] - 5).T / 2000 * batch["mask"][:, None]

    def inputs(params, x):
        return {"first": x.astype(jnp.int32), "last": jnp.round(hidden(params, x)).astype(jnp.int32)}

    dense = SimpleNamespace(kind="FULLY_CONNECTED", options={})
    labels = np.asarray(logits(params, jnp.asarray(x)).argmax(1)).astype(np.int32)
    net = QuantizedNetwork(params, {"first": dense, "last": dense}, inputs, real, classification_score(logits))
    return net, batches(x, labels, 100)


@pytest.fixture(scope="module")
def measured():
    net, data = network()
    return net, data, measure_layers(net, data, key=KEY, positions=100, draws=64)


def test_moments_and_importance_are_those_of_the_data(measured):
    net, data, found = measured
    x = np.concatenate([np.asarray(b["inputs"]) for b in data]).astype(np.float64)
    assert found["first"].rows == 300
    np.testing.assert_allclose(found["first"].second[0], x.T @ x / 300, rtol=1e-4)
    assert found["last"].importance.shape == (1, 6, 40) and (found["last"].importance >= 0).all()
    # The last layer is linear: the importance of a weight is the mean square of its input.
    h = np.asarray(net.inputs(net.params, jnp.asarray(x, jnp.int8))["last"], np.float64)
    expected = (h**2).mean(0) / 2000**2
    seen = expected > expected.max() / 10
    np.testing.assert_allclose(found["last"].importance[0].mean(0)[seen], expected[seen], rtol=0.2)


def entropy(params, net):
    total = 0.0
    for name in net.layers:
        counts = np.unique(params[name]["codes"], return_counts=True)[1]
        total -= (counts * np.log2(counts / counts.sum())).sum()
    return total


def test_the_search_keeps_its_limit_and_saves_bits(measured):
    net, data, found = measured
    params, info = search_codes(net, data, found, QuantizedConfig(max_drop=0.03, layer_drop=0.04))
    assert info.baseline["accuracy"] == 1.0 and info.final["accuracy"] >= 0.97 - 1e-6
    assert entropy(params, net) < 0.8 * entropy(net.params, net)
    for name, leaves in params.items():
        assert {f: (v.shape, v.dtype) for f, v in leaves.items()} == {f: (v.shape, v.dtype) for f, v in net.params[name].items()}
    for report in info.layers:
        counts = np.unique(params[report.name]["codes"], return_counts=True)[1]
        assert report.bits == pytest.approx(-(counts * np.log2(counts / counts.sum())).sum() / counts.sum(), rel=1e-6)
        assert report.values == len(counts)


def test_more_may_be_lost_for_fewer_bits(measured):
    net, data, found = measured
    spent = [
        entropy(search_codes(net, data, found, QuantizedConfig(max_drop=d, layer_drop=None))[0], net) for d in (0.0, 0.05, 0.3)
    ]
    assert spent[0] > spent[1] > spent[2]


def test_the_bias_takes_up_the_mean_of_what_outputs_move(measured):
    net, data, found = measured
    lmbda = search_codes(net, data, found, QuantizedConfig(max_drop=0.1))[1].lmbda
    params, _ = search_codes(net, data, found, QuantizedConfig(lmbda=lmbda, layer_drop=None))
    moved = net.params["first"]["codes"].astype(np.int64) - params["first"]["codes"]
    assert (moved != 0).any()
    by_bias = params["first"]["bias"].astype(np.int64) - net.params["first"]["bias"]
    np.testing.assert_allclose(by_bias, moved @ found["first"].mean[0], atol=0.6)
    plain, _ = search_codes(net, data, found, QuantizedConfig(lmbda=lmbda, layer_drop=None, correct_bias=False))
    np.testing.assert_array_equal(plain["first"]["bias"], net.params["first"]["bias"])


def test_a_layer_that_costs_too_much_is_left_as_it_was(measured):
    net, data, found = measured
    lmbda = search_codes(net, data, found, QuantizedConfig(max_drop=0.5))[1].lmbda * 100
    params, info = search_codes(net, data, found, QuantizedConfig(lmbda=lmbda, layer_drop=0.02))
    left = [r for r in info.layers if not r.accepted]
    assert left and all("above" in r.reason and r.drop > 0.02 for r in left)
    for report in left:
        np.testing.assert_array_equal(params[report.name]["codes"], net.params[report.name]["codes"])
    assert [r.size for r in info.layers] == sorted((r.size for r in info.layers), reverse=True)


def test_a_lmbda_of_nothing_changes_nothing(measured):
    net, data, found = measured
    params, info = search_codes(net, data, found, QuantizedConfig(lmbda=0.0))
    assert all(params[name] is net.params[name] for name in params)
    assert all(r.reason == "no code is worth giving up at this lmbda" for r in info.layers)


def test_where_no_lmbda_keeps_the_limit_nothing_is_given_up(measured):
    net, data, found = measured
    # One step of the bisection tries a grid of 8 steps alone, at which some predictions change.
    params, info = search_codes(net, data, found, QuantizedConfig(max_drop=0.0, steps=1, scan=0))
    assert info.lmbda == 0.0 and all(params[name] is net.params[name] for name in params)


def test_grids_by_output_that_do_not_pay_change_nothing(measured):
    net, data, found = measured
    lmbda = search_codes(net, data, found, QuantizedConfig(max_drop=0.1, steps=3, scan=0))[1].lmbda
    plain, by_output = (
        search_codes(net, data, found, QuantizedConfig(lmbda=lmbda, layer_drop=None, by_output=b)) for b in (False, True)
    )
    assert not by_output[1].classes  # layers as small as these do not pay for a second table
    jax.tree.map(np.testing.assert_array_equal, plain[0], by_output[0])


def test_an_interrupted_search_goes_on_and_finds_the_same(measured, tmp_path, monkeypatch):
    net, data, found = measured
    config, path = QuantizedConfig(max_drop=0.03), tmp_path / "state.jsonl"
    whole, _ = search_codes(net, data, found, config)

    calls = []

    def stop(done, total, message):
        calls.append(message)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_codes(net, data, found, config, state_path=str(path), progress=stop)
    lines = len(path.read_text().splitlines())
    assert lines >= 4
    made, make = [], bqjax.tflite.codes.search.quantize_layer
    monkeypatch.setattr(bqjax.tflite.codes.search, "quantize_layer", lambda *a, **k: made.append(1) or make(*a, **k))
    again, _ = search_codes(net, data, found, config, state_path=str(path))
    # Codes of the lmbdas that the state has scores of are not made again; those of the lmbda taken are.
    assert len(made) == len(net.layers) * (config.steps + config.scan - 4 + 1)
    for name in whole:
        np.testing.assert_array_equal(again[name]["codes"], whole[name]["codes"])
    with pytest.raises(ValueError, match=r"another run \(config changed\)"):
        search_codes(net, data, found, QuantizedConfig(max_drop=0.04), state_path=str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lmbda": -1.0}, "lmbda must be finite"),
        ({"lmbda": float("nan")}, "lmbda must be finite"),
        ({"scan": -1}, "scan must not be negative"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"damping": 0.0}, "damping must be positive"),
        ({"step_scale": float("inf")}, "step_scale must be positive"),
        ({"max_drop": -0.1}, "max_drop must be"),
        ({"layer_drop": float("nan")}, "layer_drop must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantizedConfig(**settings)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="no batches"):
        measure_layers(network()[0], [], key=KEY)
