"""Packing: texts of several lengths end to end in rows of one width, so that hardly anything is padding.

Padding costs time, and it is worse than that where statistics are taken: what stands behind a text's end goes through every layer
and is counted among its inputs. A mask that numbers the texts of a row keeps them apart
(:func:`bqjax.models.transformer.attention.places_of`).

Reference: Krell et al. 2021, "Efficient sequence packing without cross-contamination" (arXiv 2107.02027).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Packed", "packed"]


class Packed(NamedTuple):
    """Groups of texts in rows.

    Attributes:
      tokens: ``[rows, width]`` int32, 0 for padding.
      mask: ``[rows, width]`` int32, the number of the text in its row, from 1, and 0 for padding.
      counted: ``[rows, s]`` bool, which texts of a row there are; ``s`` is the most of any row.
      members: ``[rows, s / group]`` int64, which group stands there; -1 where there is none. Group ``i`` of a row is its texts
        ``i * group`` to ``(i + 1) * group - 1``.
    """

    tokens: np.ndarray
    mask: np.ndarray
    counted: np.ndarray
    members: np.ndarray


def packed(groups: Sequence[Sequence[Sequence[int]]], width: int) -> Packed:
    """Packs groups of texts: those of one group (a pair that is compared) stand in one row.

    The longest group goes first, each into the fullest row that has room for it (best fit, descending).

    Args:
      groups: of equally many texts each, these of token numbers.
      width: of a row, at least the longest group's tokens.

    Raises:
      ValueError: no groups, groups of different numbers of texts, an empty text, or a group that is longer than a row.

    Example:
      >>> found = packed([[[5, 6]], [[7]], [[8, 9, 1]]], 4)
      >>> found.tokens.tolist(), found.mask.tolist(), found.members.tolist()
      ([[8, 9, 1, 7], [5, 6, 0, 0]], [[1, 1, 1, 2], [1, 1, 0, 0]], [[2, 1], [0, -1]])
    """
    if not len(groups):
        raise ValueError("there are no texts to pack")
    size = len(groups[0])
    for i, group in enumerate(groups):
        if len(group) != size or not size:
            raise ValueError(f"all groups must have as many texts as the first, {size}, group {i} has {len(group)}")
        if any(not len(text) for text in group):
            raise ValueError(f"group {i} has an empty text")
    lengths = np.array([sum(map(len, group)) for group in groups])
    if lengths.max() > width:
        raise ValueError(
            f"group {lengths.argmax()} has {lengths.max()} tokens, more than the {width} of a row: cut texts, or widen rows"
        )
    rows: list[list[int]] = []
    room = np.zeros(0, np.int64)
    for i in np.argsort(-lengths, kind="stable"):
        left = np.where(room >= lengths[i], room, np.iinfo(np.int64).max)
        best = int(left.argmin()) if len(room) else 0
        if not len(room) or left[best] == np.iinfo(np.int64).max:
            rows.append([])
            room = np.append(room, width)
            best = len(rows) - 1
        rows[best].append(int(i))
        room[best] -= lengths[i]
    most = max(map(len, rows))
    tokens, mask = np.zeros((2, len(rows), width), np.int32)
    counted = np.zeros((len(rows), most * size), bool)
    members = np.full((len(rows), most), -1, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for k, i in enumerate(row):
            members[r, k] = i
            for j, text in enumerate(groups[i]):
                tokens[r, at : at + len(text)] = text
                mask[r, at : at + len(text)] = k * size + j + 1
                counted[r, k * size + j] = True
                at += len(text)
    return Packed(tokens, mask, counted, members)
