"""Vector k-means against scikit-learn and float64 arithmetic, its edge cases, and its memory."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.kmeans import seeding, tiles
from bqjax.kmeans import vector as vector_kmeans
from bqjax.kmeans.assignment import nearest_block, weighted_sums
from bqjax.kmeans.vector import kmeans_vector

KEY = jax.random.key(0)


def weighted_mse(x, w, codebook, indices):
    w = np.broadcast_to(w[:, None] if w.ndim == 1 else w, x.shape).astype(np.float64)
    return float((np.square(x.astype(np.float64) - np.asarray(codebook, np.float64)[np.asarray(indices)]) * w).sum() / w.sum())


def distances(x, codebook, metric=None):
    squares = np.square(x.astype(np.float64)[:, None] - np.asarray(codebook, np.float64)[None])
    return (squares if metric is None else squares * metric[:, None]).sum(2)


def sample(n=2000, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)).astype(np.float32), rng.exponential(size=n).astype(np.float32)


def check_nearest(x, result, metric=None):
    far = distances(x, result.codebook, metric)
    chosen = far[np.arange(len(x)), np.asarray(result.indices)]
    assert (chosen - far.min(1)).max() <= 1e-5 * np.square(x).max()


@pytest.mark.parametrize("d", [1, 4, pytest.param(40, marks=pytest.mark.slow)])
def test_no_worse_than_scikit_learn(d):
    cluster = pytest.importorskip("sklearn.cluster")
    x, w = sample(d=d)
    best = cluster.KMeans(16, n_init=3, random_state=0).fit(x, sample_weight=w)
    expected = weighted_mse(x, w, best.cluster_centers_, best.predict(x))
    result = kmeans_vector(x, 16, w, key=KEY, iterations=200)
    check_nearest(x, result)
    mse = weighted_mse(x, w, result.codebook, result.indices)
    np.testing.assert_allclose(float(result.mse), mse, rtol=1e-5)
    # One start against the best of three. The fewer dimensions, the further local optima lie apart.
    assert mse <= (1.03 if d > 1 else 1.25) * expected


@pytest.mark.parametrize("each", [False, True], ids=["a point", "a coordinate"])
def test_one_iteration_is_that_of_float64(each):
    x, w = sample()
    if each:
        w = np.random.default_rng(1).exponential(size=x.shape).astype(np.float32)
    start = x[:16]
    result = kmeans_vector(x, 16, w, key=KEY, start=start, iterations=1)
    full = np.broadcast_to(w if each else w[:, None], x.shape).astype(np.float64)
    members = distances(x, start, full if each else None).argmin(1)
    expected = np.stack([np.average(x[members == j], axis=0, weights=full[members == j]) for j in range(16)])
    np.testing.assert_allclose(result.codebook, expected, atol=2e-6)
    check_nearest(x, result, full if each else None)
    assert int(result.iterations) == 1


def test_at_the_end_entries_are_the_means_of_their_points():
    x, w = sample()
    result = kmeans_vector(x, 8, w, key=KEY, iterations=200, tolerance=0)
    assert int(result.iterations) < 200
    moments, mass = weighted_sums(jnp.asarray(x), jnp.asarray(w)[:, None], result.indices, 8)
    np.testing.assert_allclose(result.codebook, moments / mass, atol=2e-6)


@pytest.mark.parametrize("weighted", ["point", pytest.param("coordinate", marks=pytest.mark.slow)])
def test_the_sample_loses_nothing(weighted):
    x, w = sample(70_000, d=2)
    w = {"point": w, "coordinate": np.random.default_rng(2).exponential(size=x.shape).astype(np.float32)}[weighted]
    sampled = kmeans_vector(x, 8, w, key=KEY)
    assert int(sampled.iterations) > 25 // 5
    assert float(sampled.mse) <= 1.005 * float(kmeans_vector(x, 8, w, key=KEY, sampling=False).mse)


def test_a_sample_stands_for_all_weight():
    x, w = sample(1003, d=2)
    w[::2] = 0
    points = seeding.Points(jnp.asarray(x), jnp.asarray(w)[:, None], None)
    few = jax.jit(jax.vmap(lambda key: seeding.thin(points, 100, key)))(jax.random.split(KEY, 200))
    np.testing.assert_allclose(few.weights.sum((1, 2)), np.full(200, w.sum()), rtol=1e-5)
    total = np.asarray((few.x * few.weights).sum(1)).mean(0)
    # Unbiased; the standard error of 200 samples of 100 points is some 2.
    assert np.abs(total - (x * w[:, None]).sum(0)).max() < 12


def test_points_of_weight_zero_move_no_entry():
    x, w = sample()
    w[500:] = 0
    moved = x.copy()
    moved[500:] = x[500:] + 3
    a, b = kmeans_vector(x, 8, w, key=KEY), kmeans_vector(moved, 8, w, key=KEY)
    np.testing.assert_allclose(a.codebook, b.codebook, atol=1e-6)
    check_nearest(x, a)


def test_masked_entries_count_nowhere():
    x, w = sample(999, d=6)
    mask = np.ones_like(x, bool)
    mask[::3, 2:] = False
    garbage = np.where(mask, x, 1e3).astype(np.float32)
    a = kmeans_vector(np.where(mask, x, 0), 8, w, key=KEY, mask=mask)
    b = kmeans_vector(garbage, 8, w, key=KEY, mask=mask)
    np.testing.assert_array_equal(a.codebook, b.codebook)
    np.testing.assert_array_equal(a.indices, b.indices)
    check_nearest(np.where(mask, x, 0), a, mask)
    np.testing.assert_array_equal(nearest_block(garbage, a.codebook, mask=mask), a.indices)
    np.testing.assert_allclose(float(a.mse), weighted_mse(x, w[:, None] * mask, a.codebook, a.indices), rtol=1e-5)


def test_all_zero_weights_count_equally():
    x, _ = sample()
    zeros, none = kmeans_vector(x, 8, np.zeros(len(x), np.float32), key=KEY), kmeans_vector(x, 8, key=KEY)
    np.testing.assert_allclose(zeros.codebook, none.codebook, atol=1e-6)
    np.testing.assert_array_equal(zeros.indices, none.indices)


@pytest.mark.parametrize("n", [3, pytest.param(17, marks=pytest.mark.slow)])
def test_more_entries_than_points(n):
    x, w = sample(n)
    result = kmeans_vector(x, 16, w, key=KEY)
    np.testing.assert_allclose(np.asarray(result.codebook)[result.indices], x, atol=1e-6 if n < 17 else 5)
    assert np.isfinite(np.asarray(result.codebook)).all()
    assert result.indices.dtype == np.uint8


def test_more_entries_than_distinct_points():
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)[np.random.default_rng(1).integers(0, 5, 300)]
    result = kmeans_vector(x, 32, key=KEY)
    np.testing.assert_allclose(np.asarray(result.codebook)[result.indices], x, atol=1e-6)
    assert float(result.mse) < 1e-12
    constant = kmeans_vector(np.full((40, 2), 0.1, np.float32), 4, key=KEY)
    assert (np.asarray(constant.codebook)[constant.indices] == np.float32(0.1)).all()


def test_empty_entries_are_moved_to_points_of_large_error():
    x, w = sample()
    start = np.concatenate([x[:1], np.full((15, 4), 1e4, np.float32)])
    result = kmeans_vector(x, 16, w, key=KEY, start=start, iterations=50)
    assert int(result.repaired) >= 15
    assert set(np.asarray(result.indices).tolist()) == set(range(16))
    assert float(result.mse) <= 1.1 * float(kmeans_vector(x, 16, w, key=KEY, iterations=200).mse)


def test_a_start_saves_iterations():
    x, w = sample()
    first = kmeans_vector(x, 16, w, key=KEY, iterations=200, tolerance=0)
    again = kmeans_vector(x, 16, w, key=jax.random.key(7), start=first.codebook)
    assert int(again.iterations) <= 2
    np.testing.assert_array_equal(again.indices, first.indices)


@pytest.mark.slow
def test_large_codebooks_are_seeded_several_at_a_time(monkeypatch):
    x, w = sample()
    one_by_one = kmeans_vector(x, 300, w, key=KEY, iterations=3)
    assert one_by_one.indices.dtype == np.uint16
    monkeypatch.setattr(seeding, "_SEEDING_ROUNDS", 60)
    vector_kmeans._kmeans_vector.clear_cache()
    together = kmeans_vector(x, 300, w, key=KEY, iterations=3)
    vector_kmeans._kmeans_vector.clear_cache()
    assert float(together.mse) <= 1.15 * float(one_by_one.mse)


@pytest.mark.parametrize(("scale", "shift"), [(1e-15, 0), (1e15, 0), (1e-3, 1)])
def test_scale_and_place_change_little(scale, shift):
    x, w = sample()
    moved = (x * scale + shift).astype(np.float32)
    result = kmeans_vector(moved, 8, w, key=KEY)
    expected = float(kmeans_vector(x, 8, w, key=KEY).mse)
    centred = (moved.astype(np.float64) - shift) / scale
    mse = weighted_mse(centred, w, (np.asarray(result.codebook, np.float64) - shift) / scale, result.indices)
    assert mse <= 1.01 * expected


def test_deterministic_per_key_under_jit_and_vmap():
    x, w = sample()
    a = kmeans_vector(x, 8, w, key=KEY)
    assert (np.asarray(kmeans_vector(x, 8, w, key=KEY).codebook) == np.asarray(a.codebook)).all()
    jitted = jax.jit(functools.partial(kmeans_vector, k=8))(x, weights=w, key=KEY)
    for one, other in zip(a, jitted, strict=True):
        np.testing.assert_array_equal(one, other)
    keys = jax.random.split(KEY, 2)
    both = jax.vmap(lambda x, key: kmeans_vector(x, 8, w, key=key))(jnp.stack([x, x[::-1]]), keys)
    one = kmeans_vector(x, 8, w, key=keys[0])
    np.testing.assert_allclose(both.mse[0], one.mse, rtol=1e-3)
    assert both.indices.shape == (2, len(x))


@pytest.mark.parametrize(("k", "d"), [(256, 4), pytest.param(4096, 8, marks=pytest.mark.slow)])
def test_memory_stays_below_three_times_the_input(k, d):
    n = 2**22 // d
    x, w = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.float32)
    compiled = jax.jit(lambda x, w, key: kmeans_vector(x, k, w, key=key)).lower(x, w, KEY).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 3 * 4 * n * (d + 1)


_assign_tile = jax.jit(tiles.assign_tile)


@hypothesis.given(st.sampled_from([1, 40]), st.sampled_from([1, 5]), st.integers(0, 10_000))
@hypothesis.settings(max_examples=15)
def test_the_nearest_block_is_that_of_float64(n, d, seed):
    rng = np.random.default_rng(seed)
    # Small integers: every product is exact, and of equals the first wins.
    x, codebook = rng.integers(-3, 4, (n, d)).astype(np.float32), rng.integers(-3, 4, (7, d)).astype(np.float32)
    index = _assign_tile(x.T, None, codebook)
    np.testing.assert_array_equal(index, distances(x, codebook).argmin(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_that_are_not_finite_are_refused(bad):
    x, w = sample()
    x[3, 1] = bad
    with pytest.raises(ValueError, match=r"points holds 1 NaN or infinite entries of 8000"):
        kmeans_vector(x, 4, w, key=KEY)


def test_unfit_arguments():
    x, w = sample(10)
    for arguments, options, message in [
        ((x, 0), {}, "k must be at least 1, got 0"),
        ((x[:, 0], 2), {}, "points must be a non-empty matrix"),
        ((x[:0], 2), {}, "points must be a non-empty matrix"),
        ((x.astype(np.int32), 2), {}, "points must be floating point, got int32"),
        ((x, 2, w[:5]), {}, "weights must have shape"),
        ((x, 2, -w), {}, "weights must not be negative"),
        ((x, 2, w * np.nan), {}, "weights holds 10 NaN"),
        ((x, 2), {"mask": np.ones(10, bool)}, "mask must be boolean of shape"),
        ((x, 2), {"start": x[:3]}, "start must have shape"),
        ((x, 2), {"iterations": 0}, "iterations must be at least 1"),
        ((x, 2), {"iterations": 1.5}, "iterations must be an integer"),
        ((x, 2), {"tolerance": -1.0}, "tolerance must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            kmeans_vector(*arguments, key=KEY, **options)
    with pytest.raises(ValueError, match="points have 4 coordinates, the codebook's entries 3"):
        nearest_block(x, x[:, :3])


@pytest.mark.parametrize("power", [-130, 125])
def test_the_ends_of_the_range_of_floats(power):
    x = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    usual, found = (kmeans_vector(points, 4, key=jax.random.key(0)) for points in (x, np.ldexp(x, power)))
    np.testing.assert_allclose(np.ldexp(np.float64(found.codebook), -power), usual.codebook, rtol=1e-3, atol=1e-4)
