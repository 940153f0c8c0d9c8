"""One training loop: a float phase, then a quantised one, from checkpoint to checkpoint.

A run that is killed and started again gives the numbers of one that was not: the order of an epoch's data follows from
``(seed, epoch)``, every draw of a step from ``(seed, step)``, and the rest is in the checkpoint of the last epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bqjax.adapters.flax import calibrate, quantize
from bqjax.adapters.flax_quantize import QuantizerParam, quantized_layers, set_quantizers
from bqjax.progress import Progress
from bqjax.tree import Rule
from train.augment import augment
from train.checkpoint import Checkpoints, checked_config
from train.config import GWKPhase, TrainConfig
from train.problems import Examples, Problem, float_network, problem

__all__ = ["TrainState", "run"]

EVALUATION_BATCH_SIZE = 500
N_CALIBRATION = 256
AXIS = "data"


class TrainState(NamedTuple):
    """What a step takes and gives.

    Attributes:
      params: ``{"network": ..., "quantizers": ...}``, nested dicts of arrays.
      rest: running statistics of BatchNorm, and what quantisers are told.
      optimizer: Optax's.
      step: int32, steps done in this phase.
      clusters: state of GWK; None in other phases.
    """

    params: dict[str, Any]
    rest: Any
    optimizer: Any
    step: Any
    clusters: Any = None


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
      out: folder of the run: ``config.json``, ``metrics.jsonl`` with one object an epoch, checkpoints by phase, and the
        clustered network as ``model.bq.safetensors``.
      data_dir: folder of data and weights.
      progress: called as ``progress(step, total, message)`` after each step.
      say: called with one line after each epoch.

    Returns:
      Figures on the test data, ``"float accuracy"``, ``"ewgs accuracy"`` and so on: of the last epoch, which
      nothing was chosen by; ``"gwk accuracy"`` is that of the file.

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
    if len(data.train[1]) < config.batch_size:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {len(data.train[1])} training examples")
    checked_config(out, config)
    model, teacher, figures = float_network(config, data_dir), None, {}
    if config.float_epochs:
        model, figures["float accuracy"] = _phase("float", config, config.float_epochs, model, None, data, mesh, out, progress, say)
    if config.quantizer is not None:
        teacher = model if config.distillation else None
        rules = [*(Rule(pattern, skip=True) for pattern in config.keep_float), Rule("*", config.quantizer)]
        small, _ = quantize(model, rules)
        small = calibrate(small, data.inputs(jnp.asarray(data.train[0][:N_CALIBRATION])))
        name = config.quantizer.rounding
        if config.epochs:
            small, figures[f"{name} accuracy"] = _phase(name, config, config.epochs, small, teacher, data, mesh, out, progress, say)
        if config.gwk is not None:
            _, figures["gwk accuracy"] = _phase("gwk", config, config.gwk.epochs, small, teacher, data, mesh, out, progress, say)
    return figures


def _near(batch: int, devices: int) -> str:
    return f"take {max(devices, batch // devices * devices)}"


def _phase(
    name: str,
    config: TrainConfig,
    epochs: int,
    model: Any,
    teacher: Any,
    data: Problem,
    mesh: jax.sharding.Mesh,
    out: Path,
    progress: Progress | None,
    say: Callable[[str], None],
) -> tuple[Any, float]:
    """One phase, from the model it starts from to the trained one and its accuracy on the test data."""
    steps = len(data.train[1]) // config.batch_size
    optimizer = _optimizer(config, steps * epochs)
    gwk = config.gwk if name == "gwk" else None
    step, evaluate, merge, state, reconstructed = _functions(config, gwk, model, teacher, data, optimizer, steps * epochs)
    everywhere, by_example = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))

    checkpoints = Checkpoints(out / name, "accuracy")
    done, state = checkpoints.restore(state) or (0, state)
    state = _put(state, everywhere)
    _drop_lines(out / "metrics.jsonl", name, done)
    for epoch in range(done, epochs):
        start, sums = time.perf_counter(), []
        order = np.random.default_rng((config.seed, epoch)).permutation(len(data.train[1]))
        for i in range(steps):
            rows = order[i * config.batch_size : (i + 1) * config.batch_size]
            batch = _put(tuple(a[rows] for a in data.train), by_example)
            state, out_of_step = step(state, batch)
            sums.append(out_of_step)
            if progress is not None:
                # A step's numbers of some time ago: those of the last would have to be waited for.
                progress(epoch * steps + i + 1, epochs * steps, f"{name}, loss {float(sums[max(0, i - 2)]['loss']):.3f}")
        if gwk is not None and gwk.schedule == "epoch":
            state = reconstructed(state, batch, epoch)
        train = {key: float(np.mean([s[key] for s in sums])) for key in sums[0]}
        seconds = time.perf_counter() - start
        validation = _evaluated(evaluate, state, data.validation, mesh)
        record = {
            "phase": name,
            "epoch": epoch + 1,
            **{f"train_{k}": v for k, v in train.items()},
            **validation,
            "seconds": seconds,
        }
        _write_line(out / "metrics.jsonl", record)
        say(f"{name} {epoch + 1}/{epochs}: loss {train['loss']:.4f}, validation {validation['accuracy']:.2%}, {seconds:.1f} s")
        checkpoints.save(epoch + 1, state, validation)
    checkpoints.close()
    if gwk is not None:
        from train.export import export, from_file  # needs bqjax.gwk, as above

        file = out / "model.bq.safetensors"
        if jax.process_index() == 0:
            say(export(file, jax.tree.map(np.asarray, state)))
        multihost_utils.sync_global_devices("exported")
        state = _put(from_file(file, state), everywhere)  # what is scored is what the file decodes to
    return merge(state), _evaluated(evaluate, state, data.test, mesh)["accuracy"]


def _optimizer(config: TrainConfig, total: int) -> optax.GradientTransformation:
    def adam(rate: float, decay: float) -> optax.GradientTransformation:
        # Decay in the gradient and not beside it, as in the training that the published figures come from.
        return optax.chain(optax.add_decayed_weights(decay), optax.adam(optax.cosine_decay_schedule(rate, total)))

    rates = {"network": adam(config.learning_rate, config.weight_decay), "quantizers": adam(config.quantizer_learning_rate, 0.0)}
    return optax.partition(rates, {name: name for name in rates})


_FILTERS = (QuantizerParam, nnx.Param, nnx.RngState, ...)


def _functions(
    config: TrainConfig,
    gwk: GWKPhase | None,
    model: Any,
    teacher: Any,
    data: Problem,
    optimizer: optax.GradientTransformation,
    total: int,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[[TrainState], Any], TrainState, Callable[..., TrainState]]:
    """The step, the evaluation, the way back to a model, the state at the start, and GWK's work after an epoch."""
    modes = {
        training: nnx.view(model, use_running_average=not training, deterministic=not training, raise_if_not_found=False)
        for training in (True, False)
    }
    graphs = {training: nnx.split(modes[training], *_FILTERS)[0] for training in modes}
    _, *states = nnx.split(modes[True], *_FILTERS)
    quantizers, network, rng, rest = (nnx.to_pure_dict(s) for s in states)
    rounds = bool(quantized_layers(model))
    params = {"network": network, "quantizers": quantizers}
    clusters = None
    kernels = tuple(f"{layer}/kernel" for layer in quantized_layers(model))
    if gwk is not None:
        from train import clustering  # needs bqjax.gwk, which other phases do not

        clusters = clustering.cluster(network, None, kernels, gwk, jax.random.key(config.seed))
    in_loop = gwk is not None and gwk.schedule == "step"
    state = TrainState(params, rest, optimizer.init(params), jnp.int32(0), clusters)
    taught = (
        None
        if teacher is None
        else nnx.split(nnx.view(teacher, use_running_average=True, deterministic=True, raise_if_not_found=False))
    )

    def merge(state: TrainState, training: bool = True, key: jax.Array | None = None) -> Any:
        keys = rng if key is None else jax.tree.map(partial(_fold, key), rng)
        network = clustering.seen(state.params["network"], state.clusters) if in_loop else state.params["network"]
        return nnx.merge(graphs[training], state.params["quantizers"], network, keys, state.rest)

    def loss(params: Any, state: TrainState, inputs: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        running = merge(state._replace(params=params), key=key)
        if rounds:
            set_quantizers(running, progress=state.step / total)
        logits = running(inputs)
        mean_loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        right = jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        if taught is not None and config.distillation:
            t = config.temperature
            soft = jax.nn.log_softmax(jax.lax.stop_gradient(nnx.merge(*taught)(inputs)) / t)
            divergence = jnp.mean(jnp.sum(jnp.exp(soft) * (soft - jax.nn.log_softmax(logits / t)), axis=1))
            mean_loss = (1 - config.distillation) * mean_loss + config.distillation * t**2 * divergence
        return mean_loss, (nnx.to_pure_dict(nnx.split(running, *_FILTERS)[4]), right)

    def gradients(state: TrainState, batch: Any) -> Any:
        images, labels = batch
        augment_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        inputs = data.inputs(augment(augment_key, images, pad=data.pad, flip=data.flip))
        return jax.value_and_grad(loss, has_aux=True)(state.params, state, inputs, labels, model_key)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, (rest, right)), grads = gradients(state, batch)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params, clusters = optax.apply_updates(state.params, updates), state.clusters
        if in_loop and gwk is not None:
            clusters = clustering.follow(clusters, params["network"], grads["network"], gwk, state.step / total)
        return TrainState(params, rest, moments, state.step + 1, clusters), {"loss": value, "accuracy": right}

    @jax.jit
    def reconstructed(state: TrainState, batch: Any, epoch: int) -> TrainState:
        """Weights replaced by their reconstruction, weighted by the gradients of the epoch's last batch."""
        if gwk is None:
            raise ValueError("weights are replaced in a GWK phase only")
        _, grads = gradients(state, batch)
        key = jax.random.fold_in(jax.random.key(config.seed), epoch)
        clusters = clustering.cluster(state.params["network"], grads["network"], kernels, gwk, key, start=state.clusters)
        network = clustering.replaced(state.params["network"], clusters)
        return state._replace(params=state.params | {"network": network}, clusters=clusters)

    @jax.jit
    def evaluate(state: TrainState, batch: Any, mask: jax.Array) -> dict[str, jax.Array]:
        images, labels = batch
        logits = merge(state, training=False)(data.inputs(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (jnp.argmax(logits, axis=1) == labels) & ~jnp.isnan(logits).any(axis=1)
        return {"loss": jnp.sum(losses * mask), "accuracy": jnp.sum(right * mask)}

    return step, evaluate, merge, state, reconstructed


def _fold(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Keys of the model's own draws follow from the step's; counters stay where they start."""
    return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _evaluated(evaluate: Callable[..., Any], state: TrainState, examples: Examples, mesh: jax.sharding.Mesh) -> dict[str, float]:
    totals: dict[str, float] = {}
    for batch, mask in _padded(examples, -(-EVALUATION_BATCH_SIZE // mesh.size) * mesh.size):
        sums = evaluate(state, *_put((batch, mask), NamedSharding(mesh, PartitionSpec(AXIS))))
        totals = {key: totals.get(key, 0.0) + float(value) for key, value in sums.items()}
    return {key: value / len(examples[1]) for key, value in totals.items()}


def _padded(examples: Examples, size: int) -> Iterator[tuple[Examples, np.ndarray]]:
    """Batches of one size; the last repeats its last example with a mask of 0."""
    n = len(examples[1])
    for start in range(0, n, size):
        rows = np.arange(start, start + size)
        yield tuple(a[np.minimum(rows, n - 1)] for a in examples), (rows < n).astype(np.float32)  # type: ignore[misc]


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, laid out over the devices of all of them."""

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def _write_line(path: Path, record: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _drop_lines(path: Path, phase: str, done: int) -> None:
    """Leaves the lines of what is in checkpoints: a run killed after its log was written does that epoch again."""
    if path.is_file() and jax.process_index() == 0:
        lines = []
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # cut short when the run was killed
            if record["phase"] != phase or record["epoch"] <= done:
                lines.append(line + "\n")
        path.write_text("".join(lines))
