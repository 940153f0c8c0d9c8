"""The files of a sweep hold its numbers, and the page is whole."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from html_page import Page
from tiny import tiny_task
from tiny_sweep import CONFIG, FIGURES, swept

from bqjax.experiment import RandomAgainstGradient, run_sweep
from bqjax.report.sweep import PAGE, comparison_text, figure_table, result_names, sweep_csv, sweep_files, sweep_json, sweep_records


@functools.cache
def files():
    return sweep_files(swept(), "bqjax sweep --config 'a<b>'")


def test_csv_reads_back_as_the_same_numbers():
    lines = list(csv.DictReader(io.StringIO(sweep_csv(swept()))))
    rows = swept().result.rows
    assert len(lines) == len(rows) == sum(len(f.candidates(tiny_task().params)) for f in FIGURES)
    for line, row in zip(lines, rows, strict=True):
        c = row.candidate
        assert (line["figure"], line["leaf"], line["series"]) == (c.tags["figure"], c.leaf, c.tags["series"])
        assert (int(line["size"]), int(line["draws"])) == (swept().sizes[c.leaf], c.draws)
        assert (float(line["drop"]), float(line["standard_error"])) == (row.drop, row.standard_error)
        assert (float(line["paired_error"]), float(line["error"])) == (row.paired_error, row.error)
        assert 0 <= float(line["p"]) <= 1
        assert float(line["magnitude"]) == c.magnitude
        assert (line["bin"], line["by"]) == (c.tags.get("bin", ""), c.tags.get("by", ""))
        assert line["kind"] in ("gaussian", "relative")
        assert line["lower"] == ("" if math.isinf(c.lower) else repr(c.lower))
        assert {m: float(line[f"metric {m}"]) for m in row.metrics} == dict(row.metrics)


def test_json_is_standard_and_the_same():
    found = json.loads(sweep_json(swept(), "x"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["rows"] == sweep_records(swept())
    assert found["n_examples"] == swept().n_examples and found["baseline"] == dict(swept().result.baseline)
    assert found["comparisons"]["random_against_gradient"]["layers"] == 2
    single = run_sweep(replace(CONFIG, figures=(RandomAgainstGradient(draws=1, largest=1),)), tiny_task())
    text = sweep_json(single, "x")
    assert "NaN" not in text and {r["standard_error"] for r in json.loads(text)["rows"]} == {None}
    assert "one draw has no standard error" in comparison_text(single.figures[0])
    assert sweep_files(single, "x").keys() >= {"random_against_gradient.png"}


def test_every_file_is_there_and_the_page_comes_last():
    assert list(files()) == result_names(CONFIG)
    assert list(files())[-1] == PAGE
    for figure in FIGURES:
        assert files()[f"{figure.name}.png"].startswith(b"\x89PNG")


def test_every_point_tells_its_numbers():
    for rows in swept().figures:
        root = ElementTree.fromstring(files()[f"{rows.figure.name}.svg"])
        titles = [t.text for t in root.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == len(rows.rows)
        for row in rows.rows:
            size = swept().sizes[row.candidate.leaf]
            start = f"{row.candidate.leaf} ({size} weights), {row.candidate.tags['series']}: drop "
            (text,) = [t for t in titles if t.startswith(start)]
            drop, error = re.fullmatch(r"([-+][\d.]+) ± ([\d.]+) points", text.removeprefix(start)).groups()
            assert float(drop) == pytest.approx(100 * row.drop, abs=0.0051)
            assert float(error) == pytest.approx(100 * row.error, abs=0.0051)
            assert not drop.startswith("-0.00")


def test_the_page_stands_alone():
    text = files()[PAGE].decode()
    parsed = Page(text)
    assert [x for x in parsed.loads if not str(x).startswith("#")] == []
    for tag in ("script", "link", "iframe", "img", "object"):
        assert tag not in parsed.tags
    assert (parsed.tags.count("svg"), parsed.tags.count("table")) == (4, 5)  # the recipe is a table
    assert "a&lt;b&gt;" in text and "a<b>" not in text
    # A point is found by its name: once in the page.
    names = re.findall(r'<g id="([^"]*-point-\d+)"', text)
    assert len(names) == len(set(names)) == len(swept().result.rows)


def test_tables_have_a_line_a_layer():
    table = figure_table(swept(), swept().figures[3])
    assert table.columns == ("layer", "weights", "random", "largest gradient")
    assert [row[:2] for row in table.rows] == [("hidden/kernel", "120"), ("head/kernel", "60")]
    assert "210" in table.caption and "of 2 layers" in table.caption


def test_the_same_sweep_gives_the_same_bytes():
    assert sweep_files(swept(), "bqjax sweep --config 'a<b>'") == files()


def test_a_loss_is_shown_as_it_is():
    """In its own units, and as an increase; no percent and no points."""
    of_loss = replace(swept(), result=replace(swept().result, metric="-loss"))
    table = figure_table(of_loss, of_loss.figures[0])
    row, baseline = of_loss.figures[0].rows[0], of_loss.result.baseline["loss"]
    assert table.caption.startswith(f"Increase of loss ({baseline:.4f} unperturbed) on 210 examples: ")
    assert "; ± standard error over" in table.caption and "points" not in table.caption
    assert table.rows[0][2].startswith(f"{row.drop:+.4f} ± ")
    content = sweep_files(of_loss, "bqjax sweep")
    picture = content[f"{of_loss.figures[0].figure.name}.svg"].decode()
    assert f": increase {row.drop:+.4f} ± " in picture and " points<" not in picture
