"""Shell-style patterns without a regular expression for each: compiling one takes as long as matching some hundred names."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable

__all__ = ["matcher"]

_FEW = 64  # names, up to which trying them by hand takes less time than compiling


def matcher(pattern: str, names: int) -> Callable[[str], object]:
    """What says whether a name matches a pattern as :func:`fnmatch.fnmatchcase` does, for about so many names.

    >>> fits = matcher("conv[0-9]*.w?", 2)
    >>> bool(fits("conv3.block.w1")), bool(fits("convs.w1"))
    (True, False)
    """
    if names > _FEW:
        return re.compile(fnmatch.translate(pattern)).match
    pieces = [_tokens(piece) for piece in _stars(pattern)]
    return functools.partial(_fits, pieces)


_Token = str | None | Callable[[str], object]  # plain characters, any one character, or one of a set


def _stars(pattern: str) -> list[str]:
    """The pattern cut at its stars, those within sets excepted."""
    pieces, start, at = [], 0, 0
    while at < len(pattern):
        if pattern[at] == "*":
            pieces.append(pattern[start:at])
            start = at + 1
        at = _end_of_set(pattern, at) if pattern[at] == "[" else at + 1
    return [*pieces, pattern[start:]]


def _end_of_set(pattern: str, at: int) -> int:
    """Behind the set that opens at ``at``; behind the bracket where none closes it, which is then a plain character."""
    first = at + 1
    first += pattern.startswith("!", first)
    end = pattern.find("]", first + pattern.startswith("]", first))
    return at + 1 if end < 0 else end + 1


@functools.lru_cache(1024)
def _one_of(text: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(text)).match


def _tokens(piece: str) -> list[tuple[int, _Token]]:
    """How many characters each takes, and what they must be."""
    found: list[tuple[int, _Token]] = []
    at = 0
    while at < len(piece):
        if piece[at] == "?":
            found.append((1, None))
            at += 1
        elif piece[at] == "[" and (end := _end_of_set(piece, at)) > at + 1:
            found.append((1, _one_of(piece[at:end])))
            at = end
        else:
            end = at + 1
            while end < len(piece) and piece[end] not in "?[":
                end += 1
            found.append((end - at, piece[at:end]))
            at = end
    return found


def _at(tokens: list[tuple[int, _Token]], name: str, at: int) -> bool:
    for width, token in tokens:
        if at + width > len(name):
            return False
        if isinstance(token, str):
            if not name.startswith(token, at):
                return False
        elif token is not None and not token(name[at]):
            return False
        at += width
    return True


def _fits(pieces: list[list[tuple[int, _Token]]], name: str) -> bool:
    widths = [sum(width for width, _ in tokens) for tokens in pieces]
    if len(pieces) == 1:
        return widths[0] == len(name) and _at(pieces[0], name, 0)
    last = len(name) - widths[-1]
    if last < widths[0] or not _at(pieces[0], name, 0) or not _at(pieces[-1], name, last):
        return False
    at = widths[0]
    for tokens, width in zip(pieces[1:-1], widths[1:-1], strict=True):  # each as early as it goes leaves most for the others
        while at + width <= last and not _at(tokens, name, at):
            at += 1
        if at + width > last:
            return False
        at += width
    return True
