"""A recipe of bits as a page of text: the table, and what to paste into other tools."""

from __future__ import annotations

from bqjax.experiment.recipes import Recipe
from bqjax.report.tables import Table, markdown

__all__ = ["recipe_table", "recipe_text"]


def recipe_table(recipe: Recipe) -> Table:
    """A line a layer: what each number of bits is expected to cost it alone, in points, and what it goes to."""
    widths = sorted(recipe.layers[0].drops)
    lines = []
    for layer in recipe.layers:
        costs = [f"{100 * layer.drops[b]:.2f} ± {100 * layer.errors[b]:.2f}" for b in widths]
        goes = "stays" if layer.bits not in layer.drops else f"int{layer.bits}"
        lines.append((layer.leaf, f"{layer.size:,}", *costs, goes))
    weights = sum(layer.size for layer in recipe.layers)
    bits = sum(layer.size * layer.bits for layer in recipe.layers) / weights
    caption = (
        f"Expected drop of {recipe.metric.removeprefix('-')} in points, read from the sweep's Gaussian noise at the size of "
        f"rounding with a scale for each output channel. All together {100 * recipe.drop:.2f} ± {100 * recipe.error:.2f} as a "
        f"sum, of {100 * recipe.max_drop:g} allowed; {bits:.2f} bits a weight of these layers."
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
