"""Decoding by enumeration of all alignments, error rates by jiwer and by their definition."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bqjax.models.transcripts import ENGLISH, Alphabet, beam_search, cer, edit_distance, greedy, wer

AB = Alphabet("AB")
WORDS = st.lists(st.sampled_from(["A", "B", "CD", "CE"]), min_size=1, max_size=5).map(" ".join)


def collapsed(path):
    """The text of an alignment, by the definition of CTC."""
    return AB.decode([c for c, _ in itertools.groupby(path)])


def test_alphabet():
    assert ENGLISH.classes == 29
    assert ENGLISH.decode(ENGLISH.encode("IT'S A B")) == "IT'S A B"
    with pytest.raises(ValueError, match="has the characters '5', 'é', which the alphabet does not"):
        ENGLISH.encode("CAFé 5")
    for characters in ("", "AA"):
        with pytest.raises(ValueError, match="an alphabet needs different characters"):
            Alphabet(characters)


@given(st.lists(st.integers(0, 2), max_size=8), st.integers(0, 3))
def test_greedy_takes_the_likeliest_alignment(path, padding):
    logits = np.eye(3)[np.array([*path, *[1] * padding], int)][None]
    assert greedy(logits, [len(path)], AB) == [collapsed(path)]


@given(st.integers(1, 4), st.integers(0, 1000))
def test_beam_search_sums_all_alignments(t, seed):
    p = np.random.default_rng(seed).dirichlet(np.ones(3), t)
    exact: dict[str, float] = {}
    for path in itertools.product(range(3), repeat=t):
        exact[collapsed(path)] = exact.get(collapsed(path), 0.0) + float(np.prod(p[range(t), path]))
    found = beam_search(np.log(p), AB, 100)
    assert found[0][0] == max(exact, key=exact.__getitem__)
    assert {text: np.exp(value) for text, value in found} == pytest.approx(exact)
    narrow = beam_search(np.log(p), AB, 2)
    assert len(narrow) <= 2
    assert all(np.exp(value) <= exact[text] * (1 + 1e-9) for text, value in narrow)


def test_a_beam_may_beat_the_likeliest_alignment():
    frames = np.log([[0.4, 0.6 - 1e-9, 1e-9]] * 2)
    assert beam_search(frames, AB, 4)[0][0] == "A"
    frames = np.log([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    assert greedy(frames[None], [2], AB) == [""]
    assert beam_search(np.log([[0.45, 0.55 - 1e-9, 1e-9], [0.55, 0.45 - 1e-9, 1e-9]]), AB)[0][0] == "A"


@functools.cache
def by_definition(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(by_definition(a[1:], b) + 1, by_definition(a, b[1:]) + 1, by_definition(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.text("ABC", max_size=6), st.text("ABC", max_size=6))
def test_edit_distance(a, b):
    assert edit_distance(a, b) == by_definition(a, b)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_error_rates_of_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert wer(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses))
    assert cer(references, hypotheses) == pytest.approx(jiwer.cer(references, hypotheses))


def test_nothing_said():
    assert wer(["GO ON"], [""]) == 1.0
    assert wer(["GO"], ["A B C"]) == 3.0
    for rate, what in ((wer, "words"), (cer, "characters")):
        with pytest.raises(ValueError, match=f"no {what}"):
            rate([" "], ["A"])
        with pytest.raises(ValueError, match="1 references and 2 hypotheses"):
            rate(["A"], ["A", "B"])


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"logits must be \[n, t, 3\] and lengths \[n\], got \(1, 4, 5\)"):
        greedy(np.zeros((1, 4, 5)), [4], AB)
    with pytest.raises(ValueError, match=r"must be \[t, 3\], got \(4, 2\)"):
        beam_search(np.zeros((4, 2)), AB)
    with pytest.raises(ValueError, match="width must be at least 1"):
        beam_search(np.zeros((4, 3)), AB, 0)
