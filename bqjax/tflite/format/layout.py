"""A flatbuffer from its objects: equal ones are stored once, small ones go into the gaps that alignment leaves.

Objects are added from the leaves up, so that an object's parents have higher numbers than it. Offsets of a flatbuffer point
forward: parents are placed before what they point to. Source: https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Layout"]


class _Object(NamedTuple):
    """Bytes, with zeros where offsets go.

    Attributes:
      content: the bytes.
      align: of the byte at ``head``.
      head: bytes before the aligned one.
      references: where in the content an offset stands, and to which object.
      vtable: number of the object that a table begins with an offset to; -1 of other objects.
    """

    content: bytes
    align: int
    head: int = 0
    references: tuple[tuple[int, int], ...] = ()
    vtable: int = -1


class Layout:
    """Objects by number; equal ones have one number."""

    def __init__(self) -> None:
        self._objects: list[_Object] = []
        self._numbers: dict[_Object, int] = {}

    def _add(self, new: _Object) -> int:
        if new not in self._numbers:
            self._numbers[new] = len(self._objects)
            self._objects.append(new)
        return self._numbers[new]

    def vector(self, data: bytes, width: int, align: int = 0, *, text: bool = False) -> int:
        """A vector of numbers.

        Args:
          data: its entries.
          width: bytes of an entry.
          align: of the first entry in bytes; 0 is that of an entry.
          text: a zero byte follows, as of strings.
        """
        content = struct.pack("<I", len(data) // width) + data + bytes(text)
        return self._add(_Object(content, max(align, width, 4), 4))

    def references(self, objects: Sequence[int]) -> int:
        """A vector of other objects."""
        places = tuple((4 + 4 * i, number) for i, number in enumerate(objects))
        return self._add(_Object(struct.pack("<I", len(objects)) + bytes(4 * len(objects)), 4, 0, places))

    def table(self, numbers: Iterable[tuple[int, bytes]], objects: Iterable[tuple[int, int]]) -> int:
        """A table.

        Args:
          numbers: field number and little-endian bytes of at most 4, of the fields that are not at their default.
          objects: field number and what it points to.
        """
        fields = [(4, slot, bytes(4), target) for slot, target in objects]
        fields += [(len(data), slot, data, -1) for slot, data in numbers]
        fields.sort(key=lambda field: (-field[0], field[1]))
        content, places, references = bytearray(4), [0] * (1 + max((f[1] for f in fields), default=-1)), []
        for _, slot, data, target in fields:
            places[slot] = len(content)
            if target >= 0:
                references.append((len(content), target))
            content += data
        return self.verbatim(struct.pack(f"<{2 + len(places)}H", 4 + 2 * len(places), len(content), *places), content, references)

    def verbatim(
        self, vtable: bytes, content: bytes | bytearray, references: Iterable[tuple[int, int]], align: int = 4, head: int = 0
    ) -> int:
        """A table whose bytes are known, with zeros where offsets stand; ``references`` are places and objects."""
        return self._add(_Object(bytes(content), align, head, tuple(references), self._add(_Object(vtable, 2))))

    def finish(self, root: int, identifier: bytes) -> bytes:
        """The file, whose first table is the object ``root``."""
        order = self._order()
        out, gaps = bytearray(8), list[tuple[int, int]]()  # gaps: first byte, byte after the last
        places = [-1] * len(self._objects)
        after = [8] * len(self._objects)  # no object lies before an offset that points to it
        for number in order:
            one = self._objects[number]
            places[number] = place = self._place(one, after[number], len(out), gaps)
            end = place + len(one.content)
            if end > len(out):
                if place > len(out):
                    gaps.append((len(out), place))
                out += bytes(end - len(out))
            out[place:end] = one.content
            for at, target in one.references:
                after[target] = max(after[target], place + at + 1)
        for place, one in zip(places, self._objects, strict=True):
            if one.vtable >= 0:
                struct.pack_into("<i", out, place, place - places[one.vtable])
            for at, target in one.references:
                struct.pack_into("<I", out, place + at, places[target] - place - at)
        struct.pack_into("<I4s", out, 0, places[root], identifier)
        return bytes(out)

    def _order(self) -> list[int]:
        """Tables and what leads to them, parents first; then what must be aligned most, which leaves gaps; then the rest."""
        tables = {one.vtable for one in self._objects}
        inner = [i for i, one in enumerate(self._objects) if one.references or one.vtable >= 0]
        leaves = sorted(set(range(len(self._objects))) - set(inner), key=lambda i: self._rank(i, i in tables))
        return inner[::-1] + leaves

    def _rank(self, number: int, vtable: bool) -> tuple[bool, bool, int, int]:
        one = self._objects[number]
        return vtable, one.align <= 8, -len(one.content), number

    @staticmethod
    def _place(one: _Object, after: int, end: int, gaps: list[tuple[int, int]]) -> int:
        """Where an object goes: into the smallest gap that takes it, else to the end. Updates the gaps."""
        best: tuple[int, int, int] | None = None
        for i, (start, stop) in enumerate(gaps):
            first = max(start, after)
            first += -(first + one.head) % one.align
            if first + len(one.content) <= stop and (best is None or stop - start < best[0]):
                best = stop - start, i, first
        if best is None:
            first = max(after, end)
            return first + -(first + one.head) % one.align
        _, i, first = best
        start, stop = gaps.pop(i)
        gaps += [gap for gap in ((start, first), (first + len(one.content), stop)) if gap[0] < gap[1]]
        return first
