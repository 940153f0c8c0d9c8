"""Experiments: rows are those of single runs, kept rows are not run again, failures stay where they are."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from tiny import before, tiny_task

from bqjax import codec
from bqjax.experiment import Experiment, pareto_front, run, run_row
from bqjax.methods import Compressed, GaussianBins, KMeans

ran = []


@dataclass(frozen=True, kw_only=True)
class Counting:
    """k-means that tells when it runs, and fails where it is told to."""

    k: int = 2
    fail: str | None = None
    label: str = "counting"

    def compress(self, task, *, key, state_path=None, progress=None):
        ran.append(self.label)
        if self.fail == "interrupt":
            raise KeyboardInterrupt
        if self.fail:
            raise RuntimeError(self.fail)
        return KMeans(k=self.k).compress(task, key=key)


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@functools.cache
def one_task():
    """One object for all tests, so that it is compiled once."""
    return tiny_task()


def config(*methods, **changes):
    return Experiment(task=tiny_task, methods=methods, **changes)


ONE, TWO = Counting(k=2, label="one"), Counting(k=4, label="t/w:o & <three>")


def test_rows_are_those_of_single_runs(tmp_path):
    methods = (ONE, GaussianBins(bins=3, label="bins, 3"))
    found = run(config(*methods), tmp_path, task=one_task())
    assert not found.failed and [e.label for e in found.entries] == ["one", "bins, 3"]
    for method, entry in zip(methods, found.entries, strict=True):
        alone = run_row(one_task(), method, tmp_path / "alone", before(), key=jax.random.key(0), force=True).row
        assert dataclasses.replace(entry.row, seconds=0) == dataclasses.replace(
            alone, seconds=0, file_bytes=entry.row.file_bytes, ratio=entry.row.ratio, bits_per_weight=entry.row.bits_per_weight
        )
        path = tmp_path / entry.file
        # The file of a row stays, and tells what it is.
        assert path.stat().st_size == entry.row.file_bytes
        assert codec.inspect(path).metadata == {"task": tiny_task().name, "method": method.label}
    assert found.before.test == before().test
    np.testing.assert_array_equal(found.before.predictions, before().predictions)


def test_what_is_done_is_not_run_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(config(ONE, TWO, Counting(fail="interrupt", label="stop"), Counting(label="last")), tmp_path, task=one_task())
    assert ran == ["one", TWO.label, "stop"]
    ran.clear()
    found = run(config(ONE, TWO, Counting(label="stop"), Counting(label="last")), tmp_path, task=one_task())
    assert ran == ["stop", "last"]
    assert [e.kept for e in found.entries] == [True, True, False, False]
    ran.clear()
    again = run(config(Counting(label="last"), ONE), tmp_path, task=one_task())
    assert ran == [] and again.rows == [found.rows[3], found.rows[0]]
    run(config(ONE), tmp_path, task=one_task(), force=True)
    assert ran == ["one"]


@pytest.mark.parametrize("changed", ["setting", "seed", "coder", "data", "parameters"])
def test_a_row_of_anything_else_is_run(changed, tmp_path):
    run(config(ONE), tmp_path, task=one_task())
    ran.clear()
    method, changes, task = ONE, {}, one_task()
    if changed == "setting":
        method = dataclasses.replace(ONE, k=3)
    elif changed in ("seed", "coder"):
        changes = {"seed": 1} if changed == "seed" else {"coder": "raw"}
    elif changed == "data":
        task = tiny_task(calibration=one_task().test)
    else:
        task = tiny_task(params=jax.tree.map(lambda x: x * np.float32(1.5), one_task().params))
    run(config(method, **changes), tmp_path, task=task)
    assert ran == ["one"]


def _cut(record, compressed):
    record.write_bytes(record.read_bytes()[:-20])


def _file_cut(record, compressed):
    compressed.write_bytes(compressed.read_bytes()[:-1])


def _file_gone(record, compressed):
    compressed.unlink()


def _edited(record, compressed):
    content = json.loads(record.read_text())
    content["row"]["after"] = "0.99"
    record.write_text(json.dumps(content))


def _short(record, compressed):
    content = json.loads(record.read_text())
    del content["row"]["ratio"]
    record.write_text(json.dumps(content))


def _no_object(record, compressed):
    record.write_text("[1]")


@pytest.mark.parametrize("distortion", [_cut, _file_cut, _file_gone, _edited, _short, _no_object])
def test_what_is_half_written_is_done_again(distortion, tmp_path):
    whole = run(config(ONE), tmp_path, task=one_task())
    ((record,), (compressed,)) = (list(tmp_path.glob(f"*.{ending}")) for ending in ("json", "bq.safetensors"))
    ran.clear()
    distortion(record, compressed)
    again = run(config(ONE), tmp_path, task=one_task())
    assert ran == ["one"]
    assert dataclasses.replace(again.rows[0], seconds=0) == dataclasses.replace(whole.rows[0], seconds=0)
    assert again.entries[0].sha256 == whole.entries[0].sha256


def test_a_failure_costs_its_own_row(tmp_path):
    found = run(config(Counting(fail="no\n  luck", label="bad"), ONE), tmp_path, task=one_task())
    bad, good = found.entries
    assert bad.row is None and bad.file is None and bad.error == "RuntimeError: no luck"
    assert good.row is not None and found.failed == [bad] and found.rows == [good.row]
    (details,) = tmp_path.glob("*.error.txt")
    assert "Traceback" in details.read_text() and 'RuntimeError("no' not in details.name
    ran.clear()
    # Tried again, and once it succeeds its error is gone.
    run(config(Counting(fail="no\n  luck", label="bad"), ONE), tmp_path, task=one_task())
    assert ran == ["bad"] and list(tmp_path.glob("*.error.txt"))


def test_methods_without_a_lasting_name_are_always_run(tmp_path):
    class Plain:
        label = "plain"

        def compress(self, task, **_):
            ran.append("plain")
            return Compressed(task.params)

    for _ in range(2):
        found = run(config(Plain()), tmp_path, task=one_task())
        assert not found.entries[0].kept and found.rows[0].difference == 0
    assert ran == ["plain", "plain"]
    assert len(list(tmp_path.glob("*.bq.safetensors"))) == 1 and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ((), "the experiment has no methods"),
        ((KMeans(k=2), KMeans(k=3)), "two methods are labelled 'k-means': give one of them another label="),
        ((KMeans(label=" "),), "a method's label is empty"),
    ],
)
def test_configs_that_cannot_work(methods, message):
    with pytest.raises(ValueError, match=message):
        config(*methods)


def test_methods_by_label_and_pattern():
    whole = config(ONE, KMeans(k=2, label="k, 2"), KMeans(k=3, label="k, 3 [x]"))
    assert whole.only(()) is whole
    assert [m.label for m in whole.only(["k, *"]).methods] == ["k, 2", "k, 3 [x]"]
    assert [m.label for m in whole.only(["k, 3 [x]", "one"]).methods] == ["one", "k, 3 [x]"]
    with pytest.raises(ValueError, match="no method is labelled 'two', only 'one', 'k, 2', "):
        whole.only(["one", "two"])


def test_the_front_against_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = [(float(b), float(v)) for b, v in rng.integers(0, 6, (8, 2))]
        front = pareto_front(points)

        def beaten(i, points=points):
            (b, v) = points[i]
            return any((x <= b and y >= v) and ((x, y) != (b, v) or j < i) for j, (x, y) in enumerate(points) if j != i)

        assert sorted(front) == [i for i in range(8) if not beaten(i)]
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
