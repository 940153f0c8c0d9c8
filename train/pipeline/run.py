"""Several trainings that start from and learn from one another, and a ledger of what each stage's files weigh and lose.

Every stage is a run of :mod:`train.image.loop` in a folder of its own, from the file that an earlier stage wrote. The rows of the
ledger are those of :func:`bqjax.experiment.run`, compared with one stage's float network.
Killed and started again, a pipeline goes on where it was.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import batches, classification_outputs, classification_predict, classification_score
from bqjax.core.progress import Progress
from bqjax.experiment import Entry, Experiment, Reference, reference
from bqjax.experiment import run as run_experiment
from bqjax.methods import Method
from train.checkpoint import checked_config
from train.data.source import Source
from train.image.config import TrainConfig
from train.image.loop import run
from train.image.problems import Problem, float_network, problem
from train.methods.retrain import TrainingTask
from train.pipeline.ledger import Ledger, write_ledger

__all__ = ["PipelineConfig", "Stage", "run_pipeline", "stage_config"]

EVALUATION_BATCH_SIZE = 500
NETWORK = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training, and the methods that its network is compressed by afterwards.

    Attributes:
      name: of the stage, in the ledger and, with dashes, of its folder.
      train: the training: of a float phase only. Its seed, ``initial`` and ``teacher`` are set by the pipeline.
      start: the earlier stage whose network it starts from; None starts from random weights.
      teacher: the earlier stage whose network teaches it (``train.distillation`` says how much); None for none.
      methods: one row of the ledger each; labels must differ.
    """

    name: str
    train: TrainConfig
    start: str | None = None
    teacher: str | None = None
    methods: Sequence[Method] = ()

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A pipeline of ``python -m train``.

    Attributes:
      stages: in order.
      compare_with: name of the stage whose float network the rows of the ledger are compared with; None is the first that has
        methods.
      seeds: all of it is done once for each.
      train_examples: as in :class:`train.image.config.TrainConfig`, for all stages; for trying things.

    Raises:
      ValueError: there are no stages or no seeds, names that repeat or name no earlier stage, stages on different data that are
        compared with each other, or trainings of other phases than the float one.
    """

    stages: Sequence[Stage]
    compare_with: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    train_examples: int | None = None

    def __post_init__(self) -> None:
        if not self.stages or not self.seeds:
            raise ValueError("a pipeline needs stages and seeds, at least one of each")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        if self.compare_with is not None and self.compare_with not in [stage.name for stage in self.stages]:
            raise ValueError(f"compare_with names {self.compare_with!r}, the stages are {[stage.name for stage in self.stages]}")
        earlier: dict[str, Stage] = {}
        for stage in self.stages:
            if not stage.folder or stage.folder in {s.folder for s in earlier.values()}:
                raise ValueError(f"stage {stage.name!r} needs a name of letters and digits that no other stage has")
            for what in ("start", "teacher"):
                other = getattr(stage, what)
                if other is not None and other not in earlier:
                    raise ValueError(f"stage {stage.name!r}: {what} names {other!r}, the stages before it are {list(earlier)}")
            if stage.train.epochs or stage.train.gwk or not stage.train.float_epochs:
                raise ValueError(f"stage {stage.name!r} must have float_epochs only: a pipeline ends in methods, not in phases")
            if stage.train.initial or stage.train.teacher or stage.train.weights:
                raise ValueError(
                    f"stage {stage.name!r}: start and teacher of the stage say what train.initial, teacher or weights say"
                )
            if stage.methods and stage.train.dataset != self.reference.train.dataset:
                raise ValueError(
                    f"stage {stage.name!r} is on {stage.train.dataset} and cannot be compared with {self.reference.name!r} on "
                    f"{self.reference.train.dataset}: rows need one data set"
                )
            labels = [method.label for method in stage.methods]
            if len(set(labels)) < len(labels):
                raise ValueError(f"stage {stage.name!r} has two methods of one label: {labels}")
            earlier[stage.name] = stage

    @property
    def reference(self) -> Stage:
        """What all rows are compared with."""
        if self.compare_with is not None:
            return next(stage for stage in self.stages if stage.name == self.compare_with)
        return next((stage for stage in self.stages if stage.methods), self.stages[0])


def stage_config(config: PipelineConfig, stage: Stage, seed: int, out: Path) -> TrainConfig:
    """The training of a stage with what the pipeline sets.

    Args:
      config: of the pipeline.
      stage: of it.
      seed: of the pass.
      out: folder of the pass, which the stages' folders are in.
    """
    folders = {s.name: out / s.folder for s in config.stages}
    models = {s.name: s.train.model for s in config.stages}
    own = dataclasses.replace(stage.train, seed=seed, train_examples=config.train_examples or stage.train.train_examples)
    if stage.start is not None:
        own = dataclasses.replace(own, initial=str(folders[stage.start] / NETWORK))
    if stage.teacher is not None:
        teacher = {"teacher": str(folders[stage.teacher] / NETWORK), "teacher_model": models[stage.teacher]}
        own = dataclasses.replace(own, **teacher)  # type: ignore[arg-type]
    return own


def run_pipeline(
    config: PipelineConfig,
    out: Path,
    data_dir: Path | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains all stages for all seeds, compresses their networks, and writes the ledger.

    Args:
      config: of the pipeline.
      out: folder: ``seed0/STAGE/`` holds each training (see :func:`train.image.loop.run`) and in ``rows/`` the files of its rows;
        ``ledger.md``, ``.csv`` and ``.json`` the ledger of the seeds that are done.
      data_dir: folder of the data.
      progress: called as ``progress(step, total, message)``.
      say: called with one line after each epoch and each row.

    Returns:
      Accuracy on the test data of each row, the mean over the seeds, by ``"STAGE, METHOD"``.

    Raises:
      ValueError: data are missing or damaged; a folder holds a run of another config; a method failed (all other rows are
        written, and the same call tries it again).
    """
    ledgers: list[Ledger] = []
    for seed in config.seeds:
        folder = out / f"seed{seed}"
        for stage in config.stages:
            own = stage_config(config, stage, seed, folder)
            if (folder / stage.folder / NETWORK).is_file():  # which is written when everything else is
                checked_config(folder / stage.folder, own)
                continue
            say(f"seed {seed}, {stage.name}")
            figures = run(own, folder / stage.folder, data_dir, progress=progress, say=say)
            say(f"seed {seed}, {stage.name}: {figures['float accuracy']:.2%} on the test data")
        ledgers.append(_compressed(config, seed, folder, data_dir, progress, say))
        table = write_ledger(out, ledgers)
    say(table)
    every = [(ledger.seed, name, entry) for ledger in ledgers for name, entry in ledger.entries]
    failed = [f"seed {seed}, {name}, {entry.label}: {entry.error}" for seed, name, entry in every if entry.error]
    if failed:
        raise ValueError(
            f"{len(failed)} rows failed, all others are written; the same command tries these again: {'; '.join(failed)}"
        )
    rows: dict[str, list[float]] = {}
    for _, name, entry in every:
        if entry.row is not None:
            rows.setdefault(f"{name}, {entry.label}", []).append(entry.row.after)
    return {label: sum(values) / len(values) for label, values in rows.items()}


def _compressed(
    config: PipelineConfig,
    seed: int,
    folder: Path,
    data_dir: Path | None,
    progress: Progress | None,
    say: Callable[[str], None],
) -> Ledger:
    """The rows of all stages of one seed."""
    first = stage_config(config, config.reference, seed, folder)
    data = problem(first, data_dir)
    before: Reference | None = None
    entries: list[tuple[str, Entry]] = []
    for stage in (config.reference, *(s for s in config.stages if s is not config.reference)):
        if not stage.methods and before is not None:
            continue
        own = stage_config(config, stage, seed, folder)
        model = float_network(dataclasses.replace(own, initial=str(folder / stage.folder / NETWORK), anew=()), data_dir)
        task = _task(f"{stage.name}, seed {seed}", model, data, own.dataset)
        before = before or reference(task)
        if not stage.methods:
            continue
        experiment = Experiment(task=lambda data_dir, progress, task=task: task, methods=stage.methods, seed=seed)  # type: ignore[misc]
        found = run_experiment(experiment, folder / stage.folder / "rows", task=task, before=before)
        for entry in found.entries:
            entries.append((stage.name, entry))
            if not entry.kept:
                what = f"{entry.row.file_bytes:,} bytes, {entry.row.after:.2%}" if entry.row else f"failed: {entry.error}"
                say(f"seed {seed}, {stage.name}, {entry.label}: {what}")
    if before is None:
        raise RuntimeError("a pipeline without stages")
    order = {stage.name: i for i, stage in enumerate(config.stages)}
    return Ledger(seed, before, tuple(sorted(entries, key=lambda pair: order[pair[0]])))


def _task(name: str, model: nnx.Module, data: Problem, dataset: str) -> TrainingTask:
    apply = nnx_apply(model)

    def cut(source: Source) -> list[Any]:
        images, labels = source.batch(np.arange(len(source)))
        return batches(data.inputs(jnp.asarray(images)), labels, min(EVALUATION_BATCH_SIZE, len(labels)))

    return TrainingTask(
        name=name,
        data=data,
        params=nnx_params(model),
        score=classification_score(apply),
        predict=classification_predict(apply),
        outputs=classification_outputs(apply),
        calibration=cut(data.validation),
        test=cut(data.test),
        calibration_name=f"{len(data.validation):,} held-out training images of {dataset}",
        test_name=f"{len(data.test):,} test images of {dataset}",
    )
