"""Scores that are the same program share what is compiled, and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.perturb import Noise, NoiseCandidate

F32 = np.float32
PARAMS = {"a": np.linspace(-1, 1, 6, dtype=F32).reshape(3, 2), "b": np.ones(2, F32)}
BATCHES = [np.arange(12, dtype=F32).reshape(4, 3) / 10]
POINTS = [NoiseCandidate(F32(-np.inf), F32(np.inf), F32(0.3), jax.random.key(i)) for i in range(2)]


def evaluated(score, names=("b",)):
    evaluator = Evaluator(score, BATCHES)
    return evaluator.scores(PARAMS, names, Noise("gaussian"), POINTS), evaluator.compile_seconds


def closing_over(weights):
    weights = jnp.asarray(weights)
    return lambda p, x: (((jnp.tanh(x @ p["a"]) @ p["b"]) * weights).sum(), len(x))


def test_the_same_program_is_compiled_once():
    first, seconds = evaluated(closing_over([1.0, 2.0, 3.0, 4.0]))
    again, none = evaluated(closing_over([1.0, 2.0, 3.0, 4.0]))
    assert seconds > 0 and none == 0 and again == first


def test_what_is_closed_over_is_the_scores_own():
    first, _ = evaluated(closing_over([1.0, 1.0, 1.0, 1.0]))
    twice, seconds = evaluated(closing_over([2.0, 2.0, 2.0, 2.0]))
    assert seconds == 0
    assert [m["score"] for m in twice] == [2 * m["score"] for m in first]


def test_programs_that_differ_are_not_mixed_up():
    def scaled(factor):  # a number of Python's is part of the program
        return lambda p, x: ((x @ p["a"] @ p["b"]).sum() * factor, len(x))

    def in_a_loop(weights):  # an array within a loop's body
        def body(total, x):
            return total + (x * weights).sum(), None

        return lambda p, x: (jax.lax.scan(body, 0.0, (x @ p["a"]) * p["b"][None])[0], len(x))

    for make, values in ((scaled, (1.0, 3.0)), (in_a_loop, (np.ones(2, F32), np.full(2, 3, F32)))):
        one, three = (evaluated(make(value))[0] for value in values)
        np.testing.assert_allclose([m["score"] for m in three], [3 * m["score"] for m in one], rtol=1e-5)
    assert evaluated(scaled(1.0), ("a",))[0] != evaluated(scaled(1.0), ("b",))[0]


def test_a_variable_that_a_score_reads_may_change():
    factor = [1.0]
    score = lambda p, x: ((x @ p["a"] @ p["b"]).sum() * factor[0], len(x))  # noqa: E731
    one, _ = evaluated(score)
    factor[0] = 5.0
    five, _ = evaluated(score)
    np.testing.assert_allclose([m["score"] for m in five], [5 * m["score"] for m in one], rtol=1e-6)
