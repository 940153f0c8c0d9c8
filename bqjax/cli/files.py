"""What ``bqjax decompress`` and ``bqjax inspect`` do."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bqjax import codec
from bqjax.adapters.origin import described as origin_described
from bqjax.adapters.origin import origin
from bqjax.adapters.safetensors import stream_weights
from bqjax.core.files import atomic_write
from bqjax.core.leaves import decode
from bqjax.report.console import say
from bqjax.report.micro import stored_table
from bqjax.report.tables import file_table, rich_table
from bqjax.tflite.container import described, load_model
from bqjax.tflite.micro import is_micro, read_micro

__all__ = ["decompress", "inspect", "refuse_same"]


def refuse_same(source: Path, out: Path) -> None:
    """Raises ``ValueError`` where a command would write over the file that it reads."""
    if source.exists() and out.exists() and source.samefile(out):
        raise ValueError(f"{out} is the file that is read: name another one to write")


def decompress(source: Path, out: Path, *, force: bool = False, console: Console) -> None:
    """Decodes a file to plain safetensors weights, or to the ``.tflite`` model that it holds or that TFLM decodes."""
    refuse_same(source, out)
    if is_micro(source):
        found = read_micro(source)
        twin = found.twin
        if not found.short:
            raise ValueError(f"{source}: a .tflite model whose weights are plain already: there is nothing to decode")
        with atomic_write(out, force=force) as file:
            file.write(twin)
        say(console, f"wrote {out}: a .tflite model whose weights are plain, {len(twin):,} bytes")
        return
    info = codec.inspect(source)
    if info.metadata.get("kind") == "tflite":
        content = load_model(source)
        with atomic_write(out, force=force) as file:
            file.write(content)
        say(console, f"wrote {out}: a .tflite model, {len(content):,} bytes")
        return
    types, metadata = origin(info)
    leaves = ((name, decode(leaf)) for name, leaf in codec.read_leaves(source))
    stream_weights(out, types, leaves, force=force, metadata=metadata)
    say(console, f"wrote {out}: {len(types)} tensors, {out.stat().st_size:,} bytes")


def inspect(source: Path, *, console: Console) -> None:
    """Shows what a file holds, leaf by leaf, without decoding it."""
    if is_micro(source):
        console.print(rich_table(stored_table(source, source.name)))
        return
    info = codec.inspect(source)
    console.print(rich_table(file_table(info, source.name)))
    metadata = described(info.metadata) if info.metadata.get("kind") == "tflite" else origin_described(info)
    for name, value in metadata.items():
        say(console, f"{name}: {value}")
