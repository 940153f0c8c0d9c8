"""Any pytree of parameters, as a hypothesis strategy: every kind of node, leaves of every dtype, some of them shared."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
# What is left alone: NaN of every kind among the bits.
OTHERS = (np.bool_, np.int8, np.uint16, np.int32, np.int64, np.float64, np.complex64, ml_dtypes.float8_e4m3fn, ml_dtypes.int4)
# Few shapes, so that compiled code is shared: those of two or more dimensions are compressed.
KERNELS = ((8, 6), (2, 1, 6, 4))
VECTORS = ((), (1,), (7,), (0,))
KEYS = st.sampled_from(["", "a", "kernel", "['b']", "layers.0", "重み", " ", "0", "*"])


class Pair(NamedTuple):
    weight: Any
    scale: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "state"], meta_fields=["stride"])
@dataclasses.dataclass(frozen=True)
class Layer:
    kernel: Any
    state: Any
    stride: int = 2


@functools.partial(jax.tree_util.register_pytree_with_keys_class)
class Box:
    """A class of the user's own."""

    def __init__(self, held: Any):
        self.held = held

    def tree_flatten_with_keys(self) -> Any:
        return [(jax.tree_util.GetAttrKey("held"), self.held)], None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Box:
        return cls(*children)


def _kernel(shape: tuple[int, ...], dtype: Any, seed: int, zeros: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    if zeros:
        values[rng.random(shape) < 0.4] = 0
    return values.astype(dtype)


def _other(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    high = {"bool": 2, "int4": 8}.get(dtype.name, 256)
    octets = rng.integers(0, high, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    return octets.view(dtype).reshape(shape)


def _leaves() -> st.SearchStrategy[Any]:
    seeds = st.integers(0, 2)  # few, so that some are equal
    kernels = st.builds(_kernel, st.sampled_from(KERNELS), st.sampled_from(FLOATS), seeds, st.booleans())
    left = st.builds(_other, st.sampled_from((*VECTORS, (3, 2))), st.sampled_from(OTHERS), seeds)
    vectors = st.builds(_kernel, st.sampled_from(VECTORS), st.sampled_from(FLOATS), seeds, st.just(False))
    numbers = st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True)])
    placed = st.builds(lambda x, i: jax.device_put(x, jax.devices()[i % len(jax.devices())]), kernels | vectors, st.integers(0, 7))
    return kernels | placed | left | vectors | numbers | st.none()


def _nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(KEYS, children, max_size=3),
        st.dictionaries(st.integers(-3, 99), children, max_size=3),
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.builds(Pair, children, children),
        st.builds(Layer, children, children),
        st.builds(Box, children),
        st.dictionaries(KEYS, children, max_size=2).map(OrderedDict),
    )


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """At least one kernel, and one array that stands in two places."""
    shared = draw(st.sampled_from([_kernel((8, 6), np.float32, 5, False), _other((40, 5), np.int16, 0), jnp.arange(300.0)]))
    tree = draw(st.recursive(_leaves(), _nodes, max_leaves=8))
    return {"tree": tree, "kernel": _kernel((8, 6), np.float32, 7, True), "tied": [shared, (shared,)]}


def without_classes(tree: Any) -> bool:
    """Whether a file restores every node by itself."""
    if type(tree) in (list, tuple):
        return all(map(without_classes, tree))
    if type(tree) is dict:
        return all(map(without_classes, tree.values()))
    return tree is None or hasattr(tree, "dtype")
