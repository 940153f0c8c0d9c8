"""Pages of recipes: drops in the unit of the metric."""

from __future__ import annotations

import pytest

from bqjax.experiment.recipes import LayerBits, Recipe
from bqjax.report.recipe import recipe_table


@pytest.mark.parametrize(
    ("metric", "cell", "caption"),
    [
        ("accuracy", "2.00 ± 0.10", "Expected drop of accuracy in points, read"),
        ("-nats", "0.0200 ± 0.0010", "Expected increase of nats, read"),
    ],
)
def test_drops_are_in_the_unit_of_the_metric(metric, cell, caption):
    layer = LayerBits("head/kernel", 100, 4, {4: 0.02, 8: 0.001}, {4: 0.001, 8: 0.0})
    table = recipe_table(Recipe((layer,), metric, 0.03, 0.02, 0.001))
    assert table.rows[0][2] == cell and table.caption.startswith(caption)
    assert f"{cell} as a sum, of {'3' if metric == 'accuracy' else '0.03'} allowed; 4.00 bits" in table.caption
