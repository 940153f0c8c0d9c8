"""Files that are damaged, foreign or made to do harm: one clear ValueError, in little time and memory."""

import hashlib
import json
import subprocess
import sys
import textwrap
import tracemalloc

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
import zstandard
from hypothesis import strategies as st

from bqjax import codec
from bqjax.codec import header
from bqjax.core.leaves import Affine, Clustered, Factored, Residual, Scaled, exponents_of, is_compressed, mask_zeros
from bqjax.core.tree import named_leaves
from bqjax.kmeans import quantize_codebooks

RNG = np.random.default_rng(0)
SHARED = RNG.normal(size=(5, 1)).astype(np.float32)
BLOCKS = Clustered(RNG.integers(0, 3, 10).astype(np.uint8), RNG.normal(size=(3, 2)).astype(np.float32), (4, 5), np.float32, (1, 0))
TREE = {
    "ans": Clustered(RNG.integers(0, 8, 3000).astype(np.uint8), RNG.normal(size=(8, 1)).astype(np.float32), (30, 100), np.float32),
    "shared": [
        Clustered(RNG.integers(0, 5, 60).astype(np.uint8), SHARED, (60,), np.float16, None, "g"),
        Clustered(RNG.integers(0, 5, 12).astype(np.uint8), SHARED, (3, 4), np.float32, (1, 0), "g"),
    ],
    "int8": Affine(RNG.integers(-9, 9, (4, 6)).astype(np.int8), np.ones(6, np.float32), np.zeros(6, np.int32), 1),
    "int4": Affine(RNG.integers(-8, 8, (4, 6)).astype(np.int8), np.float32(1), np.int32(0), bits=4),
    "sum": Residual(
        [
            Clustered(
                RNG.integers(0, 3, 10).astype(np.uint8), RNG.normal(size=(3, 2)).astype(np.float32), (4, 5), np.float32, (1, 0)
            )
            for _ in range(2)
        ]
    ),
    "product": Factored(
        np.ones(4, np.float32),
        RNG.integers(0, 2, (4, 3)).astype(np.uint8),
        np.array([-5, 0, 9], np.int16),
        RNG.integers(0, 2, (3, 6)).astype(np.uint8),
        np.ones(6, np.float32),
        (2, 2, 6),
    ),
    "pruned": mask_zeros(BLOCKS, RNG.random((4, 5)) < 0.5),
    "coded codebook": quantize_codebooks(
        {
            "w": Clustered(
                RNG.integers(0, 30, 40).astype(np.uint8), RNG.normal(size=(30, 9)).astype(np.float32), (40, 9), np.float32
            )
        },
        bits=4,
    ),
    "units": Scaled(
        Clustered(RNG.integers(0, 8, 240).astype(np.uint8), RNG.normal(size=(8, 1)).astype(np.float32), (8, 30), np.float32),
        exponents_of(RNG.integers(-2, 3, (8, 1))),
        np.dtype(np.float32),
    ),
    "bn": (np.zeros((100,), np.float32), np.ones(3, np.int32)),
    "left": RNG.normal(size=1000).astype(np.float32),
}


@pytest.fixture(scope="module", params=["ans", "huffman", "zstd", "raw"])
def stored(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "f"
    codec.save(path, TREE, coder=request.param, metadata={"note": "text"})
    return path.read_bytes()


def sections(content):
    """Header JSON, data and tree of a file."""
    length = int.from_bytes(content[:8], "little")
    parsed = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    cut = parsed["data"]["data_offsets"][1]
    return parsed, body[:cut], body[cut:]


def assemble(data, tree, /, **changes):
    """A file of these sections whose lengths and checksum fit."""
    head = header.Header(len(data), len(tree), hashlib.sha256(data + tree).hexdigest())
    content = head.to_bytes() + data + tree
    if changes:
        text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]) | changes
        text = json.dumps({k: v for k, v in text.items() if v is not None}).encode()
        content = len(text).to_bytes(8, "little") + text + data + tree
    return content


def described(tree):
    """A tree section around any JSON value."""
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    packed = zstandard.ZstdCompressor().compress(text)
    return packed.ljust(-(-len(text) // 64), b"\0")


def refused(tmp_path, content, message=""):
    path = tmp_path / "hostile.bq"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            codec.load(path)
        assert "hostile.bq: " in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def accepted_or_refused(path, content):
    """Whatever the file holds, load and inspect return something valid or raise ValueError."""
    path.write_bytes(content)
    for read in (codec.load, codec.inspect):
        try:
            result = read(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            continue
        if read is codec.load:
            for name, leaf in named_leaves(result).items():
                if is_compressed(leaf):
                    leaf.validate(name)


# Nothing here is compiled: twice as many examples as elsewhere.
FUZZ = hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=2 * hypothesis.settings().max_examples
)
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5)


def edit(content, edits):
    changed = bytearray(content)
    for where, octet in edits:
        changed[int(where * len(changed))] = octet
    return bytes(changed)


@FUZZ
@hypothesis.given(edits=EDITS)
def test_changed_bytes(stored, tmp_path, edits):
    changed = edit(stored, edits)
    accepted_or_refused(tmp_path / "f", changed)
    body = len(stored) - sum(map(len, sections(stored)[1:]))
    if changed[body:] != stored[body:]:
        with pytest.raises(ValueError):
            codec.load(tmp_path / "f")


@FUZZ
@hypothesis.given(cut=st.floats(0, 1, exclude_max=True), tail=st.binary(max_size=20))
def test_truncated_or_extended(stored, tmp_path, cut, tail):
    path = tmp_path / "f"
    for content in (stored[: int(cut * len(stored))], stored + b"\0" + tail, stored[: int(cut * len(stored))] + tail):
        path.write_bytes(content)
        if content != stored:
            with pytest.raises(ValueError, match="f: "):
                codec.load(path)


@FUZZ
@hypothesis.given(edits=EDITS, part=st.sampled_from(["data", "tree"]), cut=st.floats(0, 1) | st.just(1.0))
def test_changed_sections_with_a_fitting_checksum(stored, tmp_path, edits, part, cut):
    _, data, tree = sections(stored)
    if part == "data":
        data = edit(data, edits)
        data = data[: round(cut * len(data))]
    else:
        tree = edit(tree, edits)[: max(1, round(cut * len(tree)))]
    accepted_or_refused(tmp_path / "f", assemble(data, tree))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([0, 1, "l", "t", "d", 2**60]),
    lambda child: (
        st.lists(child, max_size=4) | st.dictionaries(st.sampled_from("xstenqkdogcalmbwpri") | st.text(max_size=3), child)
    ),
    max_leaves=12,
)


@FUZZ
@hypothesis.given(document=JSON, record=JSON, where=st.integers(0, 9), key=st.sampled_from("xstenqkdogcabwpri"))
def test_changed_descriptions_with_a_fitting_checksum(stored, tmp_path, document, record, where, key):
    _, data, tree = sections(stored)
    original = json.loads(zstandard.ZstdDecompressor().decompress(tree))
    for change in ("tree", "leaves", "record", "field", "all", "metadata"):
        new = json.loads(json.dumps(original))
        match change:
            case "tree":
                new["t"] = document
            case "leaves":
                new["l"] = document
            case "record":
                new["l"][where % len(new["l"])] = record
            case "field":
                new["l"][where % len(new["l"])][key] = record
            case "metadata":
                new["m"] = record
            case "all":
                new = document
        accepted_or_refused(tmp_path / "f", assemble(data, described(new)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\0", "not a bqjax file"),
        (b"PK\x03\x04 and more", "looks like a zip archive"),
        (b"\x93NUMPY and more", "looks like a NumPy array"),
        (b"\x1c\0\0\0TFL3 and more", "looks like a .tflite"),
        (b'{"a": 1234567}', "looks like JSON"),
        (b"\x80\x04\x95 and more", "looks like a Python pickle"),
        ((10**15).to_bytes(8, "little") + b"{}", "header of 1000000000000000 bytes does not fit"),
        ((100).to_bytes(8, "little") + b"{}", "header of 100 bytes does not fit"),
        ((70000).to_bytes(8, "little") + b"{" + bytes(70000), "safetensors file of many tensors"),
        ((4).to_bytes(8, "little") + b"{abc", "not JSON"),
        ((60000).to_bytes(8, "little") + b'{"a":' + b"[" * 59995, "not JSON"),
        (safetensors.numpy.save({"w": np.zeros(3, np.float32)}), "plain safetensors file"),
        (safetensors.numpy.save({}, {"format": "pt"}), "plain safetensors file"),
        ((16).to_bytes(8, "little") + b'{"__metadata__":' + b"[]}", "not JSON"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    refused(tmp_path, content, message)


def entry(begin, end, size=None):
    return {"dtype": "U8", "shape": [end - begin if size is None else size], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__metadata__": {"format": "bqjax", "version": "2"}}, "format version '2', this release reads version '1'"),
        ({"__metadata__": {"format": "bqjax", "version": 1, "sha256": "0" * 64}}, "format version '1'"),
        ({"__metadata__": {"format": "bqjax", "version": "1"}}, "no sha256"),
        ({"__metadata__": {"format": "bqjax", "version": "1", "sha256": "0" * 64}}, "damaged: the checksum"),
        ({"data": None}, "other tensors than"),
        ({"more": entry(0, 0)}, "other tensors than"),
        ({"data": entry(0, 5)}, "overlap, leave a gap"),
        ({"data": entry(1, 10)}, "overlap, leave a gap"),
        ({"tree": entry(0, 10)}, "overlap, leave a gap"),
        ({"tree": entry(10, 5)}, "overlap, leave a gap"),
        ({"tree": entry(10, 2**70)}, "overlap, leave a gap"),
        ({"tree": entry(10, 10**12)}, "truncated: its header describes"),
        ({"tree": entry(10, 11)}, "longer than it should be"),
        ({"data": entry(0, 10, 11)}, "as something else"),
        ({"data": entry(0, 10) | {"dtype": "F32"}}, "as something else"),
        ({"data": entry(0, 10) | {"data_offsets": [0, 10.0]}}, "no offsets"),
        ({"data": entry(0, 10) | {"data_offsets": [False, 10]}}, "no offsets"),
        ({"data": 3}, "no offsets"),
    ],
)
def test_hostile_headers(tmp_path, changes, message):
    refused(tmp_path, assemble(bytes(10), described({"t": 0, "l": [{"s": [10], "t": "int8"}]}), **changes), message)


RAW = {"s": [10], "t": "int8"}
STAGE = {"k": 1, "n": 6, "e": "raw"}
SUM = {"x": "r", "s": [10], "p": [STAGE]}
BITS = {"n": 1, "e": "raw"}
PRODUCT = {"x": "f", "s": [2, 1], "w": 1, "q": "float16", "p": [BITS, BITS]}  # two bytes of bits, 3 float16, an int16
CODED = {"x": "c", "s": [10], "k": 1, "n": 6, "e": "raw"}  # with one float32 of codebook: 10 bytes


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "not one of format version 1"),
        ({"t": 0, "l": [RAW], "z": 0}, "not one of format version 1"),
        ({"t": 0, "l": [RAW], "m": {"a": 1}}, "metadata are not strings"),
        ({"t": 0, "l": []}, "the tree has 1 leaves"),
        ({"t": ["l", 0, 0], "l": [RAW]}, "the tree has 2 leaves"),
        ({"t": {"a": {"b": 0}, "a/b": 0}, "l": [RAW, RAW]}, "have one name"),
        ({"t": ["d", 1, 0, 1, 0], "l": [RAW, RAW]}, "one key twice"),
        ({"t": ["d", 1.5, 0], "l": [RAW]}, "no string or integer"),
        ({"t": "x", "l": [RAW]}, "a str that stands for no node"),
        ({"t": [], "l": []}, "a list that stands for no node"),
        ({"t": True, "l": [RAW]}, "a bool that stands for no node"),
        ({"t": 0, "l": [3]}, "no JSON object"),
        ({"t": 0, "l": [RAW | {"x": "w"}]}, "unknown leaf kind 'w'"),
        ({"t": 0, "l": [RAW | {"t": "object"}]}, "unknown dtype 'object'"),
        ({"t": 0, "l": [RAW | {"t": ["int8"]}]}, "unknown dtype a list"),
        ({"t": 0, "l": [CODED | {"e": "lzma"}]}, "unknown coder 'lzma'"),
        ({"t": 0, "l": [RAW | {"z": 1}]}, "unknown keys, 'z'"),
        ({"t": 0, "l": [{"t": "int8"}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [-10]}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [2**62, 2**62]}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [0, 2**40, 2**40]}]}, "too large for any memory"),
        ({"t": 0, "l": [RAW | {"s": [1] * 65}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [10**4000]}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [2.0]}]}, "'s' must be"),
        ({"t": 0, "l": [RAW | {"s": [2**40], "n": 10}]}, "1099511627776 symbols cannot have 10 bytes"),
        ({"t": 0, "l": [RAW | {"s": [9]}]}, "take 9 bytes, the data section has 10"),
        ({"t": 0, "l": [RAW | {"s": [5000], "n": 10}]}, "leaf '.': not zstandard data"),
        ({"t": 0, "l": [CODED | {"s": [2**40]}]}, "symbols cannot have 6 bytes"),
        ({"t": 0, "l": [CODED | {"s": [2**20, 2**20], "d": 2**20}]}, "symbols cannot have 6 bytes"),
        ({"t": 0, "l": [CODED | {"k": 2**32, "s": [5000]}]}, "take 17179869190 bytes"),
        ({"t": 0, "l": [CODED | {"k": 0}]}, "'k' must be"),
        *(
            ({"t": 0, "l": [CODED | {"k": 4, "q": dtype, "h": coded}]}, "numbers of .* cannot be a coded codebook")
            for dtype, coded in (("float32", [3, 4]), ("uint8", [5, 4]), ("uint8", [0, 4]), ("uint8", [3, 257]), ("uint8", [3]))
        ),
        ({"t": 0, "l": [CODED | {"k": 4, "q": "uint8", "h": 3}]}, "'h' must be"),
        ({"t": 0, "l": [CODED | {"d": 0}]}, "'d' must be"),
        ({"t": 0, "l": [CODED | {"n": -1}]}, "'n' must be"),
        ({"t": 0, "l": [CODED | {"o": [1]}]}, "not a permutation"),
        ({"t": 0, "l": [CODED | {"o": [0, 0]}]}, "not a permutation"),
        ({"t": 0, "l": [CODED | {"g": 5}]}, "group must be a string"),
        ({"t": ["l", 0, 0], "l": [CODED | {"g": "g"}, CODED | {"g": "g"}]}, "a second time"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw", "a": 1}]}, "'a' must be an integer from 0 to 0"),
        ({"t": 0, "l": [{"x": "a", "s": [], "n": 2, "e": "raw", "a": 0}]}, "'a' must be"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw", "c": "int16"}]}, "dtype of affine codes 'int16'"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw"}]}, "scales must be finite and positive"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw", "b": 9}]}, "'b' must be an integer from 1 to 8"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw", "z": 5}]}, "'z' must be an integer from 0 to 4"),
        ({"t": 0, "l": [{"x": "a", "s": [2], "n": 2, "e": "raw", "z": 2}]}, "a zero point has 0, 1 or 4 bytes, not 2"),
        ({"t": 0, "l": [CODED | {"z": 0}]}, "unknown keys, 'z'"),
        ({"t": 0, "l": [CODED | {"b": 4}]}, "unknown keys, 'b'"),
        ({"t": 0, "l": [CODED | {"q": "int32"}]}, "floating-point"),
        ({"t": 0, "l": [SUM | {"p": []}]}, "'p' must be a list of 1 to 64 JSON objects, is a list of 0"),
        ({"t": 0, "l": [SUM | {"p": [STAGE] * 65}]}, "'p' must be a list of 1 to 64"),
        ({"t": 0, "l": [SUM | {"p": [[]]}]}, "'p' must be"),
        ({"t": 0, "l": [SUM | {"p": 5}]}, "'p' must be .* is 5"),
        ({"t": 0, "l": [SUM | {"n": 5}]}, "unknown keys, 'n'"),
        ({"t": 0, "l": [SUM | {"p": [STAGE | {"g": "g"}]}]}, "unknown keys, 'g'"),
        ({"t": 0, "l": [SUM | {"p": [STAGE | {"k": 2**33}]}]}, "'k' must be"),
        ({"t": 0, "l": [SUM | {"s": [2**40]}]}, "symbols cannot have 6 bytes"),
        ({"t": 0, "l": [SUM | {"p": [STAGE, STAGE]}]}, "take 20 bytes, the data section has 10"),
        ({"t": 0, "l": [SUM | {"o": [1]}]}, "not a permutation"),
        ({"t": 0, "l": [PRODUCT | {"s": [2]}]}, "not that of a matrix"),
        ({"t": 0, "l": [PRODUCT | {"p": [BITS]}]}, "'p' must be a list of 2 to 2"),
        ({"t": 0, "l": [PRODUCT | {"p": [BITS, BITS | {"k": 2}]}]}, "unknown keys, 'k'"),
        ({"t": 0, "l": [PRODUCT | {"w": 0}]}, "'w' must be"),
        ({"t": 0, "l": [PRODUCT | {"w": 2**32}]}, "symbols cannot have 1 bytes"),
        ({"t": 0, "l": [PRODUCT | {"s": [2**20, 2**20]}]}, "symbols cannot have 1 bytes"),
        ({"t": 0, "l": [PRODUCT | {"s": [1024, 1]}]}, "take 2054 bytes"),
        ({"t": 0, "l": [PRODUCT | {"q": "int16"}]}, "rows must be floating point"),
        ({"t": 0, "l": [PRODUCT | {"t": "int8"}]}, "factors are of floating-point matrices"),
        (b'{"t":' + b"[" * 100_000, "cannot be read"),
        (b'{"t":' + b'["l",' * 300 + b"0" + b"]" * 300 + b',"l":[]}', "nested deeper than 200"),
        (b'{"t":0,"l":[{"s":[' + b"9" * 5000 + b"]}]}", "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_hostile_descriptions(tmp_path, tree, message):
    refused(tmp_path, assemble(bytes(10), described(tree)), message)


def test_bombs(tmp_path):
    text = b'{"t":0,"l":[],"m":{"a":"' + b"a" * 100_000_000 + b'"}}'
    refused(tmp_path, assemble(b"", zstandard.ZstdCompressor().compress(text)), "more than 64 to one")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")
    refused(tmp_path, assemble(b"", unsized), "does not state its size")
    refused(tmp_path, assemble(b"", b""), "not zstandard data")
    bomb = zstandard.ZstdCompressor().compress(bytes(10**8)).ljust(100_000, b"\0")
    refused(tmp_path, assemble(bomb, described({"t": 0, "l": [{"s": [200], "n": len(bomb)}]})), "'n' must be an integer")
    refused(tmp_path, assemble(bomb, described({"t": 0, "l": [{"s": [10**7], "n": len(bomb)}]})), "the frame states 100000000")


@pytest.mark.slow
def test_a_second_and_two_hundred_megabytes_are_enough(tmp_path):
    """The worst small files: as many symbols, and as much JSON, as 50 kB may claim."""
    n = 1024 * 50_000
    worst = {
        "json": assemble(b"", described(b'{"t":' + b"[[]" + b",[]" * 1_000_000 + b'],"l":[]}')),
    }
    for name, k in (("zeros", 1), ("raw", 2), ("huffman", 4), ("ans", 4)):
        data = RNG.bytes(50_000) if name == "raw" else (b"\0\3\3\2\2" + RNG.bytes(49_995))
        coder = "raw" if name in ("zeros", "raw") else name
        record = {"x": "c", "s": [n], "k": k, "n": len(data), "e": coder}
        worst[name] = assemble(data + bytes(4 * k), described({"t": 0, "l": [record]}))
    lanes = n // 2048  # a directory that claims sixteen bits for every run of 2,048 symbols
    stream = b"\0\1\1" + b"\x10\0\0" + bytes(2 * lanes)
    record = {"x": "c", "s": [n], "k": 2, "n": len(stream), "e": "huffman"}
    worst["lanes"] = assemble(stream + bytes(8), described({"t": 0, "l": [record]}))
    for name, content in worst.items():
        (tmp_path / name).write_bytes(content)
    script = textwrap.dedent("""
        import resource, sys, time
        from bqjax import codec
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            start = time.process_time()  # others may use the cores, too
            try:
                codec.load(path)
                outcome = "loaded"
            except ValueError as error:
                outcome = "refused"
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(path.rsplit("/")[-1], outcome, time.process_time() - start, rss / 1024)
    """)
    paths = [str(tmp_path / name) for name in worst]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for line in done.stdout.splitlines():
        _, _, seconds, megabytes = line.split()
        assert float(megabytes) < 200, done.stdout
        assert float(seconds) < 3, done.stdout  # a second on an idle core
