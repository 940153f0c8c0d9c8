"""Curvature of leaves whose rows are looked up (embeddings): how often each row counts, and one matrix for what a row holds.

A look-up is a product with one-hot rows, so nothing connects two rows of the leaf. What connects the entries of one row is the
Gauss-Newton matrix of the outputs in what was looked up, and that is much the same whichever row it was:
``sum over rows v of outputs[v] e_v^T M e_v``, with ``M`` the mean over all reads.

Reference: Martens, Grosse 2015 (arXiv 1503.05671); :mod:`bqjax.sensitivity.leaf_curvature`, with inputs and outputs in each
other's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bqjax.sensitivity.layouts import Plan
from bqjax.sensitivity.leaf_curvature import Layout, LeafCurvature
from bqjax.sensitivity.products import blocks_of
from bqjax.sensitivity.taps import Use

__all__ = ["UNREAD", "lookup_curvature", "lookup_layout"]

UNREAD = 0.5
"""What a row that calibration never read counts, of the mean row. Text that is still to come has words that were not met yet, and a
row that counts nothing is stored as zeros. On STS-B, a seventh of the words of new sentences have rows that 2,048 sentences did not
read; between 0.3 and 1 files of one size change the embeddings of new sentences alike."""


def lookup_layout(plan: Plan, uses: Mapping[str, Use], max_width: int) -> Layout | None:
    """The layout of a leaf that is looked up and nothing else: rows are those that are read; None for other leaves.

    Args:
      plan: of the leaf.
      uses: all products found, by place.
      max_width: entries of a row that are taken in one block.
    """
    layout = plan.layout
    for use in plan.uses:
        whole = all(window == (0, size) for window, size in zip(use.windows, layout.view, strict=True))
        if uses[use.place].product.kind != "gather" or uses[use.place].view.stack or not whole:
            return None
    if plan.dropped or not layout.groups or not layout.rows:
        return None
    blocks, width = blocks_of(int(np.prod([layout.view[i] for i in layout.rows])), max_width)
    return Layout(
        shape=layout.shape,
        view=layout.view,
        groups=(),
        rows=layout.groups,
        inputs=layout.rows,
        width=width if blocks > 1 else None,
    )


def lookup_curvature(layout: Layout, second: np.ndarray, importance: np.ndarray, rows: int) -> LeafCurvature:
    """The curvature of a leaf whose rows are looked up.

    Args:
      layout: from :func:`lookup_layout`.
      second: ``[G, d, d]`` sum over rows of the outer products of their gradients, a mean over examples.
      importance: of the leaf's shape, the diagonal Gauss-Newton matrix.
      rows: reads behind it.
    """
    power = np.trace(second, axis1=1, axis2=2, dtype=np.float64)  # [G]
    of_rows = layout.to_rows(importance).sum(-1, dtype=np.float64)  # [G, rows]
    of_rows = of_rows + UNREAD * of_rows.mean(1, keepdims=True)
    inputs = second / np.where(power > 0, power, 1)[:, None, None].astype(np.float32)
    mean = np.zeros(inputs.shape[:2], np.float32)
    return LeafCurvature(inputs, mean, of_rows.astype(np.float32), rows, False, layout, looked_up=True)
