"""Any pytree goes through compress, save, load and decode, and nothing of it is lost."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_pytree import trees, without_classes

from bqjax import codec, decode, named_leaves
from bqjax.core.leaves import is_compressed
from bqjax.core.rules import select
from bqjax.methods.baselines.even import even_levels
from bqjax.methods.baselines.ptq import quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share

METHODS = {"even": even_levels, "k-means": lambda tree: kmeans_share(tree, 4), "int8": quantize}
SETTINGS = hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
    max_examples=3 * hypothesis.settings().max_examples,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)


def bits(x):
    x = np.asarray(x)
    return x.dtype, x.shape, x.tobytes()


@pytest.mark.parametrize("method", METHODS)
@SETTINGS
@hypothesis.given(tree=trees())
def test_nothing_is_lost(method, tree, tmp_path):
    before, taken = named_leaves(tree), select(tree).taken
    copies = {name: bits(leaf) for name, leaf in before.items()}
    compressed = METHODS[method](tree)
    info = codec.save(tmp_path / "f", compressed, coder="ans", force=True)
    assert [leaf.name for leaf in codec.inspect(tmp_path / "f").leaves] == [leaf.name for leaf in info.leaves]
    assert {leaf.name for leaf in info.leaves} == set(before)
    loaded = codec.load(tmp_path / "f", like=tree)
    assert jax.tree.structure(loaded, is_leaf=is_compressed) == jax.tree.structure(tree)
    after = named_leaves(decode(loaded))
    assert list(after) == list(before)
    for name, found in after.items():
        assert bits(before[name]) == copies[name], f"{name} was changed in place"
        if not is_compressed(named_leaves(compressed)[name]):
            assert bits(found) == copies[name], name
            continue
        assert name in taken
        w, v = np.asarray(before[name]), np.asarray(found)
        assert (v.dtype, v.shape) == (w.dtype, w.shape), name
        assert np.isfinite(v.astype(np.float32)).all(), name
        assert np.mean(w == 0) < 0.05 or (v[w == 0] == 0).all(), name
    assert "kernel" in {leaf.name for leaf in info.leaves if leaf.kind != "array"}
    first, (second,) = codec.load(tmp_path / "f")["tied"]
    if "tied/0" not in taken:  # of what is compressed, two are made
        assert first is second
    if without_classes(tree):
        assert jax.tree.structure(codec.load(tmp_path / "f"), is_leaf=is_compressed) == jax.tree.structure(tree)


def on_different_devices():
    """Leaves of one tree on different devices, and beside them one of NumPy."""
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(8, 6)).astype(np.float32) for _ in range(3)]
    tree = {"a": jax.device_put(kernels[0], jax.devices()[1]), "b": [kernels[1], jax.device_put(kernels[2], jax.devices()[3])]}
    found = {}
    for name in ("even", "int8"):
        codec.save("f", METHODS[name](tree), coder="raw", force=True)
        here = [np.asarray(x).tolist() for x in jax.tree.leaves(decode(METHODS[name](kernels)))]
        found[name] = [np.asarray(x).tolist() for x in jax.tree.leaves(decode(codec.load("f")))] == here
    return [len({str(x.devices()) for x in (tree["a"], tree["b"][1])}), found]


def test_leaves_of_different_devices(on_four_devices):
    assert on_four_devices("pytree") == [2, {"even": True, "int8": True}]


def test_keys_that_cannot_be_sorted_are_named():
    w = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="a dict has keys that cannot be sorted, as strings and numbers: JAX takes none"):
        kmeans_share({"layers": {"a": w, 1: w}}, 2)
