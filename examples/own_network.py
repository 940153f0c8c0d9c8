"""Your own network, from training to a verified file.

You have a Flax NNX network and a few hundred examples. At the end you have a file about ten times smaller, and you know what
that cost on images that nothing was chosen by. Run it with

    python examples/own_network.py
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import bqjax
from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core import batches, classification_outputs, classification_score

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

# ## Three things that the library asks for
#
# The parameters as a pytree, a score that both searches and reports go through, and data to search on apart from data to report on.
# `apply(params, x)` is the network as a pure function.

params, apply = nnx_params(model), nnx_apply(model)
score, outputs = classification_score(apply), classification_outputs(apply)
searched = batches(images[calibration], labels[calibration], 300)
reported = batches(images[test], labels[test], 497)

# ## Compress
#
# Start from 32 Gaussian bins a kernel. `output_importance` says how much each weight moves the logits, `search_lambda` finds the
# highest Lagrangian weight of a bit that costs at most half a point on the calibration images.

bins = bqjax.gaussian_bins(params, 32, [bqjax.Rule("*/kernel")])
importance = bqjax.output_importance(outputs, params, searched, key=jax.random.key(0), names=list(bins))
compress = partial(bqjax.bin_and_quant_ecsq, params, bins, importance)
lmbda = bqjax.search_lambda(compress, score, params, searched, importance, limits={"accuracy": 0.005})
tree = compress(lmbda)

# ## One file, and what it decodes to
#
# `load` verifies a checksum before it decodes anything. What is scored is what the file holds, not what was written into it.

path = Path("out/own_network.bq.safetensors")
path.parent.mkdir(exist_ok=True)
bqjax.save(path, tree, force=True)
decoded = bqjax.decode(bqjax.load(path))

accuracy = bqjax.Evaluator(score, reported).baseline
n_weights = sum(x.size for x in jax.tree.leaves(params))
print(f"float32     {4 * n_weights:>8,} bytes             {accuracy(params)['accuracy']:.2%} of {len(labels[test])} test images")
size = path.stat().st_size
print(f"the file    {size:>8,} bytes, {4 * n_weights / size:4.1f} times  {accuracy(decoded)['accuracy']:.2%}")
print(f"            {8 * size / n_weights:.2f} bits a weight over all {n_weights:,} weights, lmbda {lmbda:.2g} per bit")

# ## What it prints
#
#     float32       69,032 bytes             90.74% of 497 test images
#     the file       5,054 bytes, 13.7 times  89.74%
#                 2.34 bits a weight over all 17,258 weights, lmbda 0.00011 per bit
