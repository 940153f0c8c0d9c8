"""Schemes against what their files hold, and training through them on a task of a few numbers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.classification import batches, classification_outputs, classification_score
from bqjax.core.leaves import Clustered, decode
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.methods.baselines.dkm import DKMConfig
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.quantizers import QuantizerConfig
from train.data.source import Arrays
from train.image.config import GWKPhase
from train.image.problems import Problem
from train.image.transfer import Pruning
from train.methods.retrain import Phase, RetrainConfig, Retrained, TrainingTask
from train.schemes import EWGS, Clusters, Codebooks, Plain, SoftKMeans

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
WEIGHTS = {"a/kernel": jnp.asarray(RNG.standard_normal((16, 8)), jnp.float32)}
BLOCKS = Clusters(phase=GWKPhase(epochs=1, schedule="step", pw=4, bits=3))


@pytest.mark.parametrize(
    ("scheme", "values"),
    [
        (Plain(), 128),
        (EWGS(config=QuantizerConfig(weight_bits=2, activation_bits=None)), 4),
        (Codebooks(k=5), 5),
        (BLOCKS, 32),
    ],
    ids=["plain", "EWGS", "codebooks", "clusters"],
)
def test_the_network_sees_what_the_file_holds(scheme, values):
    numbers, state = scheme.start(WEIGHTS, KEY)
    seen, state = scheme.seen(numbers, state, jnp.float32(0.5))
    kept = decode(scheme.finish(numbers, state))["a/kernel"]
    np.testing.assert_allclose(seen["a/kernel"], kept, atol=1e-6)
    assert np.unique(kept).size <= values
    error = np.square(np.asarray(kept) - np.asarray(WEIGHTS["a/kernel"])).mean()
    assert (error == 0) == (values == 128) and error < 0.6 * np.square(WEIGHTS["a/kernel"]).mean()


def test_clusters_by_epoch_replace_the_weights():
    scheme = Clusters(phase=GWKPhase(epochs=1, pw=4, bits=3))
    numbers, state = scheme.start(WEIGHTS, KEY)
    assert scheme.by_epoch and not BLOCKS.by_epoch
    assert scheme.seen(numbers, state, 0.5)[0] is numbers["weights"]  # float weights within the epoch
    assert scheme.follow(numbers, state, numbers, 0.5) is state
    numbers, state = scheme.replaced(numbers, state, {"weights": WEIGHTS}, KEY)
    np.testing.assert_array_equal(numbers["weights"]["a/kernel"], decode(scheme.finish(numbers, state))["a/kernel"])
    assert np.unique(numbers["weights"]["a/kernel"]).size <= 32


def test_soft_values_are_hard_in_the_file():
    scheme = SoftKMeans(config=DKMConfig(k=4, temperature=0.2))
    numbers, state = scheme.start(WEIGHTS, KEY)
    seen, moved = scheme.seen(numbers, state, jnp.float32(0))
    assert np.unique(seen["a/kernel"]).size > 4 and moved["a/kernel"].shape == (4, 1)
    leaf = scheme.finish(numbers, moved)["a/kernel"]
    assert isinstance(leaf, Clustered) and leaf.k == 4


def test_zeros_of_pruned_leaves_stay_zero():
    w = jnp.where(jnp.abs(WEIGHTS["a/kernel"]) < 1, 0, WEIGHTS["a/kernel"])
    scheme = Codebooks(k=4)
    numbers, state = scheme.start({"a/kernel": w}, KEY)
    moved = {"codebooks": {name: book + 0.25 for name, book in numbers["codebooks"].items()}}
    seen = scheme.seen(moved, state, jnp.float32(0))[0]["a/kernel"]
    np.testing.assert_array_equal(seen == 0, w == 0)
    np.testing.assert_allclose(seen, jnp.where(w == 0, 0, decode(state)["a/kernel"] + 0.25), atol=1e-6)
    every = dataclasses.replace(scheme, keep_zeros=False).seen(moved, state, jnp.float32(0))[0]["a/kernel"]
    np.testing.assert_allclose(every, decode(state)["a/kernel"] + 0.25, atol=1e-6)
    # By the sum of the gradients of all weights of an entry (Han et al.), none for zero.
    grads = jax.grad(lambda numbers: (scheme.seen(numbers, state, 0.0)[0]["a/kernel"] * 3).sum())(numbers)
    counts = np.bincount(np.asarray(state["a/kernel"].indices), minlength=4)
    np.testing.assert_allclose(grads["codebooks"]["a/kernel"][:, 0], np.where(np.arange(4) == 0, 0, 3 * counts))


def problem(seed=0):
    """Two classes of images of 4 x 4 pixels, brighter on the left or on the right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 96).astype(np.int32)
    images = rng.standard_normal((96, 4, 4, 1)).astype(np.float32)
    images[..., :2, :] += (labels * 2.0 - 1)[:, None, None, None]
    parts = [Arrays(images[i : i + 32], labels[i : i + 32]) for i in (0, 32, 64)]
    return Problem(*parts, inputs=lambda x: x, pad=0, flip=False)


def task(**changes):
    params = {
        "a": {"kernel": WEIGHTS["a/kernel"] / 4},
        "b": {"kernel": jnp.tile(jnp.array([[0.125, -0.125]]), (8, 1)), "bias": jnp.zeros(2)},
    }

    def apply(params, x):
        return jnp.tanh(x.reshape(len(x), -1) @ params["a"]["kernel"]) @ params["b"]["kernel"] + params["b"]["bias"][None]

    data = problem()
    cut = batches(*data.validation.batch(np.arange(32)), 32)
    fields = {"name": "sides", "params": params, "score": classification_score(apply), "outputs": classification_outputs(apply)}
    return TrainingTask(**fields | {"calibration": cut, "test": cut, "data": data} | changes)


TRAINING = RetrainConfig(batch_size=16, learning_rate=0.02, distillation=0.25)


def loss(tree, given):
    sums, count = given.score(decode(tree), given.calibration[0])
    return float(sums["loss"] / count)


def test_phases_follow_one_another():
    given, said = task(), []
    phases = Phase(BLOCKS, 12), Phase(Codebooks(), 4)
    method = Retrained(phases=phases, leaves=("a/*",), training=TRAINING)
    tree = method.compress(given, key=KEY, progress=lambda *of: said.append(of[:2])).tree
    assert said == [(i, 32) for i in range(1, 33)]  # two steps an epoch
    leaves = named_leaves(tree)
    assert leaves["a/kernel"].k <= 8 and leaves["a/kernel"].codebook.dtype == np.uint8
    assert leaves["b/kernel"].codes.dtype == np.int8 and leaves["b/bias"].shape == (2,)
    assert loss(tree, given) < 0.6 * loss(given.params, given)


def test_pruned_in_training_and_shared():
    pruning = Pruning(sparsity=0.75, every=1, end=0.5)
    method = Retrained(phases=(Phase(Plain(pruning=pruning, store=6), 3),), leaves=("a/*",), others=None, training=TRAINING)
    tree = method.compress(task(), key=KEY).tree
    leaf = tree["a"]["kernel"]
    assert leaf.k <= 6 and int((leaf.decode() == 0).sum()) == 96
    assert tree["b"]["kernel"].dtype == jnp.float32
    plain = (
        Retrained(phases=(Phase(Plain(store=PTQConfig(bits=4)), 0),), leaves=("a/*",), training=TRAINING)
        .compress(task(), key=KEY)
        .tree
    )
    assert plain["a"]["kernel"].bits == 4


def test_refusals():
    method = Retrained(phases=(Phase(Plain(), 1),), training=TRAINING)
    fields = {f.name: getattr(task(), f.name) for f in dataclasses.fields(Task)}
    with pytest.raises(ValueError, match="no data to train on"):
        method.compress(Task(**fields), key=KEY)
    with pytest.raises(ValueError, match="'c/\\*' matches no leaf; the leaves are a/kernel"):
        dataclasses.replace(method, leaves=("c/*",)).compress(task(), key=KEY)
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 32"):
        dataclasses.replace(method, training=RetrainConfig()).compress(task(), key=KEY)
    with pytest.raises(ValueError, match="'a/kernel' has no codebook to train"):
        dataclasses.replace(method, phases=(Phase(Codebooks(), 1),), leaves=("a/*",)).compress(task(), key=KEY)
    with pytest.raises(ValueError, match="there must be phases"):
        Retrained(phases=())
    with pytest.raises(ValueError, match="activation_bits=None"):
        EWGS(config=QuantizerConfig())
    for field, value in (("batch_size", 0), ("learning_rate", np.nan), ("distillation", 2.0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=field):
            RetrainConfig(**{field: value})
