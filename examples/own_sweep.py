"""A sweep of your own perturbation.

How many dead memory cells does a network bear, and in which layer? The sensitivity engine asks such questions thousands of times:
a candidate is a few numbers, the perturbed weights exist only while they are scored, and what lies before the perturbed layer is
computed once. The perturbation is yours, and the answers have error bars. It takes less than a minute:

    python examples/own_sweep.py
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from bqjax.core import batches, classification_predict, classification_score
from bqjax.sensitivity import Candidate, interactions, sweep

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
# sweep would go on where it was; on several devices the candidates are spread over them. `predict` tells what each image adds to
# a drop. The standard error is then over images and draws of cells, both of which are samples; images that are hard for every
# network cancel, as each is compared with itself.

shares = (0.02, 0.05, 0.1, 0.2, 0.4)
candidates = [Candidate(leaf=leaf, perturb=DeadCells(), magnitude=share, draws=8) for leaf in shapes for share in shares]
data, predict, key = batches(images[1000:], labels[1000:], 797), classification_predict(logits), jax.random.key(1)
result = sweep(score, params, data, candidates, key=key, predict=predict)

print(f"{result.n_scores} perturbed networks; unperturbed {result.baseline['accuracy']:.2%}")
print("points of accuracy lost, by the share of weights that read 0 (± standard error over images and draws)")
print(f"{'layer':8}" + "".join(f"{share:>16.0%}" for share in shares))
for i, leaf in enumerate(shapes):
    row = result.rows[i * len(shares) : (i + 1) * len(shares)]
    print(f"{leaf:8}" + "".join(f"{100 * r.drop:>9.2f} ± {100 * r.error:4.2f}" for r in row))

# ## What can be said
#
# Fifteen rows are fifteen chances to be fooled. Statements are adjusted for all of them together (Holm), so that at 5 % none is
# wrong in 19 of 20 sweeps. Dead cells are the same ones at every share, and more of them (common random numbers).

zero = result.against_zero(level=0.05)
print(f"{sum(s.differs for s in zero)} of {len(zero)} rows differ from 0; two layers at 40 %:")
for s in result.differences([4, 9, 14]):
    names = f"{candidates[s.first].leaf} - {candidates[s.second].leaf}"
    print(f"  {names}: {100 * s.difference:.1f} ± {100 * s.error:.1f}, p {s.p:.3f}")

# ## Asking for less
#
# Which layer suffers most is often all one needs to know. A race spends draws and images where that is still open.

asked = [Candidate(leaf=leaf, perturb=DeadCells(), magnitude=0.4, draws=64) for leaf in shapes]
race = sweep(score, params, data, asked, key=key, metric="-loss", until="top1", confidence=0.95).race
print(f"most sensitive: {asked[race.order[0][0]].leaf}, {race.evaluations:.0f} evaluations instead of {race.of}: {race.reached}")

# ## Do damages add up?
#
# Every budget of bits assumes so. Pairs of layers, under the same dead cells as each alone:

pairs = interactions(score, params, data, [candidates[i] for i in (3, 8, 13)], key=key, metric="-loss", predict=predict)
for p in pairs.pairs:
    names = f"{[*shapes][p.first]} and {[*shapes][p.second]}"
    print(f"  {names}: loss {p.drop:.3f}, {p.interaction:+.3f} ± {p.error:.3f} beyond the sum")

# ## What it prints
#
#     120 perturbed networks; unperturbed 94.48%
#     points of accuracy lost, by the share of weights that read 0 (± standard error over images and draws)
#     layer                 2%              5%             10%             20%             40%
#     first        0.72 ± 0.25     1.25 ± 0.45     1.52 ± 0.45     3.31 ± 0.77    10.43 ± 2.12
#     second       0.49 ± 0.24     0.53 ± 0.27     1.04 ± 0.41     2.18 ± 0.63     8.12 ± 1.88
#     head         1.11 ± 0.56     2.81 ± 0.83     5.30 ± 0.70     9.87 ± 1.83    23.43 ± 2.95
#     10 of 15 rows differ from 0; two layers at 40 %:
#       first - second: 2.3 ± 2.7, p 0.427
#       first - head: -13.0 ± 3.6, p 0.014
#       second - head: -15.3 ± 3.4, p 0.008
#     most sensitive: head, 4 evaluations instead of 192: 1 of the top 1 are settled
#       first and second: loss 0.147, +0.038 ± 0.018 beyond the sum
#       first and head: loss 0.456, +0.048 ± 0.044 beyond the sum
#       second and head: loss 0.336, -0.036 ± 0.046 beyond the sum
