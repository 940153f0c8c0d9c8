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
from bqjax.adapters.checkpoints import Checkpoint, open_checkpoint
from bqjax.adapters.folder import ModelFolder, folder_metadata, model_folder
from bqjax.adapters.origin import origin_metadata
from bqjax.adapters.quantized import quantizer_tensors
from bqjax.adapters.safetensors import StoredTensor
from bqjax.cli.compress_budget import parse_size
from bqjax.cli.files import refuse_same
from bqjax.cli.weights_methods import WeightMethod
from bqjax.cli.weights_report import LeafError, error_table, measured, total_error, warnings
from bqjax.cli.weights_run import Run, single, within
from bqjax.codec import Deferred
from bqjax.codec.same import fingerprint
from bqjax.core.leaves import is_compressed
from bqjax.core.rules import Rule, Selection, select
from bqjax.report.console import say
from bqjax.report.tables import Table, file_table, rich_table

__all__ = ["compress_lossless", "compress_weights", "say_left_out"]

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
    others: Sequence[Path] = (),
    method: WeightMethod | None = None,
    target_size: str | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    coder: str = "auto",
    force: bool = False,
    console: Console,
) -> None:
    """Compresses a checkpoint of safetensors files with no model and no data, and checks the file by decoding it.

    Leaves are read, compressed and written one by one, and read back one by one: memory holds what one leaf needs.
    ``others`` are further files of the checkpoint, where it was named file by file.
    """
    method = method or WeightMethod()
    if out.exists() and not force:
        raise ValueError(f"{out} exists: pass --force to overwrite it")
    refuse_same(source, out)
    checkpoint = open_checkpoint(source, *others)
    params = checkpoint.tensors
    for path in checkpoint.files:
        refuse_same(path, out)
    folder = model_folder(checkpoint)
    metadata = origin_metadata(params, checkpoint.metadata) | folder_metadata(folder)
    selection = _choose(params, only, skip)
    if not selection.taken:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in list(selection.left.items())[:5])
        raise ValueError(f"{source} has no leaf to compress: {reasons}; name leaves by --only, or take --lossless")
    for name in selection.taken:
        if params[name].dtype == np.float64:
            # Without 64-bit mode, JAX has no float64 to decode to.
            say(console, f"from float64 to float32: {name}")
    start = time.monotonic()
    if target_size is None:
        run = Run(params, selection.taken, method, metadata)
        info = run.write(out, coder, force, console)
    else:
        run, info = within(parse_size(target_size), Run(params, selection.taken, method, metadata), out, coder, force, console)
    seconds = time.monotonic() - start
    errors = _checked(out, params, selection.taken, run.written)
    console.print(rich_table(file_table(info, out.name)))
    if errors:
        console.print(rich_table(error_table(errors, run.notes)))
    whole, size = _whole(checkpoint, folder), out.stat().st_size
    given = _given(source, others)
    level, lossless = _zstd_bytes(checkpoint, folder)
    console.print(rich_table(Table(
        "Size",
        ("file", "bytes", "ratio"),
        [
            (given, f"{whole:,}", "1.00"),
            (f"{given}, zstd -{level} (lossless)", f"{lossless:,}", f"{whole / lossless:.2f}"),
            (out.name, f"{size:,}", f"{whole / size:.2f}"),
        ],
        f"By {run.method.described}. Relative error of compressed leaves {100 * total_error(errors):.2f} %; accuracy was not "
        f"measured. Compressed {len(errors)} leaves in {seconds:.1f} s; the file decodes to exactly what was written."
        + _carried(folder),
    )))  # fmt: skip
    for name, reason in selection.left.items():
        say(console, f"left as it was: {name} ({reason})")
    say_left_out(checkpoint, folder, console)
    for name in set(run.notes) - {e.name for e in errors}:
        say(console, f"{name}: {run.notes[name]}")
    for warning in warnings(errors):
        say(console, warning)


def compress_lossless(source: Path, out: Path, *, others: Sequence[Path] = (), force: bool = False, console: Console) -> None:
    """Entropy-codes a checkpoint of safetensors files tensor by tensor, and checks that it comes back bit for bit."""
    if out.exists() and not force:
        raise ValueError(f"{out} exists: pass --force to overwrite it")
    refuse_same(source, out)
    checkpoint = open_checkpoint(source, *others)
    params = checkpoint.tensors
    for path in checkpoint.files:
        refuse_same(path, out)
    start = time.process_time()
    folder = model_folder(checkpoint)
    tree = {name: Deferred(lambda name=name: params[name].read()) for name in params}  # type: ignore[misc]
    metadata = {"method": "lossless"} | origin_metadata(params, checkpoint.metadata) | folder_metadata(folder)
    info = codec.save(out, tree, force=force, metadata=metadata, thorough=False)
    written, start = time.process_time() - start, time.process_time()
    for name, leaf in codec.read_leaves(out):
        if not _same_bits(leaf, params[name].read()):
            raise RuntimeError(f"{out}: leaf {name!r} does not decode to what was written into it")
    checked = time.process_time() - start
    console.print(rich_table(file_table(info, out.name)))
    whole, size = _whole(checkpoint, folder), out.stat().st_size
    given = _given(source, others)
    level, other = _zstd_bytes(checkpoint, folder)
    rows = [
        (given, f"{whole:,}", "1.00", "1.000"),
        (f"{given}, zstd -{level}", f"{other:,}", f"{whole / other:.2f}", f"{other / whole:.3f}"),
        (out.name, f"{size:,}", f"{whole / size:.2f}", f"{size / whole:.3f}"),
    ]
    speeds = f"Written at {whole / written / 1e6:.0f} MB and read back at {whole / checked / 1e6:.0f} MB a second of processor time"
    caption = f"{speeds}; all {len(params)} tensors are what they were, bit for bit.{_carried(folder)}"
    console.print(rich_table(Table("Size", ("file", "bytes", "ratio", "of the size"), rows, caption)))
    say_left_out(checkpoint, folder, console)


def _given(source: Path, others: Sequence[Path]) -> str:
    return f"{source.name} and {len(others)} more" if others else source.name


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    bits, others = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return (a.dtype, a.shape) == (b.dtype, b.shape) and np.array_equal(bits, others)


def _checked(
    out: Path, params: Mapping[str, StoredTensor], taken: Mapping[str, Any], written: Mapping[str, bytes]
) -> list[LeafError]:
    """Reads the file back, compares each leaf with what was written, and measures those compressed."""
    errors = []
    read = set()
    for name, leaf in codec.read_leaves(out):
        if fingerprint(name, leaf) != written[name]:
            raise RuntimeError(f"{out}: leaf {name!r} does not decode to what was written into it")
        read.add(name)
        if name in taken and is_compressed(leaf):
            errors.append(measured(name, single(params[name].read()), leaf))
    if read != set(written):
        raise RuntimeError(f"{out} lacks leaves that were written into it: {', '.join(sorted(set(written) - read))}")
    return errors


def _whole(checkpoint: Checkpoint, folder: ModelFolder | None) -> int:
    """Bytes of what goes into the file: the weights' files, and those that are carried beside them."""
    return checkpoint.file_bytes + (folder.file_bytes if folder is not None else 0)


def _carried(folder: ModelFolder | None) -> str:
    return f" All sizes are with {', '.join(folder.files)}." if folder is not None and folder.files else ""


def say_left_out(checkpoint: Checkpoint, folder: ModelFolder | None, console: Console) -> None:
    """Says what of a checkpoint is not in the file."""
    for name, reason in {**checkpoint.passed_over, **(folder.left if folder is not None else {})}.items():
        say(console, f"not in the file: {name} ({reason})")


def _zstd_bytes(checkpoint: Checkpoint, folder: ModelFolder | None) -> tuple[int, int]:
    """Level of zstandard, and the size of the files after it, one after the other."""
    size = _whole(checkpoint, folder)
    level, total = 19 if size <= _THOROUGH_BYTES else 3, 0
    compressor = zstandard.ZstdCompressor(level=level).compressobj(size=size)
    for path in checkpoint.files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total += len(compressor.compress(chunk))
    for content in folder.files.values() if folder is not None else ():
        total += len(compressor.compress(content))
    return level, total + len(compressor.flush())
