"""A folder and a text as a task: what is scored, what is in the file besides, and what does not fit."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import tiny_folder
from safetensors.numpy import save_file

from bqjax import codec
from bqjax.adapters.write_back import write_folder
from bqjax.core.scoring import paired_error, score_on
from bqjax.core.task import Task
from bqjax.models.transformer import folder_task as module
from bqjax.models.transformer.folder_task import folder_task
from bqjax.models.transformer.pretrained import pretrained

LLAMA, BERT = tiny_folder.LLAMA, tiny_folder.BERT


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    (folder / "t.txt").write_text(tiny_folder.text(12))
    task = folder_task(tiny_folder.write(folder / "model", LLAMA), folder / "t.txt")
    return task, folder


def test_nats_are_those_of_the_network(llama):
    task, folder = llama
    run, tensors = jax.jit(pretrained(LLAMA).logits), tiny_folder.weights(LLAMA)
    tokens = [2] + [4 + int(word[1:]) for word in (folder / "t.txt").read_text().split()]
    assert (task.metric, task.name) == ("-nats", "model")
    # 84 tokens: windows of a mark and 15 more, of which those of the first half calibrate.
    pieces = [tokens[:1] + tokens[i : i + 15] for i in range(1, len(tokens), 15)]
    for batches, mine in ((task.calibration, pieces[:2]), (task.test, pieces[2:])):
        expected = total = 0.0
        for piece in mine:
            logits = np.asarray(run(tensors, {"tokens": np.array([piece], np.int32)}), np.float64)[0]
            following = np.array(piece[1:])
            expected -= (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(following)), following].sum()
            total += len(following)
        found = score_on(task, task.params, batches)
        assert found.metrics["nats"] == pytest.approx(expected / total, rel=1e-5)
        assert found.n_examples == total
        assert found.parts.sum() == pytest.approx(expected, rel=1e-5)
    assert "calibration: the first 2 sequences, 32 tokens; report: 4 sequences, 58 tokens" in task.note
    assert "few data: 32 tokens to calibrate on are 1.3 for each of a layer's 24 inputs" in task.note


def test_a_paired_error_by_rows(llama):
    task, _ = llama
    other = {name: array * 1.01 for name, array in task.params.items()}
    before, after = (score_on(task, params, task.test) for params in (task.params, other))
    rows = before.parts.shape[0]
    assert rows == sum(len(batch["tokens"]) for batch in task.test) != before.n_examples
    error = paired_error(before.parts, after.parts, before.n_examples)
    assert 0 < error < 1


def test_an_encoder_is_compared_with_itself(tmp_path):
    rest = {
        "pooler.dense.weight": np.random.default_rng(5).normal(size=(16, 16)).astype(np.float32),
        "pooler.dense.bias": np.zeros(16, np.float32),
        "embeddings.position_ids": np.arange(16)[None],
    }
    folder = tiny_folder.write(tmp_path / "bert", BERT, tiny_folder.weights(BERT) | rest, end=True)
    (tmp_path / "t.txt").write_text(tiny_folder.text(30) + "\n" + "w1 " * 40)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    task = folder_task(folder, tmp_path / "t.txt")
    assert "the folder's pooling is not the mean over tokens" in task.note
    assert task.metric == "cosine" and set(task.params) == pretrained(BERT).names
    found = score_on(task, task.params, task.test)
    assert found.metrics["cosine"] == pytest.approx(1, abs=1e-5)
    assert found.n_examples + score_on(task, task.params, task.calibration).n_examples == 31
    assert "1 lines have more than 16 tokens and were cut" in task.note
    changed = {
        name: array + 0.02 * np.sin(np.arange(array.size, dtype=np.float32)).reshape(array.shape)
        for name, array in task.params.items()
    }
    assert 0.5 < score_on(task, changed, task.test).metrics["cosine"] < 0.9999
    # What the embeddings do not use is in the file all the same.
    assert "not used by the network, stored with a relative error of at most 5 %: pooler.dense.weight" in task.note
    assert "not used by the network, stored as it was (int64): embeddings.position_ids" in task.note
    task.storage.save(tmp_path / "b.bq", task.params, coder="raw")
    assert task.storage.load(tmp_path / "b.bq", task.params).keys() == task.params.keys()
    kinds = {leaf.name: leaf.kind for leaf in codec.inspect(tmp_path / "b.bq").leaves}
    assert kinds["pooler.dense.weight"] != "array" and kinds["embeddings.position_ids"] == "array"
    write_folder(tmp_path / "b.bq", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == json.dumps(BERT)
    weights = sum(x.size for name, x in (tiny_folder.weights(BERT) | rest).items() if name != "embeddings.position_ids")
    assert task.storage.n_weights(task.params) == weights
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert len(task.storage.original(task.params)) == size


@pytest.mark.parametrize("tie", [True, False])
def test_equal_tensors_are_one_parameter(tie, tmp_path):
    """Whether the config says so, or the bytes do."""
    tensors = tiny_folder.weights(LLAMA)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    folder = tiny_folder.write(tmp_path / "m", LLAMA | {"tie_word_embeddings": tie}, tensors)
    (tmp_path / "t.txt").write_text(tiny_folder.text(12))
    task = folder_task(folder, tmp_path / "t.txt")
    assert "lm_head.weight" not in task.params
    assert "tied: lm_head.weight is model.embed_tokens.weight" in task.note
    # A change of the parameter is one of both.
    changed = task.params | {"model.embed_tokens.weight": 1.3 * task.params["model.embed_tokens.weight"]}
    both = tensors | dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), 1.3 * tensors["model.embed_tokens.weight"])
    network = pretrained(LLAMA | {"tie_word_embeddings": tie}, list(tensors))
    batch = task.test[0]
    np.testing.assert_allclose(task.score(changed, batch)[0]["nats"], network.score(both, batch)[0]["nats"], rtol=1e-5)
    task.storage.save(tmp_path / "m.bq", changed, coder="raw")
    assert {leaf.name: leaf.same_as for leaf in codec.inspect(tmp_path / "m.bq").leaves if leaf.same_as} == {
        "model.embed_tokens.weight": "lm_head.weight"  # in the order of the folder's file
    }
    loaded = codec.load(tmp_path / "m.bq")
    assert loaded["lm_head.weight"] is loaded["model.embed_tokens.weight"]


def refused(folder, text, what):
    with pytest.raises(ValueError, match=what):
        folder_task(folder, text)


def test_folders_that_are_no_use(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text(tiny_folder.text(12))
    folder = tiny_folder.write(tmp_path / "m", LLAMA)
    refused(folder / "model.safetensors", text, "is no folder: --text takes the folder of a model")
    config = folder / "config.json"
    for content, what in (
        (LLAMA | {"model_type": "mamba"}, r"model_type is 'mamba'; known are bert, .*Without --text its weights are compressed"),
        (LLAMA | {"vocab_size": 40}, r"'model.embed_tokens.weight' has shape \(32, 16\), by the config it has \(40, 16\)"),
        (LLAMA | {"num_hidden_layers": 2}, r"lacks 9 tensors that its config asks for: model.layers.1"),
        (LLAMA | {"hidden_act": "prelu"}, r"hidden_act 'prelu' is not known"),
        ([], "is no JSON object"),
    ):
        config.write_text(json.dumps(content))
        refused(folder, text, what)
    config.write_text("{")
    refused(folder, text, "config.json is no JSON")
    config.unlink()
    refused(folder, text, "has no config.json, which says what network its weights are of. Without --text")
    config.write_text(json.dumps(LLAMA))
    save_file(tiny_folder.weights(LLAMA) | {"adapter.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    refused(folder, text, "has 1 tensors that its model type has no place for: adapter.weight")
    save_file(tiny_folder.weights(LLAMA), folder / "model.safetensors")
    tiny_folder.tokenizer(words=[f"w{i}" for i in range(40)]).save(str(folder / "tokenizer.json"))
    text.write_text(tiny_folder.text(12) + " w39")
    refused(folder, text, r"gives token 43 \('w39'\), the network knows 32 tokens")


def test_a_text_that_is_too_short(llama, tmp_path):
    _, folder = llama
    (tmp_path / "t.txt").write_text(tiny_folder.text(3))
    refused(folder / "model", tmp_path / "t.txt", "t.txt has 23 tokens, fewer than two sequences of 16")
    bert = tiny_folder.write(tmp_path / "bert", BERT, end=True)
    (tmp_path / "t.txt").write_text("w1\n" * 50 + "w2\nw3\n")
    refused(bert, tmp_path / "t.txt", "t.txt has 3 different lines, at least 8 are needed: write a sentence a line")


def test_a_batch_is_no_larger_than_its_logits(llama, monkeypatch):
    task, folder = llama
    monkeypatch.setattr(module, "_LOGITS", 3 * 16 * 32)
    small = folder_task(folder / "model", folder / "t.txt")
    assert isinstance(small, Task)
    assert {batch["tokens"].shape for batch in small.test} == {(3, 16)}
    assert {batch["tokens"].shape for batch in task.test} == {(4, 16)}
    assert not small.test[-1]["mask"][-1].any()  # padding, which counts for nothing
