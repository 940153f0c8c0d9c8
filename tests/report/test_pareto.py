"""Tables and the picture of a comparison, from rows made by hand."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest
from html_page import Page

from bqjax.experiment import Comparison, Entry, Reference, Row
from bqjax.report.experiment import RESULT_NAMES, experiment_files
from bqjax.report.pareto import pareto_plot
from bqjax.report.records import compare_csv, compare_json
from bqjax.report.tables import markdown, results_table


def row(label, after, size, **changes):
    values = {
        "method": label,
        "before": 0.9,
        "after": after,
        "difference": after - 0.9,
        "standard_error": 0.01,
        "agreement": 0.95,
        "calibration": 0.88,
        "file_bytes": size,
        "ratio": 4000 / size,
        "bits_per_weight": 8 * size / 1000,
        "seconds": 1.25,
    }
    return Row(**{**values, **changes})


def comparison(*rows, metric="accuracy", failed=()):
    before = Reference({"accuracy": 0.9, "loss": 0.3}, {"accuracy": 0.88, "loss": 0.3}, None, None, 600, 300, 1000, 4000, 3600)
    entries = [Entry(label=r.method, settings=f"S({r.method!r})", row=r, file="f", sha256="0") for r in rows]
    entries += [Entry(label=label, settings="S", error="RuntimeError: no <luck>") for label in failed]
    return Comparison(
        task_name="net <a> & b", metric=metric, data=("test data", "calibration data"), before=before, entries=tuple(entries),
        fingerprint="f",
    )  # fmt: skip


ROWS = row("B&Q, 1", 0.89, 500), row("B&Q, 2", 0.85, 300), row("k$means$, 3", 0.84, 600), row("k$means$, 1", 0.3, 200)
GOOD = comparison(*ROWS, failed=("bad|one",))


def test_the_front_and_its_marks():
    assert GOOD.front == ["k$means$, 1", "B&Q, 2", "B&Q, 1"]
    table = results_table(GOOD)
    marks = {line[0]: line[-1] for line in table.rows}
    assert [name for name, mark in marks.items() if mark] == ["B&Q, 1", "B&Q, 2", "k$means$, 1"]
    assert [line[0] for line in table.rows] == ["float32", "zstd -19 (lossless)", *[e.label for e in GOOD.entries]]
    assert all(len(line) == len(table.columns) for line in table.rows)
    text = markdown(table)
    assert "bad\\|one | failed |" in text and "Failed: bad|one: RuntimeError: no <luck>." in text


def test_lower_is_better_where_the_metric_says_so():
    rows = (row("a", 0.4, 500), row("b", 0.5, 300), row("c", 0.6, 400))
    assert comparison(*rows, metric="-loss").front == ["b", "a"]
    assert comparison(*rows).front == ["b", "c"]
    png, svg = pareto_plot(comparison(*rows, metric="-loss"))
    assert png.startswith(b"\x89PNG") and "loss on test data" in svg


def test_numbers_come_back_from_csv_and_json():
    read = list(csv.DictReader(io.StringIO(compare_csv(GOOD))))
    content = json.loads(compare_json(GOOD, "the command"))
    assert content["command"] == "the command" and content["zstd_bytes"] == 3600
    for entry, a, b in zip(GOOD.entries, read, content["rows"], strict=True):
        assert a["method"] == b["method"] == entry.label and b["settings"] == entry.settings
        if entry.row is None:
            assert a["after"] == "" and b["after"] is None and b["error"] == "RuntimeError: no <luck>"
        else:
            assert float(a["after"]) == b["after"] == entry.row.after
            assert int(a["file_bytes"]) == b["file_bytes"] == entry.row.file_bytes


def test_the_page_is_whole_and_loads_nothing():
    files = experiment_files(GOOD, "bqjax <command>")
    assert tuple(files) == RESULT_NAMES
    page = Page(files["report.html"].decode())
    assert not [url for url in page.loads if not url.startswith("#")]
    for text in ("bad|one", "failed", "B&Q, 1", "S('B&Q, 1')"):
        assert text in page.cells
    # Names are shown as they are: a pair of dollars is no formula.
    assert "k$means$" in page.svg_text and "zstd -19, lossless" in page.svg_text
    assert "k$means$, 1: 30.0" in page.svg_text  # far below the others, at the edge with its value
    assert files == experiment_files(GOOD, "bqjax <command>")


def test_the_labels_of_a_crowd_do_not_cover_one_another():
    rng = np.random.default_rng(0)
    rows = [row(f"method {i}, {i}", 0.8 + 0.01 * i, 300 + 40 * i + int(rng.integers(9))) for i in range(10)]
    svg = pareto_plot(comparison(*rows))[1]
    # Where texts begin, as drawn: no two at one place, all labels there.
    places = re.findall(r'<text[^>]*?transform="translate\(([\d.]+) ([\d.]+)\)"[^>]*>(method \d, \d)</text>', svg)
    places = places or re.findall(r'<text style="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(method \d, \d)</text>', svg)
    assert len({label for *_, label in places}) == 10
    at = [(float(x), float(y)) for x, y, _ in places]
    for i, (x, y) in enumerate(at):
        for other_x, other_y in at[:i]:
            assert abs(y - other_y) > 5 or abs(x - other_x) > 30


@pytest.mark.parametrize("rows", [(), (row("only", 0.9, 100),), (row("lost", 0.1, 100), row("lost too", 0.1, 100))])
def test_pictures_of_few_rows(rows):
    png, svg = pareto_plot(comparison(*rows, failed=() if rows else ("bad",)))
    assert png.startswith(b"\x89PNG") and "float32" in svg
