"""Tables of an experiment on a quantized model."""

from __future__ import annotations

from collections.abc import Sequence

from bqjax.report.tables import Table
from bqjax.tflite.codes.search import QuantizedInfo
from bqjax.tflite.experiment import TFLiteRow, TFLiteRun

__all__ = ["layers_table", "tflite_table"]


def tflite_table(name: str, on: TFLiteRun, rows: Sequence[TFLiteRow]) -> Table:
    """The original, the lossless baseline, then a line a row."""
    whole, right = len(on.model.content), on.before == on.examples.labels
    n_search, n_test = len(on.search), len(on.test)
    before = f"{right[on.search].sum()}", f"{right[on.test].sum()}", f"{right.sum()}"

    def sizes(n_bytes: int) -> tuple[str, str, str]:
        return f"{n_bytes:,}", f"{whole / n_bytes:.2f}", f"{8 * n_bytes / on.n_weights:.3f}"

    lines = [
        ("the .tflite file", *before, "", "", *sizes(whole), ""),
        ("zstd -19 (lossless)", *before, "0.00", "100.0", *sizes(on.zstd_bytes), ""),
    ]
    for row in rows:
        difference = f"{100 * row.difference:+.2f} ± {100 * row.standard_error:.2f}"
        counts = str(row.search), str(row.test), str(row.search + row.test)
        agreement = f"{100 * row.agreement:.1f}"
        lines.append((row.method, *counts, difference, agreement, *sizes(row.file_bytes), f"{row.seconds:.0f}"))
    columns = (
        "method",
        f"right of {n_search}, search half",
        f"right of {n_test}, test half",
        f"right of {n_search + n_test}",
        "difference on test, points",
        "agreement on test %",
        "file bytes",
        "ratio",
        "bits/weight",
        "seconds",
    )
    caption = (
        "Right answers of LiteRT with its default kernels, running the model that the file restores. Everything was searched on "
        "the search half; difference (paired, with its standard error) and agreement are on the test half. Ratio: whole "
        f"file to whole .tflite file. Bits/weight: the file's bits over all {on.n_weights:,} weights."
    )
    return Table(name, columns, lines, caption)


def layers_table(info: QuantizedInfo) -> Table:
    """A line a layer, in the order of the search."""
    lines = [
        (
            layer.name,
            f"{layer.size:,}",
            "yes" if layer.accepted else "no",
            str(layer.values),
            f"{layer.bits:.3f}",
            f"{layer.step:.1f}",
            "" if layer.drop is None else f"{100 * layer.drop:+.2f}",
            layer.reason,
        )
        for layer in info.layers
    ]
    columns = ("layer", "weights", "compressed", "values", "entropy, bits", "step", "drop, points", "why")
    return Table("Search, on the search half", columns, lines)
