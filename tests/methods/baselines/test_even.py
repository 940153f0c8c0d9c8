"""Even levels: the error that was asked for and no more, fewer bytes than k-means at that error, zeros and sentinels exact."""

import ml_dtypes
import numpy as np
import pytest

from bqjax import codec, decode
from bqjax.core.leaves import Affine, Clustered
from bqjax.core.rules import Rule
from bqjax.methods.baselines.even import EvenConfig, even_levels, even_rate
from bqjax.methods.baselines.weight_sharing import kmeans_share

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(200, 100)).astype(np.float32) * 0.05
HEAVY = (RNG.standard_t(3, size=(200, 100)) * 0.05).astype(np.float32)


def error(leaf, w):
    difference = np.asarray(decode({"w": leaf})["w"]).astype(np.float64) - w.astype(np.float64)
    return np.linalg.norm(difference) / np.linalg.norm(w.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("weights", [NORMAL, HEAVY])
@pytest.mark.parametrize("rtol", [0.01, 0.05, 0.3])
def test_the_relative_error_is_just_kept(weights, dtype, rtol):
    w = weights.astype(dtype)
    assert 0.97 * rtol < error(even_levels({"w": w}, config=EvenConfig(rtol=rtol))["w"], w) <= rtol


@pytest.mark.parametrize("weights", [NORMAL, HEAVY])
def test_fewer_bytes_than_k_means_at_its_error(weights, tmp_path):
    shared = kmeans_share({"w": weights}, 32)
    even = even_levels({"w": weights}, config=EvenConfig(rtol=float(error(shared["w"], weights))))
    sizes = [codec.save(tmp_path / "f", tree, coder="ans", force=True).leaves[0].bytes for tree in (even, shared)]
    assert sizes[0] < 0.97 * sizes[1]
    # As the entropy of a sample foretells, but for the coder's table.
    assert sizes[0] == pytest.approx(even_rate(weights, EvenConfig(rtol=float(error(shared["w"], weights)))), rel=0.02)


def test_a_bit_has_a_cost():
    """The widest grid is not the cheapest one: with a Lagrangian weight of a bit the same error takes fewer."""
    rates = [even_rate(NORMAL, EvenConfig(rtol=0.2, lmbda=lmbda)) for lmbda in (0.0, 0.1)]
    assert rates[1] < 0.995 * rates[0]


def test_zeros_and_sentinels_are_exact():
    w = NORMAL.copy()
    w[::2] = 0
    w[1, :3] = -65504
    leaf = even_levels({"w": w})["w"]
    found = np.asarray(leaf.decode())
    assert isinstance(leaf, Clustered) and (found[w == 0] == 0).all() and (found[1, :3] == -65504).all()
    rest = (w != 0) & (w > -65504)
    assert np.linalg.norm(found[rest] - w[rest]) <= 0.05 * np.linalg.norm(w[rest])


def test_rules_and_what_is_left(tmp_path):
    tree = {"a": NORMAL, "b": NORMAL[:, 0], "zero": np.zeros((3, 4), np.float32), "fine": HEAVY}
    found = even_levels(tree, [Rule("a", setting=0.2), Rule("fine", setting=EvenConfig(rtol=1e-6)), Rule("zero")])
    assert isinstance(found["a"], Affine) and 0.19 < error(found["a"], tree["a"]) <= 0.2
    assert found["b"] is tree["b"]
    assert (np.asarray(found["zero"].decode()) == 0).all()
    assert found["fine"] is tree["fine"]  # more than 65,535 levels
    codec.save(tmp_path / "f", found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtol": 0.0}, "rtol must be a relative error between 0 and 1, got 0.0"),
        ({"rtol": float("nan")}, "rtol must be a relative error"),
        ({"lmbda": -1.0}, "lmbda must be finite and not negative, got -1.0"),
    ],
)
def test_settings_that_mean_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        EvenConfig(**arguments)


def test_leaves_that_cannot_be_taken():
    with pytest.raises(ValueError, match="'a' is of integers already, int8"):
        even_levels({"a": np.ones((3, 3), np.int8)}, [Rule("a")])
    with pytest.raises(ValueError, match="'a' is in group 'g'"):
        even_levels({"a": NORMAL}, [Rule("a", group="g")])
    with pytest.raises(ValueError, match="'a' holds 1 NaN"):
        even_levels({"a": np.full((1, 1), np.nan, np.float32)})
