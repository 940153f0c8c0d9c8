"""What LiteRT itself makes of a model: the arithmetic that a phone runs, and the one that is reported."""

from __future__ import annotations

from typing import Literal

import numpy as np

__all__ = ["Kernels", "interpret", "require_litert"]

Kernels = Literal["default", "builtin"]


def require_litert() -> None:
    """Raises ImportError that says what to install where ai-edge-litert is missing."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError as error:
        raise ImportError("reading and running .tflite models needs ai-edge-litert: pip install 'bqjax[tflite]'") from error


def interpret(content: bytes, inputs: np.ndarray, *, kernels: Kernels = "default", threads: int = 2) -> np.ndarray:
    """Runs a model on examples one by one.

    Args:
      content: bytes of the ``.tflite`` file, with one input and one output.
      inputs: ``[n, ...]`` of the input's dtype; an example has the input's shape without its batch of 1.
      kernels: ``"default"`` with the delegate that LiteRT adds by itself, ``"builtin"`` without. The two round differently:
        compare within one.
      threads: of the interpreter.

    Returns:
      ``[n, ...]`` of the output's dtype, the batch of 1 dropped.

    Raises:
      ValueError: LiteRT refuses the model, it has several inputs or outputs, or the examples are of another shape or dtype.
      ImportError: ai-edge-litert is not installed.
    """
    require_litert()
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if kernels == "default" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        # bytes: a bytearray is refused.
        interpreter = Interpreter(model_content=bytes(content), num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"LiteRT cannot run the model, convert it again ({_first(error)})") from error
    sources, results = interpreter.get_input_details(), interpreter.get_output_details()
    if len(sources) != 1 or len(results) != 1:
        raise ValueError(f"a model of one input and one output is needed, this has {len(sources)} and {len(results)}")
    source, result = sources[0], results[0]
    shape = tuple(source["shape"][1:].tolist())
    if shape != inputs.shape[1:] or source["dtype"] != inputs.dtype:
        expected = f"{np.dtype(source['dtype'])} {shape}"
        raise ValueError(f"the model takes examples of {expected}, got {inputs.dtype} {inputs.shape[1:]}")
    out = np.empty((len(inputs), *result["shape"][1:]), result["dtype"])
    try:
        for i in range(len(inputs)):
            interpreter.set_tensor(source["index"], inputs[i : i + 1])
            interpreter.invoke()
            out[i] = interpreter.get_tensor(result["index"])[0]
    except RuntimeError as error:
        raise ValueError(f"LiteRT failed on an example, convert the model again ({_first(error)})") from error
    return out


def _first(error: Exception) -> str:
    """The start of what LiteRT says, which lists every tensor that it dislikes."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]} ..."
