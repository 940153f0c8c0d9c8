"""Which kernels get which blocks, codebooks and bits."""

import jax
import numpy as np
import pytest
from flax import nnx

from bqjax.methods.gwk.assignment import index_bits
from bqjax.models.resnet import CifarResNet
from train.image.clustering import cluster, equalized, follow, seen, set_bits
from train.image.config import GWKLayers, GWKPhase

SETTINGS = GWKPhase(
    epochs=1,
    schedule="step",
    cv=3,
    bits=2,
    weighting="none",
    layers=(
        GWKLayers(pattern="b/*", cv=9, bits=3, group="rest", index_bits=2.5),
        GWKLayers(pattern="c", cv=9, bits=3, group="rest"),
    ),
)
NAMES = ("a/kernel", "b/0/kernel", "b/1/kernel", "c/kernel")


def network():
    rng = np.random.default_rng(0)
    draw = lambda: {"kernel": rng.normal(size=(3, 3, 4, 8)).astype(np.float32)}  # noqa: E731
    return {"a": draw(), "b": {"0": draw(), "1": draw()}, "c": draw(), "head": {"bias": np.zeros(3, np.float32)}}


def test_layers_set_apart_have_their_blocks_codebook_and_bits():
    net = network()
    state = cluster(net, None, NAMES, SETTINGS, jax.random.key(0))
    assert {name: (leaf.k, leaf.d, leaf.group) for name, leaf in state.tree.items()} == {
        "a/kernel": (4, 3, None),
        "b/0/kernel": (8, 9, "rest"),
        "b/1/kernel": (8, 9, "rest"),
        "c/kernel": (8, 9, "rest"),
    }
    assert set_bits(NAMES, SETTINGS) == {"b/0/kernel": 2.5, "b/1/kernel": 2.5}
    step = jax.jit(lambda s: follow(s, net, net, SETTINGS, np.float32(0)))
    for _ in range(200):
        state = step(state)
    found = index_bits(state.tree)
    assert [float(found[n]) for n in NAMES[1:3]] == pytest.approx([2.5, 2.5], abs=0.2)
    values = seen(net, state)
    assert len(np.unique(np.asarray(values["b"]["0"]["kernel"]).reshape(9, -1).T, axis=0)) <= 8
    np.testing.assert_array_equal(values["head"]["bias"], net["head"]["bias"])


def test_a_pattern_that_decides_for_nothing_is_refused():
    with pytest.raises(ValueError, match="rule 'd/kernel' matches no leaf"):
        cluster(network(), None, NAMES, GWKPhase(epochs=1, layers=(GWKLayers(pattern="d"),)), jax.random.key(0))


def test_channels_of_a_codebook_are_equalized_together():
    model = nnx.jit(lambda: CifarResNet(8, rngs=nnx.Rngs(0)))()
    settings = GWKPhase(epochs=1, schedule="step", layers=(GWKLayers(pattern="layer[23]/*", group="rest"),))
    same = equalized(model, ("layer1/0/conv1", "layer2/0/conv2", "layer3/0/conv1"), settings)
    sizes = [np.sqrt(np.square(np.asarray(block[0].conv1.kernel[...])).mean((0, 1, 2))) for block in (same.layer1, same.layer3)] + [
        np.sqrt(np.square(np.asarray(same.layer2[0].conv2.kernel[...])).mean((0, 1, 2)))
    ]
    assert [s.std() / s.mean() for s in sizes] == pytest.approx([0, 0, 0], abs=1e-5)
    assert sizes[1].mean() == pytest.approx(sizes[2].mean(), rel=1e-5)
    assert sizes[0].mean() != pytest.approx(sizes[1].mean(), rel=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"index_bits": 6.0}, "index_bits of 'x' must be above 0 and at most 5, got 6"),
        ({"index_bits": 0.0}, "above 0"),
    ],
)
def test_bits_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        GWKLayers(pattern="x", **fields)
    with pytest.raises(ValueError, match='need schedule "step"'):
        GWKPhase(epochs=1, layers=(GWKLayers(pattern="x", index_bits=2.0),))
