"""What compressed trees cost in bits, by formula."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from bqjax.core.leaves.base import is_compressed

__all__ = ["bits"]


def _entropy_bits(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0


def bits(tree: Any, counting: str = "fixed") -> float:
    """Storage of a tree in bits, by formula. The bytes of the saved file are the truth; this predicts them.

    A compressed leaf costs its codes and its table (codebook, scales), an array leaf its bytes. A codebook that a
    group shares is counted once.

    Args:
      tree: a compressed tree, or one compressed leaf.
      counting: ``"fixed"`` takes ``ceil(log2 k)`` bits a code, the paper's count (III-A:
        ``log2(b) nm + 32 b``); ``"entropy"`` takes the empirical entropy of each leaf's codes.

    Raises:
      ValueError: for another ``counting``.

    Example:
      >>> from bqjax.core.leaves import Clustered
      >>> leaf = Clustered(np.zeros(100, np.uint8), np.zeros((4, 1), np.float32), (10, 10), np.float32)
      >>> bits(leaf), bits(leaf, "entropy")
      (328.0, 128.0)
    """
    if counting not in ("fixed", "entropy"):
        raise ValueError(f'counting must be "fixed" or "entropy", got {counting!r}')
    total, seen = 0.0, set()
    for leaf in jax.tree.leaves(tree, is_leaf=is_compressed):
        if not is_compressed(leaf):
            total += 8 * np.asarray(leaf).nbytes
            continue
        for symbols, k in leaf.streams():
            fixed = (k - 1).bit_length() * math.prod(symbols.shape)
            total += fixed if counting == "fixed" else _entropy_bits(np.asarray(symbols))
        group = getattr(leaf, "group", None)
        if group is None or group not in seen:
            total += leaf.table_bits()
            seen.add(group)
    return total
