"""What perturbing one leaf of a recurrent network costs beside a full forward pass, and what a training step costs.

    python benchmarks/recurrent.py

The network is that of configs/deepspeech2_an4.py with random weights, one batch of 16 utterances of 3 seconds. For each leaf
the traced network is split (:mod:`bqjax.sensitivity.slicing`); shown are the seconds of the suffix, which runs for every
perturbation, and how many of them the time of one full forward pass holds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.slicing import split, trace
from train.data.utterances import Batch
from train.speech.config import SpeechConfig
from train.speech.objective import SpeechObjective, speech_training
from train.step import compiled_step

LEAVES = (
    "conv/0/conv/kernel",
    "rnn/0/forward/recurrent/kernel",
    "rnn/1/forward/recurrent/kernel",
    "rnn/2/forward/recurrent/kernel",
    "output/kernel",
)


def _best(run: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    config, n = SpeechConfig(), args.batch_size
    model = nnx.view(config.network(), use_running_average=True, deterministic=True)
    params, apply = nnx_params(model), nnx_apply(model)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(n, args.frames, config.front_end.features)), jnp.float32)
    lengths = jnp.asarray(rng.integers(args.frames // 2, args.frames + 1, n), jnp.int32)
    flat, _ = jax.tree.flatten((params, inputs, lengths))
    program = trace(lambda params, inputs, lengths: apply(params, inputs, lengths)[0], params, inputs, lengths)
    constants = list(program.constants.values())

    forward = jax.jit(apply)
    full = _best(lambda: forward(params, inputs, lengths), args.repeats)
    print(f"full forward pass of {n} utterances of {args.frames} frames: {full:.3f} s")
    rows = {}
    for leaf in LEAVES:
        at = list(named_leaves(params)).index(leaf)
        parts = split(program, [at])
        fixed = flat[:at] + flat[at + 1 :]
        kept = jax.jit(parts.prefix)(constants, fixed)
        suffix = jax.jit(parts.suffix)
        rows[leaf] = _best(
            lambda suffix=suffix, kept=kept, fixed=fixed, at=at: suffix(kept, constants, fixed, [flat[at]]), args.repeats
        )
        scans = sum(step.equation.primitive.name == "scan" for step in parts.suffix_steps)
        print(f"{leaf:<34}{rows[leaf]:>9.4f} s{full / rows[leaf]:>10.1f} to a full pass, {scans} of {2 * config.layers} scans")

    training, state = speech_training(config, SpeechObjective(config), 100)
    compiled, key = compiled_step(training), jax.random.key_data(training.key)
    labels = rng.integers(1, 28, (n, 30)).astype(np.int32)
    batch = Batch(np.asarray(inputs), np.asarray(lengths), labels, np.full(n, 18, np.int32), np.ones(n, np.float32))
    state, _ = compiled(state, batch, key, None)
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch, key, None))
        times.append(time.perf_counter() - start)
    step = min(times)
    print(f"training step {step:.3f} s, {n / step:.1f} utterances a second")
    print(json.dumps({"full_s": full, "suffix_s": rows, "step_s": step, "utterances_per_s": n / step}))


if __name__ == "__main__":
    main()
