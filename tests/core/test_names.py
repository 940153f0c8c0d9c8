"""Patterns as shells read them, but names come first."""

from __future__ import annotations

import fnmatch
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from bqjax.core.names import NameIndex, matches
from bqjax.core.shell_patterns import matcher

NAMES = ["a[0].weight", "a[1].weight", "a0.weight", "b/kernel", "b/bias", "*", "", "['p']['k']"]
ANY = st.text("ab*?[]!-/", max_size=5)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a[0].weight", ["a[0].weight"]),
        ("a[[]0].weight", ["a[0].weight"]),
        ("a[01].weight", ["a0.weight"]),
        ("a[*].weight", ["a[0].weight", "a[1].weight"]),
        ("*.weight", ["a[0].weight", "a[1].weight", "a0.weight"]),
        ("b/*", ["b/kernel", "b/bias"]),
        ("?/kernel", ["b/kernel"]),
        ("*", ["*"]),
        ("[*]", ["*"]),
        ("**", NAMES),
        ("", [""]),
        ("['*']['k']", ["['p']['k']"]),
        ("nothing", []),
        ("*nothing", []),
    ],
)
def test_what_patterns_match(pattern, found):
    assert NameIndex(NAMES).matching(pattern) == found


@hypothesis.given(names=st.lists(ANY, unique=True, max_size=6), pattern=ANY)
def test_otherwise_as_fnmatch(names, pattern):
    shell = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    found = NameIndex(names).matching(pattern)
    if pattern in names:
        assert found == [pattern]
    elif shell:
        assert found == shell
    for name in names:
        assert not matches(name, pattern) or pattern in names or name in found or shell


@hypothesis.settings(max_examples=20 * hypothesis.settings().max_examples)
@hypothesis.given(name=st.text("ab*?[]!-\n", max_size=6), pattern=ANY)
def test_by_hand_as_by_regular_expression(name, pattern):
    expected = fnmatch.fnmatchcase(name, pattern)
    assert bool(matcher(pattern, 1)(name)) == bool(matcher(pattern, 1000)(name)) == expected


def test_many_patterns_take_no_compilation_each():
    names = [f"layers.{i // 7}.blocks[{i % 7}].w" for i in range(5_000)]
    index = NameIndex(names)
    start = time.process_time()
    assert all(index.matching(f"{name[:-1]}*") == [name] for name in names)
    assert time.process_time() - start < 1  # 0.25 s on a quiet machine; 0.9 s by regular expressions
