"""What every method promises, on every kind of tree and every dtype of weights. A new method is one line in METHODS."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from bqjax import bits, codec, decode
from bqjax.adapters.flax import linen_apply, nnx_params
from bqjax.core.leaves import Affine, Clustered, Factored, Residual, is_compressed
from bqjax.core.rules import Rule, select
from bqjax.core.tree import named_leaves, replace
from bqjax.experiment.storage import same_tree
from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize
from bqjax.methods.baselines.dkm import DKMConfig, dkm_forward, dkm_harden, dkm_start
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import BinConfig, Bins, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.methods.rate_distortion.solver import SolverConfig, bin_and_quant_rd
from bqjax.sensitivity.curvature import output_curvature

# --- methods ---------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """``make(params, rules)`` looks at concrete parameters and gives the pure function ``params -> compressed tree``.

    One that is not traceable gives levels of an even grid, stored as short as they go, in place of means of weights.
    """

    name: str
    make: Callable[..., Callable[[Any], Any]]
    traceable: bool = True


def gaussian(n_bins, group=False):
    def make(params, rules=None):
        if group:
            rules = [Rule("*kernel", group="kernels")]
        return functools.partial(bin_and_quant, stats=gaussian_bins(params, n_bins, rules))

    return make


def by_hand(*edges):
    def make(params, rules=None):
        return functools.partial(bin_and_quant, stats={name: Bins(np.float32(edges)) for name in select(params, rules).taken})

    return make


def shared(k, group=False):
    def make(params, rules=None):
        if group:
            rules = [Rule("*kernel", group="kernels")]
        return functools.partial(kmeans_share, k=k, rules=rules)

    return make


def on_a_line(**settings):
    def make(params, rules=None):
        return functools.partial(quantize, rules=rules, config=PTQConfig(**settings))

    return make


def in_blocks(k, d):
    def make(params, rules=None):
        return functools.partial(product_quantize, rules=rules, key=jax.random.key(0), config=ProductConfig(k=k, d=d))

    return make


def signs(axis):
    def make(params, rules=None):
        return functools.partial(binarize, rules=rules, axis=axis)

    return make


def in_stages(k, d):
    def make(params, rules=None):
        config = ResidualConfig(stages=2, k=k, d=d, refits=0)
        return functools.partial(residual_quantize, rules=rules, key=jax.random.key(0), config=config)

    return make


def in_factors(bits):
    def make(params, rules=None):
        return functools.partial(diba_factorize, rules=rules, key=jax.random.key(0), config=DiBAConfig(bits=bits, rounds=2))

    return make


def softly(k, d):
    def make(params, rules=None):
        config = DKMConfig(k=k, d=d)

        def run(params):
            codebooks = dkm_start(params, rules, key=jax.random.key(0), config=config)
            _, codebooks = dkm_forward(params, codebooks, rules, config=config)
            return dkm_harden(params, codebooks, rules, config=config)

        return run

    return make


def pruned(sparsity, k):
    def make(params, rules=None):
        return functools.partial(deep_compress, rules=rules, config=DeepCompressionConfig(sparsity=sparsity, k=k))

    return make


def by_curvature(lmbda):
    def make(params, rules=None):
        # Kernels are of the last two axes here; what matters is that the outputs depend on every leaf.
        def outputs(p, x):
            total = 0.0
            for leaf in (leaf for leaf in jax.tree.leaves(p) if jnp.issubdtype(leaf.dtype, jnp.floating)):
                rows = leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 1 else jnp.square(leaf).reshape(1, -1)
                total = total + (x[:, : len(rows)] @ rows.astype(jnp.float32)).sum(1, keepdims=True)
            return total

        x = jax.random.normal(jax.random.key(1), (40, 18))
        curvature = output_curvature(outputs, params, [x], key=jax.random.key(0))
        # Rules name kernels; the vectors beside them stay as they are.
        return lambda params: bin_and_quant_rd(params, curvature, lmbda=lmbda, rules=rules, config=SolverConfig(vectors=False))

    return make


METHODS = [
    Method("gaussian 1", gaussian(1)),
    Method("gaussian 8", gaussian(8)),
    Method("gaussian 16 wide", gaussian(BinConfig(n_bins=16, sigma_scale=1.5))),
    Method("gaussian 4 in a group", gaussian(4, group=True)),
    Method("bins by hand", by_hand(-0.1, 0.0, 0.2)),
    Method("bins by hand, some empty", by_hand(-50.0, 0.0, 50.0)),
    Method("k-means 16", shared(16)),
    Method("k-means 3 in a group", shared(3, group=True)),
    Method("int8", on_a_line()),
    Method("int4 asymmetric", on_a_line(bits=4, axis=None, symmetric=False, limits="mse")),
    Method("product 6, blocks of 5", in_blocks(6, 5)),
    Method("signs", signs(None)),
    Method("DKM 3", softly(3, 1)),
    Method("Deep Compression 0.7, 4", pruned(0.7, 4)),
    Method("signs of channels", signs(-1)),
    Method("residual, 2 stages of 6, blocks of 5", in_stages(6, 5)),
    Method("DiBA, a bit", in_factors(1.0)),
    Method("rate-distortion", by_curvature(1e-3), traceable=False),
]

# --- trees, all with kernels of the same shapes, so that compilations are shared ----------------------------------------


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(3)])


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(8, (3, 3))(x)).mean(axis=(1, 2))
        return linen.Dense(8)(linen.Dense(8)(linen.Dense(8)(x)))


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "gain"], meta_fields=["stride"])
@dataclass(frozen=True)
class Block:
    kernel: Any
    gain: Any
    stride: int = 1


def nnx_tree():
    return nnx_params(NnxNet(rngs=nnx.Rngs(0)))


def linen_tree():
    module, x = LinenNet(), np.zeros((1, 4, 4, 2), np.float32)
    return linen_apply(module, module.init(jax.random.key(0), x))[0]


def hand_tree():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "nodes": [Pair(normal(3, 3, 2, 8), normal(8)), Block(normal(8, 8), normal(8), stride=2)],
        "head": ({"kernel": jnp.asarray(normal(8, 8))}, np.ones(8, np.float32)),
        "by_number": {10: {"kernel": normal(8, 8)}, 9: {"scale": np.float32(2)}},
        "steps": np.arange(3, dtype=np.int32),
        "nothing": None,
    }


def half_tree():
    """Of what is compiled as one program, the time is that of its leaves: one of each shape, and one that is not taken."""
    rng = np.random.default_rng(0)
    return [
        Pair(*(rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 8), (8,)))),
        {"kernel": rng.normal(size=(8, 8)).astype(np.float32), "steps": np.arange(3, dtype=np.int32)},
    ]


def single_tree():
    return [half_tree()[0], {"steps": np.arange(3, dtype=np.int32)}]


TREES = {"nnx": nnx_tree, "linen": linen_tree, "by hand": hand_tree}
ALL_TREES = TREES | {"half": half_tree, "single": single_tree}


@functools.cache
def tree_of(kind, dtype):
    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, ALL_TREES[kind]())


@functools.cache
def compressed_of(method, kind, dtype):
    params = tree_of(kind, dtype)
    return method.make(params)(params)


def method_ids(method):
    return method.name


each_method = pytest.mark.parametrize("method", METHODS, ids=method_ids)
# A method for each class of leaves, and for codebooks of numbers and of blocks.
OF_EACH_LEAF = {"gaussian 8", "int8", "product 6, blocks of 5", "residual, 2 stages of 6, blocks of 5", "DiBA, a bit"}


def every_method_on(main, *others):
    """Every method on one kind of tree; on others a method for each class of leaves, and the rest where there is time.

    How a tree is walked does not depend on the method, nor on the dtypes in it.
    """
    cases = []
    for method in METHODS:
        for case in (main, *others):
            quick = case == main or (method.name in OF_EACH_LEAF and (case[1] != "float16" or method.name == "gaussian 8"))
            marks = [] if quick else [pytest.mark.slow]
            cases.append(pytest.param(method, *case, marks=marks, id="-".join((method.name, *case))))
    return pytest.mark.parametrize(("method", "kind", "dtype"), cases)


def structure(tree):
    return jax.tree.structure(tree, is_leaf=is_compressed)


def bits_of(x):
    return np.asarray(x).tobytes()


def compressed_leaves(tree):
    return {name: leaf for name, leaf in named_leaves(tree).items() if is_compressed(leaf)}


# --- claims about what a method gives -------------------------------------------------------------------------------------


def the_tree_keeps_its_structure_and_what_is_not_taken(params, compressed):
    assert structure(compressed) == structure(params)
    taken = select(params).taken
    # The trees have four kernels each; a method that took nothing would pass the rest of this suite.
    assert set(compressed_leaves(compressed)) == set(taken)
    assert len(taken) == 4
    for (name, before), after in zip(named_leaves(params).items(), named_leaves(compressed).values(), strict=True):
        if name not in taken:
            assert after is before, name


def what_it_decodes_to_has_the_shapes_and_dtypes_of_the_parameters(params, compressed, means=True):
    decoded = decode(compressed)
    assert jax.tree.structure(decoded) == jax.tree.structure(params)
    for (name, before), after in zip(named_leaves(params).items(), named_leaves(decoded).values(), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype), name
    for name, leaf in compressed_leaves(compressed).items():
        leaf.validate(name)
        w, values = np.asarray(named_leaves(params)[name], np.float64), np.asarray(named_leaves(decoded)[name], np.float64)
        # Less is left over than was there.
        assert np.square(values - w).sum() <= np.square(w).sum(), name
        if isinstance(leaf, Residual):
            assert {stage.codebook.dtype for stage in leaf.stages} == {leaf.dtype}, name
        if not isinstance(leaf, Clustered) or not means:
            continue
        # Means of weights, wherever they are: no value outside of the leaf's.
        assert leaf.codebook.dtype == leaf.dtype, name
        if leaf.group is None:
            assert w.min() <= values.min() <= values.max() <= w.max(), name


def it_is_deterministic_and_leaves_the_parameters_as_they_were(method, params, compressed):
    copy = jax.tree.map(np.array, params)
    again = method.make(params)(copy)
    assert same_tree(jax.tree.map(np.asarray, again), jax.tree.map(np.asarray, compressed))
    assert [bits_of(x) for x in jax.tree.leaves(copy)] == [bits_of(x) for x in jax.tree.leaves(params)]


def a_compressed_tree_is_a_pytree(compressed):
    copied = jax.tree.map(np.array, compressed)
    assert same_tree(compressed, copied)
    leaves, treedef = jax.tree.flatten(compressed)
    assert same_tree(jax.tree.unflatten(treedef, leaves), compressed)
    # Arithmetic on the arrays inside reaches what is decoded.
    doubled = decode(jax.tree.map(lambda x: x + x if jnp.issubdtype(x.dtype, jnp.floating) else x, copied))
    for name, leaf in compressed_leaves(compressed).items():
        # Rows and columns of factors are both doubled.
        factor = 4 if isinstance(leaf, Factored) else 2
        values = np.asarray(leaf.decode())
        assert bits_of(named_leaves(doubled)[name]) == bits_of(values * np.asarray(factor, values.dtype)), name


def a_file_holds_it_bit_for_bit_with_every_coder(compressed, folder):
    decoded = decode(compressed)
    for coder in (*codec.CODERS, "auto"):
        path = folder / f"{coder}.bq.safetensors"
        codec.save(path, compressed, coder=coder)
        loaded = codec.load(path, like=compressed)
        assert structure(loaded) == structure(compressed)
        assert same_tree(loaded, compressed), coder
        assert same_tree(decode(loaded), decoded), coder


def bits_are_those_of_the_formula(compressed, dtype):
    expected, groups = 0, set()
    for leaf in named_leaves(compressed).values():
        if not is_compressed(leaf):
            expected += 8 * leaf.nbytes
            continue
        if isinstance(leaf, Affine):  # a float32 scale, and a zero point among the codes where it is not 0 for all
            expected += leaf.bits * math.prod(leaf.shape) + (32 + 8 * np.any(leaf.zero_point)) * leaf.scale.size
            continue
        if isinstance(leaf, Factored):  # a bit an entry; float32 outer diagonals and an int16 middle one
            m, n = math.prod(leaf.shape[:-1]), leaf.shape[-1]
            expected += (m + n) * (leaf.k + 32) + 16 * leaf.k
            continue
        if isinstance(leaf, Residual):
            for stage in leaf.stages:
                expected += (stage.k - 1).bit_length() * stage.indices.size + stage.codebook.size * jnp.dtype(dtype).itemsize * 8
            continue
        expected += (leaf.k - 1).bit_length() * leaf.indices.size
        if leaf.group is None or leaf.group not in groups:
            groups.add(leaf.group)
            # Levels of a grid may be shorter than weights, with one scale and offset in float32.
            expected += leaf.codebook.size * min(jnp.dtype(dtype).itemsize, leaf.codebook.dtype.itemsize) * 8
            expected += 0 if leaf.scale is None else 64
    assert bits(compressed) == expected
    # Entropy is never above the fixed length; neither is a network of up to 16 values a leaf above half of its float file.
    assert 0 < bits(compressed, "entropy") <= expected
    kernels = sum(8 * leaf.size * leaf.dtype.itemsize for leaf in compressed_leaves(compressed).values())
    assert bits(list(compressed_leaves(compressed).values())) < kernels


@every_method_on(("by hand", "float32"), ("nnx", "float32"), ("linen", "float32"), ("by hand", "float16"), ("by hand", "bfloat16"))
def test_the_contract(method, kind, dtype, tmp_path):
    params, compressed = tree_of(kind, dtype), compressed_of(method, kind, dtype)
    the_tree_keeps_its_structure_and_what_is_not_taken(params, compressed)
    what_it_decodes_to_has_the_shapes_and_dtypes_of_the_parameters(params, compressed, means=method.traceable)
    it_is_deterministic_and_leaves_the_parameters_as_they_were(method, params, compressed)
    a_compressed_tree_is_a_pytree(compressed)
    a_file_holds_it_bit_for_bit_with_every_coder(compressed, tmp_path)
    bits_are_those_of_the_formula(compressed, dtype)


def pruned_tree():
    """2:4 along the inputs of a dense kernel, whole output channels and single weights of a convolution's."""
    conv, dense = half_tree()
    kernel = conv.kernel.copy()
    kernel[..., 5:] = 0
    kernel[np.random.default_rng(1).random(kernel.shape) < 0.3] = 0
    w = dense["kernel"].reshape(2, 4, 8)
    order = np.argsort(np.abs(w), axis=1)
    return [conv._replace(kernel=kernel), dense | {"kernel": np.where(order.argsort(1) < 2, 0, w).reshape(8, 8)}]


# Those whose way of keeping zeros another one has, too.
AS_ANOTHER = {"gaussian 16 wide", "gaussian 4 in a group", "k-means 3 in a group", "int4 asymmetric", "Deep Compression 0.7, 4"}


def keeping_zeros():
    """Whoever gives edges says what falls together; of one value there is none for zero."""
    for method in METHODS:
        if "by hand" not in method.name and method.name != "gaussian 1":
            yield pytest.param(method, id=method.name, marks=[pytest.mark.slow] if method.name in AS_ANOTHER else [])


@pytest.mark.parametrize("method", [*keeping_zeros()])
def test_zeros_of_pruned_weights_stay_zeros(method, tmp_path):
    params = pruned_tree()
    compressed = method.make(params)(params)
    for (name, before), after in zip(named_leaves(params).items(), named_leaves(decode(compressed)).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(after)[before == 0], 0, err_msg=name)
        assert np.count_nonzero(after) > 0.2 * np.count_nonzero(before), name
    codec.save(tmp_path / "f", compressed, coder="ans")
    assert same_tree(codec.load(tmp_path / "f", like=compressed), compressed)


# --- tracing -----------------------------------------------------------------------------------------------------------


def check_jit(method, kind, dtype):
    params, eager = tree_of(kind, dtype), compressed_of(method, kind, dtype)
    traced = jax.jit(method.make(params))(params)
    assert structure(traced) == structure(eager)
    for (name, a), b in zip(named_leaves(eager).items(), named_leaves(traced).values(), strict=True):
        if not is_compressed(a):
            assert bits_of(a) == bits_of(b), name
            continue
        b.validate(name)
        assert (type(a), a.shape, a.dtype) == (type(b), b.shape, b.dtype)
        # A sum may be taken in another order; what a bin or cluster holds is the same.
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(a.decode(), np.float64), np.asarray(b.decode(), np.float64), rtol=tolerance, atol=tolerance / 16
        )
        if isinstance(a, Clustered):
            assert a.group == b.group
        for (ours, k), (theirs, traced_k) in zip(a.streams(), b.streams(), strict=True):
            # Traced, a codebook cannot be cut to the entries in use.
            assert k <= traced_k
            if k == traced_k:
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", [m for m in METHODS if m.traceable], ids=method_ids)
def test_jit_gives_what_eager_gives(method):
    check_jit(method, "half" if "group" in method.name else "single", "float32")


# Tracing sees leaves, not the tree; a method that is quick to compile stands for all on whole trees.
@pytest.mark.parametrize("kind", TREES)
def test_jit_gives_what_eager_gives_on_every_tree(kind):
    check_jit(METHODS[1], kind, "float32")


@pytest.mark.parametrize(("method", "dtype"), [(METHODS[3], "float16"), (METHODS[7], "bfloat16")])
def test_jit_gives_what_eager_gives_for_short_types(method, dtype):
    check_jit(method, "half", dtype)


def slow_unless_of_each_leaf(method):
    return pytest.param(method, id=method.name, marks=[] if method.name in OF_EACH_LEAF else [pytest.mark.slow])


@pytest.mark.parametrize("method", [slow_unless_of_each_leaf(method) for method in METHODS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_under_jit_and_vmap_is_bit_equal(method, dtype):
    compressed = compressed_of(method, "half", dtype)
    expected = decode(compressed)
    got = jax.jit(decode)(compressed)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert [bits_of(x) for x in jax.tree.leaves(got)] == [bits_of(x) for x in jax.tree.leaves(expected)]
    two = jax.tree.map(lambda x: np.stack([x, x]), compressed)
    for pair, one in zip(jax.tree.leaves(jax.jit(jax.vmap(decode))(two)), jax.tree.leaves(expected), strict=True):
        first, second = np.asarray(pair)
        assert bits_of(first) == bits_of(second) == bits_of(one)


# --- what is refused, and what is left out ---------------------------------------------------------------------------------


def poisoned(value):
    params = hand_tree()
    kernel = params["nodes"][1].kernel.copy()
    kernel[3, 4] = value
    return replace(params, {"nodes/1/kernel": kernel})


@each_method
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(method, value):
    params = poisoned(value)
    with pytest.raises(ValueError, match=r"leaf 'nodes/1/kernel' holds 1 NaN or infinite values of 64"):
        method.make(params)(params)


@pytest.mark.parametrize("method", [m for m in METHODS if "group" not in m.name], ids=method_ids)
def test_rules_are_obeyed(method):
    params = tree_of("by hand", "float32")
    compressed = method.make(params, [Rule("nodes/1/*", skip=True), Rule("*kernel")])(params)
    assert set(compressed_leaves(compressed)) == {"nodes/0/kernel", "head/0/kernel", "by_number/10/kernel"}
    with pytest.raises(ValueError, match="rule 'nodes/7/kernel' matches no leaf; did you mean 'nodes/1/kernel'"):
        method.make(params, [Rule("nodes/7/kernel")])(params)
    with pytest.raises(ValueError, match="'steps', which cannot be compressed: int32 is not floating point"):
        method.make(params, [Rule("*")])(params)
