"""The training step of ResNet-20 on a CPU: with relu computed once, against relu as XLA has it.

    python benchmarks/training.py
    python benchmarks/training.py --batch-size 64 --float

Float, or quantized to W8/A8 with distillation off, random weights, batches of random images of CIFAR-10's size, Adam. Both steps
are compiled in one process and run in turn; the figure is the median of the CPU seconds of the process (all threads), which other
work on the machine disturbs least. Both start from the same weights, and their losses must be the same. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bqjax.models.resnet
from bqjax.adapters.flax import calibrate, quantize
from bqjax.core.rules import Rule
from bqjax.models.activation import relu_once
from bqjax.models.resnet import CifarResNet
from bqjax.quantizers import QuantizerConfig
from train.data.source import Arrays
from train.image.config import TrainConfig
from train.image.objective import ImageObjective
from train.image.phases import image_training
from train.image.problems import Problem
from train.step import compiled_step

VARIANTS = {"relu": nnx.relu, "relu computed once": relu_once}


def _problem(batch: Any) -> Problem:
    source = Arrays(*(np.asarray(part) for part in batch))
    return Problem(source, source, source, inputs=lambda x: x.astype(jnp.float32) / 128 - 1, pad=4, flip=True)


def random_batch(n: int) -> tuple[jax.Array, jax.Array]:
    """Images of CIFAR-10's size and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, n))


class Step:
    """A state and its compiled step, traced with one of the variants."""

    def __init__(self, relu: Any, batch: Any, quantized: bool):
        # In place of the network's own choice, which is made by whether it is quantized.
        bqjax.models.resnet._relu = lambda block: relu
        quantizer = QuantizerConfig(weight_bits=8, activation_bits=8) if quantized else None
        config = TrainConfig(epochs=1 if quantized else 0, float_epochs=0 if quantized else 1, quantizer=quantizer)
        model = nnx.view(nnx.jit(lambda: CifarResNet(20, rngs=nnx.Rngs(0)))(), use_running_average=False)
        if quantizer is not None:
            small, _ = quantize(model, [Rule("conv1", skip=True), Rule("linear", skip=True), Rule("*", quantizer)])
            model = calibrate(small, jnp.asarray(batch[0][:32], jnp.float32) / 128 - 1)
        objective = ImageObjective(config, model, None, _problem(batch))
        training, first = image_training(config, "ewgs" if quantized else "float", 1, 100, objective)
        step, key = compiled_step(training), jax.random.key_data(training.key)
        self.state = jax.tree.map(lambda x: jnp.array(x, copy=True), first)
        self.run = step.lower(self.state, batch, key, None).compile()
        self.arguments = batch, key, None
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self.state, values = jax.block_until_ready(self.run(self.state, *self.arguments))
        self.seconds.append(time.process_time() - start)
        self.losses.append(float(values["loss"]))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--float", action="store_true", help="the float step in place of the quantized one")
    args = parser.parse_args()
    batch = random_batch(args.batch_size)
    steps = {name: Step(relu, batch, not args.float) for name, relu in VARIANTS.items()}
    for _ in range(args.repeats + 1):
        for step in steps.values():
            step()
    medians = {name: float(np.median(step.seconds[1:])) for name, step in steps.items()}
    slow, fast = (steps[name] for name in VARIANTS)
    off = max(abs(a - b) / abs(a) for a, b in zip(slow.losses, fast.losses, strict=True))
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.3f} CPU s a step of {args.batch_size}, {args.batch_size / seconds:.0f} images a CPU second")
    ratio = medians["relu"] / medians["relu computed once"]
    print(f"{ratio:.2f} times as many images a second; losses of {len(fast.losses)} steps differ by {off:.1e} at most")
    print(json.dumps({"seconds": medians, "ratio": ratio, "losses_differ": off, "float": args.float, "batch": args.batch_size}))


if __name__ == "__main__":
    main()
