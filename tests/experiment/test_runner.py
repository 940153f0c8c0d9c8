"""Figures of a row, against NumPy and the file itself, on a network that is made without training."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import zstandard
from tiny import KEY, N_CALIBRATION, N_TEST, SEARCH, before, data, forward, params, searched, tiny_task

from bqjax import codec, decode
from bqjax.codec.plain import float_file
from bqjax.core.agreement import agreement_task
from bqjax.core.classification import classification_predict
from bqjax.core.leaves import Clustered
from bqjax.experiment import reference, run_row
from bqjax.experiment.storage import same_tree
from bqjax.methods import Compressed, GaussianBins, KMeans


def by_hand(p, start, stop):
    """Predictions and right answers in NumPy."""
    inputs, labels = data()
    guess = forward(jax.tree.map(np.asarray, p), inputs[start:stop], np).argmax(axis=1)
    return guess, guess == labels[start:stop]


def test_the_reference():
    ref = before()
    guess, right = by_hand(params(), 150, 360)
    assert ref.test["accuracy"] == pytest.approx(right.mean(), rel=1e-6)
    assert 0.7 < right.mean() < 0.99  # neither chance nor perfect, where differences could not show
    assert ref.calibration["accuracy"] == pytest.approx(by_hand(params(), 90, 150)[1].mean(), rel=1e-6)
    np.testing.assert_array_equal(ref.predictions, guess)
    np.testing.assert_array_equal(ref.parts, right)
    assert (ref.n_test, ref.n_calibration, ref.n_params) == (N_TEST, N_CALIBRATION, 6 * 20 + 20 + 20 * 3)
    p = params()
    flat = {"hidden/kernel": p["hidden"]["kernel"], "hidden/bias": p["hidden"]["bias"], "head/kernel": p["head"]["kernel"]}
    whole = safetensors.numpy.save(flat)
    assert ref.float_bytes == len(whole)
    assert ref.zstd_bytes == len(zstandard.ZstdCompressor(level=19).compress(whole))


def test_scalars_and_short_types_count_their_own_bytes():
    tree = {"scale": np.float32(2), "w": jnp.ones((3, 3), jnp.bfloat16)}
    read = {name: view["shape"] for name, view in safetensors.deserialize(float_file(tree))}
    assert read == {"scale": [], "w": [3, 3]}
    assert len(float_file({"w": jnp.ones((300, 3), jnp.bfloat16)})) < 2 * 900 + 100


@pytest.mark.parametrize("method", [GaussianBins(bins=3, label="three"), KMeans(k=2), SEARCH], ids=lambda m: m.label)
def test_every_figure_of_a_row(method, tmp_path):
    path, ref = tmp_path / "net.bq.safetensors", before()
    if method is SEARCH:
        (row, tree, info), data = searched()
        path.write_bytes(data)
    else:
        row, tree, info = run_row(tiny_task(), method, path, ref, key=KEY, metadata={"note": "x"})
    # From the file alone: nothing in memory is trusted.
    decoded = decode(codec.load(path))
    (guess, right), (guess_before, right_before) = by_hand(decoded, 150, 360), by_hand(params(), 150, 360)
    assert (row.method, row.before) == (method.label, ref.test["accuracy"])
    assert row.after == pytest.approx(right.mean(), rel=1e-6)
    assert row.difference == pytest.approx(right.mean() - right_before.mean(), abs=1e-7)
    assert row.agreement == pytest.approx((guess == guess_before).mean())
    assert row.agreement < 1  # else every figure above would be that of the original network
    assert row.calibration == pytest.approx(by_hand(decoded, 90, 150)[1].mean(), rel=1e-6)
    # Examples that became wrong and that became right, by McNemar's counts.
    lost, won = (right_before & ~right).sum(), (right & ~right_before).sum()
    mean = (won - lost) / N_TEST
    assert row.standard_error == pytest.approx(math.sqrt(((won + lost) / N_TEST - mean**2) / N_TEST))
    size = path.stat().st_size
    assert row.file_bytes == size
    assert row.ratio == pytest.approx(ref.float_bytes / size)
    assert row.bits_per_weight == pytest.approx(8 * size / 200)
    assert 0 <= row.seconds < 120
    assert same_tree(tree, codec.load(path))
    assert codec.inspect(path).metadata["note"] == "x"
    assert (info is None) == (method is not SEARCH)


def test_a_metric_where_lower_is_better(tmp_path):
    task = tiny_task(metric="-loss", predict=None)
    ref = reference(task)
    assert ref.predictions is None
    row = run_row(task, KMeans(k=2), tmp_path / "a", ref, key=KEY).row
    # Figures have the metric's own sign; the difference says that more loss is worse.
    assert row.after > row.before > 0
    assert row.difference == pytest.approx(row.before - row.after)
    assert row.standard_error is None and row.agreement is None

    # Errors a word, of which an example has more than one: the standard error is that of a ratio of sums.
    words, said = 3, task.score

    def score(params, batch):
        sums, count = said(params, batch)
        return {"errors": 2 * (count - sums["accuracy"]), "loss": sums["loss"]}, words * count

    def predict(params, batch):
        found = classification_predict(forward)(params, batch)
        return found._replace(sums={"errors": 2 * ~found.right})

    task = tiny_task(metric="-errors", score=score, predict=predict)
    ref = reference(task)
    row = run_row(task, KMeans(k=2), tmp_path / "b", ref, key=KEY).row
    changed = 2.0 * by_hand(params(), 150, 360)[1] - 2.0 * by_hand(decode(codec.load(tmp_path / "b")), 150, 360)[1]
    assert changed.any()
    assert row.difference == pytest.approx(-changed.mean() / words)
    assert row.standard_error == pytest.approx(changed.std() / math.sqrt(len(changed)) / words)


class Untouchable:
    label = "never runs"

    def compress(self, task, **_):
        raise AssertionError("compressed, though the file could not be written")


def test_an_existing_file_is_refused_before_anything_is_done(tmp_path):
    path = tmp_path / "net"
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists"):
        run_row(tiny_task(), Untouchable(), path, before(), key=KEY)
    assert path.read_bytes() == b"mine"
    run_row(tiny_task(), KMeans(k=2), path, before(), key=KEY, force=True)
    assert codec.inspect(path).leaves


def test_an_interrupted_search_goes_on_to_the_same_file(tmp_path):
    def stop(done, total, message):
        if done >= 1:
            raise InterruptedError(message)

    state = tmp_path / "state.jsonl"
    with pytest.raises(InterruptedError):
        run_row(tiny_task(), SEARCH, tmp_path / "a", before(), key=KEY, state_path=str(state), progress=stop)
    assert not (tmp_path / "a").exists()
    assert len(state.read_bytes().splitlines()) > 3
    resumed = run_row(tiny_task(), SEARCH, tmp_path / "a", before(), key=KEY, state_path=str(state), metadata={"note": "x"})
    fresh, data = searched()
    assert 0 < resumed.info.n_resumed < resumed.info.n_scores == fresh.info.n_scores
    assert fresh.info.n_resumed == 0
    assert (tmp_path / "a").read_bytes() == data
    assert same_tree(resumed.tree, fresh.tree)


def test_a_file_that_decodes_to_something_else_is_an_error(tmp_path, monkeypatch):
    load = codec.load
    # The lowest bit of one value.
    flip = lambda tree: {**tree, "hidden": {**tree["hidden"], "bias": np.nextafter(tree["hidden"]["bias"], 9)}}  # noqa: E731
    monkeypatch.setattr(codec, "load", lambda path, like=None: flip(load(path, like)))
    with pytest.raises(RuntimeError, match="does not decode to the tree that was written"):
        run_row(tiny_task(), KMeans(k=2), tmp_path / "net", before(), key=KEY)


class Values:
    """Files that keep values only, and what was given to them."""

    original_name = "the values"

    def original(self, params):
        return b"0" * 1000

    def n_weights(self, params):
        return 50

    def save(self, path, tree, *, info=None, coder="auto", force=False, metadata=None):
        self.given = info, coder, dict(metadata)
        codec.save(path, decode(tree), force=force)

    def load(self, path, like):
        return codec.load(path)


def test_a_task_brings_its_own_file_format(tmp_path):
    storage = Values()
    task = tiny_task(storage=storage)
    ref = reference(task)
    assert (ref.float_bytes, ref.n_params, ref.original_name) == (1000, 50, "the values") and ref.zstd_bytes < 40
    row, tree, _ = run_row(task, KMeans(k=2), tmp_path / "net", ref, key=KEY, coder="ans", metadata={"note": "x"})
    assert storage.given == (None, "ans", {"task": task.name, "method": "k-means", "note": "x"})
    size = (tmp_path / "net").stat().st_size
    assert (row.ratio, row.bits_per_weight) == (pytest.approx(1000 / size), pytest.approx(8 * size / 50))
    assert len(np.unique(tree["head"]["kernel"])) == 2


def test_agreement_in_place_of_labels(tmp_path):
    """Methods see what the network says, on counted examples; rows are scored against the labels."""
    seen = []

    class Looking:
        label = "looking"

        def compress(self, task, **_):
            seen.extend(task.calibration)
            return Compressed(task.params)

    wrong = [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in tiny_task().calibration]
    task = tiny_task(calibration=wrong, agreement=True)
    ref = reference(task)
    row = run_row(task, Looking(), tmp_path / "net", ref, key=KEY).row
    guess = by_hand(params(), 90, 150)[0]
    counted = np.concatenate([np.asarray(batch["mask"]) for batch in seen]) != 0
    labels = np.concatenate([batch["labels"] for batch in seen])
    np.testing.assert_array_equal(labels[counted], guess)
    assert not labels[~counted].any() and not counted.all() and labels.dtype == np.int32
    assert row.calibration == ref.calibration["accuracy"] == pytest.approx((guess == (data()[1][90:150] + 1) % 3).mean())
    assert agreement_task(task) is agreement_task(task) and agreement_task(tiny_task()).calibration is not wrong
    with pytest.raises(ValueError, match="has no predict, which agreement is taken from"):
        tiny_task(agreement=True, predict=None)
    with pytest.raises(ValueError, match="agreement needs predict, and batches with 'labels'"):
        agreement_task(tiny_task(agreement=True, calibration=[(1, 2)]))


def leaf(indices=(0, 1, 1, 0), codebook=(0.5, 1.5), **changes):
    values = {"shape": (2, 2), "dtype": np.float32, **changes}
    return Clustered(np.array(indices, np.uint8), np.array(codebook, np.float32)[:, None], **values)


@pytest.mark.parametrize(
    "other",
    [
        {"w": leaf((0, 1, 1, 1)), "b": np.float32([0.0, np.nan])},
        {"w": leaf(codebook=(0.5, np.nextafter(np.float32(1.5), np.float32(2)))), "b": np.float32([0.0, np.nan])},
        {"w": leaf(axis_order=(1, 0)), "b": np.float32([0.0, np.nan])},
        {"w": leaf(group="g"), "b": np.float32([0.0, np.nan])},
        {"w": leaf(dtype=np.float16), "b": np.float32([0.0, np.nan])},
        {"w": leaf(), "b": np.float32([-0.0, np.nan])},
        {"w": leaf(), "b": np.float64([0.0, np.nan])},
        {"w": leaf(), "b": np.float32([[0.0, np.nan]])},
        {"w": leaf(), "c": np.float32([0.0, np.nan])},
        {"w": np.zeros((2, 2), np.float32), "b": np.float32([0.0, np.nan])},
    ],
    ids=["index", "codebook", "axis order", "group", "dtype decoded", "sign of zero", "dtype", "shape", "name", "kind"],
)
def test_a_single_changed_bit_makes_another_tree(other):
    tree = {"w": leaf(), "b": np.float32([0.0, np.nan])}
    # NaN is the same as itself, and a JAX array the same as its NumPy values.
    assert same_tree(tree, {"w": leaf(), "b": jnp.float32([0.0, np.nan])})
    assert not same_tree(tree, other)


def test_the_temporary_files_are_gone(tmp_path):
    run_row(tiny_task(), KMeans(k=2), tmp_path / "net", before(), key=KEY)
    assert [p.name for p in Path(tmp_path).iterdir()] == ["net"]
