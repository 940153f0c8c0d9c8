"""Training of image classifiers: a float phase, then a quantized one, a clustered one and one that tunes codebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bqjax.adapters.flax import calibrate, quantize
from bqjax.adapters.flax.quantized import quantized_layers
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves, replace
from train.checkpoint import checked_config
from train.data.source import Batch, Source
from train.fit import AfterEpoch, Folder, Measures, fit
from train.image.clustering import equalized
from train.image.config import TrainConfig
from train.image.files import read_quantized, write_quantized
from train.image.objective import Deltas, ImageObjective, Variables
from train.image.phases import image_training
from train.image.problems import Problem, float_network, problem, teacher_network
from train.image.solved import SolvedStart, solved_start
from train.image.transfer import save_network
from train.log import describe_deltas, draw_curves
from train.schemes import Scheme
from train.step import Training, TrainState, network_of

__all__ = ["run"]

EVALUATION_BATCH_SIZE = 500
N_CALIBRATION = 256
N_CURVATURE = 1000
AXIS = "data"


class _Run(NamedTuple):
    """What all phases of a run share; see :func:`run`."""

    config: TrainConfig
    data: Problem
    mesh: jax.sharding.Mesh
    out: Path
    progress: Progress | None
    say: Callable[[str], None]

    def everywhere(self, tree: Any) -> Any:
        """Arrays that every device has whole."""
        return _put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def by_example(self, tree: Any) -> Any:
        """Arrays shared out over devices along their first axis."""
        return _put(tree, NamedSharding(self.mesh, PartitionSpec(AXIS)))


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
        missing; the folder holds a run of another config; training diverged.
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
    taught = config.teacher is not None or config.teacher_weights is not None
    teacher = teacher_network(config, data_dir) if taught else None
    if config.float_epochs:
        model, figures["float accuracy"], _ = _phase(own, "float", config.float_epochs, model, teacher)
        if jax.process_index() == 0:
            save_network(out / "model.safetensors", model)
    if config.quantizer is not None:
        teacher = (teacher or model) if config.distillation else None
        small = _quantized(own, model)
        name = config.quantizer.rounding
        if config.epochs:
            small, figures[f"{name} accuracy"], _ = _phase(own, name, config.epochs, small, teacher)
        if config.gwk is not None:
            solved = None if config.gwk.start == "kmeans" else _solved(own, model, small)
            clustered: Mapping[str, Any] = {} if solved is None else solved.leaves
            if config.gwk.epochs:
                small, figures["gwk accuracy"], clustered = _phase(own, "gwk", config.gwk.epochs, small, teacher, solved=solved)
            if config.gwk.tune_epochs:
                _, figures["tuned accuracy"], _ = _phase(own, "tune", config.gwk.tune_epochs, small, teacher, clustered)
    draw_curves(out)
    return figures


def _near(batch: int, devices: int) -> str:
    return f"take {max(devices, batch // devices * devices)}"


def _quantized(run: _Run, model: Any) -> Any:
    """The network with quantizers, which start from the first training images."""
    config, data = run.config, run.data
    if config.quantizer is None:
        raise ValueError("the config has no quantizer")
    rules = [*(Rule(pattern, skip=True) for pattern in config.keep_float), Rule("*", config.quantizer)]
    small, info = quantize(model, rules)
    if config.gwk is not None and config.gwk.equalize:
        small = equalized(small, tuple(info.taken), config.gwk)
    first = np.arange(min(N_CALIBRATION, len(data.train)))
    return calibrate(small, data.inputs(jnp.asarray(data.train.batch(first)[0])))


def _solved(run: _Run, model: Any, small: Any) -> SolvedStart:
    """The solver's start, by the float network on the first training images."""
    config, data = run.config, run.data
    if config.gwk is None:
        raise ValueError("the config has no GWK phase")
    layers = tuple(quantized_layers(small))
    if config.gwk.equalize:
        model = equalized(model, layers, config.gwk)
    rows = np.array_split(np.arange(min(N_CURVATURE, len(data.train))), 4)
    batches = [data.inputs(jnp.asarray(data.train.batch(part)[0])) for part in rows]
    return solved_start(model, [f"{layer}/kernel" for layer in layers], config.gwk, batches, jax.random.key(config.seed))


def _phase(
    run: _Run,
    name: str,
    epochs: int,
    model: Any,
    teacher: Any,
    clustered: Mapping[str, Any] | None = None,
    solved: SolvedStart | None = None,
) -> tuple[Any, float, dict[str, Any]]:
    """One phase, from the model it starts from to the trained one, its accuracy on the test data, and its clustered leaves."""
    config, data = run.config, run.data
    steps = len(data.train) // config.batch_size
    objective = ImageObjective(config, model, teacher, data)
    training, first = image_training(config, name, epochs, steps, objective, clustered, solved)
    seen = jax.jit(lambda state: objective.variables(network_of(training.scheme, state)))
    state, _ = fit(
        training,
        first,
        lambda epoch: _batches(run, steps, epoch),
        Measures(
            lambda values: {f"train_{key}": float(np.mean(value)) for key, value in values.items()},
            lambda state: _evaluated(run, objective, seen(state), data.validation),
            lambda epoch, of: (
                f"{name} {epoch}/{epochs}: loss {of['train_loss']:.4f}, validation {of['accuracy']:.2%}, {of['seconds']:.1f} s"
            ),
        ),
        folder=Folder(run.out, "accuracy"),
        after_epoch=_deltas(run, training, objective),
        place=run.everywhere,
        progress=run.progress,
        say=run.say,
    )
    trained = scored = seen(state)
    found: dict[str, Any] = {}
    if name != "float" and config.quantizer is not None:
        scored, found = _through_file(run, training.scheme, objective, state, trained)
    # A phase after a quantized one goes on from weights as they were before rounding, one after clusters from the kernels of the
    # file.
    model = objective.model(_with_kernels(trained, scored) if found else trained)
    return model, _evaluated(run, objective, scored, data.test)["accuracy"], found


def _with_kernels(trained: Variables, scored: Variables) -> Variables:
    """What was trained, with the kernels that the file holds: BatchNorm may be folded there, which training cannot go on from."""
    kernels = {name: leaf for name, leaf in named_leaves(scored[1]).items() if leaf.ndim > 1}
    return trained[0], replace(trained[1], kernels), trained[2]


def _epsilons(model: Any) -> dict[str, float]:
    """Of each BatchNorm by its name."""
    modules = ((path, module) for path, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm))
    return {"/".join(map(str, path)): module.epsilon for path, module in modules}


def _through_file(
    run: _Run, scheme: Scheme, objective: ImageObjective, state: TrainState, trained: Variables
) -> tuple[Variables, dict[str, Any]]:
    """Writes the network of a phase, and gives what its file decodes to, and the clustered leaves of that."""
    if run.config.quantizer is None:
        raise ValueError("the config has no quantizer")
    file = run.out / "model.bq.safetensors"
    quantizers, network, statistics = jax.tree.map(np.asarray, trained)
    state = jax.tree.map(np.asarray, state)
    leaves = scheme.finish(state.params["scheme"], state.carried)
    if jax.process_index() == 0:
        run.say(
            write_quantized(
                file,
                network,
                leaves,
                quantizers,
                statistics,
                run.config.quantizer,
                vector_bits=run.config.vector_bits,
                epsilons=_epsilons(objective.model(trained)),
            )
        )
    multihost_utils.sync_global_devices("exported")
    stored = read_quantized(file)
    scored = replace(quantizers, stored.quantizers), stored.network, replace(statistics, stored.statistics)
    return run.everywhere(scored), {name: stored.clustered[name] for name in leaves}


def _deltas(run: _Run, training: Training, objective: ImageObjective) -> AfterEpoch | None:
    """Measures EWGS's gradient scale of each layer from the Hessian, every few epochs; None for phases without."""
    every, epochs, name = run.config.hessian_epochs, training.epochs, training.name
    if not every or name == "float":
        return None
    teacher = run.everywhere(objective.teacher)

    @jax.jit
    def measured(state: TrainState, batch: Any, epoch: int, teacher: Any) -> tuple[TrainState, Deltas]:
        key, probe_key = (jax.random.fold_in(training.key, number) for number in (state.step, epoch))
        statistics, deltas = objective.measured(network_of(training.scheme, state), batch, key, probe_key, teacher)
        return state._replace(statistics=statistics), deltas

    def after_epoch(state: TrainState, batch: Any, epoch: int) -> tuple[TrainState, dict[str, float], str]:
        # The last epoch's would be of use to nobody.
        if (epoch + 1) % every or epoch + 1 == epochs:
            return state, {}, ""
        state, found = measured(state, batch, epoch, teacher)
        scales, line = describe_deltas(found.deltas, found.reasons)
        return state, scales, f"{name} {epoch + 1}/{epochs}: {line}"

    return after_epoch


def _batches(run: _Run, steps: int, epoch: int) -> Iterator[Any]:
    """The batches of an epoch, in an order that follows from seed and epoch, laid out over devices."""
    seed, size, examples = run.config.seed, run.config.batch_size, run.data.train
    order = np.random.default_rng((seed, epoch)).permutation(len(examples))
    for i in range(steps):
        yield run.by_example(examples.batch(order[i * size : (i + 1) * size], (seed, epoch)))


def _evaluated(run: _Run, objective: ImageObjective, variables: Variables, examples: Source) -> dict[str, float]:
    totals: dict[str, float] = {}
    devices = run.mesh.size
    for batch, mask in _padded(examples, -(-EVALUATION_BATCH_SIZE // devices) * devices):
        sums = objective.evaluate(variables, *run.by_example((batch, mask)))
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
