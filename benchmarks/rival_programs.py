"""Another program on the weights of one file, in an interpreter that has it.

    PYTHON benchmarks/rival_programs.py PROGRAM SOURCE.safetensors FOLDER SETTING ...

``benchmarks/rivals.py`` starts it. SOURCE holds float32 tensors with the outputs of a kernel first, as PyTorch has them. Each
setting leaves two files in FOLDER: ``SETTING.bin``, all bytes that the program needs to give every tensor back, and
``SETTING.safetensors``, the tensors that it gives back. A kernel is a tensor of two axes or more, the others are vectors.

- ``nncodec``: settings are quantization parameters, powers of two of the step in quarters: higher is coarser. Its stream counts.
- ``qwix``: settings are its types (``int8``, ``int6``, ``nf4``, ``int3``), with a scale for each output channel. It has no file of
  its own: what counts is one safetensors file of values packed at the bits that the type names, and of scales and vectors in
  float32. Its own arrays keep 5 to 7 bits in a byte, and 2 or 3 in four bits.
- ``coremltools``: settings are ``int8`` and ``int4`` (symmetric, a scale for each output channel) and ``palette6`` to ``palette1``
  (k-means, a table for each tensor). The program is one ``linear`` for each kernel. ``weight.bin`` of the package that it saves
  counts, and two bytes for each number of the vectors, as its default is float16. Kernels below 2,048 weights stay
  float16, which is its default too.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save, save_file

__all__ = ["PROGRAMS", "run_coremltools", "run_nncodec", "run_qwix"]

Tensors = Mapping[str, np.ndarray]
Stored = tuple[bytes, Tensors]


def run_nncodec(tensors: Tensors, setting: str) -> Stored:
    """A stream of ISO/IEC 15938-17, and what its decoder makes of it."""
    from nncodec import nn

    with tempfile.TemporaryDirectory() as results:
        stream = nn.encode(dict(tensors), {"qp": int(setting), "verbose": False, "results": results})
    decoded = nn.decode(bytearray(stream), {"verbose": False})
    return bytes(stream), {name: decoded[name] for name in tensors}


def run_qwix(tensors: Tensors, setting: str) -> Stored:
    """``QArray`` of every kernel, its values packed."""
    import jax.numpy as jnp
    import qwix

    from bqjax.codec.bitpack import pack

    bits = _bits(setting)
    kind = getattr(jnp, setting) if setting in ("int8", "int4") else setting  # others are names of qwix
    lowest = 0 if setting.startswith("nf") else -(2 ** (bits - 1))  # nf4 holds indices
    stored: dict[str, np.ndarray] = {}
    decoded: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            stored[name] = decoded[name] = tensor
            continue
        quantized = qwix.quantize(jnp.asarray(tensor), kind, channelwise_axes=(0,))
        values = np.asarray(quantized.qvalue).astype(np.int64) - lowest
        stored[name] = np.frombuffer(pack(values.ravel(), bits), np.uint8)
        stored[f"{name}.scale"] = np.asarray(quantized.scale, np.float32)
        decoded[name] = np.asarray(qwix.dequantize(quantized))
    return save(stored), decoded


def run_coremltools(tensors: Tensors, setting: str) -> Stored:
    """The weights of a saved ``.mlpackage``, decompressed by coremltools itself."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-means of fewer distinct values than centres, in tiny tensors
        import coremltools
        from coremltools.optimize import coreml

    kernels = {name: tensor for name, tensor in tensors.items() if tensor.ndim > 1}
    program = coremltools.convert(
        _linear_program(list(kernels.values())),
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS18,  # the first that has four bits
        compute_units=coremltools.ComputeUnit.CPU_ONLY,
    )
    bits = _bits(setting)
    if setting.startswith("palette"):
        how = coreml.OpPalettizerConfig(mode="kmeans", nbits=bits)
        compressed = coreml.palettize_weights(program, coreml.OptimizationConfig(global_config=how))
    else:
        how = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=setting, granularity="per_channel")
        compressed = coreml.linear_quantize_weights(program, coreml.OptimizationConfig(global_config=how))
    with tempfile.TemporaryDirectory() as folder:
        compressed.save(f"{folder}/model.mlpackage")
        (weights,) = Path(folder).rglob("weight.bin")
        content = weights.read_bytes()
        values = _constants(
            coreml.decompress_weights(coremltools.models.MLModel(f"{folder}/model.mlpackage", skip_model_load=True))
        )
    vectors = {name: tensor.astype(np.float16) for name, tensor in tensors.items() if tensor.ndim < 2}
    decoded = {name: values[i].reshape(kernel.shape) for i, (name, kernel) in enumerate(kernels.items())}
    return content + b"".join(vector.tobytes() for vector in vectors.values()), {**decoded, **vectors}


def _linear_program(kernels: Sequence[np.ndarray]):
    """``y_i = W_i x_i`` for every kernel, with its outputs as rows."""
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function, Program

    matrices = [kernel.reshape(len(kernel), -1) for kernel in kernels]
    inputs = {f"x{i}": Builder.placeholder(shape=(1, matrix.shape[1])) for i, matrix in enumerate(matrices)}
    program = Program()
    with Function(inputs, opset_version=coremltools.target.iOS18) as function:
        rows = [
            Builder.linear(x=function.inputs[f"x{i}"], weight=Builder.const(val=matrix, name=f"w{i}"), name=f"y{i}")
            for i, matrix in enumerate(matrices)
        ]
        function.set_outputs(rows)
        program.add_function("main", function)
    return program


def _constants(model) -> dict[int, np.ndarray]:
    """Weights of the products, by the number in their names."""
    products = [op for op in model._mil_program.functions["main"].operations if op.op_type == "linear"]
    return {int(re.match(r"w(\d+)", op.weight.name)[1]): np.asarray(op.weight.val) for op in products}  # type: ignore[index]


def _bits(setting: str) -> int:
    found = re.fullmatch(r"[a-z]+([1-8])", setting)
    if found is None:
        raise ValueError(f"no setting {setting!r}: it takes a kind and a number of bits, such as int4")
    return int(found[1])


PROGRAMS: dict[str, Callable[[Tensors, str], Stored]] = {
    "coremltools": run_coremltools,
    "nncodec": run_nncodec,
    "qwix": run_qwix,
}


def main() -> None:
    """Writes two files a setting."""
    program, source, folder, *settings = sys.argv[1:]
    tensors = load_file(source)
    for setting in settings:
        content, decoded = PROGRAMS[program](tensors, setting)
        Path(folder, f"{setting}.bin").write_bytes(content)
        values = {name: np.ascontiguousarray(decoded[name], np.float32) for name in tensors}
        save_file(values, f"{folder}/{setting}.safetensors")


if __name__ == "__main__":
    main()
