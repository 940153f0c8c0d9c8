"""The log of a run, as lines, as TensorBoard's events and as a picture."""

from __future__ import annotations

import pytest

from train.log import MetricsLog, draw_curves, read_metrics

VALUES = {"train_loss": 1.0, "train_accuracy": 0.5, "loss": 1.1, "accuracy": 0.4}


def test_epochs_that_are_done_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, "float", 0)
    for epoch in (1, 2, 3):
        log.write(epoch, VALUES)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "flo')  # killed
    MetricsLog(tmp_path, "gwk", 0).write(1, VALUES)
    MetricsLog(tmp_path, "float", 2).write(3, VALUES | {"loss": 0.9})
    found = [(r["phase"], r["epoch"], r["loss"]) for r in read_metrics(tmp_path)]
    assert found == [("float", 1, 1.1), ("float", 2, 1.1), ("gwk", 1, 1.1), ("float", 3, 0.9)]


def test_tensorboard_reads_it(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path, "float", 0)
    log.write(1, VALUES)
    log.write(2, VALUES | {"loss": 0.25})
    log.close()
    (events,) = (tmp_path / "tensorboard" / "float").iterdir()
    assert scalars(events.read_bytes())["loss"] == [(1, pytest.approx(1.1)), (2, 0.25)]


def scalars(data):
    """Values by name from TensorBoard's records: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    while data:
        n = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + n])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        data = data[16 + n :]
    return found


def test_curves(tmp_path):
    log = MetricsLog(tmp_path, "float", 0)
    for epoch in (1, 2):
        log.write(epoch, VALUES)
    MetricsLog(tmp_path, "gwk", 0).write(1, VALUES)
    draw_curves(tmp_path)
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
