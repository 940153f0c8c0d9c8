"""Compressed leaves: what they decode to, what they cost, and what they refuse."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bqjax.core.leaves import (
    Affine,
    Clustered,
    Factored,
    Masked,
    Residual,
    Scaled,
    bits,
    decode,
    exponents_of,
    index_dtype,
    is_compressed,
    mask_zeros,
)

DTYPES = [np.float16, jnp.bfloat16, np.float32]
# (shape, axis order, d): scalar, whole rows, padded rows, a moved row axis.
LAYOUTS = [
    ((3, 4), (0, 1), 1),
    ((3, 4), (1, 0), 1),
    ((3, 4), (0, 1), 2),
    ((3, 4), (0, 1), 3),
    ((3, 4), (1, 0), 2),
    ((2, 3, 2, 5), (3, 2, 0, 1), 5),
    ((7,), (0,), 1),
    ((), (), 1),
]


def numpy_decode(leaf):
    """Block by block: rows of the first axis of the order, each cut into blocks from its start."""
    codebook = np.asarray(leaf.codebook)
    moved = [leaf.shape[a] for a in leaf.axis_order]
    flat = codebook[np.asarray(leaf.indices)].reshape(-1)
    d = codebook.shape[1]
    row = math.prod(moved[1:]) if d > 1 else math.prod(moved)
    rows = math.prod(moved) // row
    padded = math.ceil(row / d) * d
    matrix = np.stack([flat[r * padded : r * padded + row] for r in range(rows)]).reshape(moved)
    out = np.empty(leaf.shape, codebook.dtype)
    for index in np.ndindex(*leaf.shape):
        out[index] = matrix[tuple(index[a] for a in leaf.axis_order)]
    return out


def clustered(shape=(3, 4), order=None, d=1, k=5, dtype=np.float32, seed=0, **fields):
    rng = np.random.default_rng(seed)
    order = tuple(range(len(shape))) if order is None else order
    moved = [shape[a] for a in order]
    n = math.prod(shape) if d == 1 else moved[0] * math.ceil(math.prod(moved[1:]) / d)
    indices = rng.integers(0, k, n).astype(index_dtype(k))
    return Clustered(indices, rng.normal(size=(k, d)).astype(dtype), shape, dtype, order, **fields)


def affine(axis=None, code_dtype=np.int8, dtype=np.float32, shape=(3, 4), scale_dtype=np.float32):
    rng = np.random.default_rng(1)
    info = np.iinfo(code_dtype)
    codes = rng.integers(info.min, info.max + 1, shape).astype(code_dtype)
    # The ends of the range, where an 8-bit difference would overflow.
    codes.flat[:2] = info.min, info.max
    sizes = () if axis is None else (shape[axis],)
    scale = np.asarray(rng.uniform(0.01, 0.1, sizes), scale_dtype)
    zero = np.asarray(rng.integers(info.min, info.max + 1, sizes), np.int32)
    return Affine(codes, scale, zero, axis, dtype)


@pytest.mark.parametrize(("shape", "order", "d"), LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clustered_decodes_as_a_loop_does(shape, order, d, dtype):
    leaf = clustered(shape, order, d, dtype=dtype)
    leaf.validate()
    decoded = leaf.decode()
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, numpy_decode(leaf))


def test_the_codebook_may_be_finer_than_the_weight():
    leaf = dataclasses.replace(clustered(), dtype=np.dtype(jnp.bfloat16))
    expected = np.asarray(leaf.codebook)[np.asarray(leaf.indices), 0].reshape(3, 4).astype(jnp.bfloat16)
    assert leaf.decode().dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaf.decode(), expected)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("code_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_decodes_as_numpy_does(axis, code_dtype, dtype):
    leaf = affine(axis, code_dtype, dtype)
    leaf.validate()
    codes = np.asarray(leaf.codes).astype(np.float64)
    expected = np.empty(leaf.shape)
    for i, j in np.ndindex(*leaf.shape):
        at = () if axis is None else (i, j)[axis]
        expected[i, j] = (codes[i, j] - float(leaf.zero_point[at])) * float(leaf.scale[at])
    decoded = leaf.decode()
    assert decoded.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(decoded, np.float64), expected, rtol=2 * eps, atol=0)


@pytest.mark.parametrize("scale_dtype", [np.float16, jnp.bfloat16])
def test_products_with_scales_of_two_bytes_are_exact(scale_dtype):
    codes = np.arange(256).astype(np.uint8)
    leaf = Affine(codes, np.asarray(0.01, scale_dtype), np.int32(100))
    np.testing.assert_array_equal(leaf.decode(), (codes.astype(np.float32) - 100) * np.float32(leaf.scale))
    # float16 of float16 is what multiplying in float16 gives, too.
    leaf = Affine(codes, np.float16(0.01), np.int32(100), dtype=np.float16)
    np.testing.assert_array_equal(leaf.decode(), (codes.astype(np.float16) - np.float16(100)) * np.float16(0.01))


def on_line(**changes):
    leaf = clustered((3, 4), (1, 0), 2)
    line = {"scale": np.asarray(np.float32(0.3)), "offset": np.asarray(np.float32(-1.7))}
    codes = np.arange(leaf.codebook.size, dtype=np.uint8).reshape(leaf.codebook.shape)
    return dataclasses.replace(leaf, **{"codebook": codes} | line | changes)


def residual(dtype=np.float32):
    return Residual([clustered((3, 4), (1, 0), 2, dtype=dtype), clustered((3, 4), (1, 0), 1, k=3, dtype=dtype, seed=1)])


def factored(shape=(2, 3, 5), k=4, dtype=np.float32, **changes):
    rng = np.random.default_rng(2)
    m, n = math.prod(shape[:-1]), shape[-1]
    fields = {
        "rows": rng.normal(size=m).astype(np.float32),
        "left": rng.integers(0, 2, (m, k)).astype(np.uint8),
        "middle": rng.integers(-(2**15), 2**15, k).astype(np.int16),
        "right": rng.integers(0, 2, (k, n)).astype(np.uint8),
        "columns": rng.normal(size=n).astype(np.float32) / 1024,
    }
    return Factored(**(fields | changes), shape=shape, dtype=dtype)


def masked(leaf=None, share=0.5, seed=3):
    leaf = clustered((3, 4), (1, 0), 2) if leaf is None else leaf
    return mask_zeros(leaf, np.random.default_rng(seed).random(leaf.shape) < share)


LEAVES = [
    clustered(),
    clustered((3, 4), (1, 0), 2, group="g"),
    on_line(),
    affine(),
    affine(1, np.uint8),
    residual(),
    factored(),
    masked(),
    masked(residual()),
    masked(factored()),
    Scaled(clustered(), exponents_of(np.array([[-2], [3], [0]])), np.dtype(np.float32)),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_decodes_as_its_stages_do(dtype):
    leaf = residual(dtype)
    leaf.validate()
    first, second = (numpy_decode(stage).astype(np.float32) for stage in leaf.stages)
    assert leaf.decode().dtype == dtype
    np.testing.assert_array_equal(leaf.decode(), (first + second).astype(dtype))
    assert bits(leaf) == sum(bits(stage) for stage in leaf.stages)
    assert bits(leaf, "entropy") == pytest.approx(sum(bits(stage, "entropy") for stage in leaf.stages))


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_decode_as_numpy_multiplies(dtype):
    leaf = factored(dtype=dtype)
    leaf.validate()
    rows, left, middle, right, columns = (
        np.asarray(x, np.float64) for x in (leaf.rows, leaf.left, leaf.middle, leaf.right, leaf.columns)
    )
    expected = np.diag(rows) @ left @ np.diag(middle) @ right @ np.diag(columns)
    decoded = leaf.decode()
    assert (decoded.shape, decoded.dtype) == ((2, 3, 5), dtype)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(decoded, np.float64), expected.reshape(2, 3, 5), rtol=2 * eps + 1e-6)
    assert bits(leaf) == (6 + 5) * 4 + (6 + 5) * 32 + 4 * 16


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 0x7C01), (jnp.bfloat16, 0x7F81), (np.float32, 0x7F800001)])
def test_signalling_nan_is_refused_without_a_warning(dtype, bits):
    """NumPy warns where it converts one."""
    table = np.array([[bits]], np.uint32 if dtype == np.float32 else np.uint16).view(dtype)
    with pytest.raises(ValueError, match="w: the codebook holds NaN"):
        Clustered(np.zeros(2, np.uint8), table, (2,), np.float32).validate("w")
    with pytest.raises(ValueError, match="w: scales must be finite"):
        Affine(np.zeros(2, np.int8), table.reshape(()), np.int32(0)).validate("w")


@pytest.mark.parametrize("leaf", [clustered((3, 4), (1, 0), 2), clustered((7,)), residual(np.float16), factored()])
def test_a_mask_leaves_zeros_and_nothing_else_changes(leaf):
    kept = np.random.default_rng(3).random(leaf.shape) < 0.6
    found = mask_zeros(leaf, kept)
    found.validate()
    assert (type(found), found.shape, found.dtype) == (Masked, leaf.shape, leaf.dtype)
    np.testing.assert_array_equal(found.decode(), np.where(kept, leaf.decode(), np.zeros((), leaf.dtype)))
    np.testing.assert_array_equal(found.kept.decode(), kept | (np.asarray(leaf.decode()) == 0))
    assert mask_zeros(leaf, np.ones(leaf.shape, bool)) is leaf
    assert bits(found) == bits(leaf) + bits(found.kept)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_mask_of_two_in_four_takes_less_than_a_bit_a_weight(axis):
    rng = np.random.default_rng(0)
    kept = rng.random((64, 16, 4)).argsort(2).argsort(2) < 2
    kept = kept.reshape(64, 64) if axis else kept.reshape(64, 64).T
    found = mask_zeros(clustered((64, 64)), kept)
    assert 0.6 < bits(found.kept, "entropy") / kept.size < 0.7  # log2(6) / 4 and a table


def test_a_mask_is_free_where_the_leaf_is_zero_already():
    leaf = Clustered(np.uint8([0, 1, 0, 1]), np.float32([[0, 0], [1, 2]]), (2, 4), np.float32)
    kept = np.array([[0, 0, 1, 1], [0, 0, 1, 0]], bool)
    assert mask_zeros(leaf, np.asarray(leaf.decode()) != 0) is leaf
    found = mask_zeros(leaf, kept)
    np.testing.assert_array_equal(np.asarray(found.kept.decode()), [[1, 1, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_array_equal(found.decode(), np.where(kept, leaf.decode(), 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaf": np.zeros((3, 4), np.float32)}, "a mask is a clustered leaf over another compressed leaf"),
        ({"leaf": masked()}, "a mask is a clustered leaf over another compressed leaf, got Clustered over Masked"),
        ({"kept": affine()}, "got Affine over Clustered"),
        ({"leaf": clustered((3, 5))}, r"the mask must be uint8 of shape \(3, 5\) in no group"),
        ({"kept": clustered()}, r"the mask must be uint8 of shape \(3, 4\) in no group, got float32"),
        ({"kept": dataclasses.replace(masked().kept, group="g")}, "group 'g'"),
        ({"kept": dataclasses.replace(masked().kept, codebook=2 * masked().kept.codebook)}, "holds 2, which is neither 0 nor 1"),
        ({"leaf": Clustered(np.zeros(12, np.uint8), np.zeros((1, 1), np.int8), (3, 4), np.int8)}, "floating point, got int8"),
    ],
)
def test_a_mask_names_the_invariant_that_fails(changes, message):
    with pytest.raises(ValueError, match=rf"^dense: .*{message}"):
        dataclasses.replace(masked(), **changes).validate("dense")


def test_the_order_of_adding_does_not_matter_for_factors():
    """A middle diagonal at its limit: sums are exact, in float32 too."""
    k = 1024
    whole = np.where(np.arange(k) % 2, 16_383, -16_384).astype(np.int16)
    leaf = factored((3, 7), k, middle=whole, rows=np.ones(3, np.float32), columns=np.ones(7, np.float32))
    leaf.validate()
    expected = (leaf.left.astype(np.int64) * whole) @ leaf.right
    np.testing.assert_array_equal(leaf.decode(), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: x.decode())(leaf), expected)


@pytest.mark.parametrize("leaf", LEAVES)
def test_decoding_traces(leaf):
    eager = np.asarray(leaf.decode())
    np.testing.assert_array_equal(jax.jit(lambda x: x.decode())(leaf), eager)
    # Doubling is exact, however the compiler fuses it with the decoding.
    np.testing.assert_array_equal(jax.jit(lambda t: decode(t)["a"] * 2)({"a": leaf}), eager * 2)


@pytest.mark.parametrize("leaf", LEAVES)
def test_decoding_maps_over_a_batch_of_leaves(leaf):
    # Clustered reads its static shape; Affine takes its from the codes, one axis less inside vmap.
    other = jax.tree.map(lambda x: x[::-1] if np.ndim(x) else x, leaf)
    batch = jax.tree.map(lambda a, b: jnp.stack([a, b]), leaf, other)
    decoded = jax.vmap(lambda x: x.decode())(batch)
    np.testing.assert_array_equal(decoded, np.stack([leaf.decode(), other.decode()]))


def test_one_set_of_indices_may_serve_many_codebooks():
    leaf = clustered()
    scales = np.array([1.0, -2.0, 0.5], np.float32)
    decoded = jax.vmap(lambda s: dataclasses.replace(leaf, codebook=s * leaf.codebook).decode())(scales)
    np.testing.assert_array_equal(decoded, scales[:, None, None] * np.asarray(leaf.decode()))


def test_a_codebook_on_a_line():
    leaf = on_line()
    codes, k, d = leaf.codebook.astype(np.float64), leaf.k, leaf.d
    np.testing.assert_allclose(leaf.entries(), 0.3 * (codes - 1.7), rtol=1e-6)
    np.testing.assert_array_equal(
        leaf.decode(), dataclasses.replace(leaf, codebook=leaf.entries(), scale=None, offset=None).decode()
    )
    assert bits({"w": leaf}) == leaf.indices.size * math.ceil(math.log2(k)) + k * d * 8 + 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": None}, "the codebook's offset must be a finite float32 number"),
        ({"scale": np.asarray(np.float32(np.inf))}, "the codebook's scale must be a finite"),
        ({"scale": np.asarray(0.5)}, "the codebook's scale must be a finite float32"),
        ({"codebook": np.ones((5, 2), np.float32)}, "holds int8 or uint8 codes of floating-point weights, got float32"),
        ({"dtype": np.dtype(np.int8)}, "codes of int8 weights"),
    ],
)
def test_a_codebook_on_a_line_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        on_line(**changes).validate("conv/kernel")


@pytest.mark.parametrize("leaf", LEAVES)
def test_static_fields_survive_the_pytree(leaf):
    leaves, treedef = jax.tree.flatten(leaf)
    arrays = [f.name for f in dataclasses.fields(leaf) if isinstance(getattr(leaf, f.name), np.ndarray | np.generic)]
    back = jax.tree.unflatten(treedef, leaves)
    assert type(back) is type(leaf)
    if isinstance(leaf, Residual | Masked | Scaled):
        assert all(a is b for a, b in zip(leaves, jax.tree.leaves(back), strict=True))
        assert (back.shape, back.dtype) == (leaf.shape, leaf.dtype)
        return
    assert len(leaves) == len(arrays)
    for field in dataclasses.fields(leaf):
        ours, theirs = getattr(leaf, field.name), getattr(back, field.name)
        assert ours is theirs if field.name in arrays else ours == theirs
    # Static fields are part of the structure, so two kinds of leaf never mix in one tree.map.
    assert treedef != jax.tree.structure(dataclasses.replace(leaf, dtype=np.dtype(np.float16)))
    np.testing.assert_array_equal(jax.tree.map(jnp.asarray, leaf).decode(), leaf.decode())


def test_gradients_flow_into_the_codebook():
    leaf = Clustered(np.array([0, 1, 1, 1], np.uint8), np.array([[2.0], [3.0]], np.float32), (2, 2), np.float32)
    gradient = jax.grad(lambda c: (dataclasses.replace(leaf, codebook=c).decode() ** 2).sum())(leaf.codebook)
    np.testing.assert_array_equal(gradient, [[4.0], [18.0]])


def test_decode_replaces_compressed_leaves_and_passes_the_rest():
    weight, text = np.ones(3), "not an array"
    tree = {"a": clustered(), "b": [weight, affine()], "c": text}
    decoded = decode(tree)
    assert not any(map(is_compressed, jax.tree.leaves(decoded, is_leaf=is_compressed)))
    assert decoded["b"][0] is weight
    assert decoded["c"] is text
    assert decoded["a"].shape == (3, 4)
    assert decode(affine()).shape == (3, 4)


@pytest.mark.parametrize(("k", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_index_dtype_is_the_smallest_that_holds_them(k, dtype):
    assert index_dtype(k) == np.dtype(dtype)
    assert np.iinfo(index_dtype(k)).max >= k - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook": np.zeros((0, 1), np.float32)}, "non-empty floating-point"),
        ({"codebook": np.zeros(5, np.float32)}, "non-empty floating-point"),
        ({"codebook": np.zeros((5, 1), np.int32)}, "non-empty floating-point"),
        ({"codebook": np.full((5, 1), np.nan, np.float32)}, "NaN or infinite"),
        ({"codebook": np.array([[0.0], [np.inf], [0], [0], [0]], np.float16)}, "NaN or infinite"),
        ({"codebook": np.zeros((5, 2), np.float32)}, r"shape \(6,\) for \(3, 4\) in blocks of 2, got uint8 \(12,\)"),
        ({"indices": np.zeros(11, np.uint8)}, r"shape \(12,\)"),
        ({"indices": np.zeros((3, 4), np.uint8)}, r"shape \(12,\)"),
        ({"indices": np.zeros(12, np.uint16)}, "indices must be uint8"),
        ({"indices": np.zeros(12, np.int8)}, "indices must be uint8"),
        ({"codebook": np.zeros((257, 1), np.float32)}, "indices must be uint16"),
        ({"indices": np.full(12, 5, np.uint8)}, "index 5 points beyond the 5 codebook entries"),
        ({"shape": (3, 5)}, r"shape \(15,\)"),
        ({"axis_order": (0, 0)}, r"axis_order \(0, 0\) is not a permutation"),
        ({"axis_order": (0,)}, r"axis_order \(0,\) is not a permutation"),
    ],
)
def test_clustered_names_the_invariant_that_fails(changes, message):
    leaf = clustered()
    leaf.validate()
    with pytest.raises(ValueError, match=rf"^conv/kernel: .*{message}"):
        dataclasses.replace(leaf, **changes).validate("conv/kernel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((3, 4), np.int16)}, "int8 or uint8, got int16"),
        ({"bits": 4}, "int8 codes of 4 bits lie between -8 and 7, got -128 to 127"),
        ({"codes": np.full((3, 4), 2, np.uint8), "bits": 1}, "uint8 codes of 1 bits lie between 0 and 1, got 2 to 2"),
        ({"bits": 0}, "have 1 to 8 bits, got 0"),
        ({"bits": 2.0}, "have 1 to 8 bits, got 2.0"),
        ({"codes": np.zeros((3, 5), np.int8)}, r"shape \(5,\), got \(4,\) and \(4,\)"),
        ({"axis": 2}, r"axis 2 does not exist in shape \(3, 4\)"),
        ({"axis": -1}, "axis -1 does not exist"),
        ({"axis": 0}, r"must have shape \(3,\)"),
        ({"axis": None}, r"must have shape \(\)"),
        ({"zero_point": np.zeros((), np.int32)}, r"got \(4,\) and \(\)"),
        ({"zero_point": np.zeros(4, np.int8)}, "zero_point int32, got float32 and int8"),
        ({"scale": np.ones(4, np.int32)}, "scale must be floating point"),
        ({"scale": np.array([1, 1, 1, 0], np.float32)}, "finite and positive"),
        ({"scale": np.array([1, 1, 1, -1], np.float32)}, "finite and positive"),
        ({"scale": np.array([1, 1, 1, np.nan], np.float32)}, "finite and positive"),
        ({"scale": np.array([1, 1, 1, np.inf], np.float32)}, "finite and positive"),
    ],
)
def test_affine_names_the_invariant_that_fails(changes, message):
    leaf = affine(1)
    leaf.validate()
    with pytest.raises(ValueError, match=rf"^dense: .*{message}"):
        dataclasses.replace(leaf, **changes).validate("dense")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "1 to 64 stages, got 0"),
        ([clustered()] * 65, "1 to 64 stages, got 65"),
        ([clustered(group="g")], "stage 0: a stage shares no codebook, its group is 'g'"),
        ([clustered(), clustered((3, 5))], r"stage 1: .* are not the first stage's, \(\(3, 4\)"),
        ([clustered(), clustered((3, 4), (1, 0))], "stage 1: shape, dtype and axis order"),
        ([clustered(), clustered(dtype=np.float16)], "stage 1: shape, dtype and axis order"),
        ([clustered(), dataclasses.replace(clustered(), indices=np.full(12, 5, np.uint8))], "stage 1: index 5 points beyond"),
        (
            [Clustered(np.zeros(3, np.uint8), np.zeros((1, 1), np.int8), (3,), np.int8)],
            "stages add up to floating-point weights, got int8",
        ),
    ],
)
def test_residual_names_the_invariant_that_fails(stages, message):
    with pytest.raises(ValueError, match=rf"^conv/kernel.*{message}"):
        Residual(stages).validate("conv/kernel")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (6,)}, r"floating-point matrices, got float32 \(6,\)"),
        ({"dtype": np.dtype(np.int8)}, "floating-point matrices, got int8"),
        ({"middle": np.zeros(4, np.int32)}, "middle diagonal must be int16 and not empty, got int32"),
        ({"middle": np.zeros((), np.int16)}, "middle diagonal must be int16"),
        ({"middle": np.zeros(0, np.int16)}, "middle diagonal must be int16"),
        ({"middle": np.zeros(5, np.int16)}, r"left matrix must be uint8 of shape \(6, 5\), got uint8 \(6, 4\)"),
        ({"left": np.ones((6, 4), bool)}, "left matrix must be uint8"),
        ({"left": np.full((6, 4), 2, np.uint8)}, "left matrix holds 2, which is neither 0 nor 1"),
        ({"right": np.zeros((5, 4), np.uint8)}, "right matrix must be uint8 of shape"),
        ({"rows": np.zeros(5, np.float32)}, r"rows must be floating point of shape \(6,\)"),
        ({"columns": np.zeros(5, np.int32)}, "columns must be floating point"),
        ({"columns": np.zeros(5, np.float16)}, "must have one dtype, got float32 and float16"),
        ({"columns": np.full(5, np.inf, np.float32)}, "columns hold NaN or infinite"),
    ],
)
def test_factored_names_the_invariant_that_fails(changes, message):
    with pytest.raises(ValueError, match=rf"^dense: .*{message}"):
        dataclasses.replace(factored(), **changes).validate("dense")


def test_a_middle_diagonal_beyond_what_is_exact():
    with pytest.raises(ValueError, match="dense: the sizes of the middle diagonal add up to 19660200, which is above 16777216"):
        factored((2, 2), 600, middle=np.full(600, 32767, np.int16)).validate("dense")


@pytest.mark.parametrize(("n", "m", "b"), [(8, 4, 2), (16, 16, 16), (10, 30, 256), (5, 7, 1)])
def test_the_fixed_count_is_the_papers(n, m, b):
    leaf = clustered((n, m), k=b)
    paper_ratio = 32 * n * m / (math.log2(b) * n * m + 32 * b)
    assert bits(np.zeros((n, m), np.float32)) / bits(leaf) == pytest.approx(paper_ratio, rel=1e-12)


@pytest.mark.parametrize(("k", "width"), [(3, 2), (5, 3), (9, 4), (129, 8)])
def test_other_numbers_of_values_take_whole_bits(k, width):
    assert bits(clustered((6, 7), k=k)) == 42 * width + 32 * k


def test_blocks_cost_one_index_each():
    leaf = clustered((3, 4), d=3, k=8)
    assert bits(leaf) == 3 * 2 * 3 + 8 * 3 * 32


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_the_entropy_count_agrees_with_scipy(indices):
    codebook = np.zeros((7, 1), np.float16)
    leaf = Clustered(np.array(indices, np.uint8), codebook, (len(indices),), np.float16)
    expected = scipy.stats.entropy(np.bincount(indices), base=2) * len(indices) + 7 * 16
    assert bits(leaf, "entropy") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [1, 3, 7, 8])
@pytest.mark.parametrize("code_dtype", [np.int8, np.uint8])
def test_affine_codes_of_few_bits(width, code_dtype):
    low = 0 if code_dtype == np.uint8 else -(2 ** (width - 1))
    codes = np.arange(low, low + 2**width).astype(code_dtype).reshape(2, -1)
    leaf = Affine(codes, np.float32(1), np.int32(0), bits=width)
    leaf.validate()
    ((symbols, k),) = leaf.streams()
    assert k == 2**width and bits(leaf) == width * codes.size + 32
    np.testing.assert_array_equal(np.sort(symbols.ravel()), np.arange(k))
    back = Affine.from_symbols(symbols, code_dtype, leaf.scale, leaf.zero_point, None, np.float32, width)
    np.testing.assert_array_equal(back.codes, codes)


def test_affine_costs_a_byte_a_code_and_its_scales():
    assert bits(affine()) == 12 * 8 + 40
    assert bits(affine(1)) == 12 * 8 + 4 * 40
    assert bits(dataclasses.replace(affine(1), zero_point=np.full(4, 128, np.int32))) == 12 * 8 + 4 * 64
    codes = np.array([[0, 1], [1, 1]], np.int8)
    leaf = Affine(codes, np.float32(1), np.int32(0))
    assert bits(leaf, "entropy") == pytest.approx(4 * scipy.stats.entropy([1, 3], base=2) + 32)


@pytest.mark.parametrize("counting", ["fixed", "entropy"])
def test_a_shared_codebook_is_counted_once(counting):
    a, b = clustered(group="g", seed=1), clustered(group="g", seed=2)
    other, alone = clustered(group="h", seed=1), clustered(seed=1)
    table = 5 * 32
    apart = sum(bits(x, counting) for x in (a, b, other, alone, alone))
    assert bits({"a": a, "b": b, "o": other, "x": alone, "y": alone}, counting) == pytest.approx(apart - table)


def test_arrays_cost_their_bytes():
    tree = {"a": np.zeros((3, 4), np.float16), "b": jnp.zeros(5, jnp.bfloat16), "c": clustered()}
    assert bits(tree) == 12 * 16 + 5 * 16 + bits(tree["c"])


def test_another_counting_is_an_error():
    with pytest.raises(ValueError, match='"fixed" or "entropy", got \'huffman\''):
        bits(clustered(), "huffman")
