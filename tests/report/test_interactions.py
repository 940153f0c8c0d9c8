"""Interactions as a table, CSV and a picture."""

from __future__ import annotations

import csv
import io

from bqjax.report.interactions import interaction_csv, interaction_map, interaction_table
from bqjax.sensitivity.pairs import Interactions, PairRow
from bqjax.sensitivity.sweep_rows import Candidate, SweepRow

SINGLES = tuple(
    SweepRow(Candidate(leaf=leaf, tags=tags), {}, drop, 0.0, (drop,))
    for leaf, tags, drop in (("a$b", {}, 0.1), ("c", {"bin": "1"}, 0.2), ("c", {"bin": "2"}, 0.3))
)
PAIRS = (PairRow(0, 1, 0.31, 0.01, 0.02, 0.6), PairRow(0, 2, 0.6, 0.2, 0.01, 0.001))
FOUND = Interactions("-loss", {"loss": 1.0}, SINGLES, PAIRS, (0.9, 0.1), (0.3, 0.05), 6, 0, 1.0, 0.5)


def test_the_table_begins_with_the_largest():
    table = interaction_table(FOUND)
    assert [line[0] for line in table.rows] == ["a$b and c bin 2", "a$b and c bin 1"]
    assert table.rows[0][1:] == ("0.1", "0.3", "0.6", "+0.2 ± 0.01", "0.001")
    assert "1 of 2 interactions differ from 0" in table.caption
    assert "0.9 ± 0.1; the sum of the singles is 0.6, +0.3 ± 0.05 away; with pairs 0.81" in table.caption


def test_the_csv_reads_back():
    lines = list(csv.DictReader(io.StringIO(interaction_csv(FOUND))))
    assert [(line["first"], line["second"]) for line in lines] == [("a$b", "c bin 1"), ("a$b", "c bin 2")]
    assert [float(line["interaction"]) for line in lines] == [0.01, 0.2]


def test_the_map_is_a_picture_of_all_pairs():
    png, svg = interaction_map(FOUND)
    assert png.startswith(b"\x89PNG") and "a$b" in svg and svg.startswith("<svg")
    assert interaction_map(FOUND) == (png, svg)
