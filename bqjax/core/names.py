"""Which of many names a pattern matches, without trying every name for every pattern."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterable

from bqjax.core.shell_patterns import matcher

__all__ = ["NameIndex", "matches"]

_MAGIC = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\[([*?\[])\]")  # what glob.escape makes of a special character


class NameIndex:
    """Names in which patterns are looked up; 20,000 rules for one name each take no longer than 20,000 look-ups.

    A pattern is tried in three ways, and the first that matches a name counts:

    1. as a name: ``a[0].weight`` is the tensor of that name;
    2. shell-style for the whole name: ``*``, ``?`` and sets as ``[abc]``; ``*`` also matches ``/``;
    3. shell-style with brackets as plain characters: ``['params']['Dense_*']['kernel']``, ``a[*].weight``.

    Example:
      >>> index = NameIndex(["a[0].weight", "a[1].weight", "b/kernel", "b/bias"])
      >>> index.matching("a[0].weight"), index.matching("b/*"), index.matching("a[*].weight")
      (['a[0].weight'], ['b/kernel', 'b/bias'], ['a[0].weight', 'a[1].weight'])
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._place = {name: i for i, name in enumerate(names)}

    @functools.cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._place)

    @functools.cached_property
    def _backwards(self) -> list[str]:
        return sorted(name[::-1] for name in self._place)

    def matching(self, pattern: str) -> list[str]:
        """The names that a pattern matches, in their order."""
        if pattern in self._place:
            return [pattern]
        found = self._shell(pattern)
        if not found and "[" in pattern:
            found = self._shell(pattern.replace("[", "[[]"))
        return sorted(found, key=self._place.__getitem__)

    def _shell(self, pattern: str) -> list[str]:
        plain = _ESCAPED.sub(r"\1", pattern)
        if not _MAGIC.search(_ESCAPED.sub("", pattern)):
            return [plain] if plain in self._place else []
        candidates = self._candidates(pattern)
        if not candidates:
            return []
        fits = matcher(pattern, len(candidates))
        return [name for name in candidates if fits(name)]

    def _candidates(self, pattern: str) -> list[str]:
        """Names that begin, or else end, with the plain characters that the pattern begins or ends with."""
        begin = _MAGIC.split(pattern, maxsplit=1)[0]
        if begin:
            return _with_prefix(self._sorted, begin)
        # A bracket that closes a set could stand within the plain end.
        end = re.split(r"[*?\[\]]", pattern)[-1]
        return [name[::-1] for name in _with_prefix(self._backwards, end[::-1])] if end else list(self._place)


def _with_prefix(names: list[str], prefix: str) -> list[str]:
    first = bisect.bisect_left(names, prefix)
    return names[first : bisect.bisect_right(names, prefix, lo=first, key=lambda name: name[: len(prefix)])]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, as :class:`NameIndex` tries it."""
    return bool(NameIndex([name]).matching(pattern))
