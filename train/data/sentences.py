"""Sentences with labels: STS-B (pairs and how similar they are) and SST-2 (whether a sentence speaks well of a film).

References:
  Cer et al. 2017, SemEval-2017 Task 1 (arXiv 1708.00055). Socher et al. 2013, the Stanford Sentiment Treebank.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Pairs", "Tokens", "read_sst2", "read_sts", "tokens_of"]

Tokens = list[int]


class Pairs(NamedTuple):
    """Pairs of sentences.

    Attributes:
      first, second: the sentences of each pair.
      scores: ``[n]`` float64 from 0 (nothing in common) to 5 (of one meaning).
    """

    first: list[str]
    second: list[str]
    scores: np.ndarray


def _rows(path: Path, columns: int, what: str) -> list[list[str]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: it is part of {what}")
    # Not csv: sentences hold quotation marks that close nothing.
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    for i, row in enumerate(rows):
        if len(row) < columns:
            raise ValueError(f"{path}: line {i + 1} has {len(row)} columns, {columns} are needed")
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def read_sts(folder: str | os.PathLike[str], split: str) -> Pairs:
    """Reads ``sts-<split>.csv``: genre, file, year, number, score and two sentences, with tabs between them.

    Args:
      folder: where the file is.
      split: ``"train"``, ``"dev"`` or ``"test"``.

    Raises:
      ValueError: the file is missing or damaged, or a score is not one of 0 to 5.
    """
    path = Path(folder) / f"sts-{split}.csv"
    rows = _rows(path, 7, "STS-B")
    try:
        scores = np.array([float(row[4]) for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: a score is no number ({error})") from error
    if not ((scores >= 0) & (scores <= 5)).all():
        raise ValueError(f"{path}: scores must be from 0 to 5, got {scores.min()} to {scores.max()}")
    return Pairs([row[5] for row in rows], [row[6] for row in rows], scores)


def read_sst2(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """Reads a table with the columns ``sentence`` and ``label``, with a tab between them.

    Returns:
      The sentences, and ``[n]`` int32 labels, 1 for praise.

    Raises:
      ValueError: the file is missing or damaged, or a label is not 0 or 1.
    """
    head, *rows = _rows(Path(path), 2, "SST-2")
    if head[:2] != ["sentence", "label"]:
        raise ValueError(f"{path}: the first line must be sentence and label, got {head[:2]}")
    if wrong := [row[1] for row in rows if row[1] not in ("0", "1")]:
        raise ValueError(f"{path}: labels must be 0 or 1, got {wrong[0]!r}")
    return [row[0] for row in rows], np.array([int(row[1]) for row in rows], np.int32)


def tokens_of(folder: str | os.PathLike[str], sentences: Sequence[str], longest: int = 64) -> list[Tokens]:
    """Token numbers of sentences by the ``tokenizer.json`` of a model's folder, with those that begin and end a text.

    Args:
      folder: of the model.
      sentences: any.
      longest: of a sentence, tokens; what is beyond is cut off, and the last token kept.

    Raises:
      ValueError: there is no such file.
      ImportError: ``tokenizers`` is not installed.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: it makes tokens of sentences")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("sentences need the tokenizers of Hugging Face: pip install tokenizers") from error
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = [encoded.ids for encoded in tokenizer.encode_batch(list(sentences))]
    return [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in found]
