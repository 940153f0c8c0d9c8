"""Layers of one buffer, as tied embeddings have, change together in a search; what cannot change says so with its remedy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from builder import Builder

from bqjax.core.leaves import decode
from bqjax.core.tree import named_leaves
from bqjax.methods import KMeans
from bqjax.tflite import CODES, Examples, IntegerBinAndQuant, QuantizedConfig, parse_model, tflite_task
from bqjax.tflite.format.model import rewritten
from bqjax.tflite.interpret import interpret
from bqjax.tflite.network import interpreted_network

LABELS = 12


def tied(zero=0, bias=False):
    """Two dense layers of the same codes, in two tensors of one buffer; with ``bias`` of one bias, too."""
    b = Builder(np.int8)
    layer = [b.activation([1, LABELS])]
    places = []
    for _ in range(2):
        w = b.constant([LABELS, LABELS])
        o = b.tensor([LABELS], np.int32, scale=0.0005, data=np.arange(LABELS, dtype=np.int32))
        places.append((w, o))
        layer.append(b.operator("FULLY_CONNECTED", [layer[-1], w, o], b.activation([1, LABELS]), "FullyConnectedOptions"))
    (w, o), (other, other_bias) = places
    b.tensors[other].buffer = b.tensors[w].buffer
    b.tensors[other].quantization.zeroPoint = np.full_like(b.tensors[other].quantization.zeroPoint, zero)
    if bias:
        b.tensors[other_bias].buffer = b.tensors[o].buffer
    return b.finish(layer[0], layer[-1])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    content = tied()
    path = tmp_path_factory.mktemp("tied") / "net.tflite"
    path.write_bytes(content)
    x = np.random.default_rng(0).integers(-128, 128, (40, 1, LABELS)).astype(np.int8)
    y = interpret(content, x[:, 0]).reshape(40, -1).argmax(1).astype(np.int32)
    return content, tflite_task(path, Examples(x[:, 0], y))


@pytest.mark.parametrize("bias", [False, True])
def test_the_first_is_searched_for_all(bias):
    model = parse_model(tied(bias=bias))
    first, second = model.params
    network = interpreted_network(model)
    assert list(network.layers) == [first] and network.tied == {first: (second,)}
    assert network.fixed_biases == (frozenset({first, second}) if bias else frozenset())
    assert model.sharing("bias") == ({first: (first, second)} if bias else {})


def test_layers_with_other_zero_points_stay():
    network = interpreted_network(parse_model(tied(zero=3)))
    assert not network.layers and not network.tied


def test_a_search_changes_tied_layers_together(task):
    content, found = task
    method = IntegerBinAndQuant(search=QuantizedConfig(max_drop=0.3, layer_drop=None, steps=2, scan=0))
    done = method.compress(found, key=jax.random.key(0))
    params = decode(done.tree)
    first, second = params
    np.testing.assert_array_equal(params[first]["codes"], params[second]["codes"])
    assert not np.array_equal(params[first]["codes"], found.params[first]["codes"])
    model = parse_model(content)
    plain = {name: {field: np.asarray(leaf) for field, leaf in layer.items()} for name, layer in params.items()}
    back = parse_model(rewritten(model, plain))
    np.testing.assert_array_equal(back.params[second]["codes"], plain[first]["codes"])


def test_k_means_gives_tied_layers_the_same(task):
    content, found = task
    tree = KMeans(k=4, rules=CODES).compress(found, key=jax.random.key(0)).tree
    plain = {name: {field: np.asarray(leaf) for field, leaf in layer.items()} for name, layer in decode(tree).items()}
    assert len(np.unique(parse_model(rewritten(parse_model(content), plain)).params[next(iter(plain))]["codes"])) == 4


def test_what_serves_another_operator_names_the_rule_that_leaves_it():
    b = Builder()
    x = b.activation([1, 40])
    w = b.constant([40, 40])
    h = b.operator("FULLY_CONNECTED", [x, w, -1], b.activation([1, 40]), "FullyConnectedOptions")
    model = parse_model(b.finish(x, b.operator("BATCH_MATMUL", [h, w], b.activation([1, 40]))))
    (name,) = model.params
    changed = {name: {"codes": model.params[name]["codes"][::-1].copy()}}
    with pytest.raises(ValueError, match=r"it cannot change; leave it by a rule before the others, Rule\('t1/\*', skip=True\)"):
        rewritten(model, changed)
    assert f"{name}/codes" in named_leaves(model.params)
