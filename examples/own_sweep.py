"""A sweep of your own perturbation.

How many dead memory cells does a network bear, and in which layer? The sensitivity engine asks such questions thousands of times:
a candidate is a few numbers, the perturbed weights exist only while they are scored, and what lies before the perturbed layer is
computed once. The perturbation is yours. Run it with

    python examples/own_sweep.py
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from bqjax.core import batches, classification_score
from bqjax.sensitivity.sweeps import Candidate, sweep

# ## A perturbation is a function of weights and candidate
#
# A frozen dataclass is hashable, so that all candidates of a layer share one compiled program, and its `repr` names it in a state
# file. The candidate brings a magnitude and a random key, each draw its own.


@dataclass(frozen=True)
class DeadCells:
    """A share of the weights, `candidate.magnitude`, reads as `value`."""

    value: float = 0.0

    def __call__(self, weights, candidate):
        dead = jax.random.bernoulli(candidate.key, candidate.magnitude, weights.shape)
        return jnp.where(dead, self.value, weights)


# ## A network to ask
#
# Three dense layers, trained by plain gradient descent on scikit-learn's digits.

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)


def logits(params, x):
    for layer in ("first", "second"):
        x = jax.nn.relu(x @ params[layer])
    return x @ params["head"]


score = classification_score(logits)


@jax.jit
def train(params, x, y):
    def step(_, params):
        grads = jax.grad(lambda p: score(p, {"inputs": x, "labels": y})[0]["loss"] / len(y))(params)
        return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)

    return jax.lax.fori_loop(0, 300, step, params)


shapes = {"first": (64, 96), "second": (96, 48), "head": (48, 10)}
keys = jax.random.split(jax.random.key(0), 3)
params = {
    name: jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5 for key, (name, shape) in zip(keys, shapes.items(), strict=True)
}
params = train(params, images[:1000], jnp.asarray(labels[:1000]))

# ## The sweep
#
# Every layer, five shares of dead cells, eight draws each: 120 perturbed networks. With `state_path="sweep.state"` an interrupted
# sweep would go on where it was; on several devices the candidates are spread over them.

shares = (0.02, 0.05, 0.1, 0.2, 0.4)
candidates = [Candidate(leaf=leaf, perturb=DeadCells(), magnitude=share, draws=8) for leaf in shapes for share in shares]
result = sweep(score, params, batches(images[1000:], labels[1000:], 797), candidates, key=jax.random.key(1))

print(f"{result.n_scores} perturbed networks; unperturbed {result.baseline['accuracy']:.2%}")
print("points of accuracy lost, by the share of weights that read 0 (± standard error over draws)")
print(f"{'layer':8}" + "".join(f"{share:>16.0%}" for share in shares))
for i, leaf in enumerate(shapes):
    row = result.rows[i * len(shares) : (i + 1) * len(shares)]
    print(f"{leaf:8}" + "".join(f"{100 * r.drop:>9.2f} ± {100 * r.standard_error:4.2f}" for r in row))

# ## What it prints
#
#     120 perturbed networks; unperturbed 94.48%
#     points of accuracy lost, by the share of weights that read 0 (± standard error over draws)
#     layer                 2%              5%             10%             20%             40%
#     first        0.39 ± 0.07     0.93 ± 0.20     2.46 ± 0.40     3.15 ± 0.32     8.67 ± 2.27
#     second       0.39 ± 0.10     0.41 ± 0.09     1.38 ± 0.31     2.89 ± 0.52     7.23 ± 1.07
#     head         0.55 ± 0.28     1.74 ± 0.65     2.71 ± 0.39     9.19 ± 1.34    22.04 ± 2.48
