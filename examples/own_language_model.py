"""Your own language model, from training to a verified file.

A small transformer in Flax NNX learns to write Python, byte by byte, from the source of the standard library. At the end you have
a file about ten times smaller, and you know what that cost in nats a byte on a module that nothing was chosen by. Run it with

    python examples/own_language_model.py
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bqjax import Task
from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.experiment import reference, run_row
from bqjax.methods import RateDistortion

# ## The network and its training
#
# Nothing here knows of compression. Any NNX module will do.

WIDTH, LENGTH = 48, 64


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.RMSNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        first, second = self.norms
        x = x + self.attention(first(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(second(x))))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.bytes, self.places = nnx.Embed(256, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm, self.head = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, tokens):
        x = self.bytes(tokens) + self.places.embedding[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rows(*names):
    text = b"".join((Path(os.__file__).parent / f"{name}.py").read_bytes() for name in names)
    return np.frombuffer(text[: len(text) // LENGTH * LENGTH], np.uint8).astype(np.int32).reshape(-1, LENGTH)


train = rows("argparse", "ast", "calendar", "configparser", "datetime", "difflib", "enum", "inspect", "pathlib", "subprocess")
model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(4e-3), wrt=nnx.Param)


def nats(logits, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


@nnx.jit
def step(model, optimizer, tokens):
    optimizer.update(model, nnx.grad(lambda model: nats(model(tokens), tokens).mean())(model))


for i in range(400):
    step(model, optimizer, train[np.random.default_rng(i).integers(0, len(train), 16)])

# ## A task
#
# The parameters as a pytree, a score, the outputs that curvature is taken of, and data to search on apart from data to report on.
# A score is a sum over the batch's examples, and how many there are; here an example is a byte.

apply = nnx_apply(model)


def score(params, tokens):
    found = nats(apply(params, tokens), tokens)
    return {"nats": found.sum()}, jnp.float32(found.size)


data = {"calibration": np.split(rows("textwrap")[:256], 4), "test": np.split(rows("heapq")[:256], 4)}
of = {"params": nnx_params(model), "score": score, "outputs": apply, "metric": "-nats", "rank_by": "-nats"}
task = Task(name="own_language_model", **of, **data)

# ## One file
#
# `RateDistortion` takes the highest Lagrangian weight of a bit that costs at most 0.02 nats a byte on what is searched on.
# `run_row` writes the file, reads it back, and scores what it decodes to.

before = reference(task)
path = Path("out/own_language_model.bq.safetensors")
row = run_row(task, RateDistortion(max_drop=0.02), path, before, key=jax.random.key(0), force=True).row
print(f"float32     {before.float_bytes:>8,} bytes              {row.before:.4f} nats a byte")
print(f"the file    {row.file_bytes:>8,} bytes, {row.ratio:4.1f} times  {row.after:.4f}")
print(f"            {row.bits_per_weight:.2f} bits a weight over all {before.n_params:,} weights")

# ## What it prints
#
#     float32      340,104 bytes              2.5391 nats a byte
#     the file      26,089 bytes, 13.0 times  2.5505
#                 2.48 bits a weight over all 84,304 weights
#
# The text is that of the Python which runs it, so that other releases print other numbers.
