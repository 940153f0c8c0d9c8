"""What commands say of a file for TFLM: its size beside others of the model, and whether TFLM makes the same of the plain twin."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from bqjax.tflite.container import save_lossless
from bqjax.tflite.micro import read_micro
from bqjax.tflite.micro.runtime import compare_in_tflm, random_inputs, require_tflm

__all__ = ["micro_summary"]

_INPUTS = 50  # that equality is checked on


def micro_summary(out: Path, original_bytes: int, examples: np.ndarray | None = None) -> Iterator[str]:
    """Lines on a file for TFLM.

    Args:
      out: the file.
      original_bytes: of the model that it was made of.
      examples: ``[n, ...]`` inputs, of which the first 50 are run; None draws 50.

    Raises:
      RuntimeError: in TFLM, the file and its plain twin differ.
    """
    file = read_micro(out)
    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        container = save_lossless(Path(scratch) / "twin.bq.safetensors", file.twin).file_bytes
    size = len(file.content)
    yield (
        f"the original {original_bytes:,} bytes; squeezed and plain {len(file.twin):,}; as a .bq.safetensors container, to be "
        f"unpacked before it runs, {container:,}; {out.name} {size:,} ({original_bytes / size:.2f}x)"
    )
    try:
        require_tflm()
    except ImportError as error:
        yield f"equality with the plain twin in TFLM was not checked: {error}; then run the command again"
        return
    try:
        if examples is None:
            inputs = random_inputs(file.twin, _INPUTS, jax.random.key(0))
        else:
            inputs = [[x[None]] for x in examples[:_INPUTS]]
        found = compare_in_tflm(file.content, file.twin, inputs)
    except ValueError as error:
        yield f"equality with the plain twin in TFLM was not checked: {error}"
        return
    if found.equal < found.inputs:
        raise RuntimeError(f"TFLM makes the same of {out} and of its plain twin on {found.equal} of {found.inputs} inputs alone")
    yield (
        f"in TFLM bit-equal to the plain twin on {found.equal} of {found.inputs} inputs; arena {found.arena_before:,} bytes "
        f"before, {found.arena_after:,} after"
    )
