"""What each perturbation does to the weights of its bin, and that it leaves all others alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bqjax.sensitivity.perturb import (
    KINDS,
    ChosenNoise,
    Codebook,
    CodeNoise,
    HalfNoise,
    Noise,
    NoiseCandidate,
    Perturbation,
    Quantize,
    mirrors,
)

F32 = np.float32
NOISE = [k for k in KINDS if k != "collapse"]


def candidate(lower, upper, magnitude, key=0):
    return NoiseCandidate(F32(lower), F32(upper), F32(magnitude), jax.random.key(key))


def weights(n=200_000):
    return np.random.default_rng(0).normal(size=n).astype(F32)


@functools.partial(jax.jit, static_argnums=0)
def compiled(perturbation, w, *given):
    """One compilation a perturbation and shape, where each primitive would have its own."""
    return perturbation(w, *given)


def perturbed(perturbation, w, *given):
    return np.asarray(compiled(perturbation, w, *given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lower", "upper"), [(-0.5, 0.25), (-np.inf, -1.0), (1.0, np.inf)])
def test_only_the_weights_of_the_bin_change(kind, lower, upper):
    w = weights(3000).reshape(30, 100)
    new = perturbed(Noise(kind), w, candidate(lower, upper, 0.3))
    inside = (w >= lower) & (w < upper)
    np.testing.assert_array_equal(new[~inside], w[~inside])
    # All of them: neighbouring weights or a small bin are no excuse.
    assert (new[inside] != w[inside]).mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_bin_holds_its_lower_bound_and_not_its_upper(kind):
    w = np.array([-1.0, np.nextafter(F32(-1), F32(-2)), 2.0, np.nextafter(F32(2), F32(1))], F32)
    new = perturbed(Noise(kind), w, candidate(-1, 2, 0.37))
    assert (new != w).tolist() == [True, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_bounds_take_every_weight(kind):
    w = np.array([-3e38, 5.0, 3e38, 3e38], F32)
    new = perturbed(Noise(kind), w, candidate(-np.inf, np.inf, 0.1))
    assert new[1] != w[1]
    if kind in ("relative", "collapse"):  # added noise is lost beside such weights
        assert (new != w).all()


# The tests below compare with known distributions; keys are fixed, and the levels leave a wide margin.


def test_gaussian_noise_is_normal_with_the_magnitude_as_deviation():
    w = weights()
    noise = perturbed(Noise("gaussian"), w, candidate(-np.inf, np.inf, 0.5)).astype(float) - w
    assert scipy.stats.kstest(noise / 0.5, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise, w)[0, 1]) < 0.01


def test_uniform_noise_fills_plus_minus_the_magnitude():
    w = weights()
    noise = perturbed(Noise("uniform"), w, candidate(-np.inf, np.inf, 0.5)).astype(float) - w
    assert np.abs(noise).max() <= 0.5 + 1e-6
    assert scipy.stats.kstest((noise + 0.5), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(noise, w)[0, 1]) < 0.01


def test_relative_noise_is_a_fair_coin_between_two_factors():
    w = weights()
    new = perturbed(Noise("relative"), w, candidate(-np.inf, np.inf, 0.5))
    up, down = np.isclose(new, 1.5 * w, rtol=1e-6), np.isclose(new, 0.5 * w, rtol=1e-6)
    assert (up ^ down).all()
    assert scipy.stats.binomtest(int(up.sum()), w.size).pvalue > 1e-3
    assert abs(np.corrcoef(up, w)[0, 1]) < 0.01


def test_collapse_puts_the_magnitude_in_place_of_the_bin():
    w = weights()
    new = perturbed(Noise("collapse"), w, candidate(-0.5, 0.5, -0.123))
    np.testing.assert_array_equal(new, np.where((w >= -0.5) & (w < 0.5), F32(-0.123), w))


@pytest.mark.parametrize("kind", NOISE)
def test_a_key_gives_its_noise_and_no_other(kind):
    w = weights(1000)
    one, again, other = (perturbed(Noise(kind), w, candidate(-9, 9, 0.3, key)) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    # A coin falls the same way half of the time.
    assert (one != other).mean() > 0.25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, F32])
def test_the_dtype_is_kept_and_the_noise_is_that_of_float32(kind, dtype):
    w = weights(1000).astype(dtype)
    given = candidate(-0.5, 0.5, 0.3)
    new = perturbed(Noise(kind), w, given)
    assert new.dtype == dtype
    wide = perturbed(Noise(kind), w.astype(F32), given)
    np.testing.assert_array_equal(new, wide.astype(dtype))


@pytest.mark.parametrize("perturbation", [*map(Noise, KINDS), Quantize()])
def test_a_perturbation_is_hashable_and_traces(perturbation):
    assert isinstance(perturbation, Perturbation)
    assert {perturbation: 1}[type(perturbation)(*vars(perturbation).values())] == 1
    w = jnp.asarray(weights(60).reshape(6, 10))
    given = Codebook(np.array([0.0], F32), np.array([-1, 1], F32))
    if isinstance(perturbation, Noise):
        given = candidate(-1, 1, 0.5)
    np.testing.assert_allclose(jax.jit(perturbation)(w, given), perturbation(w, given), rtol=1e-6)


@pytest.mark.parametrize("dtype", [F32, jnp.bfloat16])
@pytest.mark.parametrize("padding", [0, 3])
def test_quantize_gives_each_weight_the_value_of_its_bin(dtype, padding):
    w = weights(500).reshape(20, 25).astype(dtype)
    edges, values = np.array([-1.0, 0.0, 0.5], F32), np.array([-2, -0.5, 0.25, 1.0], F32)
    # On an edge, which belongs to the upper bin.
    w[0, :3] = -1.0, 0.0, 0.5
    expected = values[np.digitize(w.astype(F32), edges)].astype(dtype)
    padded = Codebook(np.append(edges, np.full(padding, np.inf, F32)), np.append(values, np.full(padding, 77, F32)))
    new = perturbed(Quantize(), w, padded)
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, expected)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="gaussian, relative, uniform, collapse, got 'laplace'"):
        Noise("laplace")


# --- noise on a share of the leaf -------------------------------------------------------------------------------------


def changed(perturbation, w, c, *context):
    return perturbed(perturbation, w, c, *context) != w


@pytest.mark.parametrize("by", ["random", "largest"])
@pytest.mark.parametrize(
    ("shape", "share"), [((7, 11), 0.5), ((5,), 0.5), ((7, 11), 0.1), ((4, 3, 2), 0.0), ((7, 11), 1.0), ((), 1.0)]
)
def test_half_noise_takes_exactly_its_share(by, shape, share):
    w = np.random.default_rng(0).normal(size=shape).astype(F32)
    context = jnp.asarray(np.random.default_rng(1).normal(size=shape).astype(F32))
    for key in range(3):
        c = candidate(-np.inf, np.inf, 0.3, key)
        assert changed(HalfNoise("gaussian", by, share), w, c, context).sum() == round(share * w.size)


def test_the_largest_are_those_of_largest_absolute_context():
    w = weights(101)
    context = np.random.default_rng(1).normal(size=101).astype(F32)
    found = changed(HalfNoise("gaussian", "largest", 0.3), w, candidate(-np.inf, np.inf, 0.3), jnp.asarray(context))
    assert set(np.flatnonzero(found)) == set(np.argsort(-np.abs(context))[:30])


def test_among_equals_the_first_are_taken():
    w, context = weights(10), jnp.zeros(10).at[7].set(-1.0)
    found = changed(HalfNoise("gaussian", "largest", 0.4), w, candidate(-np.inf, np.inf, 0.3), context)
    assert np.flatnonzero(found).tolist() == [0, 1, 2, 7]


def test_a_random_share_is_another_in_every_draw_and_takes_all_weights_alike():
    w, half = weights(20), HalfNoise("uniform", "random", 0.25)
    picks = np.array([changed(half, w, candidate(-np.inf, np.inf, 0.3, key)) for key in range(400)])
    assert (picks.sum(axis=1) == 5).all()
    # Each weight is chosen 100 times of 400 in the mean, by a standard deviation of below 9.
    assert np.abs(picks.sum(axis=0) - 100).max() < 40
    assert len({p.tobytes() for p in picks}) > 300


def test_the_noise_of_a_share_is_that_of_its_kind_and_does_not_tell_the_choice():
    w = weights()
    noise = perturbed(HalfNoise("gaussian"), w, candidate(-np.inf, np.inf, 0.5)).astype(float) - w
    assert scipy.stats.kstest(noise[noise != 0] / 0.5, "norm").pvalue > 1e-3
    # What the weights of largest context get is what noise on the whole leaf would give them.
    context = jnp.asarray(np.random.default_rng(1).normal(size=w.size).astype(F32))
    c = candidate(-np.inf, np.inf, 0.5)
    mine = perturbed(HalfNoise("gaussian", "largest"), w, c, context)
    whole = perturbed(Noise("gaussian"), w, c)
    np.testing.assert_allclose(mine[mine != w], whole[mine != w], rtol=1e-4, atol=1e-6)


def test_half_noise_keeps_to_the_bin_and_is_hashable():
    w = weights(1000)
    found = changed(HalfNoise("gaussian", "random", 0.5), w, candidate(-0.5, 0.5, 0.3))
    assert 0 < found.sum() < 500 and not found[(w < -0.5) | (w >= 0.5)].any()
    assert len({HalfNoise("gaussian"), HalfNoise("gaussian", "random", 0.5), HalfNoise("gaussian", "largest")}) == 2
    assert isinstance(HalfNoise("uniform"), Perturbation)


def test_noise_does_not_care_for_a_context():
    w, c = weights(1000), candidate(-np.inf, np.inf, 0.3)
    np.testing.assert_array_equal(perturbed(Noise("gaussian"), w, c), perturbed(Noise("gaussian"), w, c, np.ones(1000, F32)))


def test_half_noise_refuses_what_it_cannot_do():
    for arguments, message in (
        (("pink",), "kind of perturbation"),
        (("gaussian", "size"), "by must be"),
        (("gaussian", "random", 1.5), "share"),
    ):
        with pytest.raises(ValueError, match=message):
            HalfNoise(*arguments)
    w, c = jnp.ones((2, 3)), candidate(-np.inf, np.inf, 0.3)
    for context in ((), (jnp.ones(6),)):
        with pytest.raises(ValueError, match=r"needs a context of shape \(2, 3\)"):
            HalfNoise("gaussian", "largest")(w, c, *context)


# --- integer codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.int8, -7), (np.uint8, 131)])
def test_relative_noise_on_codes_is_around_their_zero_point_and_rounded(dtype, zero):
    info = np.iinfo(dtype)
    codes = np.arange(info.min, info.max + 1)
    codes = codes[((codes - zero) % 50 != 0) | (codes == zero)].astype(
        dtype
    )  # 3 % of 50 is a half, which float32 rounds as it falls
    distance = codes.astype(float) - zero
    low, high = np.sort([np.clip(zero + np.round(distance * f), info.min, info.max) for f in (0.97, 1.03)], axis=0)
    seen = np.stack([perturbed(CodeNoise("relative", (zero,)), codes, candidate(-np.inf, np.inf, 0.03, key)) for key in range(20)])
    assert seen.dtype == dtype
    assert ((seen == low) | (seen == high)).all()
    assert (seen.min(0) == low).mean() > 0.99 and (seen.max(0) == high).mean() > 0.99  # a coin falls both ways in 20 draws
    # Less than half a step is nothing; a step away is what it should be, not cut off towards 0.
    assert (seen[:, np.abs(distance) <= 16] == codes[np.abs(distance) <= 16]).all()
    assert (seen[:, np.abs(distance) == 20] != codes[np.abs(distance) == 20]).all()


def test_each_channel_has_its_own_zero_point():
    codes = np.random.default_rng(0).integers(-128, 128, (3, 5, 4)).astype(np.int8)
    zero = (-90, 0, 40, 100)
    c = candidate(-np.inf, np.inf, 1.0)  # either twice as far from the zero point, or on it
    new = perturbed(CodeNoise("relative", zero, (1, 1, 4)), codes, c).astype(int)
    far = np.clip(2 * codes.astype(int) - zero, -128, 127)
    assert ((new == zero) | (new == far)).all()
    assert ((new == zero) & (far != zero)).any() and ((new == far) & (far != zero)).any()


def test_bounds_of_codes_are_counted_from_the_zero_point():
    codes = np.arange(90, 111).astype(np.uint8)
    new = perturbed(CodeNoise("collapse", (100,)), codes, candidate(-3, 4, 1))
    np.testing.assert_array_equal(new, np.where((codes >= 97) & (codes < 104), 101, codes))


def test_plain_noise_on_integers_is_rounded_and_saturated():
    w = jnp.full(2000, 100, jnp.int8)
    noise = perturbed(Noise("uniform"), w, candidate(-np.inf, np.inf, 1.2)).astype(int) - 100
    assert set(np.unique(noise)) == {-1, 0, 1} and abs(noise.mean()) < 0.06
    assert perturbed(Noise("collapse"), w, candidate(-np.inf, np.inf, 300)).tolist() == [127] * 2000


def test_code_noise_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="kind of perturbation"):
        CodeNoise("pink")
    with pytest.raises(ValueError, match=r"shape \(2, 1\) are 2, got 3"):
        CodeNoise("relative", (1, 2, 3), (2, 1))
    with pytest.raises(ValueError, match="integer codes, the leaf is float32: use Noise"):
        CodeNoise("relative")(jnp.ones(3), candidate(-np.inf, np.inf, 0.1))
    assert len({CodeNoise("relative"), CodeNoise("relative", (0,), ()), CodeNoise("relative", (1,))}) == 2


@pytest.mark.parametrize("noise", [*map(Noise, NOISE), HalfNoise("gaussian"), ChosenNoise("gaussian", "s")], ids=str)
def test_a_negative_magnitude_is_the_mirror_image(noise):
    w = weights(300)
    context = {"s": w} if isinstance(noise, ChosenNoise) else None
    plus, minus = (np.asarray(noise(jnp.asarray(w), candidate(-1, np.inf, m), context)) - w for m in (0.3, -0.3))
    assert mirrors(noise) and np.abs(plus).max() > 0.1
    np.testing.assert_allclose(plus, -minus, atol=1e-6)


def test_what_has_no_mirror_image():
    assert not mirrors(Noise("collapse")) and not mirrors(Quantize())
