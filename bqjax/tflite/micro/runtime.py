"""What TFLM itself makes of a file, where its wheel is installed: the outputs of its plain twin, and the memory that it takes."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.tflite.format.records import unpack

__all__ = ["Equality", "arena_bytes", "compare_in_tflm", "random_inputs", "require_tflm", "run_in_tflm"]

_SMALLEST, _LARGEST = 1 << 16, 1 << 28  # bytes of an arena that are tried


class Equality(NamedTuple):
    """Outputs of a file against those of its twin.

    Attributes:
      equal, inputs: on how many of how many inputs they are equal bit for bit.
      arena_before, arena_after: bytes of the arena, of the twin and of the file.
    """

    equal: int
    inputs: int
    arena_before: int
    arena_after: int


def require_tflm() -> None:
    """Raises ImportError that says what to install where tflite-micro is missing."""
    try:
        import tflite_micro  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "running a file in TFLM needs tflite-micro, which there is for Linux on x86-64: pip install 'bqjax[tflm]'"
        ) from error


def _quietly(work: Callable[[], Any]) -> tuple[Any, str]:
    """What a function gives, and what it wrote to standard error in between: TFLM has no other way to say something."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            try:
                result = work()
            finally:
                os.dup2(kept, 2)
        finally:
            os.close(kept)
        file.seek(0)
        return result, file.read().decode(errors="replace")


def _interpreter(content: bytes) -> Any:
    from tflite_micro import runtime

    def made() -> Any:
        size, error = _SMALLEST, ValueError("")
        while size <= _LARGEST:
            try:
                return runtime.Interpreter.from_bytes(content, arena_size=size)
            except RuntimeError as refused:
                size, error = 4 * size, ValueError(str(refused))
        return error

    found, said = _quietly(made)
    if isinstance(found, ValueError):
        why = " ".join(said.split())[-200:]
        raise ValueError(f"TFLM cannot run the model with an arena of {_LARGEST >> 20} MB: {found} ({why})")
    return found


def random_inputs(content: bytes, n: int, key: jax.Array) -> list[list[np.ndarray]]:
    """``n`` times an array for each input of a model, of all values that an integer has alike, of floats normal ones.

    Raises:
      ValueError: TFLM cannot run the model.
    """
    interpreter, found = _interpreter(content), []
    details = [interpreter.get_input_details(i) for i in range(len(unpack(content)["subgraphs"][0]["inputs"]))]
    for one in jax.random.split(key, n):
        keys = jax.random.split(one, len(details))
        found.append([_draw(k, tuple(d["shape"]), np.dtype(d["dtype"])) for k, d in zip(keys, details, strict=True)])
    return found


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return np.asarray(jax.random.normal(key, shape), dtype)
    info = np.iinfo(dtype)
    low, high = max(info.min, -(1 << 15)), min(info.max, (1 << 15) - 1)
    return np.asarray(jax.random.randint(key, shape, low, high + 1, jnp.int32)).astype(dtype)


def run_in_tflm(content: bytes, inputs: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The first output of a model for each of the inputs, by TFLM's reference kernels.

    Args:
      content: of the ``.tflite`` file.
      inputs: for each run, an array for each input, with its batch.

    Raises:
      ImportError: tflite-micro is not installed.
      ValueError: TFLM cannot run the model.
    """
    require_tflm()
    return _outputs(_interpreter(content), inputs)


def _outputs(interpreter: Any, inputs: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    found = []
    for arrays in inputs:
        for i, array in enumerate(arrays):
            interpreter.set_input(array, i)
        interpreter.invoke()
        found.append(np.array(interpreter.get_output(0)))
    return found


def arena_bytes(interpreter: Any) -> int:
    """What an interpreter has allocated."""
    _, said = _quietly(interpreter.print_allocations)
    total = re.search(r"Arena allocation total (\d+) bytes", said)
    return int(total[1]) if total else 0


def compare_in_tflm(content: bytes, twin: bytes, inputs: Sequence[Sequence[np.ndarray]]) -> Equality:
    """A file against its plain twin, both in TFLM; arguments as of :func:`run_in_tflm`."""
    require_tflm()
    ours, plain = _interpreter(content), _interpreter(twin)
    pairs = zip(_outputs(ours, inputs), _outputs(plain, inputs), strict=True)
    equal = sum(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
    return Equality(equal, len(inputs), arena_bytes(plain), arena_bytes(ours))
