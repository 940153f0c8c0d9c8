"""Training of image classifiers: a float phase, then a quantized one, a clustered one and one that tunes codebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bqjax.adapters.flax import calibrate, quantize
from bqjax.adapters.flax.quantized import quantized_layers
from bqjax.core.leaves import Clustered
from bqjax.core.progress import Progress
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves, replace
from train.checkpoint import checked_config
from train.fit import AfterEpoch, Folder, Measures, fit
from train.image.clustering import equalized
from train.image.config import TrainConfig
from train.image.evaluation import Devices, evaluated
from train.image.files import read_quantized, write_quantized
from train.image.objective import Deltas, ImageObjective, Variables
from train.image.phases import image_training
from train.image.problems import Problem, float_network, problem, teacher_network
from train.image.solved import SolvedStart, solved_start
from train.image.stored import FileScore, as_float, norms_by_name, score_file, settled, stored_variables, with_statistics
from train.image.transfer import load_network, save_network
from train.log import describe_deltas, draw_curves
from train.schemes import Scheme
from train.step import Training, TrainState, network_of

__all__ = ["run", "score"]

N_CALIBRATION = 256
N_CURVATURE = 1000


class _Run(NamedTuple):
    """What all phases of a run share; see :func:`run`."""

    config: TrainConfig
    data: Problem
    devices: Devices
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
        missing; the folder holds a run of another config; training diverged.
    """
    devices = Devices()
    n = devices.mesh.size
    if config.batch_size < n or config.batch_size % n:
        raise ValueError(f"batch_size {config.batch_size} must be a multiple of the {n} devices: {_near(config.batch_size, n)}")
    data = problem(config, data_dir)
    if len(data.train) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {len(data.train)} training examples")
    checked_config(out, config)
    own = _Run(config, data, devices, out, progress, say)
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
            small, held = (small, None) if config.gwk.file is None else _from_file(own, small, Path(config.gwk.file))
            solved = None if config.gwk.start == "kmeans" else _solved(own, model, small, held)
            clustered: Mapping[str, Any] = {} if solved is None else solved.leaves
            if config.gwk.epochs:
                small, figures["gwk accuracy"], clustered = _phase(own, "gwk", config.gwk.epochs, small, teacher, solved=solved)
            if config.gwk.tune_epochs:
                _, figures["tuned accuracy"], _ = _phase(own, "tune", config.gwk.tune_epochs, small, teacher, clustered)
    draw_curves(out)
    return figures


def score(config: TrainConfig, file: Path, out: Path, data_dir: Path | None = None) -> FileScore:
    """Decodes the file of a quantized network and scores it on the test data, beside the float network that it came from.

    Args:
      config: what the file was made by.
      file: ``model.bq.safetensors`` of a run, or a copy.
      out: folder of the run; its float network counts, where the config trains one.
      data_dir: folder of data and weights.

    Raises:
      ValueError: the file is damaged or of another network; data, weights or the run's float network are missing; the config has no
        quantizer.
    """
    data = problem(config, data_dir)
    model = float_network(config, data_dir)
    if config.float_epochs:
        model = load_network(model, out / "model.safetensors")
    small = _quantized(_Run(config, data, Devices(), out, None, print), model)
    return score_file(config, file, model, small, data)


def _near(batch: int, devices: int) -> str:
    return f"take {max(devices, batch // devices * devices)}"


def _quantized(run: _Run, model: Any) -> Any:
    """The network with quantizers, which start from the first training images."""
    config = run.config
    if config.quantizer is None:
        raise ValueError("the config has no quantizer")
    rules = [*(Rule(pattern, skip=True) for pattern in config.keep_float), Rule("*", config.quantizer)]
    small, info = quantize(model, rules)
    if config.gwk is not None and config.gwk.equalize:
        small = equalized(small, tuple(info.taken), config.gwk)
    return calibrate(small, _first(run, N_CALIBRATION))


def _from_file(run: _Run, small: Any, file: Path) -> tuple[Any, dict[str, Clustered]]:
    """The quantized network with all that a file holds, its BatchNorm by the first training images, and the file's blocks."""
    stored = read_quantized(file)
    objective = ImageObjective(run.config, small, None, run.data)
    # Augmented, as training will see them: on the borders of moved images statistics are others.
    inputs, _, _ = objective.augmented(_first_batch(run, N_CURVATURE), jax.random.key(run.config.seed))
    return with_statistics(objective.model(stored_variables(objective, stored)), inputs), stored.clustered


def _first(run: _Run, n: int) -> jax.Array:
    """The first training images, as the network takes them."""
    return run.data.inputs(_first_batch(run, n)[0])


def _first_batch(run: _Run, n: int) -> Any:
    """The first training images as they are stored, and their labels."""
    rows = np.arange(min(n, len(run.data.train)))
    return jax.tree.map(jnp.asarray, run.data.train.batch(rows))


def _solved(run: _Run, model: Any, small: Any, held: Mapping[str, Clustered] | None) -> SolvedStart:
    """The solver's start, by the float network on the first training images; or the blocks of a file, by the network of these."""
    config = run.config
    if config.gwk is None:
        raise ValueError("the config has no GWK phase")
    layers = tuple(quantized_layers(small))
    if held is not None:
        model = as_float(config, model, small, run.data)
    elif config.gwk.equalize:
        model = equalized(model, layers, config.gwk)
    batches = jnp.array_split(_first(run, N_CURVATURE), 4)
    return solved_start(model, [f"{layer}/kernel" for layer in layers], config.gwk, batches, jax.random.key(config.seed), held)


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
            lambda state: evaluated(objective, seen(state), data.validation, run.devices),
            lambda epoch, of: (
                f"{name} {epoch}/{epochs}: loss {of['train_loss']:.4f}, validation {of['accuracy']:.2%}, {of['seconds']:.1f} s"
            ),
        ),
        folder=Folder(run.out, "accuracy"),
        after_epoch=_deltas(run, training, objective),
        place=run.devices.everywhere,
        progress=run.progress,
        say=run.say,
    )
    trained = seen(state)
    if taken := min(config.statistics_examples // config.batch_size, steps):
        # The order of data is that of an epoch which is not trained on.
        key = jax.random.fold_in(training.key, training.total)
        trained = run.devices.everywhere(settled(objective, trained, _batches(run, taken, epochs), key))
    scored = trained
    found: dict[str, Any] = {}
    if name != "float" and config.quantizer is not None:
        scored, found = _through_file(run, training.scheme, objective, state, trained)
    # A phase after a quantized one goes on from weights as they were before rounding, one after clusters from the kernels of the
    # file.
    model = objective.model(_with_kernels(trained, scored) if found else trained)
    return model, evaluated(objective, scored, data.test, run.devices)["accuracy"], found


def _with_kernels(trained: Variables, scored: Variables) -> Variables:
    """What was trained, with the kernels that the file holds: BatchNorm may be folded there, which training cannot go on from."""
    kernels = {name: leaf for name, leaf in named_leaves(scored[1]).items() if leaf.ndim > 1}
    return trained[0], replace(trained[1], kernels), trained[2]


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
                codebook_bits=run.config.codebook_bits,
                vector_bits=run.config.vector_bits,
                epsilons={name: norm.epsilon for name, norm in norms_by_name(objective.model(trained)).items()},
            )
        )
    multihost_utils.sync_global_devices("exported")
    stored = read_quantized(file)
    return run.devices.everywhere(stored_variables(objective, stored)), {name: stored.clustered[name] for name in leaves}


def _deltas(run: _Run, training: Training, objective: ImageObjective) -> AfterEpoch | None:
    """Measures EWGS's gradient scale of each layer from the Hessian, every few epochs; None for phases without."""
    every, epochs, name = run.config.hessian_epochs, training.epochs, training.name
    if not every or name == "float":
        return None
    teacher = run.devices.everywhere(objective.teacher)

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
        yield run.devices.by_example(examples.batch(order[i * size : (i + 1) * size], (seed, epoch)))
