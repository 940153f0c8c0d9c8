"""Files for TFLM as tables: what each weight is encoded by, the bytes that it takes, and the time to decode it."""

from __future__ import annotations

import os

from bqjax import codec
from bqjax.report.tables import Table, file_table
from bqjax.tflite.format.constants import constants, reported
from bqjax.tflite.micro.choice import ENTRY_BYTES, plain_bytes
from bqjax.tflite.micro.cost import decode_ns
from bqjax.tflite.micro.file import MicroFile, is_micro, read_micro

__all__ = ["micro_table", "stored_table"]

_COLUMNS = ("tensor", "shape", "read by", "encoding", "values", "bits/weight", "bytes", "decoded in us")


def stored_table(path: str | os.PathLike[str], title: str) -> Table:
    """The table of a file, whatever its format.

    Raises:
      ValueError: naming the file, where it is damaged or of no known format.
    """
    if is_micro(path):
        return micro_table(read_micro(path), title)
    return file_table(codec.inspect(path), title)


def micro_table(file: MicroFile, title: str) -> Table:
    """A line a weight in the order of decoding, then those that stay plain, and the total over all weights."""
    lines = []
    total, ns, largest = 0, 0.0, 0
    for one in file.decoded:
        size, encoded = one.codes.size, one.encoded
        n_bytes, took = encoded.n_bytes + ENTRY_BYTES, decode_ns(encoded, size)
        how = f"{one.kind}{_detail(one.kind, encoded.ancillary)}"
        shape = "x".join(map(str, one.codes.shape))
        name = one.name or f"tensor {one.tensor}"
        cells = f"{encoded.values}", f"{8 * n_bytes / max(1, size):.3f}", f"{n_bytes:,}", f"{took / 1e3:.1f}"
        lines.append((name, shape, one.reader, how, *cells))
        total, ns, largest = total + n_bytes, ns + took, max(largest, one.codes.nbytes)
    for index, weight in file.plain.items():
        size, n_bytes = weight.codes.size, plain_bytes(weight.codes)
        shape = "x".join(map(str, weight.codes.shape))
        lines.append((_name(file, index), shape, "", "plain", "", f"{8 * n_bytes / max(1, size):.3f}", f"{n_bytes:,}", ""))
        total += n_bytes
    lines += [(name, "", "", f"plain: {reason}", "", "", f"{size:,}", "") for name, (reason, size) in file.left.items()]
    whole, total = len(file.content), total + sum(size for _, size in file.left.values())
    n_weights = sum(c.n_weights for c in reported(constants(file.twin)))
    lines.append(("all else", "", "", "", "", "", f"{whole - total:,}", ""))
    per_weight = f"{8 * whole / n_weights:.3f}" if n_weights else ""
    lines.append(("total", f"{n_weights:,} weights", "", "", "", per_weight, f"{whole:,}", f"{ns / 1e3:.1f}"))
    caption = (
        f"Bytes of a weight are those of its data and tables, aligned, and about {ENTRY_BYTES} of tensors and operator. Times are "
        f"estimates for TFLM's reference kernels on one x86 core. The largest decoded weight takes {largest:,} bytes of the arena."
    )
    return Table(title, _COLUMNS, lines, caption)


def _name(file: MicroFile, tensor: int) -> str:
    name: bytes = file.model["subgraphs"][0]["tensors"][tensor].get("name", b"")
    return name.decode(errors="replace") or f"tensor {tensor}"


def _detail(kind: str, ancillary: bytes) -> str:
    if kind == "lut":
        return f", {ancillary[5] & 15} bits" + (", a table a channel" if ancillary[6] and ancillary[5] >> 4 != 15 else "")
    return f", first table {(ancillary[5] >> 4) + 1} bits" if kind == "huffman" else ""
