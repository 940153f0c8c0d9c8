"""A recipe of bits as a page of text: the table, and what to paste into other tools."""

from __future__ import annotations

from bqjax.experiment.recipes import Recipe
from bqjax.report.tables import Table, markdown
from bqjax.report.units import unit_of

__all__ = ["recipe_table", "recipe_text"]


def recipe_table(recipe: Recipe) -> Table:
    """A line a layer: what each number of bits is expected to cost it alone, and what it goes to."""
    widths, unit, metric = sorted(recipe.layers[0].drops), unit_of(recipe.metric), recipe.metric.removeprefix("-")
    damage = f"increase of {metric}" if recipe.metric.startswith("-") else f"drop of {metric}"
    lines = []
    for layer in recipe.layers:
        costs = [f"{unit.text(layer.drops[b])} ± {unit.text(layer.errors[b])}" for b in widths]
        goes = "stays" if layer.bits not in layer.drops else f"int{layer.bits}"
        lines.append((layer.leaf, f"{layer.size:,}", *costs, goes))
    weights = sum(layer.size for layer in recipe.layers)
    bits = sum(layer.size * layer.bits for layer in recipe.layers) / weights
    caption = (
        f"Expected {damage}{' in points' if unit.points else ''}, read from the sweep's Gaussian noise at the size of rounding "
        f"with a scale for each output channel. All together {unit.text(recipe.drop)} ± {unit.text(recipe.error)} as a sum, of "
        f"{unit.factor * recipe.max_drop:g} allowed; {bits:.2f} bits a weight of these layers."
    )
    return Table("Recipe", ("layer", "weights", *(f"int{b}" for b in widths), "goes to"), lines, caption)


def recipe_text(recipe: Recipe, command: str) -> str:
    """Markdown: the table, rules for post-training quantization here, for qwix, and bits by layer for other tools.

    Args:
      recipe: the bits.
      command: what made it.
    """
    rules = "\n".join(
        f"    Rule({rule.pattern!r}, skip=True)," if rule.skip else f"    Rule({rule.pattern!r}, {rule.setting}),"
        for rule in recipe.rules()
    )
    return (
        f"# Recipe\n\nMade by `{command}`.\n\n{markdown(recipe_table(recipe))}\n"
        f"Rules of `bqjax.methods.baselines.PTQ`:\n\n```python\nrules = (\n{rules}\n)\n```\n\n"
        f"For [qwix](https://github.com/google/qwix), weights only:\n\n```python\nimport qwix\n\n{recipe.qwix()}```\n\n"
        f"Bits by layer, for tools that take a mapping (null: as it is):\n\n```json\n{recipe.bits_json()}```\n"
    )
