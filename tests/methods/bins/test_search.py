"""The bin search on networks whose sensitivity is known by construction, against a search written in NumPy."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bqjax.core.leaves import Clustered, decode
from bqjax.core.rules import Rule
from bqjax.methods.bins import SearchConfig, search_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import KINDS

F32 = np.float32
KEY = jax.random.key(0)
# Of one shape, so that they share compilations.
BATCHES = [np.ones(2, F32), np.ones(2, F32)]
# Four bins of a normal distribution with this deviation have the edges -2, 0 and 2.
SIGMA = -2 / scipy.stats.norm.ppf(0.25)
FOUR = SearchConfig(n_bins=4, mean=0.0, sigma=SIGMA, max_bins=5, tolerance=None, max_drop=None)


def quadratic(original, cost):
    """Loses ``cost * (w - original)^2``, summed over the weights: what a bin costs is its spread."""

    def score(params, batch):
        lost = sum(jnp.sum(cost[n] * jnp.square(params[n].astype(jnp.float32) - original[n])) for n in cost)
        return {"score": -lost * batch.sum()}, batch.sum()

    return score


def normal(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(F32)


def problem(**shapes):
    params = {n: normal(s, seed) for seed, (n, s) in enumerate(shapes.items())}
    cost = {n: np.random.default_rng(100 + i).uniform(0, 1, s).astype(F32) for i, (n, s) in enumerate(shapes.items())}
    return params, cost, quadratic(params, cost)


def bins_of(w, edges):
    return np.digitize(w, np.asarray(edges, F32))


def collapse_cost(w, cost, edges):
    """What each bin costs when its weights become their mean."""
    index, w, cost = bins_of(w, edges), w.astype(np.float64), cost.astype(np.float64)
    means = [w[index == i].mean() for i in range(len(edges) + 1)]
    return [float((cost * (w - m) ** 2)[index == i].sum()) for i, m in enumerate(means)]


def entropy(w, edges):
    return float(scipy.stats.entropy(np.bincount(bins_of(w, edges).reshape(-1)), base=2))


def numpy_search(w, cost, edges, max_bins):
    """All states from some start: the costliest bin is split in the middle, again and again."""
    states = [sorted(edges)]
    while len(states[-1]) + 1 < max_bins:
        edges = states[-1]
        worst = int(np.argmax(collapse_cost(w, cost, edges)))
        lower = edges[worst - 1] if worst > 0 else float(w.min())
        upper = edges[worst] if worst < len(edges) else float(w.max())
        states.append(sorted([*edges, float(F32((lower + upper) / 2))]))
    return states


def grid():
    """Weights in four clumps from -4 to 4, sixteen in each bin of FOUR."""
    return np.concatenate([np.linspace(a, a + 1.9, 16) for a in (-4, -1.95, 0.05, 2.1)]).astype(F32).reshape(8, 8)


def test_the_most_sensitive_bin_is_split_in_the_middle():
    names, w = "abcd", grid()
    params = dict.fromkeys(names, w)
    cost = {n: np.where(bins_of(w, [-2, 0, 2]) == i, F32(3), F32(1)) for i, n in enumerate(names)}
    stats, info = search_bins(quadratic(params, cost), params, BATCHES, FOUR, key=KEY)
    # An outer bin is split between its inner edge and its extreme weight: -4 and 4.
    for layer, name, new in zip(info.layers, names, [-3.0, -1.0, 1.0, 3.0], strict=True):
        (path,) = layer.paths
        np.testing.assert_allclose(path[0].edges, [-2, 0, 2], atol=1e-6)
        np.testing.assert_allclose(path[0].bin_drops, collapse_cost(w, cost[name], [-2, 0, 2]), rtol=1e-4)
        expected = sorted([-2.0, 0.0, 2.0, new])
        np.testing.assert_allclose(path[1].edges, expected, atol=1e-6)
        np.testing.assert_array_equal(stats[name].edges, np.array(path[1].edges, F32))


def test_the_whole_search_agrees_with_numpy():
    params, cost, score = problem(w=(20, 15))
    _, info = search_bins(score, params, BATCHES, dataclasses.replace(FOUR, max_bins=9, sigma=None, mean=None), key=KEY)
    (layer,) = info.layers
    w = params["w"]
    start = w.astype(np.float64).mean() + w.astype(np.float64).std() * scipy.stats.norm.ppf([0.25, 0.5, 0.75])
    states = numpy_search(w, cost["w"], start.tolist(), 9)
    assert [s.n_bins for s in layer.paths[0]] == [4, 5, 6, 7, 8, 9]
    for step, edges in zip(layer.paths[0], states, strict=True):
        np.testing.assert_allclose(step.edges, edges, rtol=1e-5, atol=1e-6)
        costs = collapse_cost(w, cost["w"], step.edges)
        np.testing.assert_allclose(step.bin_drops, costs, rtol=1e-3, atol=1e-6)
        assert step.metrics["score"] == pytest.approx(-sum(costs), rel=1e-4)
        assert step.entropy == pytest.approx(entropy(w, step.edges), rel=1e-9)


def test_each_stopping_rule_stops_at_the_first_state_that_meets_it():
    params, _, score = problem(many=(12, 12), calm=(12, 11), near=(12, 10), few=(12, 9))
    few = np.array([-1.0, 0.2, 0.7], F32)
    params["few"] = few[np.arange(108) % 3].reshape(12, 9)
    score = quadratic(params, {n: np.ones_like(w) for n, w in params.items()})
    base = SearchConfig(n_bins=2, max_bins=16, tolerance=None, max_drop=None)
    rules = [
        Rule("many", dataclasses.replace(base, max_bins=5)),
        Rule("calm", dataclasses.replace(base, tolerance=4.0)),
        Rule("near", dataclasses.replace(base, target_drop=9.0)),
        Rule("few", base),
    ]
    _, info = search_bins(score, params, BATCHES, key=KEY, rules=rules)
    many, calm, near, alike = info.layers
    assert (many.reason, many.result.n_bins) == ("5 bins", 5)
    assert calm.reason == "every bin within 4"
    assert [max(s.bin_drops) <= 4 for s in calm.paths[0]] == [False] * (len(calm.paths[0]) - 1) + [True]
    assert near.reason == "within the target"
    lost = [near.drop + near.result.metrics["score"] - s.metrics["score"] for s in near.paths[0]]
    assert [x <= 9 for x in lost] == [False] * (len(lost) - 1) + [True]
    assert len(lost) > 2
    assert (alike.reason, alike.result.n_bins) == ("as many bins as distinct values", 3)
    assert alike.drop == pytest.approx(0, abs=1e-4)
    assert sum(layer.drop for layer in info.layers) == pytest.approx(-info.final["score"], rel=1e-4)


def test_a_leaf_that_costs_too_much_is_left_and_listed():
    params, cost, _ = problem(a=(9, 9), b=(8, 8), c=(7, 7))
    cost["b"] *= 1000
    config = dataclasses.replace(FOUR, sigma=None, mean=None, max_drop=20.0)
    stats, info = search_bins(quadratic(params, cost), params, BATCHES, config, key=KEY)
    assert list(stats) == ["a", "c"]
    assert [layer.accepted for layer in info.layers] == [True, False, True]
    refused = info.layers[1]
    assert refused.drop > 20
    assert refused.reason == f"drop {refused.drop:.4f} exceeds max_drop 20"
    # The refused leaf costs nothing in the end, and the next is measured without it.
    assert info.final["score"] == pytest.approx(-info.layers[0].drop - info.layers[2].drop, rel=1e-4)
    assert info.final == info.layers[2].result.metrics


def test_the_total_drop_is_against_the_original_network():
    params, _, score = problem(a=(9, 9), b=(9, 9), c=(2, 2))
    _, free = search_bins(score, params, BATCHES, FOUR, key=KEY)
    a, b, c = (layer.drop for layer in free.layers)
    assert c < b
    config = dataclasses.replace(FOUR, max_drop=max(a, b) * 1.01, max_total_drop=a + (b + c) / 2)
    stats, info = search_bins(score, params, BATCHES, config, key=KEY)
    assert list(stats) == ["a", "c"]
    assert "exceeds max_total_drop" in info.layers[1].reason


def test_a_drop_of_exactly_the_limit_is_within_it():
    w = {"w": np.array([[-1.0, -1.0], [1.0, 3.0]], F32)}
    score = quadratic(w, {"w": np.ones((2, 2), F32)})
    config = SearchConfig(n_bins=2, max_bins=2, mean=0.0, sigma=1.0, tolerance=None, max_drop=2.0)
    stats, info = search_bins(score, w, BATCHES, config, key=KEY)
    assert info.layers[0].drop == 2.0
    assert list(stats) == ["w"]


def test_largest_first_by_all_the_weights_of_a_group():
    params, _, score = problem(a=(5, 5), b=(8, 8), c=(5, 5), d=(7, 7), e=(5, 5))
    params["bias"] = np.ones(9, F32)
    params["steps"] = np.ones((9, 9), np.int32)
    rules = [Rule("[ace]", group="g"), Rule("steps", skip=True), Rule("bias", skip=True), Rule("*")]
    stats, info = search_bins(score, params, BATCHES, FOUR, key=KEY, rules=rules)
    assert [(layer.names, layer.size) for layer in info.layers] == [(("a", "c", "e"), 75), (("b",), 64), (("d",), 49)]
    assert list(info.left) == ["bias", "steps"]
    assert [stats[n].group for n in "abcde"] == ["g", None, "g", None, "g"]
    together = np.stack([params[n] for n in "ace"])
    for name in "ace":
        np.testing.assert_array_equal(stats[name].edges, stats["a"].edges)
    assert info.layers[0].result.entropy == pytest.approx(entropy(together, stats["a"].edges))


def test_the_final_metrics_are_those_of_the_compressed_network():
    params, _, score = problem(a=(9, 9), b=(8, 8), c=(8, 8), d=(5, 5))
    original = dict(params)
    params["d"] = params["d"].astype(jnp.bfloat16)
    params["bias"] = np.ones(4, F32)
    score = quadratic(original, {n: np.ones_like(w) for n, w in original.items()})
    rules = [Rule("[bc]", group="g"), Rule("[ad]")]
    stats, info = search_bins(score, params, BATCHES, FOUR, key=KEY, rules=rules)
    compressed = bin_and_quant(params, stats)
    assert sorted(stats) == ["a", "b", "c", "d"]
    scored = Evaluator(score, BATCHES).baseline(decode(compressed))
    assert info.final == pytest.approx(scored, rel=1e-5)
    assert info.baseline == pytest.approx(Evaluator(score, BATCHES).baseline(params), rel=1e-6)
    assert info.left == {"bias": "no rule matches it"}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "uniform" else kind for kind in KINDS])
def test_a_key_decides_the_noise(kind):
    params, cost, score = problem(a=(9, 9))
    config = dataclasses.replace(FOUR, kind=kind, magnitude=None if kind == "collapse" else 0.2, draws=2)
    (stats, one), (again, same), (_, other) = (
        search_bins(score, params, BATCHES, config, key=jax.random.key(k)) for k in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, stats, again)
    assert same.layers == one.layers
    drops, others = (np.array(info.layers[0].paths[0][0].bin_drops) for info in (one, other))
    assert (drops >= 0).all()
    assert drops.max() > 0
    # A relative change costs the same whichever way the coin falls.
    assert (~np.isclose(drops, others, rtol=1e-4)).all() == (kind in ("gaussian", "uniform"))
    if kind == "relative":
        w = params["a"].astype(np.float64)
        index = bins_of(w, one.layers[0].paths[0][0].edges)
        expected = [(cost["a"] * (0.2 * w) ** 2)[index == i].sum() for i in range(4)]
        np.testing.assert_allclose(one.layers[0].paths[0][0].bin_drops, expected, rtol=1e-4)


def test_a_coin_that_matters_falls_by_the_key():
    w = {"w": normal((9, 9))}

    def linear(params, batch):
        return params["w"].sum() * batch.sum(), batch.sum()

    config = dataclasses.replace(FOUR, kind="relative", max_bins=4)
    drops = [search_bins(linear, w, BATCHES, config, key=jax.random.key(k))[1].layers[0].result.bin_drops for k in (1, 2)]
    assert drops[0] != drops[1]


@pytest.mark.parametrize(("kind", "variance"), [("gaussian", 1.0), pytest.param("uniform", 1 / 3, marks=pytest.mark.slow)])
def test_the_sweep_finds_the_largest_level_below_the_tolerance(kind, variance):
    params = {"w": normal((20, 20), scale=0.3)}
    score = quadratic(params, {"w": np.full((20, 20), 1 / 400, F32)})
    std = params["w"].std(dtype=np.float64)
    # Noise of magnitude m costs variance * m^2: the tolerance lies between two levels, a factor 2 from either.
    for level, found in [(0.25, 0.25), (0.001, 0.0625), (64.0, 1.0)]:
        tolerance = 2 * variance * (level * std) ** 2
        config = SearchConfig(n_bins=2, max_bins=2, kind=kind, levels=(0.0625, 0.125, 0.25, 0.5, 1.0), tolerance=tolerance)
        _, info = search_bins(score, params, BATCHES[:1], config, key=KEY)
        assert info.layers[0].magnitude == pytest.approx(found * std, rel=1e-6)


def test_relative_noise_is_a_half_unless_given():
    params, _, score = problem(a=(4, 4))
    for given, used in [(None, 0.5), (0.25, 0.25)]:
        config = dataclasses.replace(FOUR, kind="relative", magnitude=given, max_bins=4)
        assert search_bins(score, params, BATCHES, config, key=KEY)[1].layers[0].magnitude == used
    assert search_bins(score, params, BATCHES, FOUR, key=KEY)[1].layers[0].magnitude is None


def test_lmbda_picks_the_cheapest_of_all_states():
    params, _, score = problem(w=(20, 15))
    w, chosen = params["w"], []
    for lmbda in (0.0, 0.125, 125.0):
        config = SearchConfig(n_bins=2, max_bins=8, sigma_scales=(1.0, 1.8), tolerance=None, max_drop=None, lmbda=lmbda)
        _, info = search_bins(score, params, BATCHES, config, key=KEY)
        (layer,) = info.layers
        assert len(layer.paths) == 2
        states = [s for path in layer.paths for s in path]
        costs = [-s.metrics["score"] + lmbda * entropy(w, s.edges) * w.size for s in states]
        assert layer.result == states[int(np.argmin(costs))]
        assert layer.reason == f"{layer.result.n_bins} bins at lmbda {lmbda:g}"
        chosen.append(layer.result.entropy)
    assert chosen == sorted(chosen, reverse=True)
    assert len(set(chosen)) > 2


def test_with_lmbda_states_within_the_target_come_first():
    params, _, score = problem(w=(20, 15))
    config = SearchConfig(n_bins=2, max_bins=8, tolerance=None, max_drop=None, lmbda=125.0, target_drop=12.0)
    _, info = search_bins(score, params, BATCHES, config, key=KEY)
    (layer,) = info.layers
    within = [s for s in layer.paths[0] if -s.metrics["score"] <= 12]
    # The search did not stop at the first, and even the highest lmbda does not leave the target.
    assert 1 < len(within) < len(layer.paths[0])
    assert layer.result == min(within, key=lambda s: s.entropy)


def test_of_several_starts_the_leanest_within_the_target_wins_else_the_one_that_loses_least():
    params, _, score = problem(w=(20, 15))
    for target, within in [(12.0, True), (1e-9, False)]:
        config = SearchConfig(n_bins=3, max_bins=8, sigma_scales=(0.6, 1.0, 1.6), tolerance=None, max_drop=None, target_drop=target)
        _, info = search_bins(score, params, BATCHES, config, key=KEY)
        (layer,) = info.layers
        ends = [path[-1] for path in layer.paths]
        assert all((-s.metrics["score"] <= target) == within for s in ends)
        assert layer.result == min(ends, key=lambda s: s.entropy if within else -s.metrics["score"])


def two_metrics(original):
    """Accuracy falls in one coarse step; the loss sees every weight."""

    def score(params, batch):
        lost = jnp.sum(jnp.square(params["w"] - original["w"]) * jnp.where(original["w"] < -2, 4.0, 1.0))
        return {"accuracy": jnp.where(lost > 1e6, 0.0, 1.0) * batch.sum(), "loss": lost * batch.sum()}, batch.sum()

    return score


def test_the_loss_ranks_bins_where_there_is_one_and_accuracy_sets_the_limits():
    params = {"w": grid()}
    config = dataclasses.replace(FOUR, max_drop=0.01)
    stats, info = search_bins(two_metrics(params), params, BATCHES, config, key=KEY)
    assert (info.metric, info.rank_by) == ("accuracy", "-loss")
    first, second = info.layers[0].paths[0]
    assert first.bin_drops == (0, 0, 0, 0)
    assert np.argmax(first.bin_rank_drops) == 0
    np.testing.assert_allclose(second.edges, [-3, -2, 0, 2], atol=1e-6)
    # Accuracy loses nothing, so the leaf stays however large the loss.
    assert list(stats) == ["w"]
    assert info.layers[0].rank_drop > 1
    with pytest.raises(ValueError, match="no metric 'wer', only accuracy, loss"):
        search_bins(two_metrics(params), params, BATCHES, config, key=KEY, metric="-wer")


class Stopped(Exception):
    pass


NOISY = dataclasses.replace(FOUR, kind="gaussian", magnitude=0.2, draws=2)


def test_an_interrupted_search_ends_as_if_it_had_not_been(tmp_path):
    params, _, score = problem(a=(9, 9), b=(6, 6))
    calls = []
    stats, whole = search_bins(score, params, BATCHES, NOISY, key=KEY, progress=lambda *call: calls.append(call))
    assert whole.n_resumed == 0
    assert calls[-1][:2] == (2, 2)
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)

    path = tmp_path / "state"
    for stop in (1, len(calls) // 2):
        seen = []

        def stopping(*call, seen=seen, stop=stop):
            seen.append(call)
            if len(seen) == stop:
                raise Stopped

        with pytest.raises(Stopped):
            search_bins(score, params, BATCHES, NOISY, key=KEY, state_path=path, progress=stopping)
    again, resumed = search_bins(score, params, BATCHES, NOISY, key=KEY, state_path=path)
    assert list(again) == list(stats)
    jax.tree.map(np.testing.assert_array_equal, again, stats)
    assert 0 < resumed.n_resumed < resumed.n_scores
    for field in ("layers", "baseline", "final", "left", "n_scores"):
        assert getattr(resumed, field) == getattr(whole, field), field

    # A finished search is answered from the file alone: the score is not called.
    def forbidden(params, batch):
        raise AssertionError("scored again")

    same, finished = search_bins(forbidden, params, BATCHES, NOISY, key=KEY, state_path=path)
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    assert finished.n_resumed == finished.n_scores == whole.n_scores


def test_the_state_of_another_search_is_refused_by_what_changed(tmp_path):
    params, _, score = problem(a=(4, 4))
    path = tmp_path / "state"
    given = {"params": params, "batches": BATCHES, "config": dataclasses.replace(FOUR, max_bins=4), "key": KEY}
    search_bins(score, **given, state_path=path)
    before = path.read_bytes()
    others = {
        "params": {"a": params["a"] + 1},
        "batches": BATCHES[:1],
        "config": FOUR,
        "key": jax.random.key(1),
    }
    for changed, other in others.items():
        with pytest.raises(ValueError, match=rf"belongs to another run \({changed} changed\)"):
            search_bins(score, **{**given, changed: other}, state_path=path)
    assert path.read_bytes() == before


def test_a_network_that_breaks_under_compression_is_left_as_it_was():
    params, _, _ = problem(a=(6, 6), b=(5, 5))
    original = params["a"]

    def score(p, batch):
        return jnp.where(jnp.all(p["a"] == original), p["b"].sum(), jnp.nan) * batch.sum(), batch.sum()

    stats, info = search_bins(score, params, BATCHES, dataclasses.replace(FOUR, max_drop=1.0), key=KEY)
    assert list(stats) == ["b"]
    assert info.layers[0].drop == math.inf
    assert not info.layers[0].accepted
    assert math.isfinite(info.final["score"])


def test_nothing_to_compress_changes_nothing():
    params = {"bias": np.ones(3, F32), "steps": np.ones((2, 2), np.int32)}
    stats, info = search_bins(lambda p, b: (p["bias"].sum(), 1), params, BATCHES, key=KEY)
    assert stats == {}
    assert info.layers == ()
    assert info.final == info.baseline
    assert info.left == {"bias": "fewer than two dimensions", "steps": "int32 is not floating point"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_to_begin_with_is_an_error(value):
    with pytest.raises(ValueError, match=f"'score' is {value} on the unperturbed network"):
        search_bins(lambda p, b: (p["w"].sum() * value, 1), {"w": np.ones((2, 2), F32)}, BATCHES, key=KEY)


def unused(params, batch):
    raise AssertionError("scored before the arguments were checked")


@pytest.mark.parametrize(
    ("params", "batches", "rules", "message"),
    [
        ({"a": np.ones((2, 2), F32), "b": np.full((2, 2), np.nan, F32)}, BATCHES, None, "leaf 'b' holds 4 NaN"),
        ({"a": np.ones((2, 2), F32)}, [], None, "no batches to score on"),
        ({"a": np.ones((2, 2), F32)}, BATCHES, [Rule("b")], "rule 'b' matches no leaf"),
        ({"a": np.ones((2, 2), np.int32)}, BATCHES, [Rule("a")], "'a', which cannot be compressed: int32"),
        (
            {"a": Clustered(np.zeros(4, np.uint8), np.ones((1, 1), F32), (2, 2), F32)},
            BATCHES,
            [Rule("a")],
            "already compressed",
        ),
        (
            {"a": np.ones((2, 2), F32), "b": np.ones((2, 2), F32)},
            BATCHES,
            [Rule("a", SearchConfig(max_bins=9), group="g"), Rule("b", SearchConfig(), group="g")],
            "group 'g' has leaves with different settings",
        ),
    ],
)
def test_wrong_arguments_are_errors_before_anything_is_scored(params, batches, rules, message):
    with pytest.raises(ValueError, match=message):
        search_bins(unused, params, batches, key=KEY, rules=rules)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "laplace"}, "kind must be one of"),
        ({"n_bins": 0}, "n_bins must be at least 1, got 0"),
        ({"max_bins": 0}, "max_bins must be at least 1"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"n_bins": 20}, "n_bins 20 exceeds max_bins 16"),
        ({"magnitude": 0.0}, "magnitude must be positive"),
        ({"levels": ()}, "levels must be positive and ascending"),
        ({"levels": (1.0, 0.5)}, "levels must be positive and ascending"),
        ({"kind": "gaussian", "tolerance": None}, "needs a magnitude, or a tolerance"),
        ({"sigma_scales": ()}, "at least one factor"),
        ({"sigma_scales": (1.0, 0.0)}, "sigma_scale must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
    ],
)
def test_configs_that_make_no_sense_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**wrong)


def test_small_leaves_start_from_fewer_bins_and_never_from_more_than_allowed():
    assert [SearchConfig().starts(size)[0].n_bins for size in (9_999, 10_000)] == [4, 8]
    assert [SearchConfig(max_bins=3).starts(size)[0].n_bins for size in (9_999, 10_000)] == [3, 3]
    starts = SearchConfig(n_bins=5, sigma=2.0, sigma_scales=(1.0, 1.5), mean=0.5).starts(1)
    assert [(s.n_bins, s.sigma, s.sigma_scale, s.mean) for s in starts] == [(5, 2.0, 1.0, 0.5), (5, 2.0, 1.5, 0.5)]
