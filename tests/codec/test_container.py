"""One file for a tree: everything comes back bit for bit, and the file takes what the formula says."""

import dataclasses
from collections import OrderedDict
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from hypothesis import strategies as st

from bqjax import codec
from bqjax.codec import structure
from bqjax.core.blocks import n_blocks
from bqjax.core.leaves import Affine, Clustered, bits, index_dtype, is_compressed
from bqjax.core.tree import named_leaves
from bqjax.kmeans import quantize_codebooks

ARRAY_TYPES = (np.ndarray, np.generic, jax.Array)


class Layer(NamedTuple):
    kernel: object
    bias: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    first: object
    second: object


def clustered(shape=(3, 3, 4, 8), k=8, d=1, seed=0, group=None, order=None, dtype=np.float32, table=np.float32):
    rng = np.random.default_rng(seed)
    order = tuple(range(len(shape))) if order is None else order
    codebook = rng.normal(size=(k, d)).astype(table)
    n = n_blocks(shape, order, d)
    p = rng.gamma(0.5, size=k) + 1e-3
    indices = rng.choice(k, size=n, p=p / p.sum()).astype(index_dtype(k))
    return Clustered(indices, codebook, shape, dtype, order, group)


def affine(shape=(5, 7), axis=1, seed=0, dtype=np.int8, scale=np.float32):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    slices = () if axis is None else (shape[axis],)
    codes = rng.integers(info.min, info.max + 1, shape).astype(dtype)
    return Affine(codes, (rng.random(slices) + 0.1).astype(scale), rng.integers(-9, 9, slices).astype(np.int32), axis)


def parts(leaf):
    """Arrays and static fields of a leaf."""
    fields = [getattr(leaf, field.name) for field in dataclasses.fields(leaf)] if is_compressed(leaf) else [leaf]
    arrays = [np.asarray(x) for x in fields if isinstance(x, ARRAY_TYPES)]
    return [(x.dtype, x.shape, x.tobytes()) for x in arrays], [x for x in fields if not isinstance(x, ARRAY_TYPES)]


def same(a, b):
    """Equal trees of equal leaves: kinds, dtypes, shapes, bytes, static fields."""
    assert jax.tree.structure(a, is_leaf=is_compressed) == jax.tree.structure(b, is_leaf=is_compressed)
    for x, y in zip(jax.tree.leaves(a, is_leaf=is_compressed), jax.tree.leaves(b, is_leaf=is_compressed), strict=True):
        assert is_compressed(x) == is_compressed(y)
        assert parts(x) == parts(y)


def round_trip(tmp_path, tree, **options):
    path = tmp_path / "net.bq.safetensors"
    info = codec.save(path, tree, force=True, **options)
    assert info == codec.inspect(path)
    assert info.file_bytes == path.stat().st_size
    return codec.load(path)


TREES = {
    "empty": {},
    "none": None,
    "one array": np.arange(3.0),
    "one leaf": clustered(),
    "nested": {"b": [clustered(), (np.ones(3), None)], "a": {"x/y": (), "": [], "é\ud800": {}}, "n": None},
    "int keys": {3: np.ones(2), 1: {-5: clustered()}, 2: {}},
    "deep": {"a": {"b": {"c": {"d": [[[(((np.ones(1),),),)]]]}}}},
}


@pytest.mark.parametrize("coder", ["raw", "zstd", "ans", "huffman", "auto"])
@pytest.mark.parametrize("name", TREES)
def test_trees_come_back_bit_for_bit(tmp_path, name, coder):
    restored = round_trip(tmp_path, TREES[name], coder=coder)
    same(TREES[name], restored)
    for leaf in jax.tree.leaves(restored, is_leaf=is_compressed):
        assert type(leaf.codebook if is_compressed(leaf) else leaf) is np.ndarray


def test_dicts_keep_their_order(tmp_path):
    restored = round_trip(tmp_path, {"b": np.zeros(2), "a": np.ones(2)})
    assert list(restored) == ["b", "a"]


def in_few_bits(leaf, bits=6):
    return quantize_codebooks({"w": leaf}, bits=bits)["w"]


LEAVES = {
    "k = 1": clustered(k=1),
    "k = 256": clustered(k=256),
    "k = 257": clustered(k=257),
    "k = 70000": clustered(k=70000, shape=(4, 4)),
    "d = 6, padded": clustered((3, 3, 5, 8), k=16, d=6, order=(3, 2, 0, 1)),
    "no weights": clustered((0, 4), order=(1, 0)),
    "scalar": clustered(()),
    "bfloat16": clustered(dtype=jnp.bfloat16, table=jnp.bfloat16),
    "codebook on a line": dataclasses.replace(
        clustered((3, 3, 4, 8), k=16, d=6, order=(3, 2, 0, 1)),
        codebook=np.arange(96, dtype=np.uint8).reshape(16, 6),
        scale=np.asarray(np.float32(0.01)),
        offset=np.asarray(np.float32(-31.7)),
    ),
    "codebook on a line, entropy-coded": in_few_bits(clustered((3, 3, 40, 8), k=64, d=9, order=(2, 3, 0, 1))),
    "integer codebook, entropy-coded": dataclasses.replace(
        clustered((40, 9), k=40, d=9, dtype=np.int8),
        codebook=np.random.default_rng(1).normal(0, 3, (40, 9)).round().astype(np.int8),
    ),
    "float8 codebook": clustered(dtype=np.float16, table=jnp.float8_e4m3fn),
    "affine, per channel": affine(),
    "affine, per tensor": affine(axis=None, dtype=np.uint8),
    "affine, float16 scales": affine(scale=np.float16),
    "affine, bfloat16 scales": affine(scale=jnp.bfloat16),
    "affine, zero points of 0": dataclasses.replace(affine(), zero_point=np.zeros(7, np.int32)),
    "affine, unsigned zero points": dataclasses.replace(affine(dtype=np.uint8), zero_point=np.arange(249, 256, dtype=np.int32)),
    "affine, far zero points": dataclasses.replace(affine(), zero_point=np.arange(122, 129, dtype=np.int32)),
    "affine, empty": affine((0, 3), axis=0),
}


@pytest.mark.parametrize("coder", ["raw", "ans", "huffman", "auto"])
@pytest.mark.parametrize("name", LEAVES)
def test_leaves_come_back_bit_for_bit(tmp_path, name, coder):
    same({"w": LEAVES[name]}, round_trip(tmp_path, {"w": LEAVES[name]}, coder=coder))


@pytest.mark.parametrize("name", structure.DTYPES)
def test_arrays_of_every_dtype_come_back_bit_for_bit(tmp_path, name):
    dtype = structure.DTYPES[name]
    noise = np.random.default_rng(0).integers(0, 256, 64 * dtype.itemsize).astype(np.uint8)
    if name == "bool":
        noise %= 2
    noise = noise.view(dtype)
    tree = {"noise": noise.reshape(8, 8), "zeros": np.zeros((40, 50), dtype), "scalar": np.zeros((), dtype), "none": noise[:0]}
    same(tree, round_trip(tmp_path, tree))


def test_signs_of_zero_and_payloads_of_nan_survive(tmp_path):
    words = np.array([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000], np.uint32)
    same({"w": words.view(np.float32)}, round_trip(tmp_path, {"w": words.view(np.float32)}))


def test_arrays_in_any_layout(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    restored = round_trip(tmp_path, {"t": base.T, "s": base[::2, ::-3], "big": base.astype(">f4"), "jax": jnp.asarray(base)})
    same(restored, {"t": base.T.copy(), "s": base[::2, ::-3].copy(), "big": base, "jax": base})
    restored["t"][0, 0] = 7  # writable


def test_leaves_with_jax_arrays(tmp_path):
    leaf = clustered()
    on_device = Clustered(jnp.asarray(leaf.indices), jnp.asarray(leaf.codebook), leaf.shape, leaf.dtype)
    same({"w": leaf}, round_trip(tmp_path, {"w": on_device}))


CUSTOM = {
    "layer": Layer(clustered(), np.ones(3)),
    "block": Block(np.zeros(2), Layer(None, affine())),
    "od": OrderedDict(a=np.ones(1)),
}


def test_other_nodes_come_back_as_dicts(tmp_path):
    restored = round_trip(tmp_path, CUSTOM)
    assert set(restored["layer"]) == {"kernel", "bias"}
    assert restored["block"]["second"]["kernel"] is None
    assert list(named_leaves(restored)) == sorted(named_leaves(CUSTOM), key=list(named_leaves(restored)).index)
    assert named_leaves(restored).keys() == named_leaves(CUSTOM).keys()


@pytest.mark.parametrize("like", [lambda x: x, lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), lambda x: np.zeros(x.shape)])
def test_like_gives_the_structure_back(tmp_path, like):
    codec.save(tmp_path / "f", CUSTOM)
    same(CUSTOM, codec.load(tmp_path / "f", like=jax.tree.map(like, CUSTOM, is_leaf=is_compressed)))


def test_like_must_match(tmp_path):
    codec.save(tmp_path / "f", {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match=r"f: the file has leaves that `like` has not: 'b'"):
        codec.load(tmp_path / "f", like={"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"f: the file lacks leaves of `like`: 'c'"):
        codec.load(tmp_path / "f", like={"a": np.zeros(2), "b": np.zeros(3), "c": 1.0})
    with pytest.raises(ValueError, match=r"f: leaf 'b' has shape \(3,\) in the file and \(4,\) in `like`"):
        codec.load(tmp_path / "f", like={"a": np.zeros(2), "b": np.zeros(4)})


def test_a_group_stores_its_codebook_once(tmp_path):
    tree = {"a": clustered(group="g"), "b": clustered((100,), group="g"), "c": clustered((7, 7))}
    same(tree, round_trip(tmp_path, tree))
    info = codec.inspect(tmp_path / "net.bq.safetensors")
    assert [(leaf.group, leaf.k, leaf.table_bytes) for leaf in info.leaves] == [("g", 8, 32), ("g", 8, 0), (None, 8, 32)]


@pytest.mark.parametrize("bits", [5, 6, 8])
def test_codebooks_of_few_bits_take_about_their_entropy(tmp_path, bits):
    small = in_few_bits(clustered((3, 3, 64, 64), k=256, d=9, order=(2, 3, 0, 1), group="g"), bits)
    tree = {"a": small, "b": dataclasses.replace(small, indices=small.indices[::-1])}
    same(tree, round_trip(tmp_path, tree))
    first, second = codec.inspect(tmp_path / "net.bq.safetensors").leaves
    counts = np.bincount(small.codebook.ravel())
    p = counts[counts > 0] / small.codebook.size
    entropy = -(p * np.log2(p)).sum() * small.codebook.size / 8
    # Beside the entropy: half a logarithm a kind for learning how often it comes, and scale and offset.
    learnt = (2**bits - 1) / 16 * np.log2(small.codebook.size / 2**bits) + 2**bits / 8
    assert entropy < first.table_bytes - 8 < entropy + 1.2 * learnt + 8 and first.table_bytes < bits / 8 * 2304
    assert first.table_kinds == int(small.codebook.max()) + 1 and (second.table_bytes, second.table_kinds) == (0, None)


def test_a_codebook_that_coding_would_not_shorten_stays_as_it_is(tmp_path):
    info = codec.save(tmp_path / "f", {"w": LEAVES["codebook on a line"]})
    assert (info.leaves[0].table_kinds, info.leaves[0].table_bytes) == (None, 96 + 8)


@pytest.mark.parametrize("other", [{"seed": 1}, {"k": 9}, {"table": np.float16}])
def test_a_group_with_two_codebooks_is_refused(tmp_path, other):
    with pytest.raises(ValueError, match="leaves 'a' and 'b/w' name one group, 'g', but their codebooks differ"):
        codec.save(tmp_path / "f", {"a": clustered(group="g"), "b": {"w": clustered(group="g", **other)}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (1.5, "'a/w' is a float, not an array"),
        ("text", "'a/w' is a str, not an array"),
        (np.array(["x"]), "'a/w' is of dtype <U1"),
        (np.array([None]), "'a/w' is of dtype object"),
        (np.zeros(2, "M8[s]"), "'a/w' is of dtype datetime64"),
        (np.zeros(2, [("x", "f4")]), "'a/w' is of dtype"),
        (jax.random.key(0), "'a/w' holds random keys .*store jax.random.key_data"),
        (jax.ShapeDtypeStruct((2,), np.float32), "'a/w' is a ShapeDtypeStruct"),
        (Clustered(np.array([9], np.uint8), np.zeros((2, 1), np.float32), (1,), np.float32), "a/w: index 9 points beyond"),
        (Clustered(np.zeros(1, np.uint8), np.zeros((2, 1), np.float32), (1,), "S3"), "'a/w' decodes to dtype"),
        (Clustered(np.zeros(1, np.uint8), np.zeros((2, 1), np.float32), (1,), np.float32, None, 3), "'a/w': a group is named by"),
        (Affine(np.zeros(3, np.int16), np.float32(1), np.int32(0)), "a/w: affine codes must be int8 or uint8"),
    ],
)
def test_leaves_that_cannot_be_stored_are_named(tmp_path, leaf, message):
    with pytest.raises(ValueError, match=message):
        codec.save(tmp_path / "f", {"a": {"w": leaf}})
    assert not list(tmp_path.iterdir())


def test_trees_that_cannot_be_stored(tmp_path):
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper than 200"):
        codec.save(tmp_path / "f", endless)
    with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
        codec.save(tmp_path / "f", {"a": {"b": np.ones(1)}, "a/b": np.ones(1)})
    for key in (True, 1.5, ("x",), None, 2**63):
        with pytest.raises(ValueError, match="a dict key must be a str or an int"):
            codec.save(tmp_path / "f", {key: np.ones(1)})
    with pytest.raises(ValueError, match="is traced"):
        jax.jit(lambda x: codec.save(tmp_path / "f", {"w": x}))(np.ones(2))
    with pytest.raises(ValueError, match="metadata must map strings to strings"):
        codec.save(tmp_path / "f", {}, metadata={"epoch": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="unknown coder 'gzip'"):
        codec.save(tmp_path / "f", {}, coder="gzip")
    assert not list(tmp_path.iterdir())


def test_depth_at_the_limit(tmp_path):
    tree = np.ones(1)
    for _ in range(structure.MAX_DEPTH):
        tree = [tree]
    same(tree, round_trip(tmp_path, tree))


def test_metadata_and_inspect(tmp_path):
    tree = {"conv": clustered((3, 3, 16, 32)), "bn": np.zeros(40_000, np.float32), "head": affine()}
    metadata = {"command": "bqjax compress", "long": "a" * 100_000}
    info = codec.save(tmp_path / "f", tree, coder="ans", metadata=metadata)
    assert codec.inspect(tmp_path / "f") == info
    same(tree, codec.load(tmp_path / "f"))
    assert info.metadata == metadata
    assert info.version == "1"
    conv, bn, head = info.leaves
    assert (conv.name, conv.kind, conv.shape, conv.dtype, conv.k, conv.d, conv.coder) == (
        "conv", "clustered", (3, 3, 16, 32), "float32", 8, 1, "ans",
    )  # fmt: skip
    assert conv.bits_per_weight == 8 * (conv.code_bytes + conv.table_bytes) / 4608
    assert (bn.kind, bn.k, bn.coder) == ("array", None, "zstd")
    assert bn.code_bytes == 40_000 * 4 // 1024 + 1  # padded
    assert (head.kind, head.axis, head.table_bytes, head.zero_bytes) == ("affine", 1, 7 * (4 + 1), 1)
    assert info.code_bytes + info.table_bytes + info.array_bytes + info.overhead_bytes == info.file_bytes
    assert info.weight_bytes == 4 * info.weights == 4 * (4608 + 40_000 + 35)
    assert info.ratio == info.weight_bytes / info.file_bytes


@pytest.mark.parametrize(("zeros", "stored"), [(" of 0", 0), ("unsigned", 1), ("far", 4)])
def test_zero_points_take_the_bytes_that_they_need(tmp_path, zeros, stored):
    (leaf,) = [leaf for name, leaf in LEAVES.items() if name.startswith("affine") and zeros in name]
    (info,) = codec.save(tmp_path / "f", {"w": leaf}).leaves
    assert (info.zero_bytes, info.table_bytes) == (stored, 7 * (4 + stored))
    assert leaf.table_bits() == 8 * info.table_bytes


def test_a_safetensors_reader_opens_it(tmp_path):
    codec.save(tmp_path / "f.safetensors", {"w": clustered()})
    with safetensors.safe_open(tmp_path / "f.safetensors", "numpy") as file:
        assert set(file.keys()) == {"data", "tree"}
        assert file.metadata()["format"] == "bqjax"
        assert file.get_tensor("data").size == sum(leaf.bytes for leaf in codec.inspect(tmp_path / "f.safetensors").leaves)


def test_a_hundred_leaves_carry_a_small_header(tmp_path):
    tree = {f"layer{i}": {"conv": {"kernel": clustered((3, 3, 8, 8), seed=i), "bias": np.zeros(8, np.float32)}} for i in range(100)}
    info = codec.save(tmp_path / "f", tree, coder="ans")
    assert info.overhead_bytes < 2000


@pytest.mark.parametrize(("coder", "counting"), [("ans", "entropy"), ("raw", "fixed")])
def test_the_file_takes_what_the_formula_says(tmp_path, coder, counting):
    tree = {
        "conv": clustered((3, 3, 128, 512), k=8),
        "dense": clustered((512, 1024), k=64, d=4, order=(1, 0), seed=1),
        "shared": [clustered((256, 256), k=16, seed=2, group="s"), clustered((300, 256), k=16, seed=2, group="s")],
        "int8": affine((256, 256)),
        "bn": np.random.default_rng(0).normal(size=512).astype(np.float32),
    }
    info = codec.save(tmp_path / "f", tree, coder=coder)
    assert info.weights > 1_000_000
    assert info.file_bytes == pytest.approx(bits(tree, counting) / 8, rel=0.01)


ARRAYS = st.builds(
    lambda seed, shape, name: np.random.default_rng(seed).integers(0, 2, shape).astype(structure.DTYPES[name]),
    st.integers(0, 99),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(sorted(structure.DTYPES)),
)
COMPRESSED = st.builds(
    lambda seed, k, d, shape: clustered(shape, k, d, seed, order=tuple(reversed(range(len(shape))))),
    st.integers(0, 99),
    st.sampled_from([1, 2, 8, 256, 300]),
    st.integers(1, 7),
    st.lists(st.integers(0, 6), max_size=4).map(tuple),
) | st.builds(lambda seed, axis: affine(axis=axis, seed=seed), st.integers(0, 99), st.sampled_from([None, 0, 1]))
NODES = st.recursive(
    st.none() | ARRAYS | COMPRESSED,
    lambda child: (
        st.lists(child, max_size=3)
        | st.lists(child, max_size=3).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_characters="/"), max_size=4), child, max_size=3)
        | st.dictionaries(st.integers(-(2**40), 2**40), child, max_size=3)
    ),
    max_leaves=8,
)


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=2 * hypothesis.settings().max_examples
)
@hypothesis.given(tree=NODES, coder=st.sampled_from([*codec.CODERS, "auto"]))
def test_any_tree(tmp_path, tree, coder):
    same(tree, round_trip(tmp_path, tree, coder=coder))
    assert list(structure.flatten(tree)[1]) != [] or not jax.tree.leaves(tree, is_leaf=is_compressed)
    assert structure.flatten(tree)[1].keys() == named_leaves(tree).keys()
