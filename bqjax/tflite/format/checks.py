"""Checks a ``.tflite`` flatbuffer's tables and vectors against its bytes, before the schema's own code unpacks it.

The schema's Python code trusts every length. Here each vector must lie in the file, and all tables and entries visited
together are bounded by the file's size, so that tables which point to each other's parents cannot make a reader hang.
Layout: https://flatbuffers.dev/internals/; field numbers: TFLite's schema.fbs.
"""

from __future__ import annotations

import struct

from bqjax.core.recognize import recognize_bytes

__all__ = ["verify"]

# Table -> field number -> what it is: an item size in bytes of a vector, the name of a table, or [name] for a vector of tables.
_TABLES: dict[str, dict[int, int | str | list[str]]] = {
    "Model": {1: ["OperatorCode"], 2: ["SubGraph"], 3: 1, 4: ["Buffer"], 5: 4, 6: ["Metadata"], 7: ["SignatureDef"]},
    "OperatorCode": {1: 1},
    "SubGraph": {0: ["Tensor"], 1: 4, 2: 4, 3: ["Operator"], 4: 1},
    "Buffer": {0: 1},
    "Metadata": {0: 1},
    "SignatureDef": {0: ["TensorMap"], 1: ["TensorMap"], 2: 1},
    "TensorMap": {0: 1},
    "Tensor": {0: 4, 3: 1, 4: "Quantization", 7: 4},
    "Quantization": {0: 4, 1: 4, 2: 4, 3: 8},
    "Operator": {1: 4, 2: 4, 5: 1, 6: 1, 8: 4},
}


def verify(content: bytes) -> None:
    """Raises ``ValueError`` where the content is not a whole ``.tflite`` flatbuffer."""
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise ValueError(_not_ours(content))
    try:
        _walk(content)
    except struct.error as error:
        raise ValueError("the .tflite file is truncated or damaged: an offset points outside it; get a whole copy") from error


def _not_ours(content: bytes) -> str:
    """What a file is instead, and what to do with it."""
    if not content:
        return "not a .tflite file: it is empty; get a whole copy"
    if content[4:7] == b"TFL":
        found = content[4:8].decode(errors="replace")
        return f"not a .tflite file of this schema: its identifier is {found}, not TFL3; convert the model again"
    kind = recognize_bytes(content[:4096])
    if kind is not None and kind.name not in ("tflite", "text"):
        return f"not a .tflite file, it is {kind.what}: {kind.remedy}"
    return "not a .tflite file: it lacks the identifier TFL3 that flatbuffers of models have"


def _walk(content: bytes) -> None:
    size = len(content)
    budget = size // 2  # tables and entries; real files take a fraction of this
    names = 4 * size  # bytes of names and the like, which tables could share

    def number(form: str, at: int) -> int:
        if at < 0:
            raise struct.error
        return int(struct.unpack_from(form, content, at)[0])

    waiting = [("Model", number("<I", 0))]
    while waiting:
        kind, at = waiting.pop()
        budget -= 1
        table = at - number("<i", at)
        length = number("<H", table)
        for field, what in _TABLES[kind].items():
            place = number("<H", table + 4 + 2 * field) if 6 + 2 * field <= length else 0
            if not place:
                continue
            target = at + place + number("<I", at + place)
            if isinstance(what, str):
                waiting.append((what, target))
                continue
            count, width = number("<I", target), what if isinstance(what, int) else 4
            if target + 4 + count * width > size:
                raise ValueError(
                    f"the .tflite file is truncated or damaged: a vector of {kind} has {count} entries; get a whole copy"
                )
            if what == 1 and kind != "Buffer":
                names -= count
            if what != 1:
                budget -= count
            if isinstance(what, list) and budget >= 0:
                waiting += [(what[0], p + number("<I", p)) for p in range(target + 4, target + 4 + 4 * count, 4)]
        if budget < 0 or names < 0:
            raise ValueError(
                "the .tflite file is damaged: its tables point to more entries than it has bytes for; get a whole copy"
            )
