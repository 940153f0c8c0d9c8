"""Networks of files: BatchNorm that training can go on from, and the committed files of the curve below one bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax import codec
from bqjax.experiment import load_config
from train.image.config import TrainConfig
from train.image.evaluation import Devices
from train.image.loop import score
from train.image.stored import settled, with_statistics

ROOT = Path(__file__).resolve().parents[3]
FILES = ROOT / "docs" / "files"
# Golden: what `python -m train --config CONFIG --data-dir DATA --score FILE` printed on the machine of the training.
CURVE = json.loads((FILES / "curve.json").read_text())


class Net(nnx.Module):
    """Two BatchNorms in a row with a shortcut between them."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(6, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.first(x)))
        return x + self.norms[1](self.second(x))


def test_folded_batch_norm_gets_statistics_back():
    rng, net = np.random.default_rng(0), Net()
    for norm in net.norms:  # as a file has them
        norm.scale[...], norm.bias[...] = (jnp.asarray(rng.normal(size=6), jnp.float32) for _ in range(2))
    net = nnx.view(net, use_running_average=True)
    x = jnp.asarray(rng.normal(size=(64, 5)) + 1, jnp.float32)
    expected = np.asarray(net(x))
    new = with_statistics(net, x)
    np.testing.assert_allclose(new(x), expected, atol=2e-5)
    assert float(jnp.abs(new.norms[1].mean[...]).max()) > 0.1  # no longer folded
    assert (net.norms[0].mean[...] == 0).all()  # the argument stays
    # The batch's own statistics give the same: training goes on from the function of the file.
    np.testing.assert_allclose(nnx.view(new, use_running_average=False)(x), expected, atol=2e-5)
    hidden = np.asarray(new.first(x))
    np.testing.assert_allclose(new.norms[0].mean[...], hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(new.norms[0].var[...], hidden.var(0), atol=1e-5)


def shifted_batches():
    rng = np.random.default_rng(0)
    return [np.asarray(rng.normal(size=(32, 5)) + shift, np.float32) for shift in (-1, 0, 3)]


def with_settled(batches, place=lambda tree: tree):
    """The net with statistics of the batches, its variables laid out by ``place``."""
    graph, params, told = nnx.split(nnx.view(Net(), use_running_average=False), nnx.Param, ...)
    objective = SimpleNamespace(
        augmented=lambda batch, key: (batch, None, key), model=lambda variables, key: nnx.merge(graph, *variables[1:])
    )
    variables = place(({}, nnx.to_pure_dict(params), nnx.to_pure_dict(told)))
    return nnx.merge(graph, *settled(objective, variables, batches, jax.random.key(0))[1:])


def listed(net):
    return [[norm.mean[...].tolist(), norm.var[...].tolist()] for norm in net.norms]


def on_all_devices():
    devices = Devices()
    return listed(with_settled([devices.by_example(x) for x in shifted_batches()], devices.everywhere))


def test_several_devices_have_the_statistics_of_one(on_four_devices):
    np.testing.assert_allclose(on_four_devices("statistics"), listed(with_settled(shifted_batches())), rtol=1e-5, atol=1e-6)


def test_statistics_are_those_of_all_batches_together():
    batches = shifted_batches()
    new = with_settled(batches)
    hidden = np.concatenate([new.first(x) for x in batches])
    np.testing.assert_allclose(new.norms[0].mean[...], hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(new.norms[0].var[...], hidden.var(0), rtol=1e-5)
    # What comes later sees batches as in training, normalized each by itself.
    own = [(h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) for h in np.split(hidden, 3)]
    later = np.concatenate([new.second(nnx.relu(jnp.asarray(h))) for h in own])
    np.testing.assert_allclose(new.norms[1].mean[...], later.mean(0), atol=1e-5)
    np.testing.assert_allclose(new.norms[1].var[...], later.var(0), rtol=1e-4)


def test_a_network_without_batch_norm_stays():
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(with_statistics(net, jnp.ones((2, 3))).kernel[...], net.kernel[...])


def test_every_file_of_the_curve_is_described():
    assert sorted(CURVE) == sorted(path.name for path in FILES.glob("*.safetensors"))
    assert "Yerlan Idelbayev" in (FILES / "LICENSE.txt").read_text()


@pytest.mark.parametrize("name", CURVE)
def test_a_file_of_the_curve_has_its_size(name):
    said, info = CURVE[name], codec.inspect(FILES / name)
    assert info.file_bytes == (FILES / name).stat().st_size == said["bytes"]
    kernels = [leaf for leaf in info.leaves if len(leaf.shape) > 1]
    bits = 8 * sum(leaf.bytes for leaf in kernels) / sum(leaf.size for leaf in kernels)
    assert bits == pytest.approx(said["bits_per_kernel_weight"], abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVE)
def test_a_file_of_the_curve_has_its_accuracy(name, data_dir):
    said = CURVE[name]
    scored = score(load_config(ROOT / said["config"], TrainConfig), FILES / name, ROOT, data_dir)
    assert scored.images == 10_000
    # Sums in another order on another machine: one image in a thousand lies that near.
    assert round(scored.accuracy * scored.images) == pytest.approx(said["right"], abs=10)
    assert round(scored.float_accuracy * scored.images) == pytest.approx(said["float_right"], abs=2)  # of PyTorch
