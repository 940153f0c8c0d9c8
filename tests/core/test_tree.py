"""Names of leaves on every kind of pytree, and what rules choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bqjax.core.leaves import Clustered
from bqjax.core.rules import Rule, select
from bqjax.core.tree import by_size, check_finite, named_leaves, replace


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: Any
    bias: Any


def clustered(shape=(2, 2)):
    return Clustered(np.zeros(int(np.prod(shape)), np.uint8), np.zeros((1, 1), np.float32), shape, np.float32)


def net():
    return {
        "conv": {"kernel": np.ones((3, 3, 2, 4), np.float32), "bias": np.ones(4, np.float32)},
        "dense": {"kernel": np.ones((4, 5), np.float32)},
        "steps": np.int32(3),
    }


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"b": 1, "a": {"c": 2}}, ["a/c", "b"]),
        ([1, [2, 3]], ["0", "1/0", "1/1"]),
        ((1, (2,)), ["0", "1/0"]),
        ({"p": Pair(1, Pair(2, 3))}, ["p/left", "p/right/left", "p/right/right"]),
        ({"l": Layer(1, 2)}, ["l/kernel", "l/bias"]),
        ({10: 1, 9: 2}, ["9", "10"]),
        ({"a": None, "b": 1}, ["b"]),
        (1, ["."]),
        ({}, []),
    ],
)
def test_names_are_paths_in_the_trees_order(tree, names):
    named = named_leaves(tree)
    assert list(named) == names
    assert list(named.values()) == jax.tree.leaves(tree)


def test_a_compressed_leaf_is_one_leaf():
    leaf = clustered()
    named = named_leaves({"a": leaf, "b": [leaf]})
    assert list(named) == ["a", "b/0"]
    assert named["a"] is leaf


def test_duplicate_names_are_an_error():
    with pytest.raises(ValueError, match=r"two leaves are named 'a/b'"):
        named_leaves({"a": {"b": 1}, "a/b": 2})


def test_default_takes_floating_matrices_and_gives_a_reason_for_the_rest():
    tree = {
        "kernel": np.ones((2, 3), np.float32),
        "half": jnp.ones((2, 3, 4), jnp.bfloat16),
        "bias": np.ones(3, np.float32),
        "count": np.ones((2, 2), np.int32),
        "empty": np.ones((0, 3), np.float32),
        "done": clustered(),
        "rate": 0.1,
    }
    selection = select(tree)
    assert list(selection.taken) == ["half", "kernel"]
    assert all(rule == Rule("*") for rule in selection.taken.values())
    assert selection.left == {
        "bias": "fewer than two dimensions",
        "count": "int32 is not floating point",
        "done": "already compressed",
        "empty": "empty (shape (0, 3))",
        "rate": "a float, not an array",
    }


def test_the_first_rule_that_matches_decides():
    first, second, third = Rule("conv/kernel", 1), Rule("*/kernel", 2, group="g"), Rule("*bias", 3)
    selection = select(net(), [first, second, third])
    assert selection.taken == {"conv/bias": third, "conv/kernel": first, "dense/kernel": second}
    assert selection.left == {"steps": "no rule matches it"}


def test_a_rule_takes_a_vector_that_the_default_leaves():
    assert list(select(net(), [Rule("conv/bias")]).taken) == ["conv/bias"]


def test_skipped_leaves_are_left_and_need_not_fit():
    selection = select(net(), [Rule("steps", skip=True), Rule("conv/*", skip=True), Rule("*")])
    assert list(selection.taken) == ["dense/kernel"]
    assert selection.left == {
        "conv/bias": "skipped by rule 'conv/*'",
        "conv/kernel": "skipped by rule 'conv/*'",
        "steps": "skipped by rule 'steps'",
    }


def test_a_rule_that_matches_nothing_suggests_close_names():
    with pytest.raises(ValueError, match=r"'dense/kernal' matches no leaf; did you mean 'dense/kernel'"):
        select(net(), [Rule("dense/kernal")])
    with pytest.raises(ValueError, match=r"'#' matches no leaf; the leaves are 'conv/bias', 'conv/kernel'"):
        select(net(), [Rule("#")])


def test_patterns_match_the_whole_name_and_its_case():
    for pattern in ("kernel", "conv", "Conv/kernel"):
        with pytest.raises(ValueError, match="matches no leaf"):
            select(net(), [Rule(pattern)])


def test_a_shadowed_rule_is_an_error():
    with pytest.raises(ValueError, match=r"rule 'dense/kernel' has no effect"):
        select(net(), [Rule("*/kernel"), Rule("dense/kernel")])


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (np.ones((2, 2), np.int32), "int32 is not floating point"),
        (np.ones((2, 0), np.float32), r"empty \(shape \(2, 0\)\)"),
        (clustered(), "already compressed"),
        (1.5, "a float, not an array"),
    ],
)
def test_a_rule_on_a_leaf_that_cannot_be_compressed_names_it(leaf, reason):
    with pytest.raises(ValueError, match=rf"rule 'a/\*' chooses leaf 'a/b', which cannot be compressed: {reason}"):
        select({"a": {"b": leaf}}, [Rule("a/*")])


def test_replace_changes_the_named_leaves_only():
    tree = {"p": Pair(np.zeros(2), [np.ones(3)]), "q": clustered()}
    new = replace(tree, {"p/right/0": "x", "q": 5})
    assert isinstance(new["p"], Pair)
    assert new["p"].left is tree["p"].left
    assert new["p"].right == ["x"]
    assert new["q"] == 5
    assert tree["p"].right[0] is not new["p"].right[0]
    back = replace(new, {"q": tree["q"]})
    assert back["q"] is tree["q"]


def test_replace_of_an_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match=r"no leaf is named 'conv/kernels'; did you mean 'conv/kernel'"):
        replace(net(), {"conv/kernels": 0})


def test_largest_leaves_come_first_and_equals_keep_the_trees_order():
    tree = {"a": np.zeros(6), "b": np.zeros((2, 4)), "c": np.zeros((3, 2)), "d": np.zeros(()), "e": np.zeros((8, 1))}
    assert by_size(tree, ["d", "c", "a", "e", "b"]) == ["b", "e", "a", "c", "d"]
    assert by_size(tree, ["c", "a"]) == ["a", "c"]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_values_that_are_not_finite_are_counted_and_the_leaf_named(dtype):
    leaf = np.arange(12.0).reshape(3, 4)
    leaf[0, 1], leaf[2, 2], leaf[1, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match=r"leaf 'conv/kernel' holds 3 NaN or infinite values of 12"):
        check_finite("conv/kernel", leaf.astype(dtype))


def test_finite_and_traced_leaves_pass():
    check_finite("a", np.full((2, 2), np.finfo(np.float32).max))

    @jax.jit
    def f(x):
        check_finite("x", x)
        return x

    assert np.isnan(f(jnp.array(np.nan)))


def test_what_cannot_be_computed_with_is_left_by_name_or_refused_by_name():
    gone = jnp.ones((2, 2))
    gone.delete()
    tree = {
        "keys": jax.random.split(jax.random.key(0), 4).reshape(2, 2),
        "gone": gone,
        "small": np.ones((2, 2), jnp.float8_e4m3fn),
        "smaller": np.ones((2, 2), jnp.float4_e2m1fn),
        "w": np.ones((2, 2), np.float32),
    }
    selection = select(tree)
    assert list(selection.taken) == ["w"]
    reasons = {
        "gone": "deleted, by donation to a jitted function",
        "keys": "random keys",
        "small": "float8_e4m3fn has 8 bits already: convert it to float32 first",
        "smaller": "float4_e2m1fn has 4 bits already",
    }
    for name, reason in reasons.items():
        assert selection.left[name].startswith(reason)
        with pytest.raises(ValueError, match=f"leaf '{name}', which cannot be compressed: {reason}"):
            select(tree, [Rule(name)])
    with pytest.raises(ValueError, match="leaf 'gone' was deleted"):
        check_finite("gone", gone)


def test_the_empty_name_is_not_the_root():
    assert list(named_leaves({"": 1, ".": 2})) == ["", "."]
    assert replace({"": 1, ".": 2}, {"": 5}) == {"": 5, ".": 2}
    assert list(select({"": np.ones((2, 2))}, [Rule("")]).taken) == [""]


def test_a_name_is_tried_before_the_pattern():
    tree = {"a[0]": np.ones((2, 2)), "a0": np.ones((2, 2))}
    assert list(select(tree, [Rule("a[0]")]).taken) == ["a[0]"]
    assert list(select(tree, [Rule("a[01]")]).taken) == ["a0"]
