"""Scalar k-means against scikit-learn and an exact optimum; segment means against float64."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.kmeans import scalar as kmeans
from bqjax.kmeans.lloyd import lloyd as iterate
from bqjax.kmeans.scalar import kmeans_scalar, nearest
from bqjax.kmeans.segments import segment_means

SMALL = 1000  # every (n, k) is compiled once for all tests: few are used
LARGE = 100_000  # beyond the size up to which values are clustered without a histogram


def optimum(x: np.ndarray, k: int, w: np.ndarray | None = None) -> float:
    """The least mean squared error of k values for few numbers, by dynamic programming in float64."""
    order = np.argsort(x)
    x = x[order].astype(np.float64)
    w = np.ones_like(x) if w is None else w[order].astype(np.float64)
    x = x - np.average(x, weights=w)
    s0, s1, s2 = (np.append(0, np.cumsum(w * x**p)) for p in range(3))
    n = x.size
    cost = np.full((n + 1, n + 1), np.inf)
    for i in range(n):
        m = s0[i + 1 :] - s0[i]
        cost[i, i + 1 :] = s2[i + 1 :] - s2[i] - (s1[i + 1 :] - s1[i]) ** 2 / m
    best = cost[0]
    for _ in range(k - 1):
        best = np.minimum(best, (best[:, None] + cost).min(0))
    return max(float(best[n] / s0[n]), 0.0)


def lloyd(x: np.ndarray, k: int) -> float:
    """The mean squared error of Lloyd's algorithm in float64, which finds the optimum of normal samples."""
    x = np.sort(x.astype(np.float64))
    sums = np.append(0, np.cumsum(x))
    codebook = np.quantile(x, (np.arange(k) + 0.5) / k)
    for _ in range(2000):
        ends = np.concatenate([[0], np.searchsorted(x, (codebook[1:] + codebook[:-1]) / 2), [x.size]])
        codebook = np.diff(sums[ends]) / np.diff(ends)
    return float(np.mean((x - np.repeat(codebook, np.diff(ends))) ** 2))


def mse(x: np.ndarray, result: kmeans.ScalarKMeans, w: np.ndarray | None = None) -> float:
    codebook, indices = np.asarray(result.codebook, np.float64), np.asarray(result.indices)
    return float(np.average((x.astype(np.float64) - codebook[indices]) ** 2, weights=w))


def sample(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draw = {
        "normal": lambda: rng.standard_normal(n),
        "laplace": lambda: rng.laplace(size=n),
        "student": lambda: rng.standard_t(2, n),
        "uniform": lambda: rng.random(n),
        "modes": lambda: rng.choice([-1.0, 0.3, 1.0, 5.0], n) + 1e-3 * rng.standard_normal(n),
        "sparse": lambda: rng.standard_normal(n) * (rng.random(n) < 0.2),
    }
    return draw[kind]().astype(np.float32)


def check_consistent(x: np.ndarray, result: kmeans.ScalarKMeans, w: np.ndarray | None = None) -> None:
    """Ascending codebook, nearest indices, and the stated error."""
    codebook, indices = np.asarray(result.codebook, np.float64), np.asarray(result.indices)
    assert (np.diff(codebook) >= 0).all()
    distance = np.abs(x.astype(np.float64) - codebook[indices])
    least = np.full(x.shape, np.inf)
    for value in codebook:
        least = np.minimum(least, np.abs(x.astype(np.float64) - value))
    assert (distance - least).max() <= 1e-6 * np.abs(codebook).max()
    np.testing.assert_allclose(float(result.mse), mse(x, result, w), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["normal", "laplace", "student", "uniform", "modes", "sparse"])
def test_up_to_1024_values_reach_the_optimum(kind):
    x = sample(kind, SMALL)
    result = kmeans_scalar(x, 16)
    check_consistent(x, result)
    assert mse(x, result) <= optimum(x, 16) * (1 + 1e-5) + 1e-14


# scikit-learn takes seconds for the heavy tails.
@pytest.mark.parametrize("kind", ["normal", pytest.param("student", marks=pytest.mark.slow), "modes"])
def test_no_worse_than_scikit_learn(kind):
    cluster = pytest.importorskip("sklearn.cluster")
    x = sample(kind, 5000, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = cluster.KMeans(16, n_init=5, random_state=0, tol=1e-8).fit(x[:, None].astype(np.float64)).inertia_ / x.size
    assert mse(x, kmeans_scalar(x, 16)) <= 1.0005 * best


@pytest.fixture(scope="module")
def direct():
    """Clustering of LARGE values into 16 without a histogram."""
    cluster = jax.jit(lambda x: kmeans._kmeans_scalar.__wrapped__(x, 16, None, 1000, 1e-6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "_DIRECT", LARGE)
        cluster(jnp.zeros(LARGE))
    return cluster


@pytest.mark.parametrize(
    "kind", ["normal", "sparse", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("laplace", "student", "modes"))]
)
def test_the_histogram_loses_nothing(kind, direct):
    x = sample(kind, LARGE, seed=2)
    result = kmeans_scalar(x, 16)
    check_consistent(x, result)
    assert mse(x, result) <= 1.001 * mse(x, direct(jnp.asarray(x)))


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_fixed_point_conditions(n):
    x = sample("normal", n, seed=3)
    result = kmeans_scalar(x, 16, max_iterations=500, tolerance=1e-6)
    check_consistent(x, result)
    means = segment_means(x, result.indices, 16)
    assert np.abs(np.asarray(means - result.codebook)).max() <= 1e-2 * float(jnp.sqrt(result.mse))


def test_weights_stand_for_repetitions():
    x = sample("normal", SMALL, seed=4)
    w = np.random.default_rng(4).integers(0, 6, SMALL)
    weighted, repeated = kmeans_scalar(x, 16, w.astype(np.float32)), kmeans_scalar(np.repeat(x, w), 16)
    check_consistent(x, weighted, w)
    np.testing.assert_allclose(weighted.mse, repeated.mse, rtol=1e-3)
    assert mse(x, weighted, w) <= optimum(x[w > 0], 16, w[w > 0]) * (1 + 1e-5)
    # A common factor of the weights, however small, changes nothing.
    tiny = kmeans_scalar(x, 16, (w * 2.0**-100).astype(np.float32))
    np.testing.assert_array_equal(tiny.codebook, weighted.codebook)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_zero_weights_everywhere_count_equally(n):
    x = sample("normal", n, seed=5)
    np.testing.assert_allclose(kmeans_scalar(x, 16, np.zeros(n, np.float32)).mse, kmeans_scalar(x, 16).mse, rtol=1e-4)


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_changes_nothing(n, scale):
    x = sample("normal", n, seed=6)
    scaled = (x * np.float32(scale)).astype(np.float32)
    assert mse(scaled, kmeans_scalar(scaled, 16)) / scale**2 <= 1.001 * mse(x, kmeans_scalar(x, 16))


@pytest.mark.parametrize("power", [-130, -126, 120, 125])
def test_the_ends_of_the_range_of_floats(power):
    """Sums that overflow, and numbers (denormals) that the arithmetic of XLA takes for zeros."""
    x = sample("normal", SMALL, seed=6)
    extreme, usual = np.ldexp(x, power), kmeans_scalar(x, 8)
    found = kmeans_scalar(extreme, 8)
    np.testing.assert_allclose(np.ldexp(np.float64(found.codebook), -power), usual.codebook, rtol=1e-3)
    assert (np.asarray(found.indices) == np.asarray(usual.indices)).mean() > 0.999  # the smallest numbers have fewer digits
    np.testing.assert_array_equal(nearest(extreme, found.codebook), found.indices)
    means = segment_means(extreme, usual.indices, 9, fill=7)
    np.testing.assert_allclose(np.ldexp(np.float64(means[:8]), -power), usual.codebook, rtol=1e-3)
    assert means[8] == 7
    if power > 0:
        traced = jax.jit(lambda x: kmeans_scalar(x, 8))(extreme)
        np.testing.assert_array_equal(traced.codebook, found.codebook)


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_an_outlier_costs_one_entry(n, far):
    x = sample("normal", n, seed=7)
    with_outlier = np.append(x[:-1], np.float32(far))
    result = kmeans_scalar(with_outlier, 16)
    assert mse(with_outlier, result) <= 1.001 * lloyd(x, 15)
    assert np.asarray(result.codebook)[0 if far < 0 else -1] == far


def test_values_far_from_zero():
    x = (1 + 1e-3 * sample("normal", LARGE, seed=8)).astype(np.float32)
    centred = (x.astype(np.float64) - 1).astype(np.float32)
    assert mse(x, kmeans_scalar(x, 16)) <= 1.002 * mse(centred, kmeans_scalar(centred, 16))


def test_jit_and_repetition_change_nothing():
    """Of many values: tests/methods/baselines/test_weight_sharing.py has the same for few."""
    x, k = sample("laplace", LARGE, seed=9), 16
    eager, again, jitted = kmeans_scalar(x, k), kmeans_scalar(x, k), jax.jit(kmeans_scalar, static_argnums=1)(x, k)
    for a, b, c in zip(eager, again, jitted, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("n", [SMALL])
def test_one_value_is_the_mean(n):
    x = sample("normal", n, seed=10)
    result = kmeans_scalar(x, 1)
    np.testing.assert_allclose(result.codebook, [x.mean(dtype=np.float64)], atol=1e-6)
    assert not np.asarray(result.indices).any()


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e-5, 7e8])
def test_constant_input(n, value):
    result = kmeans_scalar(np.full(n, value, np.float32), 16)
    assert np.asarray(result.codebook).tolist() == [np.float32(value)] * 16
    assert float(result.mse) == 0
    assert not np.asarray(result.indices).any()


@pytest.mark.parametrize(
    ("n", "k", "weighted", "n_distinct"),
    [
        (SMALL, 16, False, 9),
        (SMALL, 16, True, 9),
        (SMALL, 16, False, 16),
        (LARGE, 16, False, 9),
        (LARGE, 16, True, 9),
        (LARGE, 16, False, 16),
        (LARGE, 512, False, 9),
    ],
)
def test_few_distinct_values_are_exact(n, k, weighted, n_distinct):
    rng = np.random.default_rng(11)
    one = np.float32(1)
    # Neighbouring floats among them, which no histogram cell can tell apart.
    distinct = np.array([-2e4, -0.7, 0, 1e-5, 0.1, one, np.nextafter(one, np.float32(2)), 3, 5e3], np.float32)
    distinct = np.append(distinct, 5e3 + 10 * np.arange(1, n_distinct - 8, dtype=np.float32)).astype(np.float32)
    x = rng.permutation(np.append(distinct, rng.choice(distinct, n - distinct.size))).astype(np.float32)
    result = kmeans_scalar(x, k, rng.random(n).astype(np.float32) + 0.1 if weighted else None)
    codebook, indices = np.asarray(result.codebook), np.asarray(result.indices)
    np.testing.assert_array_equal(codebook[indices], x)
    np.testing.assert_array_equal(codebook, np.append(distinct, np.full(k - n_distinct, distinct[-1])))
    assert indices.max() == n_distinct - 1
    assert indices.dtype == (np.uint8 if k <= 256 else np.uint16)


@pytest.mark.parametrize(("n", "k"), [(SMALL, 16), (LARGE, 16), (LARGE, 512)])
def test_entries_differ_while_distinct_values_remain(n, k):
    x = np.resize(np.arange(k + 1, dtype=np.float32) ** 2, n)
    assert np.unique(kmeans_scalar(x, k).codebook).size == k


def test_clusters_without_members_are_filled():
    x = sample("normal", 1000, seed=12)
    start = jnp.full(16, x.max())
    codebook, _ = iterate(jnp.asarray(x), None, start, 200, 200, 1e-5)
    assert np.unique(np.asarray(codebook)).size == 16
    assert set(np.unique(nearest(x, codebook))) == set(range(16))


def test_large_codebooks():
    x = sample("normal", LARGE, seed=13)
    result = kmeans_scalar(x, 512)
    check_consistent(x, result)
    assert result.indices.dtype == np.uint16
    # Panter and Dite: mse -> sqrt(3) pi / 2 * variance / k^2 for a normal density.
    assert float(result.mse) <= 1.02 * np.sqrt(3) * np.pi / 2 / 512**2


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_short_types_are_computed_in_float32(dtype):
    x = jnp.asarray(sample("normal", SMALL, seed=14)).astype(dtype)
    short, full = kmeans_scalar(x, 16), kmeans_scalar(x.astype(jnp.float32), 16)
    assert short.codebook.dtype == np.float32
    np.testing.assert_array_equal(short.codebook, full.codebook)
    assert segment_means(x, short.indices, 16).dtype == np.float32


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_float64_stays_float64(n):
    x = np.random.default_rng(15).standard_normal(n)
    short = float(kmeans_scalar(x.astype(np.float32), 16).mse)
    with jax.enable_x64(True):
        result = kmeans_scalar(x, 16)
        assert result.codebook.dtype == np.float64
        assert result.indices.dtype == np.uint8
        np.testing.assert_allclose(float(result.mse), mse(x, result), rtol=1e-12)
        np.testing.assert_allclose(float(result.mse), short, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], 0), "k must be at least 1, got 0"),
        (([1.0, 2.0], 1.5), "k must be an integer, got 1.5"),
        (([1.0, np.nan, np.inf], 2), "2 NaN or infinite entries of 3"),
        (([], 2), "must not be empty"),
        (([[1.0]], 2), "one-dimensional"),
        (([1, 2], 2), "must be floating point"),
        (([1.0, 2.0], 2, [1.0]), "weights must have the shape of values"),
        (([1.0, 2.0], 2, [1.0, -1.0]), "must not be negative"),
        (([1.0, 2.0], 2, [1.0, np.nan]), "1 NaN or infinite"),
    ],
)
def test_unfit_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans_scalar(*(np.asarray(a) if isinstance(a, list) else a for a in arguments))


def test_unfit_settings():
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="max_iterations must be at least 1"):
        kmeans_scalar(x, 2, max_iterations=0)
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        kmeans_scalar(x, 2, tolerance=-1.0)
    with pytest.raises(ValueError, match="ascending"):
        nearest(x, np.float32([1, 0]))


@pytest.mark.parametrize("k", [16, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_segment_means_of_a_million_values(k, weighted):
    rng = np.random.default_rng(16)
    n = 1_000_000
    segments = rng.integers(0, k - 1, n, dtype=np.uint8)
    x = rng.standard_normal(n, dtype=np.float32) + segments * np.float32(100)
    x[segments == 3] = np.float32(0.1)
    w = rng.random(n, dtype=np.float32) if weighted else None
    means = np.asarray(segment_means(x, segments, k, w, fill=-5.0))
    w64 = np.ones(n) if w is None else w.astype(np.float64)
    exact = np.bincount(segments, w64 * x) / np.bincount(segments, w64)
    assert means[3] == np.float32(0.1)
    assert means[k - 1] == -5
    # Within two roundings of the mean or of the spread (1), whichever is coarser.
    assert (np.abs(means[: k - 1] - exact) <= 2.0**-23 * np.maximum(np.abs(exact), 1)).all()


@pytest.mark.parametrize("k", [3, 30])
def test_segment_means_of_unweighted_and_unnumbered_values(k):
    x, w = np.float32([1, 3, 5, 9, 7]), np.float32([0, 0, 1, 3, 2])
    np.testing.assert_array_equal(segment_means(x, np.array([0, 0, 1, 1, 2]), k, w)[:3], [2, 8, 7])
    numbers = jnp.array([0, 0, 1, -1, 1000])
    np.testing.assert_array_equal(jax.jit(lambda s: segment_means(x, s, k, w))(numbers)[:3], [2, 5, 0])


def test_segment_means_refuses():
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"segments must lie in \[0, 2\), got numbers from 0 to 2"):
        segment_means(x, np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="shape of values"):
        segment_means(x, np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="must be integers"):
        segment_means(x, x, 2)
