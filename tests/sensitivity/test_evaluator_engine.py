"""The engine's numbers are those of a plain loop over whole networks, however the work is cut up and spread."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.classification import classification_score
from bqjax.core.tree import named_leaves, replace
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import KINDS, Codebook, Noise, NoiseCandidate, Quantize

F32 = np.float32
# Sums over the examples of a batch may be taken in another order, or by a grouped convolution; losses here are about 1.
TOLERANCE = {"rel": 2e-5, "abs": 1e-6}


class Cnn(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Conv(2, 2, (3, 3), rngs=rngs)])
        self.head = nnx.Linear(2, 3, rngs=rngs)
        self.unused = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x.mean(axis=(1, 2)))


@functools.cache
def cnn():
    """Parameters, score and two batches."""
    model = Cnn(rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    batches = [
        {"inputs": rng.normal(size=(n, 5, 5, 1)).astype(F32), "labels": rng.integers(0, 3, n).astype(np.int32)} for n in (6, 6)
    ]
    return nnx_params(model), classification_score(nnx_apply(model)), batches


@functools.cache
def recurrent():
    """Parameters, score and three batches, the last one shorter."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(F32)  # noqa: E731
    params = {"cell": {"in": normal(2, 5), "rec": normal(5, 5) / 2}, "head": normal(5)}

    def score(p, xs):
        def step(h, x):
            h = jnp.tanh(x @ p["cell"]["in"] + h @ p["cell"]["rec"])
            return h, None

        h, _ = jax.lax.scan(step, jnp.zeros((xs.shape[1], 5)), xs)
        y = h @ p["head"]
        return {"accuracy": (y > 0).sum(), "loss": jnp.square(y).sum()}, xs.shape[1]

    return params, score, [normal(4, n, 2) for n in (6, 6, 2)]


MODELS = {"cnn": cnn, "scan": recurrent}
LEAVES = {"cnn": "layers/0/kernel", "scan": "cell/rec"}


@functools.cache
def engine(model):
    """One evaluator for all tests that need not know what it has compiled and kept."""
    _, score, batches = MODELS[model]()
    return Evaluator(score, batches, group=1)


def noise(n, magnitude=0.3, lower=-0.2, upper=np.inf):
    return [
        NoiseCandidate(F32(lower), F32(upper), F32(magnitude * (i + 1)), key)
        for i, key in enumerate(jax.random.split(jax.random.key(3), n))
    ]


def by_hand(params, score, batches, names, perturbation, candidates):
    """One full forward a candidate and batch, with the leaves replaced."""
    leaves, score = named_leaves(params), jax.jit(score)
    found = []
    for candidate in candidates:
        new = {}
        for i, name in enumerate(names):
            own = candidate
            if isinstance(candidate, NoiseCandidate) and len(names) > 1:
                own = candidate._replace(key=jax.random.fold_in(candidate.key, i))
            new[name] = perturbation(jnp.asarray(leaves[name]), own)
        results = [score(replace(params, new), batch) for batch in batches]
        count = sum(float(n) for _, n in results)
        found.append({metric: sum(float(s[metric]) for s, _ in results) / count for metric in results[0][0]})
    return found


def close(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, **TOLERANCE)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), [*(("scan", kind) for kind in KINDS), ("cnn", "gaussian")])
def test_noise_of_every_kind(model, kind):
    params, score, batches = MODELS[model]()
    leaf = LEAVES[model]
    candidates = noise(3)
    got = engine(model).scores(params, [leaf], Noise(kind), candidates)
    expected = by_hand(params, score, batches, [leaf], Noise(kind), candidates)
    close(got, expected)
    # Otherwise any mix-up of candidates would pass.
    assert len({m["loss"] for m in got}) == 3


@pytest.mark.parametrize(("model", "names"), [("cnn", ["head/kernel", "conv/bias"]), ("scan", ["cell/in"])])
def test_quantization_of_one_leaf_and_of_several(model, names):
    params, score, batches = MODELS[model]()
    books = [Codebook(np.array([-0.3 * f, 0.0, 0.3 * f], F32), np.array([-0.5, -0.1, 0.1, 0.5], F32) * f) for f in (F32(1), F32(2))]
    got = engine(model).scores(params, names, Quantize(), books)
    close(got, by_hand(params, score, batches, names, Quantize(), books))


@pytest.mark.parametrize("names", [["head", "cell/rec"]])
def test_several_leaves_in_any_order(names):
    # Each takes the noise of its place in the list, and goes to its own place in the network.
    params, score, batches = recurrent()
    got = engine("scan").scores(params, names, Noise("gaussian"), noise(2))
    close(got, by_hand(params, score, batches, names, Noise("gaussian"), noise(2)))


def test_first_and_last_layer_from_one_evaluator():
    # One evaluator serves all leaves in turn, as a search does; going back to a leaf gives the same numbers again.
    params, score, batches = cnn()
    evaluator, first = engine("cnn"), {}
    for name in ("conv/kernel", "head/bias", "conv/kernel"):
        got = evaluator.scores(params, [name], Noise("collapse"), noise(2, 0.1))
        close(got, by_hand(params, score, batches, [name], Noise("collapse"), noise(2, 0.1)))
        assert first.setdefault(name, got) == got


def test_a_leaf_that_nothing_uses_leaves_the_baseline():
    params, evaluator = cnn()[0], engine("cnn")
    got = evaluator.scores(params, ["unused/kernel"], Noise("gaussian"), noise(3, 100.0))
    assert got[0] == got[1] == got[2] == evaluator.baseline(params)


# --- groups of candidates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "groups"), [("cnn", [3]), ("scan", [8])])
def test_groups_give_the_same_numbers(model, groups):
    params, score, batches = MODELS[model]()
    candidates = noise(7)
    alone = engine(model).scores(params, [LEAVES[model]], Noise("gaussian"), candidates)
    for group in groups:
        # 7 candidates leave the last group of 3 with one, and the only group of 8 with an empty slot.
        evaluator = Evaluator(score, batches, group=group)
        close(evaluator.scores(params, [LEAVES[model]], Noise("gaussian"), candidates), alone)


@pytest.mark.parametrize("model", MODELS)
def test_a_candidate_has_one_score_whatever_its_company(model):
    # A search that is resumed asks for fewer candidates at a time than the one that was interrupted.
    params = MODELS[model]()[0]
    scores = functools.partial(engine(model).scores, params, [LEAVES[model]], Noise("gaussian"))
    candidates = noise(5)
    together = scores(candidates)
    assert [scores([c])[0] for c in candidates] == together
    assert scores(candidates[::-1]) == together[::-1]
    assert scores(candidates[1:4]) == together[1:4]
    # More than any size that is compiled at first.
    many = [candidates[i % 5] for i in range(40)]
    assert scores(many) == [together[i % 5] for i in range(40)]


# --- compilations and kept prefixes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counting:
    """A perturbation that counts how often it is traced."""

    traced: list = field(default_factory=list, compare=False)

    def __call__(self, weights, candidate):
        self.traced.append(1)
        return weights + candidate.magnitude


class CountedScore:
    """A score that counts how often it is traced, and how often what comes before leaf ``b`` is computed."""

    def __init__(self):
        self.traced = self.computed = 0

    def __call__(self, p, x):
        self.traced += 1

        def count(h):
            self.computed += 1
            return h

        h = jnp.tanh(x @ p["a"])
        h = jax.pure_callback(count, jax.ShapeDtypeStruct(h.shape, h.dtype), h)
        return (h @ p["b"]).sum(), x.shape[0]


def counted():
    rng = np.random.default_rng(2)
    params = {"a": jnp.asarray(rng.normal(size=(3, 3)), F32), "b": jnp.asarray(rng.normal(size=(3, 2)), F32)}
    return params, CountedScore(), [rng.normal(size=(n, 3)).astype(F32) for n in (4, 4, 2)]


def test_calls_of_a_leaf_share_a_compilation():
    params, score, batches = counted()
    evaluator, perturbation = Evaluator(score, batches), Counting()
    evaluator.scores(params, ["b"], perturbation, noise(5))
    assert score.traced == 2  # once a shape of batch
    compiled = len(perturbation.traced)
    assert compiled > 0
    for n in (1, 8, 3, 32, 5):
        evaluator.scores(params, ["b"], perturbation, noise(n))
    # An equal perturbation made anew, and other values of the parameters, find what was compiled.
    evaluator.scores({**params, "b": params["b"] + 1}, ["b"], Counting(perturbation.traced), noise(5))
    assert (score.traced, len(perturbation.traced)) == (2, compiled)
    # Another leaf needs its own split, but not another trace of the network.
    evaluator.scores(params, ["a"], perturbation, noise(5))
    assert score.traced == 2


def test_the_prefix_is_computed_once_a_batch():
    params, score, batches = counted()
    evaluator = Evaluator(score, batches)
    for n in (5, 7, 6):
        evaluator.scores(params, ["b"], Noise("collapse"), noise(n))
        assert score.computed == 3


def test_a_kept_prefix_is_dropped_when_another_leaf_changes():
    params, score, batches = counted()
    evaluator = Evaluator(score, batches)
    before = evaluator.scores(params, ["b"], Noise("collapse"), noise(2))
    # The varying leaf itself is no part of the prefix.
    evaluator.scores({**params, "b": params["b"] * 2}, ["b"], Noise("collapse"), noise(2))
    assert score.computed == 3
    changed = {**params, "a": params["a"] * 2}
    after = evaluator.scores(changed, ["b"], Noise("collapse"), noise(2))
    assert score.computed == 6
    assert after == Evaluator(score, batches).scores(changed, ["b"], Noise("collapse"), noise(2))
    assert all(a["score"] != b["score"] for a, b in zip(before, after, strict=True))
    assert evaluator.scores(params, ["b"], Noise("collapse"), noise(2)) == before


def test_nothing_is_kept_without_room():
    params, score, batches = counted()
    kept = Evaluator(score, batches).scores(params, ["b"], Noise("gaussian"), noise(3))
    score.computed = 0
    evaluator = Evaluator(score, batches, cache_bytes=0)
    for calls in (1, 2):
        assert evaluator.scores(params, ["b"], Noise("gaussian"), noise(3)) == kept
        assert score.computed == 3 * calls
    # Room for the first batch of 4 x 3 float32, not for the second: its prefix alone is kept.
    score.computed = 0
    evaluator = Evaluator(score, batches, cache_bytes=4 * 3 * 4)
    for computed in (3, 5, 7):
        assert evaluator.scores(params, ["b"], Noise("gaussian"), noise(3)) == kept
        assert score.computed == computed


def test_what_was_reached_is_gone_on_from():
    # One leaf perturbed before the call, one by it; the network up to the first is not computed again.
    params, score, batches = cnn()
    leaves, evaluator = named_leaves(params), engine("cnn")
    first = evaluator.reach(params, ["conv/kernel"])
    changed = replace(params, {"conv/kernel": leaves["conv/kernel"] * 1.5})
    names = ["layers/0/kernel"]
    second = evaluator.reach(changed, names, after=first)
    got = evaluator.measure(changed, names, Noise("gaussian"), noise(2), reached=second).metrics
    close(got, by_hand(changed, score, batches, names, Noise("gaussian"), noise(2)))
    # The leaf of the cut itself may have changed as well.
    got = evaluator.measure(changed, ["conv/kernel"], Noise("gaussian"), noise(2), reached=first).metrics
    close(got, by_hand(changed, score, batches, ["conv/kernel"], Noise("gaussian"), noise(2)))
    with pytest.raises(ValueError, match="reached is for conv/kernel, not for layers/0/kernel"):
        evaluator.measure(changed, names, Noise("gaussian"), noise(1), reached=first)


# --- errors ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_an_error():
    params, score, batches = counted()
    evaluator = Evaluator(score, batches)
    with pytest.raises(ValueError, match="no leaf is named 'c'; the leaves are a, b"):
        evaluator.scores(params, ["b", "c"], Noise("collapse"), noise(1))
    with pytest.raises(ValueError, match="no candidates to score"):
        evaluator.scores(params, ["b"], Noise("collapse"), [])
    with pytest.raises(ValueError, match="group must be at least 1, got 0"):
        Evaluator(score, batches, group=0)


# --- several devices -----------------------------------------------------------------------------------------------------


def on_devices(committed=False):
    """Scores of both models, as JSON data; run in this process and, on other devices, in another one."""
    found = {}
    for model, leaf in LEAVES.items():
        params = MODELS[model]()[0]
        if committed:
            params = jax.device_put(params, jax.devices()[0])
        # Fewer candidates than devices, and more, but no multiple of them.
        for n in (1, 7):
            found[f"{model} {n}"] = engine(model).scores(params, [leaf], Noise("gaussian"), noise(n))
        reached = engine(model).reach(params, [leaf])
        found[f"{model} reached"] = engine(model).measure(params, [leaf], Noise("gaussian"), noise(2), reached=reached).metrics
    return found


def on_devices_twice():
    found = {"devices": jax.device_count(), "plain": on_devices()}
    try:
        found["committed"] = on_devices(committed=True)
    except ValueError as error:
        found["committed"] = str(error)[:200]
    return found


def test_four_devices_give_the_same_numbers_as_one(on_four_devices):
    found = on_four_devices("engine")
    assert found["devices"] == 4
    assert found["plain"] == on_devices()


def test_parameters_that_were_put_on_a_device_are_spread_as_well(on_four_devices):
    # As those are that a checkpoint was restored to.
    found = on_four_devices("engine")
    assert found["committed"] == found["plain"]
