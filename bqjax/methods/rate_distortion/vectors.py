"""Vectors (biases, scales and shifts of normalisations) on a line of few integers, where the outputs don't notice.

They are few beside a network's kernels, but in float32 they are a tenth of a file whose kernels take two bits a weight.
"""

from __future__ import annotations

import numpy as np

from bqjax.core.leaves import Affine

__all__ = ["affine_vector"]

_TABLE_BITS = 8.0 * 5  # scale and zero point
_BITS = (8, 7, 6, 5, 4, 3)


def affine_vector(vector: np.ndarray, importance: np.ndarray, lmbda: float) -> Affine | None:
    """The number of bits at which half the squared error, weighted, plus ``lmbda`` times the storage is least.

    Args:
      vector: ``[n]`` finite, floating point.
      importance: ``[n]`` non-negative.
      lmbda: of a bit, not negative.

    Returns:
      Affine integers of 3 to 8 bits with one scale, or None where it is cheaper to keep the vector as it is.
    """
    w = np.asarray(vector, np.float64)
    low, high = min(0.0, float(w.min())), max(0.0, float(w.max()))
    if high == low:
        return None
    h = np.asarray(importance, np.float64)
    h = h + 0.01 * h.mean() + 1e-30
    best, least = None, lmbda * 8 * np.asarray(vector).nbytes
    for bits in _BITS:
        scale = np.float32((high - low) / (2**bits - 1))
        if not scale > 0:
            continue
        # Zero stays zero: vectors of pruned channels hold many.
        zero_point = np.int32(round(-low / float(scale)))
        codes = np.clip(np.rint(w / float(scale)) + zero_point, 0, 2**bits - 1).astype(np.uint8)
        error = w - (codes.astype(np.float64) - zero_point) * float(scale)
        cost = float((h * np.square(error)).sum() / 2) + lmbda * (bits * w.size + _TABLE_BITS)
        if cost < least:
            best, least = Affine(codes, np.asarray(scale), np.asarray(zero_point), None, np.asarray(vector).dtype, bits), cost
    return best
