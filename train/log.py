"""What a run says of itself: a line of JSON an epoch, the same for TensorBoard, and curves as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from bqjax.core.files import atomic_write
from bqjax.quantizers import REASONS

__all__ = ["MetricsLog", "describe_deltas", "draw_curves", "read_metrics"]

_NAME = "metrics.jsonl"


class MetricsLog:
    """The epochs of one phase, in ``metrics.jsonl`` of the run and as TensorBoard's events in ``tensorboard/PHASE``.

    The second is written where the package tensorboardX is installed. Of several processes the first writes.

    Args:
      folder: of the run.
      phase: name of the phase.
      done: how many of its epochs are in checkpoints; lines beyond them, of epochs that are done again, are dropped.
    """

    def __init__(self, folder: Path, phase: str, done: int):
        self._path, self._phase, self._events = folder / _NAME, phase, None
        if jax.process_index() != 0:
            return
        if self._path.is_file():
            kept = [r for r in read_metrics(folder) if r["phase"] != phase or r["epoch"] <= done]
            with atomic_write(self._path, force=True) as file:
                file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError:
            return
        self._events = SummaryWriter(str(folder / "tensorboard" / phase), purge_step=done + 1)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds an epoch, counted from 1."""
        if jax.process_index() != 0:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"phase": self._phase, "epoch": epoch, **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Writes what is held back."""
        if self._events is not None:
            self._events.close()


def describe_deltas(deltas: Mapping[str, Any], reasons: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """What is logged of EWGS's gradient scales, measured by name of layer; a guard is named with its layers.

    >>> describe_deltas({"a": 0.5, "b": 0.0}, {"a": 0, "b": 1})
    ({'delta': 0.25, 'delta_guarded': 1.0}, 'delta 0 to 0.5, median 0.25; negative trace: delta is 0 (b)')
    """
    values = [float(value) for value in deltas.values()]
    met: dict[int, list[str]] = {}
    for name, reason in reasons.items():
        met.setdefault(int(reason), []).append(name)
    guards = "".join(f"; {REASONS[i]} ({', '.join(met[i])})" for i in sorted(met) if i)
    guarded = float(sum(len(names) for i, names in met.items() if i))
    line = f"delta {min(values):.4g} to {max(values):.4g}, median {np.median(values):.4g}{guards}"
    return {"delta": float(np.median(values)), "delta_guarded": guarded}, line


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run in the order in which they were done; a line cut short when the run was killed is left out."""
    records = []
    for line in (folder / _NAME).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def draw_curves(folder: Path) -> None:
    """Draws loss and accuracy of all epochs of a run, training and validation, as ``curves.svg`` and ``curves.png``.

    In the form of arXiv 2210.05111, figure 8.
    """
    if jax.process_index() != 0:
        return
    records = read_metrics(folder)
    epochs = range(1, len(records) + 1)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, label in (("train_", "training"), ("", "validation")):
            axes.plot(epochs, [r[prefix + what] for r in records], marker=".", label=label)
        ends = [i for i in range(1, len(records)) if records[i]["phase"] != records[i - 1]["phase"]]
        for i in ends:
            axes.axvline(i + 0.5, color="#6b7280", linewidth=0.8)
        for i in (0, *ends) if records else ():
            axes.annotate(records[i]["phase"], (i + 1, 1.01), xycoords=("data", "axes fraction"), fontsize=8, color="#6b7280")
        axes.set(xlabel="epoch", ylabel=what)
        axes.legend(frameon=False)
    for kind in ("svg", "png"):
        with atomic_write(folder / f"curves.{kind}", force=True) as file:
            figure.savefig(file, format=kind, dpi=150)
