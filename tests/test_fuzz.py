"""A small part of `make fuzz`: each damaged file is a ValueError or the content that was there."""

from __future__ import annotations

import collections
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import run
from fuzz.run import BYTES, Cases, attempt
from fuzz.targets import TARGETS, Container

COUNT = 1500


@pytest.fixture(scope="module")
def cases():
    return Cases(0)


def test_damaged_files_are_refused_or_read_as_they_were(cases, tmp_path):
    read, refused = collections.Counter(), collections.Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        failure, message = attempt(cases, number, tmp_path / "f")
        name = cases.target(number).name
        assert not failure, f"case {number} ({name}): {failure}"
        (read if message is None else refused)[name] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < BYTES / 1024
    names = {kind.name for kind in TARGETS if kind().files()}
    assert {"container", "forged container", "safetensors"} <= names == set(refused)
    # What stands in a header that says nothing may be changed; and what is forged well is a file.
    assert sum(read.values()) < 0.3 * COUNT and read["forged container"]


def test_a_case_is_known_by_its_seed_and_number(cases):
    assert [cases.make(n)[2] for n in (3, 70)] == [Cases(0).make(n)[2] for n in (3, 70)]
    assert cases.make(3)[2] != Cases(1).make(3)[2]


def test_failures_are_seen(cases, tmp_path, monkeypatch):
    number = next(n for n in range(100) if cases.target(n).name == "container")
    assert attempt(cases, number, tmp_path / "f")[0] == ""
    monkeypatch.setattr(run, "SECONDS", -1.0)
    assert "it took 0.0 s" in attempt(cases, number, tmp_path / "f")[0]
    monkeypatch.setattr(Container, "read", lambda self, path, original: {}["missing"])
    assert "KeyError: 'missing'" in attempt(cases, number, tmp_path / "f")[0]


@pytest.mark.slow
def test_the_command_goes_on_where_it_was(tmp_path):
    tests = Path(__file__).parent
    path = f"{tests.parent}:{tests}:{tests / 'tflite'}"

    def python(*command):
        env = os.environ | {"PYTHONPATH": path}
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=True).stdout

    fuzz = "-m", "fuzz", "--out", str(tmp_path), "--count"
    assert python(*fuzz, "1000").startswith("1,000 files, ")
    assert (tmp_path / "next_0").read_text() == "1000"
    assert python(*fuzz, "1100").startswith("100 files, ")
    too_much = "import numpy as np; from fuzz.run import limit_memory; limit_memory(); np.zeros(10**6)\ntry: np.zeros(10**9)\n"
    assert python("-c", too_much + "except MemoryError: print('refused')") == "refused\n"
