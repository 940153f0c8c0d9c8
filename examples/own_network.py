"""Your own network, from training to a verified file.

You have a Flax NNX network and a few hundred examples. At the end you have a file about forty times smaller, and you know
what that cost on images that nothing was chosen by. Run it with

    python examples/own_network.py
"""

from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import bqjax
from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core import batches, classification_task, paired_error, score_on
from bqjax.methods import RateDistortion

# ## The network and its training
#
# Nothing here knows of compression. Any NNX module will do.


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(256, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).reshape(len(x), -1)
        return self.head(nnx.relu(self.hidden(x)))


images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
train, calibration, test = slice(0, 1000), slice(1000, 1300), slice(1300, None)

model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


for i in range(300):
    rows = np.random.default_rng(i).integers(0, 1000, 64)
    step(model, optimizer, images[rows], labels[rows])

# ## What the library asks for
#
# `apply(params, x)`, the network as a pure function of its parameters (any pytree), and data to search on apart from data to report
# on. A task holds these with the network's score; every method and every report go through it. Not a classifier? Then give
# `bqjax.Task` a score of your own, `score(params, batch) -> (sums, count)`.

params, apply = nnx_params(model), nnx_apply(model)
searched = batches(images[calibration], labels[calibration], 100)
reported = batches(images[test], labels[test], 497)
task = classification_task(apply, params, searched, reported, name="my network")

# ## Compress
#
# Error feedback under the curvature of the outputs, at the highest Lagrangian weight of a bit that costs at most half a point on
# the calibration images. `target_bytes=5000` in place of `max_drop` fits a size. Nothing looks at the test images.

found = RateDistortion(max_drop=0.005).compress(task, key=jax.random.key(0))

# ## One file, and what it decodes to
#
# `load` verifies a checksum before it decodes anything. What is scored is what the file holds, not what was written into it.

path = Path("out/own_network.bq.safetensors")
path.parent.mkdir(exist_ok=True)
bqjax.save(path, found.tree, force=True)
decoded = bqjax.decode(bqjax.load(path))

before, after = score_on(task, params, reported), score_on(task, decoded, reported)
points = 100 * (after.metrics["accuracy"] - before.metrics["accuracy"])
error = 100 * paired_error(before.parts, after.parts, before.n_examples)
n_weights, size = sum(x.size for x in jax.tree.leaves(params)), path.stat().st_size
print(f"float32     {4 * n_weights:>8,} bytes             {before.metrics['accuracy']:.2%} of {before.n_examples} test images")
cost = f"{after.metrics['accuracy']:.2%}, {points:+.2f} ± {error:.2f} points"
print(f"the file    {size:>8,} bytes, {4 * n_weights / size:4.1f} times  {cost}")
print(f"            {8 * size / n_weights:.2f} bits a weight over all {n_weights:,} weights, lmbda {found.info.lmbda:.2g} per bit")

# ## What it prints
#
#     float32       69,032 bytes             90.74% of 497 test images
#     the file       1,602 bytes, 43.1 times  89.34%, -1.41 ± 0.66 points
#                 0.74 bits a weight over all 17,258 weights, lmbda 0.0005 per bit
#
# The half point was kept on the 300 calibration images; 497 others say 1.4 points, and can hardly tell that from half a one.
# `confidence=0.9` asks for a margin.
