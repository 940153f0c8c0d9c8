"""One training loop: a float phase, then a quantized one, from checkpoint to checkpoint.

A run that is killed and started again gives the numbers of one that was not: the order of an epoch's data follows from
``(seed, epoch)``, every draw of a step from ``(seed, step)``, and the rest is in the checkpoint of the last epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bqjax.adapters.flax import calibrate, quantize
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.methods.gwk.training import GWKState
from train.checkpoint import Checkpoints, checked_config
from train.data.source import Batch, Source
from train.image.clustering import equalized
from train.image.config import TrainConfig
from train.image.export import export, from_file
from train.image.problems import Problem, float_network, problem, teacher_network
from train.image.step import TrainState, functions, phase_kind
from train.image.transfer import save_network
from train.log import MetricsLog, describe_deltas, draw_curves

__all__ = ["run"]

EVALUATION_BATCH_SIZE = 500
N_CALIBRATION = 256
AXIS = "data"


class _Run(NamedTuple):
    """What all phases of a run share; see :func:`run`."""

    config: TrainConfig
    data: Problem
    mesh: jax.sharding.Mesh
    out: Path
    progress: Progress | None
    say: Callable[[str], None]


def run(
    config: TrainConfig,
    out: Path,
    data_dir: Path | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Trains as the config says, or goes on where an earlier call with the same folder was interrupted.

    Args:
      config: of the run.
      out: folder of the run: ``config.json``, ``metrics.jsonl`` with one object an epoch, checkpoints by phase, the float
        network as ``model.safetensors``, and that of the last quantized or clustered phase as ``model.bq.safetensors``.
      data_dir: folder of data and weights.
      progress: called as ``progress(step, total, message)`` after each step.
      say: called with one line after each epoch.

    Returns:
      Figures on the test data, ``"float accuracy"``, ``"ewgs accuracy"`` and so on: of the last epoch, which
      nothing was chosen by; all but the float one are those of the phase's file, decoded.

    Raises:
      ValueError: the batch is smaller than the number of devices or cannot be shared out among them; data or weights are
        missing; the folder holds a run of another config.
    """
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    if config.batch_size < mesh.size or config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of the {mesh.size} devices: {_near(config.batch_size, mesh.size)}"
        )
    data = problem(config, data_dir)
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {len(data.train)} training examples")
    checked_config(out, config)
    own = _Run(config, data, mesh, out, progress, say)
    model, figures = float_network(config, data_dir), {}
    teacher = None if config.teacher is None else teacher_network(config)
    if config.float_epochs:
        model, figures["float accuracy"], _ = _phase(own, "float", config.float_epochs, model, teacher=teacher)
        if jax.process_index() == 0:
            save_network(out / "model.safetensors", model)
    if config.quantizer is not None:
        phase = partial(_phase, own, teacher=(teacher or model) if config.distillation else None)
        rules = [*(Rule(pattern, skip=True) for pattern in config.keep_float), Rule("*", config.quantizer)]
        small, info = quantize(model, rules)
        if config.gwk is not None and config.gwk.equalize:
            small = equalized(small, tuple(info.taken), config.gwk)
        first = np.arange(min(N_CALIBRATION, len(data.train)))
        small = calibrate(small, data.inputs(jnp.asarray(data.train.batch(first)[0])))
        name = config.quantizer.rounding
        if config.epochs:
            small, figures[f"{name} accuracy"], _ = phase(name, config.epochs, small)
        if config.gwk is not None:
            small, figures["gwk accuracy"], clusters = phase("gwk", config.gwk.epochs, small)
            if config.gwk.tune_epochs:
                _, figures["tuned accuracy"], _ = phase("tune", config.gwk.tune_epochs, small, clusters)
    draw_curves(out)
    return figures


def _near(batch: int, devices: int) -> str:
    return f"take {max(devices, batch // devices * devices)}"


def _phase(
    run: _Run, name: str, epochs: int, model: Any, clusters: GWKState | None = None, teacher: Any = None
) -> tuple[Any, float, GWKState | None]:
    """One phase, from the model it starts from to the trained one, its accuracy on the test data, and its clusters."""
    config, data, mesh, out = run.config, run.data, run.mesh, run.out
    steps = len(data.train) // config.batch_size
    kind = phase_kind(config, name)
    parts = functions(config, kind, model, clusters, teacher, data, steps * epochs)
    everywhere, by_example = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))

    # What is being written is waited for even where training ends by an exception: a next run in this process may not meet it.
    with contextlib.closing(Checkpoints(out / name, "accuracy")) as checkpoints:
        done, state = checkpoints.restore(parts.start) or (0, parts.start)
        state = _put(state, everywhere)
        log = MetricsLog(out, name, done)
        for epoch in range(done, epochs):
            start, sums = time.perf_counter(), []
            order = np.random.default_rng((config.seed, epoch)).permutation(len(data.train))
            for i in range(steps):
                rows = order[i * config.batch_size : (i + 1) * config.batch_size]
                batch = _put(data.train.batch(rows, (config.seed, epoch)), by_example)
                state, out_of_step = parts.step(state, batch)
                sums.append(out_of_step)
                if run.progress is not None:
                    # A step's numbers of some time ago: those of the last would have to be waited for.
                    run.progress(epoch * steps + i + 1, epochs * steps, f"{name}, loss {float(sums[max(0, i - 2)]['loss']):.3f}")
            if kind == "clustered after epochs":
                state = parts.reconstructed(state, batch, epoch)
            scales: dict[str, float] = {}
            # The last epoch's would be of use to nobody.
            if name != "float" and config.hessian_epochs and not (epoch + 1) % config.hessian_epochs and epoch + 1 < epochs:
                state, deltas, reasons = parts.measured(state, batch, epoch)
                scales, line = describe_deltas(deltas, reasons)
                run.say(f"{name} {epoch + 1}/{epochs}: {line}")
            train = {key: float(np.mean([s[key] for s in sums])) for key in sums[0]}
            seconds = time.perf_counter() - start
            validation = _evaluated(parts.evaluate, state, data.validation, mesh)
            log.write(epoch + 1, {f"train_{k}": v for k, v in train.items()} | validation | scales | {"seconds": seconds})
            run.say(
                f"{name} {epoch + 1}/{epochs}: loss {train['loss']:.4f}, validation {validation['accuracy']:.2%}, {seconds:.1f} s"
            )
            checkpoints.save(epoch + 1, state, validation)
    log.close()
    scored = state
    if name != "float" and config.quantizer is not None:
        file = out / "model.bq.safetensors"
        if jax.process_index() == 0:
            run.say(export(file, jax.tree.map(np.asarray, state), config.quantizer))
        multihost_utils.sync_global_devices("exported")
        scored = _put(from_file(file, state), everywhere)  # what is scored is what the file decodes to
    # A phase after a quantized one goes on from weights as they were before rounding.
    last = state if kind == "plain" else scored
    return parts.merge(last), _evaluated(parts.evaluate, scored, data.test, mesh)["accuracy"], last.clusters


def _evaluated(evaluate: Callable[..., Any], state: TrainState, examples: Source, mesh: jax.sharding.Mesh) -> dict[str, float]:
    totals: dict[str, float] = {}
    for batch, mask in _padded(examples, -(-EVALUATION_BATCH_SIZE // mesh.size) * mesh.size):
        sums = evaluate(state, *_put((batch, mask), NamedSharding(mesh, PartitionSpec(AXIS))))
        totals = {key: totals.get(key, 0.0) + float(value) for key, value in sums.items()}
    return {key: value / len(examples) for key, value in totals.items()}


def _padded(examples: Source, size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches of one size; the last repeats its last example with a mask of 0."""
    n = len(examples)
    for start in range(0, n, size):
        rows = np.arange(start, start + size)
        yield examples.batch(np.minimum(rows, n - 1)), (rows < n).astype(np.float32)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, laid out over the devices of all of them."""

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)
