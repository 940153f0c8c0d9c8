"""One pass over a file of weights, and the passes that meet a size."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bqjax import codec
from bqjax.adapters.safetensors import StoredTensor
from bqjax.cli.weights_methods import WeightMethod
from bqjax.cli.weights_target import Rates
from bqjax.codec import Deferred
from bqjax.codec.same import fingerprint
from bqjax.core.leaves import is_compressed
from bqjax.report.console import progress_bar, say

__all__ = ["Run", "single", "within"]

_TRIALS = 5  # files written to meet a size


def single(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


class Run:
    """One pass over a file by one method: what each leaf was when it was written, and what was done otherwise than asked."""

    def __init__(
        self, params: Mapping[str, StoredTensor], taken: Mapping[str, Any], method: WeightMethod, metadata: Mapping[str, str]
    ):
        self.params, self.taken, self.method, self._metadata = params, taken, method, metadata
        self.written: dict[str, bytes] = {}
        self.notes: dict[str, str] = {}

    def at(self, rtol: float) -> Run:
        """The same pass at another relative error."""
        return Run(self.params, self.taken, dataclasses.replace(self.method, rtol=rtol), self._metadata)

    def write(self, out: Path, coder: str, force: bool, console: Console) -> codec.FileInfo:
        with progress_bar(console, "compressing") as progress:

            def make(name: str) -> Any:
                leaf: Any = self.params[name].read()
                if name in self.taken:
                    done = self.method.compress(name, single(leaf))
                    leaf = done.leaf if is_compressed(done.leaf) else leaf
                    if done.note:
                        self.notes[name] = done.note
                self.written[name] = fingerprint(name, leaf)
                progress(len(self.written), len(self.params), name)
                return leaf

            tree = {name: Deferred(lambda name=name: make(name)) for name in self.params}  # type: ignore[misc]
            return codec.save(out, tree, coder=coder, force=force, metadata={"method": self.method.described, **self._metadata})


def within(target: int, asked: Run, out: Path, coder: str, force: bool, console: Console) -> tuple[Run, codec.FileInfo]:
    """The file of at most ``target`` bytes whose leaves have the least relative error, the same for all of them."""
    rates = Rates((single(asked.params[name].read()) for name in asked.taken), asked.method.even)
    beside = 0.0  # bytes of the file that the entropy of the codes does not tell
    best: Run | None = None
    least = 1 << 63
    with tempfile.TemporaryDirectory(prefix=".bqjax-", dir=out.parent) as scratch:
        trial, kept = Path(scratch) / "trial", Path(scratch) / "kept"
        for _ in range(_TRIALS):
            rtol = rates.rtol(target - beside)
            run = asked.at(rtol)
            info = run.write(trial, coder, True, console)
            say(console, f"relative error {100 * rtol:.2f} %: {info.file_bytes:,} bytes of {target:,}")
            least = min(least, info.file_bytes)
            beside = info.file_bytes - rates.bytes(rtol) + (0.002 * target if info.file_bytes > target else 0.0)
            if info.file_bytes <= target and (best is None or rtol < (best.method.rtol or 1)):
                best = run
                trial.replace(kept)
                if info.file_bytes >= 0.98 * target:
                    break
        if best is None:
            raise ValueError(
                f"--target-size: no file of at most {target:,} bytes was found, even at {100 * rtol:.0f} % relative error; the "
                f"smallest has {least:,}"
            )
        kept.replace(out)
    return best, codec.inspect(out)
