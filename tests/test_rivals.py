"""`benchmarks/rivals.py`: bytes at equal differences, layouts, scores that are kept; and the programs beside it."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from bqjax.codec.bitpack import unpack


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its classes look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rivals():
    return benchmark("rivals")


@pytest.fixture(scope="module")
def programs():
    return benchmark("rival_programs")


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {"a/kernel": (32, 8, 3, 3), "b/kernel": (5, 32), "b/bias": (5,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def points(rivals, *pairs):
    return [rivals.Point(f"{size}", size, difference) for size, difference in pairs]


def test_bytes_are_interpolated_in_their_logarithm(rivals):
    curve = points(rivals, (4000, -0.001), (1000, -0.02), (2000, -0.01))
    assert rivals.bytes_at(curve, -0.01) == 2000 and rivals.bytes_at(curve, -0.02) == 1000
    assert rivals.bytes_at(curve, -0.015) == pytest.approx(math.sqrt(1000 * 2000))
    expected = np.exp(np.interp(-0.004, [-0.01, -0.001], np.log([2000, 4000])))
    assert rivals.bytes_at(curve, -0.004) == pytest.approx(expected)
    assert rivals.bytes_at(curve, -0.021) is None and rivals.bytes_at(curve, 0.0) is None


def test_a_larger_file_that_happens_to_lose_more_is_pooled(rivals):
    # 2,000 and 3,000 bytes are the same within their errors: both count as -0.01.
    curve = points(rivals, (1000, -0.03), (2000, -0.008), (3000, -0.012), (4000, 0.0))
    assert rivals.bytes_at(curve, -0.01) == 2000
    assert rivals.bytes_at(curve, -0.02) == pytest.approx(math.sqrt(1000 * 2000))


def test_ratios_are_taken_where_both_reach(rivals):
    ours, theirs = points(rivals, (1000, -0.02), (2000, 0.0)), points(rivals, (3000, -0.01), (900, -0.05), (2000, 0.0))
    assert rivals.ratios_at_equal_difference(ours, theirs) == {"3000": pytest.approx(math.sqrt(2e6) / 3000), "2000": 1.0}


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 5, 7), (3, 5, 7)])
def test_layouts_come_back(rivals, shape):
    tensor = np.arange(math.prod(shape)).reshape(shape)
    other = rivals.to_torch_layout(tensor)
    assert other.shape == (shape if len(shape) == 1 else (shape[-1], shape[-2], *shape[:-2]))
    np.testing.assert_array_equal(rivals.from_torch_layout(other), tensor)


def test_a_score_is_kept_for_the_same_weights_and_test_data_alone(rivals, tmp_path, monkeypatch, capsys):
    scored = []
    point = rivals.Point("x", 3, -0.25, 0.5)
    monkeypatch.setattr(rivals, "scored", lambda task, before, label, size, tensors: scored.append(tensors["w"]) or point)
    task, before = SimpleNamespace(name="t", metric="accuracy"), SimpleNamespace(test={"accuracy": 0.9}, n_test=4)
    (tmp_path / "x.bin").write_bytes(b"abc")

    def points(weight, before=before, torch=False):
        save_file({"w": np.full((2, 3), weight, np.float32)}, tmp_path / "x.safetensors")
        return [rivals.kept_score(task, before, tmp_path / "out", tmp_path, "x", torch=torch) for _ in range(2)]

    assert points(1.0) == [point, point] and len(scored) == 1
    points(2.0)
    points(1.0, SimpleNamespace(test={"accuracy": 0.8}, n_test=4))
    points(1.0, torch=True)
    assert [w.shape for w in scored] == [(2, 3), (2, 3), (2, 3), (3, 2)]
    assert capsys.readouterr().out.count("-25.00 points") == 4


def test_a_program_that_is_not_there_is_named_with_the_remedy(rivals, tmp_path):
    with pytest.raises(ValueError, match="can't import no_such_program: pip install no_such_program safetensors there"):
        rivals.other_program("no_such_program", sys.executable, None, None, tmp_path, ["int4"])


@pytest.mark.parametrize("setting", ["int", "int16", "4", "int0", "q-4"])
def test_settings_name_a_number_of_bits(programs, setting):
    with pytest.raises(ValueError, match=f"no setting '{setting}'.*such as int4"):
        programs._bits(setting)


def channelwise(tensor, bits):
    """Symmetric, the largest magnitude of an output at the upper edge of the last level."""
    scale = np.abs(tensor).max(axis=tuple(range(1, tensor.ndim)), keepdims=True) / np.float32(2 ** (bits - 1) - 0.5)
    return np.clip(np.round(tensor / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8), scale


def check_qwix(programs, tensors, setting):
    bits = int(setting[-1])
    content, decoded = programs.run_qwix(tensors, setting)
    stored = load(content)
    assert set(stored) == {*tensors, "a/kernel.scale", "b/kernel.scale"}
    np.testing.assert_array_equal(stored["b/bias"], tensors["b/bias"])
    for name in ("a/kernel", "b/kernel"):
        values, scale = channelwise(tensors[name], bits)
        assert stored[name].dtype == np.uint8 and stored[name].size == math.ceil(values.size * bits / 8)
        found = unpack(stored[name].tobytes(), values.size, bits).astype(int).reshape(values.shape) - 2 ** (bits - 1)
        assert np.abs(found - values).max() <= 1 and np.mean(found == values) > 0.98  # the largest are ties, either way
        np.testing.assert_allclose(stored[f"{name}.scale"], scale, rtol=1e-6)
        np.testing.assert_allclose(decoded[name], found * stored[f"{name}.scale"], rtol=1e-6)


def test_values_are_packed_at_the_bits_of_their_type(programs, tensors, monkeypatch):
    def quantize(tensor, kind, channelwise_axes):
        assert channelwise_axes == (0,)
        values, scale = channelwise(np.asarray(tensor), int(kind[-1]))
        return SimpleNamespace(qvalue=values, scale=scale)

    stand_in = ModuleType("qwix")
    stand_in.quantize, stand_in.dequantize = quantize, lambda array: array.qvalue * array.scale
    monkeypatch.setitem(sys.modules, "qwix", stand_in)
    check_qwix(programs, tensors, "int3")
    check_qwix(programs, tensors, "int5")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["int3", "int4", "int8"])
def test_qwix_stores_what_it_gives_back(programs, tensors, setting):
    pytest.importorskip("qwix", reason="needs qwix: pip install '.[bench]'")
    check_qwix(programs, tensors, setting)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # coremltools and what it imports have their own
@pytest.mark.parametrize(("setting", "bits", "values"), [("int8", 8, 256 * 32), ("int4", 4, 16 * 32), ("palette2", 2, 4)])
def test_coremltools_stores_what_it_gives_back(programs, tensors, setting, bits, values):
    pytest.importorskip("coremltools", reason="needs coremltools: pip install '.[bench]'")
    content, decoded = programs.run_coremltools(tensors, setting)
    kernel, small, bias = (tensors[name].size for name in ("a/kernel", "b/kernel", "b/bias"))
    low = kernel * bits // 8 + 2 * (small + bias)
    assert low < len(content) < low + 1024  # scales or tables, and the file's alignment
    assert len(np.unique(decoded["a/kernel"])) <= values
    error = np.abs(decoded["a/kernel"].astype(np.float32) - tensors["a/kernel"]).max()
    assert 0 < error <= (0.6 * np.abs(tensors["a/kernel"]).max() / (2 ** (bits - 1) - 1) if setting.startswith("int") else 2.5)
    for name in ("b/kernel", "b/bias"):
        np.testing.assert_array_equal(decoded[name], tensors[name].astype(np.float16))
