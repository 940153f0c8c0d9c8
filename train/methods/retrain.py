"""Methods that train on, behind the interface of those that do not: the same epochs, optimiser and data for every scheme.

A row of a :class:`train.pipeline.run.PipelineConfig` is then a :class:`Retrained`: it starts from the stage's float network, sees
its training images in an order that depends on the seed alone, and learns from the network that it started from.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Clustered
from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves, replace
from bqjax.kmeans.codebooks import quantize_codebooks
from bqjax.methods.base import Compressed
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from train.data.augment import crop_and_flip
from train.fit import Measures, fit
from train.image.problems import Problem
from train.objective import adam_by_kind, check_objective, mean_loss
from train.schemes import Scheme
from train.step import Network, Objective, Training, start

__all__ = ["Phase", "RetrainConfig", "Retrained", "TrainingTask"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingTask(Task):
    """A task with data to train on.

    Attributes:
      data: the problem; its training examples are disjoint from those of calibration and test.
    """

    data: Problem


class Phase(NamedTuple):
    """A scheme and for how many epochs; with 0 the leaves are only stored as it stores them."""

    scheme: Scheme
    epochs: int


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """What is the same for all methods that are compared.

    Attributes:
      batch_size: examples a step.
      learning_rate: Adam's at the start of a phase, of weights and codebooks; it falls to 0 along a cosine within it.
      quantizer_learning_rate: that of intervals and output scales of EWGS, as its authors have it.
      weight_decay: added to gradients of weights as ``weight_decay * w``; codebooks and quantizers have none.
      distillation: share of the loss that compares with the float network it starts from.
      temperature: of both networks' outputs in that comparison.
    """

    batch_size: int = 64
    learning_rate: float = 1e-3
    quantizer_learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    distillation: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_objective(self)


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """A method of :mod:`bqjax.methods.bins.method` that trains on the training images of a :class:`TrainingTask`.

    Attributes:
      phases: schemes one after the other, each from where the last one ended, with an optimiser of its own.
      leaves: patterns of the leaves that the schemes take; all others train as they are.
      others: how other leaves of two or more dimensions are stored; None: as they are. Vectors always are.
      training: what is the same for all methods.
      label: of the row.

    The last phase's codebooks of blocks are stored with 8 bits a number.
    """

    phases: tuple[Phase, ...]
    leaves: tuple[str, ...] = ("*/kernel",)
    others: PTQConfig | None = field(default_factory=PTQConfig)
    training: RetrainConfig = field(default_factory=RetrainConfig)
    label: str = "retrained"

    def __post_init__(self) -> None:
        if not self.phases or any(epochs < 0 for _, epochs in self.phases):
            raise ValueError(f"{self.label}: there must be phases, and no phase of fewer than 0 epochs, got {self.phases}")

    def compress(
        self, task: Task, *, key: jax.Array, state_path: str | None = None, progress: Progress | None = None
    ) -> Compressed:
        """Trains from ``task.params`` and gives the leaves of the last scheme.

        Raises:
          ValueError: the task has no training data or no outputs; a pattern that matches no leaf; a batch that is larger than
            the data; training diverged.
        """
        if not isinstance(task, TrainingTask) or task.outputs is None:
            raise ValueError(
                f"{self.label}: task {task.name!r} has no data to train on: methods that train are rows of a stage of a "
                "PipelineConfig, python -m train --config"
            )
        if self.training.batch_size > len(task.data.train):
            raise ValueError(f"batch_size {self.training.batch_size} is larger than the {len(task.data.train)} training examples")
        leaves = named_leaves(task.params)
        chosen = [name for name in leaves if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.leaves)]
        for pattern in self.leaves:
            if not fnmatch.filter(leaves, pattern):
                raise ValueError(f"{self.label}: pattern {pattern!r} matches no leaf; the leaves are {', '.join(leaves)}")
        tree = {name: jnp.asarray(leaves[name]) for name in chosen}
        rest = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if name not in tree}
        steps = len(task.data.train) // self.training.batch_size
        total = steps * sum(phase.epochs for phase in self.phases)
        for i, phase in enumerate(self.phases):
            done = steps * sum(before.epochs for before in self.phases[:i])
            report = None if progress is None else partial(_report, progress, done, total)
            tree, rest = _train(task, self.training, phase, tree, rest, jax.random.fold_in(key, i), report)
        blocks = {name: leaf for name, leaf in tree.items() if isinstance(leaf, Clustered) and leaf.d > 1}
        kernels = {name: leaf for name, leaf in rest.items() if np.ndim(leaf) > 1}
        stored = {} if self.others is None or not kernels else quantize(kernels, config=self.others)
        return Compressed(replace(task.params, rest | stored | tree | (quantize_codebooks(blocks) if blocks else {})))


def _report(progress: Progress, before: int, total: int, step: int, _: int, message: str) -> None:
    progress(before + step, total, message)


def _train(
    task: TrainingTask,
    config: RetrainConfig,
    phase: Phase,
    tree: dict[str, Any],
    rest: dict[str, Any],
    key: jax.Array,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves of the scheme and all others after one phase."""
    start_key, order_key, draw_key = jax.random.split(key, 3)
    steps = len(task.data.train) // config.batch_size
    training = Training(
        name=type(phase.scheme).__name__,
        scheme=phase.scheme,
        objective=_objective(task, config),
        optimizer=adam_by_kind(
            # Labels may be prefixes of the tree.
            lambda params: {"scheme": {kind: kind for kind in params["scheme"]}, "rest": "weights"},
            rate=config.learning_rate,
            quantizer_rate=config.quantizer_learning_rate,
            decay=config.weight_decay,
            total=max(1, steps * phase.epochs),
        ),
        epochs=phase.epochs,
        steps=steps,
        key=draw_key,
        teacher=task.params,
    )

    def batches(epoch: int) -> Iterator[Any]:
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), len(task.data.train)))
        for i in range(steps):
            yield task.data.train.batch(order[i * config.batch_size : (i + 1) * config.batch_size])

    measures = Measures(lambda values: {"train_loss": float(values["loss"].mean())})
    state, _ = fit(training, start(training, tree, rest, None, start_key), batches, measures, progress=progress)
    return phase.scheme.finish(state.params["scheme"], state.carried), state.params["rest"]


def _objective(task: TrainingTask, config: RetrainConfig) -> Objective:
    """The loss of labels and of the outputs of the network that training starts from, which is the teacher."""
    outputs, data = task.outputs, task.data
    if outputs is None:
        raise ValueError(f"task {task.name!r} has no outputs")

    def loss(network: Network, batch: Any, key: jax.Array, progress: jax.Array, teacher: Any) -> tuple[jax.Array, Any]:
        images, labels = batch
        moved = crop_and_flip(key, images, pad=data.pad, flip=data.flip)
        inputs = {"inputs": data.inputs(moved), "labels": labels}
        logits = outputs(replace(teacher, network.rest | network.weights), inputs)
        taught = outputs(teacher, inputs) if config.distillation else None
        value = mean_loss(logits, labels, taught, config.distillation, config.temperature)
        return value, (None, {"loss": value})

    return loss
