"""``bqjax compress WEIGHTS``: any weights, leaf by leaf, so that a file larger than memory can be compressed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.console import Console

from bqjax import codec
from bqjax.adapters.checkpoints import open_checkpoint
from bqjax.adapters.origin import origin_metadata
from bqjax.adapters.quantized import quantizer_tensors
from bqjax.adapters.safetensors import StoredTensor
from bqjax.cli.files import refuse_same
from bqjax.codec import Deferred
from bqjax.codec.same import fingerprint
from bqjax.core.rules import Rule, Selection, select
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.methods.bins.gaussian import BinConfig, gaussian_bins
from bqjax.methods.bins.quantize import bin_and_quant
from bqjax.report.console import progress_bar, say
from bqjax.report.tables import Table, file_table, rich_table

__all__ = ["compress_weights"]

# Above, level 19 would take minutes for the one line of the table that it gives.
_THOROUGH_BYTES = 1 << 26
_CHUNK = 1 << 20


def _choose(tensors: Mapping[str, StoredTensor], only: Sequence[str], skip: Sequence[str]) -> Selection[Any]:
    """The leaves to compress: those that are named, or those of the default that are not skipped and scale no codes."""
    skipped = [Rule[Any](pattern, skip=True) for pattern in skip]
    if only:
        return select(tensors, skipped + [Rule(pattern) for pattern in only])
    default: Selection[Any] = select(tensors)
    left = dict(default.left)
    left |= {name: f"{tensors[name].type.stored}, a dtype that is not known" for name in left if tensors[name].dtype == "V1"}
    for name, codes in quantizer_tensors(tensors).items():
        left[name] = f"it belongs to {codes}, which is quantized already; --only {name} compresses it all the same"
    if skip:
        left |= {name: why for name, why in select(tensors, skipped).left.items() if why.startswith("skipped")}
    taken = {name: rule for name, rule in default.taken.items() if name not in left}
    if not taken and skip:
        raise ValueError(f"nothing is left to compress: {', '.join(map(repr, skip))} skip every leaf")
    return Selection(taken, {name: left[name] for name in tensors if name in left})


def compress_weights(
    source: Path,
    out: Path,
    *,
    method: str,
    bins: int,
    sigma_scale: float = 1.0,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    coder: str = "auto",
    force: bool = False,
    console: Console,
) -> None:
    """Compresses a checkpoint of safetensors files with no model and no data, and checks the file by decoding it.

    Leaves are read, compressed and written one by one, and read back one by one: memory holds what one leaf needs.
    """
    if out.exists() and not force:
        raise ValueError(f"{out} exists: pass --force to overwrite it")
    refuse_same(source, out)
    checkpoint = open_checkpoint(source)
    params = checkpoint.tensors
    for path in checkpoint.files:
        refuse_same(path, out)
    selection = _choose(params, only, skip)
    if not selection.taken:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in list(selection.left.items())[:5])
        raise ValueError(f"{source} has no leaf to compress: {reasons}; name leaves by --only")
    for name in selection.taken:
        if params[name].dtype == np.float64:
            # Without 64-bit mode, JAX has no float64 to decode to.
            say(console, f"from float64 to float32: {name}")
    start = time.monotonic()
    written: dict[str, bytes] = {}
    with progress_bar(console, "compressing") as progress:

        def make(name: str) -> Any:
            leaf: Any = params[name].read()
            if name in selection.taken:
                one, rules = {name: _single(leaf)}, [Rule[Any](name)]
                if method == "gaussian-bins":
                    stats = gaussian_bins(one, BinConfig(n_bins=bins, sigma_scale=sigma_scale), rules)
                    leaf = bin_and_quant(one, stats)[name]
                else:
                    leaf = kmeans_share(one, bins, rules)[name]
            written[name] = fingerprint(name, leaf)
            progress(len(written), len(params), name)
            return leaf

        tree = {name: Deferred(lambda name=name: make(name)) for name in params}  # type: ignore[misc]
        info = codec.save(
            out, tree, coder=coder, force=force, metadata={"method": method} | origin_metadata(params, checkpoint.metadata)
        )
    seconds = time.monotonic() - start
    error = _checked(out, params, selection.taken, written)
    console.print(rich_table(file_table(info, out.name)))
    whole, size = checkpoint.file_bytes, out.stat().st_size
    level, lossless = _zstd_bytes(checkpoint.files)
    console.print(rich_table(Table(
        "Size",
        ("file", "bytes", "ratio"),
        [
            (source.name, f"{whole:,}", "1.00"),
            (f"{source.name}, zstd -{level} (lossless)", f"{lossless:,}", f"{whole / lossless:.2f}"),
            (out.name, f"{size:,}", f"{whole / size:.2f}"),
        ],
        f"Relative error of compressed leaves {100 * error:.2f} %; accuracy was not measured. "
        f"Compressed {len(selection.taken)} leaves in {seconds:.1f} s; the file decodes to exactly what was written.",
    )))  # fmt: skip
    for name, reason in selection.left.items():
        say(console, f"left as it was: {name} ({reason})")
    for name, reason in checkpoint.passed_over.items():
        say(console, f"not in the file: {name} ({reason})")


def _single(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _checked(out: Path, params: Mapping[str, StoredTensor], taken: Mapping[str, Any], written: Mapping[str, bytes]) -> float:
    """Reads the file back, compares each leaf with what was written, and returns the relative error of those compressed."""
    error = power = 0.0
    read = set()
    for name, leaf in codec.read_leaves(out):
        if fingerprint(name, leaf) != written[name]:
            raise RuntimeError(f"{out}: leaf {name!r} does not decode to what was written into it")
        read.add(name)
        if name not in taken:
            continue
        # Both methods give one value a weight, in the order of the weights. In pieces, so that the copies stay small.
        codebook, indices = np.asarray(leaf.codebook)[:, 0].astype(np.float64), np.asarray(leaf.indices)
        w = _single(params[name].read()).reshape(-1)
        for i in range(0, w.size, _CHUNK):
            piece = w[i : i + _CHUNK].astype(np.float64)
            error += float(np.square(codebook[indices[i : i + _CHUNK]] - piece).sum())
            power += float(np.square(piece).sum())
    if read != set(written):
        raise RuntimeError(f"{out} lacks leaves that were written into it: {', '.join(sorted(set(written) - read))}")
    return (error / power) ** 0.5 if power else 0.0


def _zstd_bytes(paths: Sequence[Path]) -> tuple[int, int]:
    """Level of zstandard, and the size of the files after it, one after the other."""
    size = sum(path.stat().st_size for path in paths)
    level, total = 19 if size <= _THOROUGH_BYTES else 3, 0
    compressor = zstandard.ZstdCompressor(level=level).compressobj(size=size)
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total += len(compressor.compress(chunk))
    return level, total + len(compressor.flush())
