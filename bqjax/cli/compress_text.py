"""What ``bqjax compress FOLDER --text FILE`` does: a transformer's folder, calibrated and reported on a text."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bqjax.cli.compress import Outputs, compress_experiment
from bqjax.cli.compress_budget import Budget
from bqjax.experiment import Experiment
from bqjax.methods.rate_distortion import RateDistortion

__all__ = ["compress_text"]


def compress_text(folder: Path, text: Path, outputs: Outputs, budget: Budget, console: Console) -> None:
    """Compresses a folder at one lmbda for all tensors, to a size or within a drop on the first part of the text.

    Args:
      folder: of a model whose type is known, see :func:`bqjax.models.transformer.folder_task.folder_task`.
      text: to calibrate on, and to report on.
      outputs: what is written.
      budget: its drop is in the metric itself: nats a token, or the cosine of embeddings.
      console: shows tables and progress.
    """
    from bqjax.models.transformer.folder_task import folder_task  # with Flax, which other commands do without

    method = RateDistortion(
        target_bytes=budget.target_bytes,
        max_drop=budget.max_drop,
        confidence=budget.confidence,
        label=budget.label("rate-distortion"),
    )
    experiment = Experiment(task=lambda data_dir, progress: folder_task(folder, text), methods=(method,))
    compress_experiment(experiment, None, outputs, console)
    size = outputs.out.stat().st_size
    if budget.target_bytes is not None and size > budget.target_bytes:
        raise RuntimeError(f"{outputs.out} has {size:,} bytes, where {budget.target_bytes:,} were asked for")
