"""Plain safetensors files, with the dtypes that NumPy lacks."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from any_safetensors import File, Tensor, files

from bqjax.adapters.safetensors import TensorType, open_file, open_weights, read_weights, stream_weights, write_weights

INTEGERS = [f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(dtype, tmp_path):
    numbers = np.random.default_rng(0).integers(0, 3, (3, 5)).astype(dtype)
    weights = {"w": numbers, "transposed": numbers.T, "scalar": numbers[0, 1], "empty": numbers[:0]}
    write_weights(tmp_path / "w", weights)
    read = read_weights(tmp_path / "w")
    assert read.keys() == weights.keys()
    for name, array in weights.items():
        assert (read[name].shape, read[name].dtype) == (array.shape, np.dtype(dtype)), name
        assert read[name].tobytes() == np.array(array, order="C").tobytes(), name


def test_bytes_are_those_of_the_format(tmp_path):
    # 1.5 and -2 in bfloat16, as any other reader of the format takes them.
    write_weights(tmp_path / "w", {"w": jnp.asarray([1.5, -2], jnp.bfloat16)})
    ((name, tensor),) = safetensors.deserialize((tmp_path / "w").read_bytes())
    assert (name, tensor["dtype"], tensor["shape"]) == ("w", "BF16", [2])
    assert bytes(tensor["data"]) == b"\xc0\x3f\x00\xc0"


def test_files_of_other_writers_are_read(tmp_path):
    weights = {"model.layers.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    safetensors.numpy.save_file(weights, tmp_path / "w", metadata={"format": "pt"})
    np.testing.assert_array_equal(read_weights(tmp_path / "w")["model.layers.0.weight"], weights["model.layers.0.weight"])


def test_an_existing_file_is_not_overwritten(tmp_path):
    write_weights(tmp_path / "w", {"w": np.zeros(2)})
    with pytest.raises(ValueError, match="exists"):
        write_weights(tmp_path / "w", {"w": np.ones(2)})
    assert not read_weights(tmp_path / "w")["w"].any()
    write_weights(tmp_path / "w", {"w": np.ones(2)}, force=True)
    assert read_weights(tmp_path / "w")["w"].all()


def test_what_cannot_be_held_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="'w' has dtype <U1, which safetensors cannot hold"):
        write_weights(tmp_path / "w", {"ok": np.ones(2), "w": np.array(["a"])})
    assert not list(tmp_path.iterdir())


def test_what_is_no_such_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*absent"):
        read_weights(tmp_path / "absent")
    whole = safetensors.numpy.save({"w": np.zeros(5, np.float32)})
    for damaged in (b"", b"not weights at all", whole[:-1], whole[:20], whole + b"\0"):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged is not a safetensors file"):
            read_weights(tmp_path / "damaged")


def test_tensors_are_read_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "b": rng.normal(size=(3, 4)).astype(np.float32),
        "a": np.arange(5, dtype=np.int64),
        "half": rng.normal(size=(2, 3, 2)).astype(jnp.bfloat16),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 2), np.float16),
        "flags": np.array([True, False]),
    }
    write_weights(tmp_path / "w", weights)
    stored = open_weights(tmp_path / "w")
    whole = read_weights(tmp_path / "w")
    assert set(stored) == set(whole)
    for name, tensor in stored.items():
        array = tensor.read()
        assert (tensor.shape, tensor.dtype, tensor.ndim, tensor.size) == (array.shape, array.dtype, array.ndim, array.size)
        assert array.dtype == whole[name].dtype
        assert array.shape == whole[name].shape
        assert array.tobytes() == whole[name].tobytes()
    offsets = [tensor.offset for tensor in stored.values()]
    assert offsets == sorted(offsets)


def test_what_is_not_opened(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        open_weights(tmp_path / "absent")
    write_weights(tmp_path / "w", {"w": np.zeros(100)})
    stored, content = open_weights(tmp_path / "w"), (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        open_weights(tmp_path / "w")
    with pytest.raises(ValueError, match="was cut short while it was read"):
        stored["w"].read()


def test_arrays_are_written_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"b": rng.normal(size=(3, 4)).astype(np.float32), "a": np.int64(7), "half": jnp.ones((2, 3), jnp.bfloat16)}
    shapes = {name: TensorType.of(name, np.shape(array), np.dtype(array.dtype)) for name, array in weights.items()}
    stream_weights(tmp_path / "w", shapes, iter(weights.items()))
    back = read_weights(tmp_path / "w")
    assert set(back) == set(weights)
    for name, array in weights.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_what_was_not_announced_is_not_written(tmp_path):
    shapes = {"a": TensorType("F32", (2,), 8), "b": TensorType("F32", (1,), 4)}
    a, b = ("a", np.zeros(2, np.float32)), ("b", np.zeros(1, np.float32))
    for arrays, message in (
        ([b, a], "'b' of shape"),
        ([a], "'b' was announced"),
        ([a, b, b], "'b' of shape"),
        ([("a", np.zeros(2))], "float64"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_weights(tmp_path / "w", shapes, arrays)
    with pytest.raises(ValueError, match="'c' has dtype complex128, which safetensors cannot hold"):
        TensorType.of("c", (1,), np.dtype(np.complex128))
    assert not list(tmp_path.iterdir())


def test_metadata_are_kept_and_other_libraries_read_them(tmp_path):
    write_weights(tmp_path / "w", {"w": np.zeros((2, 2), np.float32)}, metadata={"format": "pt"})
    assert open_file(tmp_path / "w").metadata == {"format": "pt"}
    with safetensors.safe_open(tmp_path / "w", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert not file.get_tensor("w").any()


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow])
@hypothesis.given(
    file=files(),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 3),
)
def test_any_file_is_read_or_refused(file, edits, cut, tmp_path):
    content = bytearray(file.to_bytes())
    for where, octet in edits:
        content[int(where * len(content))] = octet
    (tmp_path / "w").write_bytes(content[: len(content) - cut])
    try:
        found = open_file(tmp_path / "w")
        read = {name: tensor.read() for name, tensor in found.tensors.items()}
    except ValueError as error:
        assert str(tmp_path / "w") in str(error)
        assert edits or cut
        return
    if not edits and not cut:
        assert found.metadata == file.metadata
        for name, tensor in file.tensors.items():
            assert (found.tensors[name].type.stored, found.tensors[name].type.shape) == tensor[:2]
            assert read[name].tobytes() == tensor.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b"[0,24]", b"[0,23]"), "cannot have 23 bytes"),
        (lambda text: text.replace(b"[0,24]", b"[24,0]"), "data_offsets that cannot be"),
        (lambda text: text.replace(b"[0,24]", b"[0,99999999999999999]"), "data_offsets that cannot be"),
        (lambda text: text.replace(b"[2,3]", b"[-2,-3]"), "data_offsets that cannot be"),
        (lambda text: text.replace(b"[24,28]", b"[25,28]"), "cannot have 3 bytes"),
        (lambda text: text.replace(b"[24,28]", b"[20,24]"), "begins at byte 20 of the data, the one before ends at 24"),
        (lambda text: text.replace(b'"b"', b'"a"'), "it names 'a' twice"),
        (lambda text: text.replace(b'"dtype":"F32"', b'"dtypo":"F32"'), "has no dtype, shape or data_offsets"),
        (lambda text: text.replace(b'"pt"', b"1234"), "__metadata__ are not strings"),
        (lambda text: text.replace(b'"b"', b'"\\ud800"'), "surrogates not allowed"),
        (lambda text: text[:-1] + b" ", "its header cannot be read"),
    ],
)
def test_headers_that_cannot_be_are_refused(change, message, tmp_path):
    tensors = {"a": Tensor("F32", (2, 3), bytes(24)), "b": Tensor("F32", (1,), bytes(4))}
    content = File(tensors, {"format": "pt"}).to_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + length].replace(b" ", b""))
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(ValueError, match=f"w is not a safetensors file, or is damaged: .*{message}"):
        read_weights(tmp_path / "w")
