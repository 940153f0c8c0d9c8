"""Predicted against measured effects as a table and a picture."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from tiny_sweep import CONFIG, swept

from bqjax.report.predictions import has_predictions, prediction_picture, prediction_table
from bqjax.report.sweep import result_names, sweep_files, sweep_json
from bqjax.sensitivity.sweep_rows import Candidate, SweepRow

BASELINE = {"loss": 1.0, "accuracy": 0.9}


def row(predicted, loss, series, error=0.01):
    c = Candidate(leaf="a", tags={"series": series})
    return SweepRow(c, {"loss": 1.0 + loss, "accuracy": 0.5}, loss, error, (loss,), error=error, predicted=predicted)


# Twice the prediction at little noise; at much noise upside down, one network broken, one not predicted.
ROWS = [
    *(row(p, 2 * p, "little $") for p in (0.01, 0.02, 0.04)),
    *(row(p, -p, "much", math.nan) for p in (0.1, 0.2)),
    row(0.4, math.inf, "much"),
    row(math.nan, 0.1, "much"),
]


def test_the_table_tells_where_the_order_breaks():
    table = prediction_table(ROWS, BASELINE, "-loss")
    assert table.rows[0] == ("little $", "3", "1.00", "2")
    assert table.rows[1] == ("much", "2", "-1.00", "-1")
    assert table.rows[2][:2] == ("all", "5")
    one = prediction_table(ROWS[:1], BASELINE, "-loss").rows
    assert one == [("little $", "1", "nan", "2")]
    assert prediction_table(ROWS[:3], BASELINE, "accuracy").rows[0][3] == f"{np.median([0.4 / p for p in (0.01, 0.02, 0.04)]):.3g}"


def test_the_picture_shows_both_signs_and_is_the_same_each_time():
    png, svg = prediction_picture(ROWS, BASELINE, "-loss", "a < b")
    assert png.startswith(b"\x89PNG") and svg.startswith("<svg") and "little $: 1.00" in svg and "a &lt; b" in svg
    assert prediction_picture(ROWS, BASELINE, "-loss", "a < b") == (png, svg)
    assert "increase of loss" in svg and "drop of accuracy" in prediction_picture(ROWS, BASELINE, "accuracy", "")[1]
    # Effects that are all 0, or of one size, are a picture, too.
    for loss in (0.0, 0.5):
        assert prediction_picture([row(0.1, loss, "s")] * 2, BASELINE, "-loss", "")[1].startswith("<svg")


def test_a_sweep_with_predictions_has_their_files():
    plain = swept()
    assert not has_predictions(plain.result.rows) and has_predictions(ROWS)
    rows = tuple(dataclasses.replace(r, predicted=0.1 * (i + 1)) for i, r in enumerate(plain.result.rows))
    predicted = dataclasses.replace(plain, result=dataclasses.replace(plain.result, rows=rows))
    files = sweep_files(predicted, "x")
    assert list(files) == result_names(CONFIG, predict=True)
    assert b"Predicted and measured" in files["report.html"]
    assert "predictions.png" not in sweep_files(plain, "x") and '"predicted": null' in sweep_json(plain, "x")
    assert plain.rank_by == "-loss"


def test_a_prediction_of_nothing_is_no_point():
    assert not has_predictions([row(0.0, 0.1, "s"), row(0.1, 0.1, "s")])
