"""Figures ask for what the paper shows, and one sweep gives each its own rows."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_task
from tiny_sweep import CONFIG, FIGURES, swept

from bqjax.core.classification import batches
from bqjax.core.rules import Rule
from bqjax.experiment.config import SweepConfig
from bqjax.experiment.sweep import (
    BinsByLayer,
    Comparison,
    FigureRows,
    NoiseByLayer,
    RandomAgainstGradient,
    RelativeBySize,
    compare_halves,
    first_examples,
    run_sweep,
    state_files,
)
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.perturb import CodeNoise, HalfNoise, Noise, NoiseCandidate
from bqjax.sensitivity.sweeps import Candidate, SweepRow

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"kernel": RNG.normal(size=(4, 5)).astype(np.float32), "bias": np.ones(5, np.float32)},
    "b": {"kernel": 3 * RNG.normal(size=(40, 5)).astype(np.float32)},
    "c": {"kernel": RNG.normal(size=(6, 10)).astype(np.float32)},
}
ONE = replace(CONFIG, figures=(RelativeBySize(draws=2, largest=1),))  # most of the time of a sweep here goes into compiling


def test_noise_by_layer():
    made = NoiseByLayer(levels=(0.1, 0.5), draws=3).candidates(PARAMS)
    assert [c.leaf for c in made] == ["a/kernel"] * 2 + ["b/kernel"] * 2 + ["c/kernel"] * 2
    for c, level in zip(made, (0.1, 0.5) * 3, strict=True):
        std = np.std(PARAMS[c.leaf[0]]["kernel"])
        assert c.magnitude == pytest.approx(level * std, rel=1e-6)
        assert (c.perturb, c.draws, c.tags["series"], c.lower, c.upper) == ("gaussian", 3, f"{level:g} std", -np.inf, np.inf)
    plain = NoiseByLayer(levels=(0.1,), kind="relative", relative_to_std=False, rules=(Rule("*/bias"),)).candidates(PARAMS)
    assert [(c.leaf, c.magnitude, c.perturb) for c in plain] == [("a/bias", 0.1, "relative")]


def test_bins_by_layer():
    made = BinsByLayer(n_bins=8, magnitude=0.5, draws=3).candidates(PARAMS)
    stats = gaussian_bins(PARAMS, 8)
    for leaf in ("a/kernel", "b/kernel", "c/kernel"):
        mine = [c for c in made if c.leaf == leaf]
        np.testing.assert_array_equal([c.upper for c in mine], [*stats[leaf].edges, np.inf])
        np.testing.assert_array_equal([c.lower for c in mine], [-np.inf, *stats[leaf].edges])
        assert [c.tags["bin"] for c in mine] == [str(i + 1) for i in range(len(mine))]
        assert {(c.perturb, c.magnitude, c.draws) for c in mine} == {("relative", 0.5, 3)}
        w = PARAMS[leaf[0]]["kernel"]
        assert all(((w >= c.lower) & (w < c.upper)).any() for c in mine)
    # Settings of rules are another method's numbers of bins.
    made = BinsByLayer(n_bins=2, rules=(Rule("b/*", 16),)).candidates(PARAMS)
    assert [c.leaf for c in made] == ["b/kernel"] * 2


def test_layers_by_size():
    made = RelativeBySize(magnitude=0.03, draws=5).candidates(PARAMS)
    assert [(c.leaf, c.perturb, c.magnitude, c.draws) for c in made] == [(f"{leaf}/kernel", "relative", 0.03, 5) for leaf in "bca"]
    made = RandomAgainstGradient(sigma=0.05, share=0.5, draws=8, largest=2).candidates(PARAMS)
    assert [(c.leaf, c.perturb, c.tags["by"]) for c in made] == [
        (f"{leaf}/kernel", HalfNoise("gaussian", by, 0.5), by) for leaf in "bc" for by in ("random", "largest")
    ]
    assert {(c.magnitude, c.draws) for c in made} == {(0.05, 8)}


def test_layers_of_codes_take_their_zero_points():
    codes = np.zeros((4, 3, 3, 2), np.int8)
    params = {
        "float": {"kernel": np.zeros((2, 3), np.float32), "codes": np.zeros((9, 9), np.int8)},  # codes of nothing known
        "one": {"codes": np.zeros((40, 2), np.uint8), "zero_point": np.int32([131]), "bias": np.zeros(40, np.int32)},
        "same": {"codes": codes, "zero_point": np.zeros(4, np.int32)},
        "rows": {"codes": codes, "zero_point": np.int32([1, 2, 3, 4]).reshape(4, 1, 1, 1)},
    }
    made = RelativeBySize(draws=2).candidates(params)
    assert [(c.leaf, c.perturb) for c in made] == [
        ("one/codes", CodeNoise("relative", (131,))),
        ("rows/codes", CodeNoise("relative", (1, 2, 3, 4), (4, 1, 1, 1))),
        ("same/codes", CodeNoise("relative")),
        ("float/kernel", "relative"),
    ]
    assert [c.leaf for c in RelativeBySize(rules=(Rule("o*/codes"),)).candidates(params)] == ["one/codes"]
    params["rows"]["zero_point"] = np.int32([1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"'rows/zero_point' of shape \(4,\) does not say which codes of 'rows/codes'"):
        RelativeBySize().candidates(params)


def test_rows_go_to_their_figures_and_are_those_of_the_engine():
    found = swept()
    assert [f.figure for f in found.figures] == list(FIGURES)
    for figure, rows in found.figures:
        want = figure.candidates(tiny_task().params)
        assert [(r.candidate.leaf, r.candidate.perturb, r.candidate.magnitude) for r in rows] == [
            (c.leaf, c.perturb, c.magnitude) for c in want
        ]
        assert all(r.candidate.tags["figure"] == figure.name for r in rows)
    task = tiny_task()
    assert (found.n_examples, found.data_name) == (sum(int(b["mask"].sum()) for b in task.test), task.test_name)
    assert found.result.baseline == Evaluator(task.score, task.test).baseline(task.params)
    assert found.figures[2].leaves == ["hidden/kernel", "head/kernel"]
    assert found.sizes["hidden/kernel"] == 120

    # The half of largest gradient is that of the calibration data's gradient.
    row = found.figures[3].rows[1]
    assert row.candidate.tags["by"] == "largest"
    gradient = loss_gradient(task.score, task.params, task.calibration)["hidden/kernel"]
    w = jnp.asarray(task.params["hidden"]["kernel"])
    point = NoiseCandidate(np.float32(-np.inf), np.float32(np.inf), np.float32(0.3), jax.random.key(0))
    new = row.candidate.perturbation(w, point, gradient)
    assert set(np.flatnonzero(np.asarray(new != w))) == set(np.argsort(-np.abs(gradient).reshape(-1), kind="stable")[:60])


def test_a_row_does_not_depend_on_the_other_figures():
    alone, together = run_sweep(ONE, tiny_task()), swept()
    assert [r.drops for r in alone.figures[0].rows] == [r.drops for r in together.figures[2].rows[:1]]
    assert alone.gradient_name is None and together.gradient_name == tiny_task().calibration_name
    assert swept().result.rows[0].drops != swept().result.rows[1].drops


def test_split_and_limit():
    task = tiny_task()
    by_split = run_sweep(replace(ONE, split="calibration", limit=999), task)
    assert by_split.result.baseline == Evaluator(task.score, task.calibration).baseline(task.params)
    # More than there are is all there are.
    assert by_split.data_name == task.calibration_name
    fewer = run_sweep(replace(ONE, limit=50, seed=1), task, limit=7)
    assert fewer.n_examples == 7 and fewer.data_name.startswith("the first 7 of 210 ")
    assert fewer.result.baseline == Evaluator(task.score, first_examples(task.test, 7)).baseline(task.params)


def test_the_first_examples_are_the_first():
    data = batches(np.arange(10.0)[:, None], np.arange(10), 4)
    for n, sizes in ((3, [3]), (4, [4]), (9, [4, 4, 1])):
        taken = first_examples(data, n)
        assert [len(b["labels"]) for b in taken] == sizes
        assert np.concatenate([b["labels"] for b in taken]).tolist() == list(range(n))
    with pytest.raises(ValueError, match="first axis"):
        first_examples([{"x": np.ones((4, 2)), "scale": np.float32(1)}], 2)
    with pytest.raises(ValueError, match="at least 1"):
        first_examples(data, 0)


def test_it_resumes_with_the_gradient_it_began_with(tmp_path, monkeypatch):
    state = tmp_path / "state"
    config = replace(CONFIG, figures=(ONE.figures[0], replace(FIGURES[3], largest=1)))
    expected = [swept().figures[2].rows[0], *swept().figures[3].rows[:2]]  # takes a gradient where no other test has

    def stop(done, total, message):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tiny_task(), state_path=state, progress=stop)
    assert len(state_files(state)) == 2 and len(list(tmp_path.iterdir())) == 2
    # A gradient that came out a little different would be another sweep.
    monkeypatch.setattr("bqjax.experiment.sweep.loss_gradient", lambda *args: pytest.fail("taken again"))
    found = run_sweep(config, tiny_task(), state_path=state)
    assert found.result.n_resumed > 0
    assert [r.drops for r in found.result.rows] == [r.drops for r in expected]


def test_halves_are_compared_layer_by_layer():
    def row(leaf, by, drop, error):
        return SweepRow(Candidate(leaf=leaf, tags={"by": by}), {}, drop, error, ())

    def compared(error):
        drops = {"a": (1.0, 2.0), "b": (1.0, 1.1), "c": (2.0, 1.0), "d": (1.0, 1.0)}
        rows = [row(leaf, by, d, error) for leaf, pair in drops.items() for by, d in zip(("random", "largest"), pair, strict=True)]
        return compare_halves(FigureRows(FIGURES[3], tuple(rows)))

    assert compared(0.1) == Comparison(4, 2, 1, 1, 1)
    assert compared(0.4) == Comparison(4, 2, 1, 0, 0)
    assert compared(np.nan) == Comparison(4, 2, 1, None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SweepConfig(task=tiny_task, figures=()), "no figures"),
        (lambda: SweepConfig(task=tiny_task, figures=(RelativeBySize(), RelativeBySize())), "two figures are named"),
        (lambda: SweepConfig(task=tiny_task, figures=(RelativeBySize(name="../x"),)), "small letters"),
        (lambda: replace(CONFIG, split="train"), "split must be"),
        (lambda: replace(CONFIG, limit=0), "at least 1 example"),
        (lambda: NoiseByLayer(levels=()), "no noise levels"),
        (lambda: NoiseByLayer(kind="relative"), "relative_to_std goes with gaussian or uniform"),
        (lambda: RelativeBySize(largest=0), "largest must be at least 1"),
        (
            lambda: run_sweep(replace(CONFIG, figures=(RelativeBySize(rules=(Rule("conv/*"),)),)), tiny_task()),
            "'conv/\\*' matches no leaf",
        ),
        (lambda: RelativeBySize(draws=0).candidates(PARAMS), "draws must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kinds_are_those_of_the_engine():
    assert NoiseByLayer(kind="uniform").candidates(PARAMS)[0].perturbation == Noise("uniform")
    assert json.dumps([c.tags for f in FIGURES for c in f.candidates(PARAMS)])
