"""The Speech Commands network: its weights, its clips, and the counts of right answers that were published for them."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from safetensors.numpy import save_file

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import classification_score
from bqjax.core.tree import named_leaves
from bqjax.models.audio import mfcc
from bqjax.models.spc import SpeechConv, load_spc, spc_features
from train.tasks.speech_commands import read_speech, spc_task

SHAPES = {
    "first_weights": (20, 8, 1, 64),
    "first_bias": (64,),
    "second_weights": (10, 4, 64, 64),
    "second_bias": (64,),
    "final_fc_weights": (62720, 11),
    "final_fc_bias": (11,),
}


def random_weights():
    rng = np.random.default_rng(0)
    return {name: rng.normal(scale=0.01, size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def write_speech(folder, split="test", *, clips=3, rate=16_000, channels=1, samples=16_000):
    rng = np.random.default_rng(0)
    pcm = rng.integers(-3_000, 3_000, (clips * samples, channels)).astype(np.int16)
    soundfile.write(folder / f"speech_{split}.flac", pcm, rate, subtype="PCM_16")
    names = ["_silence_", "_unknown_", "up", "down"]
    rows = [f"{i}\t{2 + i % 2}\t{names[2 + i % 2]}\tspeaker{i}\tx.wav" for i in range(3)]
    (folder / f"speech_{split}.tsv").write_text("\n".join(["clip\tlabel\tword\tspeaker\tsource_file", *rows]) + "\n")
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    return pcm


def test_shapes_and_parameters():
    params = nnx_params(nnx.eval_shape(lambda: SpeechConv(rngs=nnx.Rngs(0))))
    sizes = {name: leaf.size for name, leaf in named_leaves(params).items()}
    assert list(sizes) == ["conv1/bias", "conv1/kernel", "conv2/bias", "conv2/kernel", "fc/bias", "fc/kernel"]
    assert sum(sizes.values()) == 864_139
    assert sizes["fc/kernel"] == 62_720 * 11


def test_loads_tensors_as_they_are(tmp_path):
    weights = random_weights()
    save_file(weights | {"first_bias": weights["first_bias"].astype(np.float16)}, tmp_path / "w.safetensors")
    model = load_spc(tmp_path / "w.safetensors")
    params = nnx_params(model)
    np.testing.assert_array_equal(params["conv2"]["kernel"], weights["second_weights"])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def forward(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weights["first_weights"], (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x + params["conv1"]["bias"][None, None, None, :])
        x = x.reshape(1, 49, 2, 20, 2, 64).max(axis=(2, 4))
        x = jax.lax.conv_general_dilated(x, weights["second_weights"], (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x + weights["second_bias"][None, None, None, :])
        return x.reshape(1, 62_720) @ weights["final_fc_weights"] + weights["final_fc_bias"][None, :]

    x = jax.random.normal(jax.random.key(0), (1, 98, 40, 1))
    np.testing.assert_allclose(model(x), forward(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second_bias": None}, "second_bias is missing"),
        (
            {"first_weights": np.zeros((64, 1, 20, 8), np.float32)},
            r"first_weights has shape \(64, 1, 20, 8\), conv1/kernel needs \(20, 8, 1, 64\)",
        ),
        ({"first_bias": np.zeros(64, np.int32)}, "first_bias is int32, not floating point"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    tensors = {name: tensor for name, tensor in (random_weights() | change).items() if tensor is not None}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        load_spc(tmp_path / "w.safetensors")


def test_weights_missing_or_damaged(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.safetensors"):
        load_spc(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a safetensors file"):
        load_spc(tmp_path / "bad.safetensors")


def test_reads_clips(tmp_path):
    pcm = write_speech(tmp_path)
    clips = read_speech(tmp_path, "test")
    assert (clips.pcm.shape, clips.pcm.dtype, clips.labels.dtype) == ((3, 16_000), np.int16, np.int32)
    np.testing.assert_array_equal(clips.pcm.reshape(-1), pcm[:, 0])
    assert (clips.labels.tolist(), clips.speakers.tolist()) == ([2, 3, 2], ["speaker0", "speaker1", "speaker2"])
    assert clips.names == ("_silence_", "_unknown_", "up", "down")


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ({"rate": 8_000}, "got 8000 Hz with 1 channels"),
        ({"channels": 2}, "got 16000 Hz with 2 channels"),
        ({"clips": 2}, "48000 samples, the file has 32000"),
    ],
)
def test_sound_that_does_not_fit(tmp_path, sound, message):
    write_speech(tmp_path, **sound)
    with pytest.raises(ValueError, match=message):
        read_speech(tmp_path, "test")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("clip\tlabel\tword\tspeaker\n", "lists no clips"),
        ("clip\tlabel\tspeaker\n0\t2\tsomeone\n", "clip 0 lacks label, word or speaker"),
        ("clip\tlabel\tword\tspeaker\n0\t3\tup\tsomeone\n", "clip 0 has label '3' for 'up'"),
        ("clip\tlabel\tword\tspeaker\n0\t-1\tup\tsomeone\n", "label '-1'"),
        ("clip\tlabel\tword\tspeaker\n0\t99\tup\tsomeone\n", "label '99'"),
    ],
)
def test_table_that_does_not_fit(tmp_path, table, message):
    write_speech(tmp_path)
    (tmp_path / "speech_test.tsv").write_text(table)
    with pytest.raises(ValueError, match=message):
        read_speech(tmp_path, "test")


@pytest.mark.parametrize("name", ["labels.txt", "speech_test.tsv", "speech_test.flac"])
def test_a_missing_file_is_named(tmp_path, name):
    write_speech(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read_speech(tmp_path, "test")


def test_damaged_sound(tmp_path):
    write_speech(tmp_path)
    (tmp_path / "speech_test.flac").write_bytes(b"fLaC, but not really")
    with pytest.raises(ValueError, match="no readable sound file"):
        read_speech(tmp_path, "test")


def test_without_soundfile(tmp_path, monkeypatch):
    write_speech(tmp_path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"bqjax\[speech\]"):
        read_speech(tmp_path, "test")


def test_task_without_data(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*spc_conv\.safetensors"):
        spc_task(tmp_path)


@pytest.mark.parametrize("n", [1, 45])
def test_features_do_not_depend_on_the_pieces(n):
    pcm = np.random.default_rng(0).integers(-3_000, 3_000, (n, 16_000)).astype(np.int16)
    np.testing.assert_allclose(spc_features(pcm)[..., 0], mfcc(pcm), atol=1e-4)


@pytest.fixture(scope="module")
def task(data_dir):
    return spc_task(data_dir)


@pytest.fixture(scope="module")
def both_scores(task, data_dir):
    """Over the words that occur, and over all labels: one program, whose parts share the network's pass."""
    all_labels = classification_score(nnx_apply(load_spc(data_dir / "weights" / "spc_conv.safetensors")))
    return jax.jit(lambda params, batch: (task.score(params, batch), all_labels(params, batch)))


@pytest.mark.data
def test_logits_agree_with_tensorflow(data_dir):
    model = load_spc(data_dir / "weights" / "spc_conv.safetensors")
    with np.load(data_dir / "speech" / "golden_spc.npz") as golden:
        logits = nnx_apply(model)(nnx_params(model), spc_features(golden["pcm16"]))
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


@pytest.mark.data
@pytest.mark.parametrize(("split", "n", "words", "labels"), [("test", 600, 538, 521), ("calibration", 320, 274, 266)])
def test_right_answers(task, both_scores, split, n, words, labels):
    results = [both_scores(task.params, batch) for batch in getattr(task, split)]
    for i, expected in enumerate((words, labels)):
        assert sum(float(found[i][1]) for found in results) == n
        assert abs(sum(float(found[i][0]["accuracy"]) for found in results) - expected) <= 1
