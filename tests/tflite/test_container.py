"""Integer leaves and the container's coding of them."""

from __future__ import annotations

import hashlib
import json
import lzma

import jax
import numpy as np
import pytest

from bqjax import codec
from bqjax.cli.arguments import main
from bqjax.core.leaves import Clustered, bits, decode
from bqjax.core.rules import Rule
from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.ecsq import bin_and_quant_ecsq
from bqjax.methods.bins.gaussian import gaussian_bins, occupied
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.tflite.container import _FILTERS, described, exact, load_model, save_model, searched_layers

# --- integer leaves ---------------------------------------------------------------------------------------------------


def integers(dtype, shape=(12, 31), seed=0, spread=30):
    limits = np.iinfo(dtype)
    real = np.random.default_rng(seed).normal(0 if limits.min else 128, spread, shape)
    return np.clip(np.round(real), limits.min, limits.max).astype(dtype)


def rounded_means(codes, index, importance=None):
    """Each code replaced by the rounded mean of its bin, in float64."""
    out = np.empty(codes.shape, codes.dtype)
    weight = np.ones(codes.shape) if importance is None else importance
    for i in np.unique(index):
        out[index == i] = np.round(np.average(codes[index == i].astype(np.float64), weights=weight[index == i]))
    return out


def check(leaf, codes, path):
    """Of a compressed integer leaf: its dtypes, and the same leaf from a file."""
    leaf.validate("w")
    assert leaf.codebook.dtype == leaf.dtype == codes.dtype and leaf.shape == codes.shape
    assert len(np.unique(leaf.codebook)) == leaf.k == len(np.unique(leaf.indices))
    assert bits(leaf) == codes.size * np.ceil(np.log2(leaf.k)) + 8 * leaf.k
    decoded = decode(leaf)
    assert decoded.dtype == codes.dtype
    codec.save(path, {"w": leaf}, force=True)
    loaded = codec.load(path)["w"]
    assert loaded.codebook.dtype == loaded.dtype == codes.dtype
    np.testing.assert_array_equal(loaded.codebook, leaf.codebook)
    np.testing.assert_array_equal(loaded.indices, leaf.indices)
    np.testing.assert_array_equal(decode(loaded), decoded)
    return np.asarray(decoded)


@pytest.mark.parametrize("n_bins", [1, 5, 255])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bins_of_integers_agree_with_numpy(dtype, n_bins, tmp_path):
    codes = integers(dtype)
    assert not gaussian_bins({"w": codes})  # only where a rule names them
    stats = gaussian_bins({"w": codes}, n_bins, [Rule("w")])
    edges = np.asarray(stats["w"].edges)
    assert len(edges) <= n_bins - 1
    same = gaussian_bins({"w": codes.astype(np.float32)}, n_bins)["w"].edges
    np.testing.assert_array_equal(edges, same)
    np.testing.assert_array_equal(edges, occupied(edges, [codes]))
    leaf = bin_and_quant({"w": codes}, stats)["w"]
    got = check(leaf, codes, tmp_path / "w")
    np.testing.assert_array_equal(got, rounded_means(codes, np.digitize(codes, edges)))


@pytest.mark.parametrize("k", [3, 256])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_kmeans_of_integers_agrees_with_numpy(dtype, k, tmp_path):
    codes = integers(dtype, (8, 11))
    got = check(kmeans_share({"w": codes}, k, [Rule("w")])["w"], codes, tmp_path / "w")
    best = np.asarray(kmeans_scalar(codes.reshape(-1).astype(np.float32), k).codebook, np.float64)
    book = np.unique(np.round(best))
    distance = np.abs(codes[..., None] - book)
    np.testing.assert_array_equal(np.abs(codes.astype(int) - got.astype(int)), distance.min(-1))
    assert len(np.unique(got)) <= k
    if k >= len(np.unique(codes)):
        np.testing.assert_array_equal(got, codes)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_at_a_lmbda_agree_with_numpy(dtype, tmp_path):
    codes, rng = integers(dtype), np.random.default_rng(1)
    importance = rng.uniform(0.5, 2, codes.shape).astype(np.float32)
    stats = gaussian_bins({"w": codes}, 8, [Rule("w")])
    free = bin_and_quant_ecsq({"w": codes}, stats, {"w": importance}, 0.0, floor=0.0)["w"]
    got = check(free, codes, tmp_path / "w")
    index = np.asarray(free.indices).reshape(codes.shape)
    np.testing.assert_array_equal(got, rounded_means(codes, index, importance))
    dear = bin_and_quant_ecsq({"w": codes}, stats, {"w": importance}, 3e6, floor=0.0)["w"]
    check(dear, codes, tmp_path / "w")
    assert bits(dear, "entropy") < bits(free, "entropy")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_means_that_round_to_one_value_are_one_entry(dtype):
    codes = np.array([[3, 3, 4, 4, 4, 5]], dtype)
    leaf = bin_and_quant({"w": codes}, gaussian_bins({"w": codes}, 16, [Rule("w")]))["w"]
    assert leaf.k == 3 and (decode(leaf) == codes).all()
    stats = gaussian_bins({"w": codes}, 2, [Rule("w")])
    traced = jax.jit(lambda w: decode(bin_and_quant({"w": w}, stats)["w"]))(codes)
    assert traced.dtype == dtype
    np.testing.assert_array_equal(traced, decode(bin_and_quant({"w": codes}, stats)["w"]))


def test_integers_of_one_group_share_a_codebook_and_dtypes_do_not_mix(tmp_path):
    tree = {"a": integers(np.int8), "b": integers(np.int8, seed=1), "u": integers(np.uint8), "f": np.ones((2, 2), np.float32)}
    rules = [Rule("[ab]", group="g")]
    for new in (bin_and_quant(tree, gaussian_bins(tree, 8, rules)), kmeans_share(tree, 8, rules)):
        np.testing.assert_array_equal(new["a"].codebook, new["b"].codebook)
        codec.save(tmp_path / "w", new, force=True)
        for name, value in decode(codec.load(tmp_path / "w")).items():
            np.testing.assert_array_equal(value, decode(new)[name])
    for mixed in ("[au]", "[af]", "[uf]"):
        with pytest.raises(ValueError, match="dtype"):
            bin_and_quant(tree, gaussian_bins(tree, 8, [Rule(mixed, group="g")]))
        with pytest.raises(ValueError, match="dtype"):
            kmeans_share(tree, 8, [Rule(mixed, group="g")])


@pytest.mark.parametrize("codebook", [np.int8([[1], [2]]), np.int32([[1], [2]])])
def test_integer_codebooks_are_of_the_leafs_dtype(codebook):
    with pytest.raises(ValueError, match="codebook"):
        Clustered(np.uint8([0, 1]), codebook, (2,), np.uint8).validate()


def test_exact_decodes_to_the_codes():
    codes = np.int8([[-128, 127], [0, 0]])
    np.testing.assert_array_equal(exact(codes).decode(), codes)


def test_other_files_are_not_taken_for_a_model(tmp_path):
    codec.save(tmp_path / "w.bq.safetensors", {"w": exact(np.int8([[1, 2]]))})
    with pytest.raises(ValueError, match=r"not a \.tflite model"):
        load_model(tmp_path / "w.bq.safetensors")


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def built():
    """A model of every kind of layer; its first weight is large enough for a leaf of its own."""
    pytest.importorskip("ai_edge_litert")
    from builder import Builder

    from bqjax.tflite.format.model import parse_model

    b = Builder(np.int8)
    x = b.activation([1, 4, 4, 32])
    h = b.conv(x, [64, 3, 3, 32], [1, 4, 4, 64], per_channel=True)
    # Gaussian weights, which an entropy coder takes below LZMA.
    b.buffers[b.tensors[1].buffer].data = np.frombuffer(integers(np.int8, (64, 3, 3, 32), spread=8).tobytes(), np.uint8)
    h = b.depthwise(h, [1, 3, 3, 64], [1, 4, 4, 64], per_channel=True)
    shape = b.tensor([2], np.int32, data=np.array([1, 1024], np.int32))
    h = b.operator("RESHAPE", [h, shape], b.activation([1, 1024]), "ReshapeOptions", newShape=np.array([1, 1024], np.int32))
    return parse_model(b.finish(x, b.softmax(b.dense(h, [3, 1024]), [1, 3])))


@pytest.mark.parametrize("coder", ["auto", "raw", "zstd", "ans", "huffman"])
def test_a_model_is_restored_byte_for_byte(built, coder, tmp_path):
    kinds = {o.kind for o in built.graph.operators}
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} <= kinds
    save_model(tmp_path / "m", built, coder=coder, metadata={"note": "mine"})
    assert load_model(tmp_path / "m") == built.content
    assert codec.inspect(tmp_path / "m").metadata["note"] == "mine"


def test_compressed_leaves_and_another_bias_are_restored(built, tmp_path):
    from bqjax.tflite.format.model import parse_model, rewritten

    codes = {name: layer["codes"] for name, layer in built.params.items()}
    binned = bin_and_quant(codes, gaussian_bins(codes, 4, [Rule("*")]))
    tree = {name: {**layer, "codes": binned[name]} for name, layer in built.params.items()}
    last = list(tree)[-1]
    tree[last]["bias"] = tree[last]["bias"] + 7
    info = save_model(tmp_path / "m", built, tree)
    assert {leaf.name for leaf in info.leaves} == {"flatbuffer", *(f"weights/{name}" for name in tree)}
    back = parse_model(load_model(tmp_path / "m"))
    for name, layer in tree.items():
        np.testing.assert_array_equal(back.params[name]["codes"], decode(binned[name]))
        np.testing.assert_array_equal(back.params[name]["bias"], layer["bias"])
    decoded = {name: {**layer, "codes": np.asarray(decode(layer["codes"]))} for name, layer in tree.items()}
    assert back.content == rewritten(built, decoded)
    lossless = save_model(tmp_path / "l", built)
    assert info.file_bytes < lossless.file_bytes < len(built.content)


def test_a_shared_buffer_is_stored_once(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from builder import Builder

    from bqjax.tflite.format.model import parse_model

    b = Builder(np.uint8)
    x = b.activation([1, 4, 4, 16])
    h = b.conv(x, [16, 3, 3, 16], [1, 4, 4, 16])
    y = b.conv(h, [16, 3, 3, 16], [1, 4, 4, 16])
    b.tensors[4].buffer = b.tensors[1].buffer
    model = parse_model(b.finish(x, y))
    names = list(model.params)
    assert model.spans[names[0], "codes"] == model.spans[names[1], "codes"]
    save_model(tmp_path / "m", model)
    assert load_model(tmp_path / "m") == model.content
    leaf = kmeans_share({"w": model.params[names[0]]["codes"]}, 3, [Rule("w")])["w"]
    info = save_model(tmp_path / "m", model, {name: {"codes": leaf} for name in names}, force=True)
    assert len(info.leaves) == 2
    back = parse_model(load_model(tmp_path / "m"))
    for name in names:
        np.testing.assert_array_equal(back.params[name]["codes"], decode(leaf))
    with pytest.raises(ValueError, match="share one buffer"):
        save_model(tmp_path / "m", model, {names[0]: {"codes": leaf}}, force=True)


def test_outputs_with_grids_of_their_own_are_restored_from_fewer_bytes(built, tmp_path, capsys):
    from bqjax.tflite.format.model import rewritten

    name = next(iter(built.params))
    codes = built.params[name]["codes"]
    numbers = np.arange(len(codes)) % 2
    new = np.where(numbers[:, None, None, None] == 0, np.sign(codes) * 40, codes // 4 * 4).astype(codes.dtype)
    tree = {name: {"codes": exact(new)}}
    searched = {n: ("accepted", 0.0125) if n == name else ("not worth it", None) for n in built.params}
    together = save_model(tmp_path / "t", built, tree)
    apart = save_model(tmp_path / "a", built, tree, classes={name: numbers}, searched=searched)
    assert apart.file_bytes < 0.95 * together.file_bytes
    leaves = {leaf.name: leaf for leaf in apart.leaves}
    assert leaves[f"weights/{name}/outputs of class 0"].k == 3 and leaves["classes"].size == len(codes)
    content = rewritten(built, {name: {"codes": new}})
    assert load_model(tmp_path / "t") == load_model(tmp_path / "a") == content
    # Classes that do not differ do not pay.
    same = save_model(tmp_path / "s", built, {name: {"codes": exact(codes)}}, classes={name: numbers})
    assert "classes" not in {leaf.name for leaf in same.leaves}
    assert run("inspect", tmp_path / "a") == 0
    shown = capsys.readouterr().out
    weights = sum(layer["codes"].size for layer in built.params.values())
    assert shown.count("accepted") == 2 and shown.count("+1.25") == 2 and f"{weights:,} weights" in shown
    assert shown.count("not worth it") == len(built.params) - 1 and "within flatbuffer" in shown


@pytest.mark.parametrize("numbers", [[0, 1, 1], [0, 1], [0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 2, 1], []])
def test_classes_that_do_not_fit_are_refused(numbers, tmp_path):
    parts = {"outputs of class 0": exact(np.int8([[1, 2], [3, 4]])), "outputs of class 1": exact(np.int8([[5, 6], [7, 8]]))}
    container(tmp_path / "m")
    metadata, tree = codec.inspect(tmp_path / "m").metadata, codec.load(tmp_path / "m")
    for given, message in ((numbers, r"damaged \.tflite container"), ([0, 1, 0, 1], "do not add up")):
        classes = exact(np.array(given, np.uint8)) if given else np.zeros(0, np.uint8)
        codec.save(tmp_path / "m", {**tree, "weights": {"0": parts}, "classes": classes}, metadata=metadata, force=True)
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "m")


REST = bytes(range(256)) * 4
LAYERS = (np.array([1, 2, 3, 4], np.int8),)


def container(path, layers=LAYERS, rest=REST, **changes):
    """A container by hand; ``changes`` replaces its metadata, None leaves an entry out."""
    packed = np.frombuffer(lzma.compress(rest, lzma.FORMAT_RAW, filters=_FILTERS), np.uint8)
    content = b"".join(x.tobytes() for x in layers) + rest
    metadata = {
        "kind": "tflite",
        "content_sha256": hashlib.sha256(content).hexdigest(),
        "content_bytes": str(len(content)),
        "offsets": json.dumps([4 * i for i in range(len(layers))]),
        **changes,
    }
    tree = {"flatbuffer": packed, "weights": {str(i): exact(x) for i, x in enumerate(layers)}}
    codec.save(path, tree, metadata={k: v for k, v in metadata.items() if v is not None}, force=True)
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content_sha256": "0" * 64}, r"does not restore the model that was saved \(sha256 differs\)"),
        ({"content_sha256": None}, "sha256 differs"),
        ({"content_bytes": None}, r"damaged \.tflite container"),
        ({"content_bytes": "many"}, r"damaged \.tflite container"),
        ({"content_bytes": "-1"}, "claims -1 bytes"),
        ({"content_bytes": str(1 << 30)}, "claims 1073741824 bytes"),
        ({"content_bytes": "1000"}, "do not add up"),
        ({"content_bytes": "1029"}, "do not add up"),
        ({"offsets": None}, r"damaged \.tflite container"),
        ({"offsets": "[" * 5000}, r"damaged \.tflite container"),
        ({"offsets": "[]"}, r"damaged \.tflite container"),
        ({"offsets": "3"}, r"damaged \.tflite container"),
        ({"offsets": "[-4]"}, "one beside the other"),
        ({"offsets": "[1025]"}, "one beside the other"),
        ({"offsets": "[0.0]"}, "one beside the other"),
        ({"offsets": "[null]"}, "one beside the other"),
        ({"offsets": "[8]"}, "sha256 differs"),
        ({"kind": "other"}, r"not a \.tflite model"),
        ({"kind": None}, r"not a \.tflite model"),
    ],
)
def test_containers_that_do_not_fit_are_refused(changes, message, tmp_path):
    content = container(tmp_path / "m")
    assert load_model(tmp_path / "m") == content
    container(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path / "m")
    assert str(tmp_path / "m") in str(error.value)


def test_weights_on_top_of_each_other_are_refused(tmp_path):
    container(tmp_path / "m", LAYERS * 2, offsets="[0,2]")
    with pytest.raises(ValueError, match="one beside the other"):
        load_model(tmp_path / "m")


def test_what_is_shown_of_metadata():
    shown = {"kind": "tflite", "offsets": "[1,2]", "within": "3 1200", "note": "x"}
    assert described(shown) == {"kind": "tflite", "note": "x"}
    assert described({"within": "3 1200", "offsets": "x"}) == {"within": "3 1200", "offsets": "x"}


def test_what_a_search_did_is_taken_from_metadata_that_fit():
    assert searched_layers({"kind": "tflite", "layers": '{"a":["x",0.5],"b":["y",null]}'}) == {"a": ("x", 0.5), "b": ("y", None)}
    for odd in ("", "[]", "3", '{"a":1}', '{"a":["x"]}', '{"a":["x",[]]}', "[" * 5000):
        assert searched_layers({"kind": "tflite", "layers": odd}) == {}
    assert searched_layers({"layers": '{"a":["x",0.5]}'}) == {}


# --- commands ---------------------------------------------------------------------------------------------------------


def run(*args):
    return main([str(a) for a in args])


@pytest.fixture
def source(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.tflite").write_bytes(built.content)
    return tmp_path / "net.tflite"


def test_compress_lossless_inspect_and_decompress(source, built, tmp_path, capsys):
    assert run("compress", source, "--lossless") == 0
    path = tmp_path / "net.bq.safetensors"
    printed = capsys.readouterr().out
    assert f"net.tflite {len(built.content):,} bytes; zstd -19" in printed and f"{path.stat().st_size:,}" in printed
    assert "accuracy was not measured" not in printed
    assert run("inspect", path) == 0
    shown = capsys.readouterr().out
    info = codec.inspect(path)
    leaves = {leaf.name for leaf in info.leaves if leaf.name.startswith("weights/")}
    assert leaves and len(leaves) < len(built.params)
    for name in built.params:
        assert f"weights/{name}" in leaves or f"  {name} " in shown
    assert shown.count("within flatbuffer") == len(built.params) - len(leaves)
    weights = sum(layer["codes"].size for layer in built.params.values())
    assert f"{weights:,} weights" in shown and all(leaf.name in shown for leaf in info.leaves)
    assert "method: lossless" in shown and "offsets" not in shown
    assert run("decompress", path, "--out", tmp_path / "back.tflite") == 0
    assert (tmp_path / "back.tflite").read_bytes() == built.content


@pytest.mark.parametrize("method", ["gaussian-bins", "kmeans"])
def test_compress_to_bins(method, source, built, tmp_path, capsys):
    from bqjax.tflite.format.model import read

    assert run("compress", source, "--bins", 4, "--method", method, "--out", tmp_path / "a.bq") == 0
    assert "accuracy was not measured" in capsys.readouterr().out
    assert run("decompress", tmp_path / "a.bq", "--out", tmp_path / "back.tflite") == 0
    back = read(tmp_path / "back.tflite")
    for name, layer in back.params.items():
        assert 1 < len(np.unique(layer["codes"])) <= 4
        np.testing.assert_array_equal(layer["bias"], built.params[name]["bias"])
    assert source.read_bytes() == built.content


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lossless", "--bins", "4"], "--bins cannot go with --lossless"),
        (["--lossless", "--method", "kmeans"], "--method cannot go with --lossless"),
        (["--only", "a"], "--only cannot go with a .tflite model"),
        (["--out", "net.tflite", "--force"], "is the file that is read"),
        (["--out", "old"], "exists"),
        (["--bins", "0"], "n_bins must be at least 1"),
    ],
)
def test_what_the_command_refuses(args, message, source, built, tmp_path, capsys):
    (tmp_path / "old").write_bytes(b"old")
    assert run("compress", source, *args) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert source.read_bytes() == built.content and (tmp_path / "old").read_bytes() == b"old"


def test_a_damaged_model_is_named(source, capsys):
    source.write_bytes(source.read_bytes()[:500])
    assert run("compress", source) == 2
    assert "net.tflite: " in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.parametrize("name", ["kws_ds_cnn_int8", "person_detect"])
def test_real_models_are_no_larger_than_by_zstandard(name, data_dir, tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    from bqjax.codec.plain import zstd_bytes

    content = (data_dir / "tflite" / f"{name}.tflite").read_bytes()
    out = tmp_path / "m.bq"
    assert run("compress", data_dir / "tflite" / f"{name}.tflite", "--lossless", "--out", out) == 0
    assert load_model(out) == content
    assert out.stat().st_size <= zstd_bytes(content)
