"""Every command runs in an empty folder."""

from __future__ import annotations

import pytest

from bqjax.sensitivity.evaluator import Evaluator


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scored(monkeypatch):
    """How many candidates were scored in each call of the engine."""
    counts, scores = [], Evaluator.scores

    def counting(self, params, names, perturbation, candidates):
        counts.append(len(candidates))
        return scores(self, params, names, perturbation, candidates)

    monkeypatch.setattr(Evaluator, "scores", counting)
    return counts
