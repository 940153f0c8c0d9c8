"""Rows side by side on several devices: the numbers of one row after the other, each row on a device of its own."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest
from tiny import SEARCH, tiny_task

from bqjax.experiment import Experiment, run
from bqjax.methods import GaussianBins, KMeans

BOTH = threading.Barrier(2)
devices: dict[str, int] = {}


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """k-means that waits for another row, and tells the device that it runs on."""

    label: str

    def compress(self, task, *, key, state_path=None, progress=None):
        BOTH.wait(timeout=60)
        devices[self.label] = jax.jit(lambda x: x + 1)(task.params["hidden"]["bias"]).device.id
        return KMeans(k=2).compress(task, key=key)


@dataclass(frozen=True, kw_only=True)
class Failing:
    label: str = "failing"

    def compress(self, task, *, key, state_path=None, progress=None):
        raise RuntimeError("no luck")


# The two searches share measurements, so that they are one after the other.
METHODS = (SEARCH, dataclasses.replace(SEARCH, label="B&Q again"), Failing(), GaussianBins(bins=3))


def rows(found):
    return [None if e.row is None else {**dataclasses.asdict(e.row), "seconds": 0, "sha256": e.sha256} for e in found.entries]


def side_by_side(folder="rows"):
    config = Experiment(task=tiny_task, methods=(Meeting(label="a"), Meeting(label="b"), *METHODS))
    found = run(config, Path(folder), devices=jax.devices())
    searches = len(list((Path(folder) / "search").glob("*.jsonl")))
    return {"labels": [e.label for e in found.entries], "rows": rows(found), "devices": devices, "searches": searches}


@pytest.mark.slow
def test_rows_side_by_side_are_those_of_one_after_the_other(tmp_path, on_four_devices):
    found = on_four_devices("rows")
    assert found["labels"] == ["a", "b", *(m.label for m in METHODS)]
    assert len(set(found["devices"].values())) == 2
    alone = run(Experiment(task=tiny_task, methods=METHODS), tmp_path / "alone")
    assert found["rows"][2:] == rows(alone) and found["rows"][4] is None
    # What failed keeps the searches' measurements for the next try.
    assert found["searches"] == 1


def test_no_devices(tmp_path):
    with pytest.raises(ValueError, match="no devices to run rows on"):
        run(Experiment(task=tiny_task, methods=METHODS), tmp_path, devices=())
