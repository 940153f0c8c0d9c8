"""What GWK adds to training: an epoch with it against one of plain EWGS, and one clustering of ResNet-20 against an epoch.

    python benchmarks/gwk.py
    python benchmarks/gwk.py --config configs/resnet20_cifar10_gwk.py

ResNet-20 at W8/A8 with random weights, 6/4/5 or as the config has it, batches of random images of CIFAR-10's size; an epoch
is that of 49,000 images. Steps of both kinds and clusterings are run in turn, and the median of each is taken, in CPU seconds
of the process (all threads), which other work on the machine disturbs least. Schedule "epoch" is as many plain steps and one
replacement, which takes a gradient and a clustering; schedule "step" clusters in every step. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import calibrate, quantize
from bqjax.core.rules import Rule
from bqjax.experiment.config import load_config
from bqjax.models.resnet import CifarResNet
from bqjax.quantizers import QuantizerConfig
from train.data.source import Arrays
from train.image import clustering
from train.image.config import GWKPhase, TrainConfig
from train.image.objective import ImageObjective
from train.image.phases import image_training
from train.image.problems import Problem
from train.step import Training, TrainState, compiled_step

N_TRAIN = 49_000


class _Steps:
    """A training state and its step."""

    def __init__(self, training: Training, state: TrainState, batch: Any):
        self.step, self.key, self.batch = compiled_step(training), jax.random.key_data(training.key), batch
        # A copy, as steps take over the buffers of the state.
        self.state = jax.tree.map(jnp.array, state)

    def __call__(self) -> Any:
        self.state, out = self.step(self.state, self.batch, self.key, None)
        return out


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--config", type=Path, help="a TrainConfig to take the GWK phase from")
    args = parser.parse_args()

    gwk = GWKPhase(epochs=1, cv=6, pw=4, bits=5) if args.config is None else load_config(args.config, TrainConfig).gwk
    if gwk is None:
        parser.error(f"{args.config} has no GWK phase")
    config = TrainConfig(epochs=1, quantizer=QuantizerConfig(), gwk=gwk, batch_size=args.batch_size)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, 32, 32, 3)).astype(np.float32)
    batch = jnp.asarray(images), jnp.asarray(rng.integers(0, 10, args.batch_size), jnp.int32)
    data = Problem(*[Arrays(np.asarray(batch[0]), np.asarray(batch[1]))] * 3, inputs=lambda x: x, pad=4, flip=True)
    model = CifarResNet(20, rngs=nnx.Rngs(0))
    rules = [*(Rule(pattern, skip=True) for pattern in config.keep_float), Rule("*", config.quantizer)]
    model = calibrate(quantize(model, rules)[0], batch[0])
    steps = N_TRAIN // args.batch_size

    in_steps = replace(config, gwk=replace(gwk, schedule="step"))
    objective = ImageObjective(in_steps, model, None, data)
    plain = _Steps(*image_training(in_steps, "ewgs", 1, steps, objective), batch)
    clustered = _Steps(*image_training(in_steps, "gwk", 1, steps, objective), batch)
    # Gradients only serve as weights here: those of any one batch do.
    network, names = objective.network, objective.kernels
    weights = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), network)
    start = jax.tree.map(jnp.array, clustered.state.carried)
    network = jax.tree.map(jnp.array, network)
    anew = jax.jit(partial(clustering.cluster, names=names, settings=gwk, key=jax.random.key(0)))
    again = jax.jit(lambda network, weights, start: clustering.cluster(network, weights, names, gwk, jax.random.key(0), start))
    runs: dict[str, Callable[[], Any]] = {
        "plain step": plain,
        "clustered step": clustered,
        "clustering anew": lambda: anew(network, weights),
        "clustering from the last": lambda: again(network, weights, start),
    }
    for run in runs.values():  # compilation
        _seconds(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            times[name].append(_seconds(run))
    median = {name: float(np.median(each)) for name, each in times.items()}
    for name, seconds in median.items():
        print(f"{name:<26}{seconds:>8.3f} CPU s, of {min(times[name]):.3f} to {max(times[name]):.3f}")
    epoch = steps * median["plain step"]
    ratios = {
        "step_schedule_to_plain_epoch": median["clustered step"] / median["plain step"],
        # The gradient of a replacement is counted as a whole step.
        "epoch_schedule_to_plain_epoch": (epoch + median["plain step"] + median["clustering from the last"]) / epoch,
        "clustering_anew_to_epoch": median["clustering anew"] / epoch,
        "clustering_from_the_last_to_epoch": median["clustering from the last"] / epoch,
    }
    for name, ratio in ratios.items():
        print(f"{name:<36}{ratio:>9.4f}")
    print(json.dumps({"cpu_s": median, "steps_an_epoch": steps, **ratios}))


if __name__ == "__main__":
    main()
