"""What ``bqjax decompress`` and ``bqjax inspect`` do."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bqjax import codec
from bqjax.adapters.folder import KEY, kept_folder
from bqjax.adapters.origin import described as origin_described
from bqjax.adapters.write_back import write_file, write_folder
from bqjax.core.files import atomic_write
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


def _refuse_dtype(dtype: str | None, source: Path) -> None:
    if dtype is not None:
        raise ValueError(f"--dtype cannot go with {source}, which holds a .tflite model")


def decompress(source: Path, out: Path, *, dtype: str | None = None, force: bool = False, console: Console) -> None:
    """Decodes a file to plain safetensors weights, to the folder that they came in, or to the ``.tflite`` model that it holds."""
    refuse_same(source, out)
    if is_micro(source):
        _refuse_dtype(dtype, source)
        found = read_micro(source)
        if not found.short:
            raise ValueError(f"{source}: a .tflite model whose weights are plain already: there is nothing to decode")
        twin = found.twin
        with atomic_write(out, force=force) as file:
            file.write(twin)
        say(console, f"wrote {out}: a .tflite model whose weights are plain, {len(twin):,} bytes")
        return
    info = codec.inspect(source)
    if info.metadata.get("kind") == "tflite":
        _refuse_dtype(dtype, source)
        content = load_model(source)
        with atomic_write(out, force=force) as file:
            file.write(content)
        say(console, f"wrote {out}: a .tflite model, {len(content):,} bytes")
        return
    to_folder = out.is_dir() or (KEY in info.metadata and out.suffix != ".safetensors")
    written = (write_folder if to_folder else write_file)(source, out, dtype=dtype, force=force)
    files = f" in {len(written.files)} files ({', '.join(written.files)})" if to_folder else ""
    say(console, f"wrote {out}: {written.tensors} tensors, {written.nbytes:,} bytes{files}")
    for note in written.notes:
        say(console, note)


def inspect(source: Path, *, console: Console) -> None:
    """Shows what a file holds, leaf by leaf, without decoding it."""
    if is_micro(source):
        console.print(rich_table(stored_table(source, source.name)))
        return
    info = codec.inspect(source)
    console.print(rich_table(file_table(info, source.name)))
    metadata = described(info.metadata) if info.metadata.get("kind") == "tflite" else origin_described(info)
    folder = kept_folder(info)
    for name, value in metadata.items():
        if name != KEY:
            say(console, f"{name}: {value}")
    if folder is not None:
        for name, content in folder.files.items():
            say(console, f"beside the weights: {name}, {len(content):,} bytes")
        if len(folder.shards) > 1:
            say(console, f"shards: {len(folder.shards)}, {folder.shards[0]} to {folder.shards[-1]}")
