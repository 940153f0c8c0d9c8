"""Which tensors of a checkpoint belong to weights that are quantized already: their scales, zero points and codebooks.

They are small matrices of floating point, so that by their form alone they could be weights. Known by name, where a tensor of
integers or of at most 8 bits stands in the same module: GPTQ and AWQ (``qweight``, ``scales``), FP8 (``weight``, ``weight_scale``,
``weight_scale_inv``), bitsandbytes (``weight.absmax``, ``weight.quant_map``, ``SCB``), compressed-tensors (``weight_packed``,
``weight_scale``), MLX (``weight``, ``scales``, ``biases``), MX and NVFP4 (``..._blocks``, ``..._scales``, ``weight_scale_2``), AQLM
(``codes``, ``codebooks``), Quanto (``weight._data``, ``weight._scale``), HQQ (``W_q``, ``scale``, ``zero``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

__all__ = ["quantizer_tensors"]

_PARTS = re.compile(
    r"(?P<module>.*?)(?P<part>scales?(_inv|_2|_and_zeros)?|absmax|nested_absmax|quant_map|nested_quant_map|SCB|q?zeros?(_points?)?|biases|codebooks?)"
)


def quantizer_tensors(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Floating-point tensors that scale or shift codes, with the name of the codes.

    Args:
      tensors: by name; arrays or what has their ``dtype`` and ``size``.

    Example:
      >>> import numpy as np
      >>> layer = {"fc.qweight": np.zeros((8, 4), np.int32), "fc.scales": np.ones((2, 4), np.float16)}
      >>> quantizer_tensors(layer | {"norm.scales": np.ones((2, 4), np.float16)})
      {'fc.scales': 'fc.qweight'}
    """
    codes: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if _holds_codes(tensor):
            for module in _modules(name):
                codes.setdefault(module, []).append(name)
    found = {}
    for name, tensor in tensors.items():
        scaled = _scaled(name)
        if scaled is None or not jnp.issubdtype(tensor.dtype, jnp.floating):
            continue
        # Not a counter that a layer keeps beside its weights: there are at least as many codes as scales.
        coded = [other for other in codes.get(scaled, ()) if other != name and tensors[other].size >= tensor.size]
        if coded:
            found[name] = max(coded, key=lambda other: tensors[other].size)
    return found


def _holds_codes(tensor: Any) -> bool:
    dtype = tensor.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits <= 8
    return jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "V"


def _modules(name: str) -> list[str]:
    """What names of these codes' scales begin with: ``a.weight`` has ``a.scales``, ``a.weight_scale``, ``a.weight.absmax``."""
    last = re.split(r"[./]", name)[-1]
    parent = name[: len(name) - len(last)]
    stem = parent + re.sub(r"_?(packed|blocks|data|q)$", "", last)
    return list(dict.fromkeys([parent, *(each + mark for each in (name, stem) for mark in "./_")]))


def _scaled(name: str) -> str | None:
    """The module, or the name of the codes with what follows it, of a name that ends like that of a scale."""
    last = re.split(r"[./]", name)[-1]
    parent, own = name[: len(name) - len(last)], last.removeprefix("_")
    fits = _PARTS.fullmatch(own)
    if fits is None or (fits["module"] and not fits["module"].endswith("_")):
        return None
    return parent + fits["module"]
