"""Leaves on different devices that are computed with together: those of a group, and those of one shape."""

from __future__ import annotations

import jax
import numpy as np

from bqjax.core.gather import beside, end_to_end, gathered
from bqjax.core.leaves import decode
from bqjax.core.rules import Rule
from bqjax.methods.baselines.deep_compression import share_nonzero
from bqjax.methods.baselines.pruning import magnitude_masks
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.methods.gwk import GWKConfig, gwk_cluster

GROUP = [Rule("*", group="all")]
METHODS = {
    "kmeans": lambda params, rules: kmeans_share(params, 4, rules),
    "nonzero": lambda params, rules: share_nonzero(params, 4, rules),
    "bins": lambda params, rules: bin_and_quant(params, gaussian_bins(params, 4, rules)),
    "ecsq": lambda params, rules: bin_and_quant_ecsq(
        params, gaussian_bins(params, 4, rules), jax.tree.map(np.ones_like, params), lmbda=1e-3
    ),
    "pruning": lambda params, rules: magnitude_masks(params, 0.5, rules),
    "gwk": lambda params, rules: gwk_cluster(params, None, rules, key=jax.random.key(0), config=GWKConfig(bits=2))[0],
}


def leaves():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(6, 4)).astype(np.float32) for name in "ab"}


def on_different_devices():
    """By method, with and without a group: whether leaves come out as on one device, and where they lie."""
    apart = {name: jax.device_put(leaf, jax.devices()[i]) for i, (name, leaf) in enumerate(leaves().items())}
    found = {}
    for name, method in METHODS.items():
        for rules in (GROUP, [Rule("*")]):
            both = [method(params, rules) for params in (leaves(), apart)]
            same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *map(decode, both))
            places = [min(device.id for array in jax.tree.leaves(both[1][leaf]) for device in array.devices()) for leaf in "ab"]
            found[f"{name} {rules[0].group}"] = [all(same.values()), places]
    return found


def test_groups_may_lie_on_different_devices(on_four_devices):
    found = on_four_devices("groups")
    assert found == {f"{name} {group}": [True, [0, 1]] for name in METHODS for group in ("all", None)}


def test_on_one_device_nothing_moves():
    a, b = np.float32([1, 2]), jax.numpy.float32([[3]])
    assert gathered([a, b])[0] is a and gathered([a, b])[1] is b
    assert end_to_end([a, b]).tolist() == [1, 2, 3]
    assert end_to_end([b]).shape == (1,)
    assert beside(a, b) is b
    assert jax.jit(lambda x: end_to_end([x, x]))(b).tolist() == [3, 3]
