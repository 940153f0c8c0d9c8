"""A flatbuffer's tables, read where they lie: for content that :func:`bqjax.tflite.format.checks.verify` accepts.

Nothing is unpacked, and no generated code is needed. Layout: https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["Table", "root"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      content: the file's bytes.
      at: where the table begins.
    """

    content: bytes
    at: int

    def _number(self, form: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset points before the file")
        return int(struct.unpack_from(form, self.content, at)[0])

    def _place(self, field: int) -> int:
        """Where a field's value lies; 0 where the table lacks it."""
        fields = self.at - self._number("<i", self.at)
        if 6 + 2 * field > self._number("<H", fields):
            return 0
        place = self._number("<H", fields + 4 + 2 * field)
        return self.at + place if place else 0

    def number(self, field: int, form: str = "<i") -> int:
        """A number in the form of :mod:`struct`; 0 where the table lacks it."""
        place = self._place(field)
        return self._number(form, place) if place else 0

    def fields(self) -> tuple[int, ...]:
        """Numbers of the fields that the table has."""
        at = self.at - self._number("<i", self.at)
        places = struct.unpack_from(f"<{max(0, self._number('<H', at) // 2 - 2)}H", self.content, at + 4)
        return tuple(number for number, place in enumerate(places) if place)

    def table(self, field: int) -> Table | None:
        """Another table, or None."""
        place = self._place(field)
        return Table(self.content, place + self._number("<I", place)) if place else None

    def vector(self, field: int) -> tuple[int, int]:
        """First byte and number of entries of a vector; ``(0, 0)`` where the table lacks it."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + self._number("<I", place)
        return start + 4, self._number("<I", start)

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector."""
        start, count = self.vector(field)
        for place in range(start, start + 4 * count, 4):
            yield Table(self.content, place + self._number("<I", place))

    def integers(self, field: int) -> tuple[int, ...]:
        """A vector of int32."""
        start, count = self.vector(field)
        return tuple(np.frombuffer(self.content, "<i4", count, start).tolist()) if count else ()

    def text(self, field: int) -> str:
        """A string; bytes that are no UTF-8 are replaced."""
        start, count = self.vector(field)
        return self.content[start : start + count].decode(errors="replace")


def root(content: bytes) -> Table:
    """The table that the file begins with."""
    return Table(content, struct.unpack_from("<I", content, 0)[0])
