"""Tables as Markdown and on a terminal."""

from __future__ import annotations

import dataclasses
import re

import pytest
from rich.console import Console
from tiny import before, searched

from bqjax import codec
from bqjax.experiment import Comparison, Entry, Row
from bqjax.report.tables import Table, file_table, markdown, results_table, rich_table, search_table


def row(**changes):
    values = {
        "method": "m", "before": 0.9, "after": 0.875, "difference": -0.025, "standard_error": 0.004, "agreement": 0.97,
        "calibration": 0.91, "file_bytes": 500, "ratio": 2.0, "bits_per_weight": 20.0, "seconds": 1.25,
    }  # fmt: skip
    return Row(**{**values, **changes})


def cells(line):
    """The cells of a Markdown line, as GitHub splits them: at bars that no backslash precedes."""
    assert line.startswith("| ") and line.endswith(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_well_formed():
    table = Table("t", ("a", "b|c", "d"), [("x | y", "1", ""), ("two\nlines", "2", "3")], "caption")
    text = markdown(table)
    grid, caption = text.split("\n\n")
    lines = [cells(line) for line in grid.splitlines()]
    assert {len(line) for line in lines} == {3}
    assert lines[0] == ["a", "b\\|c", "d"]
    assert lines[1] == ["---", "---:", "---:"]
    assert lines[2:] == [["x \\| y", "1", ""], ["two lines", "2", "3"]]
    assert caption == "caption\n"


def test_the_results():
    ref = before()
    rows = row(), row(method="bare", standard_error=None, agreement=None)
    entries = tuple(Entry(label=r.method, settings="", row=r) for r in rows)
    found = Comparison(task_name="net", metric="accuracy", before=ref, data=("test", "cal"), entries=entries)
    table = results_table(found)
    # Of one row, there is nothing to be said of others.
    assert results_table(dataclasses.replace(found, entries=entries[:1])).rows[2] == table.rows[2][:-1]
    grid = [dict(zip(table.columns, line, strict=True)) for line in table.rows]
    assert [line["method"] for line in grid] == ["float32", "zstd -19 (lossless)", "m", "bare"]
    for line, size in zip(grid, (ref.float_bytes, ref.zstd_bytes, 500, 500), strict=True):
        assert line["file bytes"] == f"{size:,}"
        assert float(line["ratio"]) == pytest.approx(ref.float_bytes / size, abs=0.005)
        assert float(line["bits/weight"]) == pytest.approx(8 * size / 200, abs=0.0005)
    assert grid[2]["accuracy %"] == "87.50"
    assert grid[2]["difference, points"] == "-2.50 ± 0.40"
    assert grid[3]["difference, points"] == "-2.50"
    assert (grid[2]["agreement %"], grid[3]["agreement %"]) == ("97.00", "")
    assert float(grid[0]["accuracy %"]) == pytest.approx(100 * ref.test["accuracy"], abs=0.005)
    assert "test (210 examples)" in table.caption and "cal (60 examples)" in table.caption


def test_the_file_and_the_search(tmp_path):
    path = tmp_path / "net"
    outcome, data = searched()
    path.write_bytes(data)
    table = file_table(codec.inspect(path), "net")
    assert [line[0] for line in table.rows] == ["head/kernel", "hidden/bias", "hidden/kernel", "structure and header", "total"]
    assert {len(line) for line in table.rows} == {len(table.columns)}
    # The bytes of the lines add up to those of the file.
    sizes = [int(line[-1].replace(",", "")) for line in table.rows]
    assert sum(sizes[:-1]) == sizes[-1] == path.stat().st_size
    found = search_table(outcome.info, "accuracy")
    # The largest leaf first, then what was left alone.
    assert [(line[0], line[2]) for line in found.rows] == [
        ("hidden/kernel", "yes"),
        ("head/kernel", "yes"),
        ("hidden/bias", "left"),
    ]
    assert {len(line) for line in found.rows} == {len(found.columns)}
    assert found.rows[-1][-1] == "fewer than two dimensions"


def test_a_terminal_shows_names_as_they_are():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(rich_table(Table("[b]title", ("[i]column", "n"), [("a[0] [/red] :smile:", "1")], "[u]caption")))
    printed = capture.get()
    for text in ("[b]title", "a[0] [/red] :smile:", "[u]caption", "[i]column"):
        assert text in printed
