"""Keeps what was measured of a network's layers in a file, so that an interrupted search does not measure again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bqjax.core.files import atomic_write
from bqjax.tflite.codes.layer_stats import Measured

__all__ = ["kept_or_measured"]

_ARRAYS = ("second", "mean", "importance")


def kept_or_measured(
    path: str | os.PathLike[str] | None, fingerprint: Mapping[str, str], measure: Callable[[], dict[str, Measured]]
) -> dict[str, Measured]:
    """What ``path`` keeps, or else ``measure()``, which is then kept there.

    Args:
      path: the file; None keeps nothing.
      fingerprint: what the measurements depend on, by name.
      measure: takes them.

    Raises:
      ValueError: the file cannot be read, or was measured on something else; the message names what differs.
    """
    if path is None:
        return measure()
    path = Path(path)
    if path.exists():
        try:
            with safe_open(path, framework="numpy") as file:
                described = json.loads(file.metadata()["bqjax-measured"])
                layers, old = described["layers"], described["fingerprint"]
                found = {
                    name: Measured(
                        file.get_tensor(f"{i}.second"), file.get_tensor(f"{i}.mean"), int(rows), file.get_tensor(f"{i}.importance")
                    )
                    for i, (name, rows) in enumerate(layers)
                }
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path} does not hold measurements of layers: remove it ({error})") from error
        if old != dict(fingerprint):
            differ = sorted(f for f in {*old, *fingerprint} if old.get(f) != fingerprint.get(f))
            raise ValueError(f"{path} belongs to another run ({', '.join(differ)} changed): remove it to start anew")
        return found
    measured = measure()
    described = {"layers": [(name, m.rows) for name, m in measured.items()], "fingerprint": dict(fingerprint)}
    arrays = {f"{i}.{what}": np.ascontiguousarray(getattr(m, what)) for i, m in enumerate(measured.values()) for what in _ARRAYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save(arrays, metadata={"bqjax-measured": json.dumps(described)}))
    return measured
