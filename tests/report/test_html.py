"""The page stands alone, is well formed and shows names as they are."""

from __future__ import annotations

import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from html_page import Page
from tiny import before, searched, tiny_task

from bqjax import codec
from bqjax.core.leaves import Scaled, exponents_of
from bqjax.core.tree import named_leaves
from bqjax.core.tree import replace as replace_leaves
from bqjax.experiment import Comparison, Entry
from bqjax.report import plots
from bqjax.report.experiment import experiment_page, row_details
from bqjax.report.html import page
from bqjax.report.tables import Table, file_table

NASTY = "a<b>&amp;\"'</td><script>alert(1)</script>$x$"


def report(folder, outcome, data):
    path = folder / "net"
    path.write_bytes(data)
    beside = replace(outcome.row, method=NASTY, file_bytes=1234)
    files = file_table(codec.inspect(path), "net")
    entries = [Entry(label=row.method, settings="<S>", row=row) for row in (outcome.row, beside)]
    found = Comparison.of(tiny_task(test_name=NASTY), before(), entries)
    return experiment_page(found, f"bqjax --x '{NASTY}'", row_details(tiny_task(), outcome, files))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return report(tmp_path_factory.mktemp("report"), *searched())


def test_it_is_whole_and_loads_nothing(text):
    parsed = Page(text)
    # References within the page only; the namespaces of SVG are names, not loads.
    assert [x for x in parsed.loads if not str(x).startswith("#")] == []
    for tag in ("script", "link", "iframe", "img", "object", "embed", "base", "form"):
        assert tag not in parsed.tags
    assert text.startswith("<!doctype html>")


def test_it_has_the_tables_and_the_pictures(text):
    parsed = Page(text)
    # Results, search, the file, settings.
    assert parsed.tags.count("table") == 4
    for cell in ("float32", "zstd -19 (lossless)", "B&Q <4>", "hidden/kernel", "hidden/bias", "structure and header"):
        assert cell in parsed.cells
    # Size against accuracy, the search's path, and for both leaves the sensitivity and the histogram.
    assert parsed.tags.count("svg") == 6
    assert any(t.startswith("hidden/kernel: 120 weights, 4 bins") for t in parsed.svg_text)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    of = "B&amp;Q &lt;4&gt;: "
    assert headings == [
        "Result", f"{of}search", "Sensitivity of each bin", f"{of}weights and their bins", f"{of}the file", "Settings",
    ]  # fmt: skip


def test_names_are_escaped(text):
    parsed = Page(text)
    assert NASTY in parsed.cells
    assert "alert(1)</script>" not in text
    assert "<title>tiny &lt;network&gt; &amp; co: methods compared</title>" in text
    # In a picture as well, where a pair of dollars would be a formula.
    assert any("$x$" in t for t in parsed.svg_text)


def test_without_a_search(tmp_path):
    outcome, data = searched()
    parsed = Page(report(tmp_path, outcome._replace(info=None), data))
    assert parsed.tags.count("table") == 3
    assert parsed.tags.count("svg") == 3


def test_rows_with_steps_of_their_own_are_drawn_in_their_units(tmp_path):
    outcome, data = searched()
    leaf = named_leaves(outcome.tree)["hidden/kernel"]
    own = Scaled(leaf, exponents_of(np.arange(leaf.shape[1])[None] - 3), leaf.dtype)
    changed = outcome._replace(info=None, tree=replace_leaves(outcome.tree, {"hidden/kernel": own}))
    parsed = Page(report(tmp_path, changed, data))
    assert parsed.tags.count("svg") == 3
    assert any(t.startswith("hidden/kernel, in units of its rows: 120 weights, 4 bins") for t in parsed.svg_text)


def test_it_is_the_same_every_time(text, tmp_path):
    assert report(tmp_path, *searched()) == text


def test_a_page_of_nothing():
    parsed = Page(page(NASTY, NASTY, [("empty", []), (NASTY, [Table("t", ("a",), [])])]))
    assert parsed.cells == ["a"]


@pytest.mark.parametrize(
    "weights",
    [np.zeros((2, 2), np.float32), np.full(3, 7.5, np.float16), np.ones(9, ml_dtypes.bfloat16), np.float32([[-1, 0], [1, 1e6]])],
)
def test_histograms_of_strange_leaves(weights):
    svg = plots.weight_histogram("a & <b> $c$", weights, [0.0], [0.0, 1.0])
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert any(t.startswith("a & <b> $c$: ") for t in Page(svg).svg_text)
