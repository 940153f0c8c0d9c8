"""A text as sequences of tokens, by the ``tokenizer.json`` of a model's folder: windows for decoders, lines for encoders.

The first part of a text is to calibrate on, the rest to report on; no sequence is in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from bqjax.core.recognize import refuse_other

__all__ = ["Parts", "Tokenizer", "lines", "parts", "read_text", "windows"]

_END = "<|endoftext|>"


class Tokenizer:
    """The tokenizer of a folder.

    Args:
      folder: with ``tokenizer.json``.
      vocabulary: tokens that the network knows.

    Raises:
      ValueError: there is no ``tokenizer.json``, or it cannot be read.
      ImportError: ``tokenizers`` is not installed.
    """

    def __init__(self, folder: Path, vocabulary: int):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{folder} has no tokenizer.json, by which a text becomes tokens: save the tokenizer in its fast form "
                "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)), or leave --text out"
            )
        try:
            from tokenizers import Tokenizer as Fast
        except ImportError as error:
            raise ImportError("a text takes the tokenizers of Hugging Face: pip install 'bqjax[hf]'") from error
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{path} is no tokenizer that can be read: {' '.join(str(error).split())[:200]}") from error
        self._fast.no_padding()
        self._fast.no_truncation()
        self._path, self._vocabulary = path, vocabulary
        marked, plain = self("a"), self._fast.encode("a", add_special_tokens=False).ids
        at = next((i for i in range(len(marked) + 1) if marked[i : i + len(plain)] == plain), 0)
        self.begin, self.end = marked[:at], marked[at + len(plain) :]
        """Tokens that it puts before and behind a text."""

    def __call__(self, text: str) -> list[int]:
        """Token numbers, with those that begin and end a text.

        Raises:
          ValueError: a token that the network does not know.
        """
        found: list[int] = self._fast.encode(text).ids
        if found and (highest := max(found)) >= self._vocabulary:
            raise ValueError(
                f"{self._path} gives token {highest} ({self._fast.id_to_token(highest)!r}), the network knows "
                f"{self._vocabulary:,} tokens: it is the tokenizer of another model"
            )
        return found


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
      ValueError: there is no such file, or it is something else, or empty.
    """
    if not path.is_file():
        raise ValueError(f"no text file {path}")
    refuse_other(path, "a text in UTF-8", "text", "json")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): convert it") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def windows(text: str, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """A text cut into windows for a decoder, each with the tokens that begin a text; every token is predicted once.

    Documents end where ``<|endoftext|>`` stands; a window never holds two of them.

    Args:
      text: any.
      tokenizer: of the network.
      length: most tokens of a window.
    """
    documents = [document.strip("\r\n") for document in text.split(_END)]
    return [window for document in documents if document.strip() for window in _cut(tokenizer(document), tokenizer, length)]


def _cut(tokens: list[int], tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    begin = tokenizer.begin
    body = tokens[len(begin) :]
    # Without tokens that begin a text, the last one of the window before does: it was predicted there.
    size = length - max(1, len(begin))
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        window = begin + piece if begin else (body[start - 1 : start] if start else []) + piece
        if len(window) > 1:
            yield window


def lines(text: str, tokenizer: Tokenizer, length: int) -> tuple[list[list[int]], int]:
    """The lines of a text for an encoder, each once, cut where they are too long.

    Args:
      text: a sentence or paragraph a line.
      tokenizer: of the network.
      length: most tokens of a line.

    Returns:
      Tokens of each, and how many lines were cut.
    """
    found, cut = [], 0
    for line in dict.fromkeys(line.strip() for line in text.splitlines()):
        if not line:
            continue
        tokens = tokenizer(line)
        if len(tokens) > length:
            tokens, cut = tokens[: length - len(tokenizer.end)] + tokenizer.end, cut + 1
        found.append(tokens)
    return found, cut


class Parts(NamedTuple):
    """Sequences to calibrate on, those to report on, and how many tokens of the text are in neither."""

    calibration: list[list[int]]
    test: list[list[int]]
    unused: int


def parts(sequences: Sequence[Any], share: float, most: tuple[int, int]) -> Parts:
    """The first sequences of a text to calibrate on, and the rest to report on.

    Args:
      sequences: tokens of each, at least two.
      share: of the tokens to calibrate on.
      most: tokens of each part; what comes after is not used.

    Example:
      >>> parts([[1, 2], [3, 4], [5, 6], [7, 8]], 0.5, (100, 3))
      Parts(calibration=[[1, 2], [3, 4]], test=[[5, 6]], unused=2)
    """
    ends = list(accumulate(map(len, sequences)))
    n = max(1, sum(end <= min(share * ends[-1], most[0]) for end in ends))
    n = min(n, len(sequences) - 1)
    # What is beyond the most that calibration takes is left out between the two, so that reports do not change with it.
    start = max(n, min(sum(end <= share * ends[-1] for end in ends), len(sequences) - 1))
    before = ends[start - 1]
    m = max(1, sum(end - before <= most[1] for end in ends[start:]))
    calibration, test = [list(s) for s in sequences[:n]], [list(s) for s in sequences[start : start + m]]
    return Parts(calibration, test, ends[-1] - sum(map(len, calibration)) - sum(map(len, test)))
