"""Text in speech recognition: alphabets, decoding of CTC outputs, word and character error rates.

References:
  Graves et al. Connectionist Temporal Classification. ICML 2006.
  Hannun et al. First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs. 2014:
  the prefix beam search. https://arxiv.org/abs/1408.2873
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ENGLISH", "Alphabet", "beam_search", "cer", "edit_distance", "greedy", "wer"]

BLANK = 0


@dataclass(frozen=True)
class Alphabet:
    """Characters as classes: class 0 is the blank of CTC, class ``i`` is ``characters[i - 1]``.

    Attributes:
      characters: all different.

    Raises:
      ValueError: there are none, or one is there twice.
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) < len(self.characters):
            raise ValueError(f"an alphabet needs different characters, at least one, got {self.characters!r}")

    @property
    def classes(self) -> int:
        """Number of classes, the blank among them."""
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """Classes of a text.

        Raises:
          ValueError: the text has characters that the alphabet does not.

        >>> ENGLISH.encode("AB C")
        [2, 3, 1, 4]
        """
        if unknown := sorted(set(text) - set(self.characters)):
            raise ValueError(
                f"{text[:60]!r} has the characters {', '.join(map(repr, unknown))}, which the alphabet does not "
                f"({self.characters!r}): write them in letters, or extend the alphabet"
            )
        return [self.characters.index(c) + 1 for c in text]

    def decode(self, classes: Sequence[int]) -> str:
        """Text of classes, blanks left out.

        >>> ENGLISH.decode([2, 0, 3, 1, 4])
        'AB C'
        """
        return "".join(self.characters[c - 1] for c in classes if c != BLANK)


ENGLISH = Alphabet(" ABCDEFGHIJKLMNOPQRSTUVWXYZ'")


def greedy(logits: np.ndarray, lengths: Sequence[int] | np.ndarray, alphabet: Alphabet) -> list[str]:
    """Greedy (best path) decoding: the text of the likeliest class of each frame; repeats count once, then blanks are left out.

    Args:
      logits: ``[n, t, classes]``, or any numbers of the same order.
      lengths: ``[n]`` frames of each utterance.
      alphabet: of the classes.

    Returns:
      ``n`` texts.

    Raises:
      ValueError: the shapes or the number of classes do not fit.

    Example:
      >>> path = np.array([2, 2, 0, 2, 3, 3])  # A A - A B B
      >>> greedy(np.eye(ENGLISH.classes)[path][None], [6], ENGLISH)
      ['AAB']
    """
    logits = np.asarray(logits)
    if logits.ndim != 3 or logits.shape[2] != alphabet.classes or len(lengths) != len(logits):
        raise ValueError(
            f"logits must be [n, t, {alphabet.classes}] and lengths [n], got {logits.shape} and {len(lengths)} lengths"
        )
    texts = []
    for row, length in zip(logits.argmax(axis=2), lengths, strict=True):
        path = row[: int(length)]
        changed = np.ones(len(path), bool)
        changed[1:] = path[1:] != path[:-1]
        texts.append(alphabet.decode(path[changed].tolist()))
    return texts


def beam_search(log_probabilities: np.ndarray, alphabet: Alphabet, width: int = 16) -> list[tuple[str, float]]:
    """Prefix beam search: the likeliest texts of one utterance, each summed over its alignments.

    Where fewer than ``width`` prefixes exist at every frame, the sums are exact.

    Args:
      log_probabilities: ``[t, classes]``, natural logarithms.
      alphabet: of the classes.
      width: prefixes that are kept after each frame.

    Returns:
      At most ``width`` pairs of a text and its log probability, best first.

    Raises:
      ValueError: another shape, or ``width`` below 1.

    Example:
      >>> frames = np.log(np.full((2, 2), 0.5))  # a blank and one character, two frames
      >>> [(text, round(math.exp(p), 2)) for text, p in beam_search(frames, Alphabet("A"))]
      [('A', 0.75), ('', 0.25)]
    """
    frames = np.asarray(log_probabilities, np.float64)
    if frames.ndim != 2 or frames.shape[1] != alphabet.classes:
        raise ValueError(f"log_probabilities must be [t, {alphabet.classes}], got {frames.shape}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    # Of each prefix, the log probability of its alignments that end in a blank, and of those that end in its last class.
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in frames.tolist():
        new: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_last) in beam.items():
            both = _add(in_blank, in_last)
            stay = new.setdefault(prefix, [-math.inf, -math.inf])
            stay[0] = _add(stay[0], both + frame[BLANK])
            if prefix:
                stay[1] = _add(stay[1], in_last + frame[prefix[-1]])
            for c in range(1, alphabet.classes):
                # The same class again is another character only behind a blank.
                before = in_blank if prefix and c == prefix[-1] else both
                longer = new.setdefault((*prefix, c), [-math.inf, -math.inf])
                longer[1] = _add(longer[1], before + frame[c])
        ranked = sorted(new.items(), key=lambda item: _add(*item[1]), reverse=True)[:width]
        beam = {prefix: (p[0], p[1]) for prefix, p in ranked}
    found = [(alphabet.decode(prefix), _add(*p)) for prefix, p in beam.items() if _add(*p) > -math.inf]
    return sorted(found, key=lambda item: item[1], reverse=True)


def _add(a: float, b: float) -> float:
    """``log(exp(a) + exp(b))``."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements that turn one sequence into the other.

    >>> edit_distance("KITTEN", "SITTING")
    3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word error rate: edits of all utterances over words of all references. It can be above 1.

    Raises:
      ValueError: the two differ in number, or the references have no words.

    >>> wer(["GO ON", "YES"], ["GO", "YES"]) == 1 / 3
    True
    """
    return _rate([r.split() for r in references], [h.split() for h in hypotheses], "words")


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate, spaces counted as characters, those at either end left out.

    Raises:
      ValueError: the two differ in number, or the references have no characters.

    >>> cer(["YES"], ["YET"]) == 1 / 3
    True
    """
    return _rate([r.strip() for r in references], [h.strip() for h in hypotheses], "characters")


def _rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]], what: str) -> float:
    if len(references) != len(hypotheses):
        raise ValueError(f"there are {len(references)} references and {len(hypotheses)} hypotheses")
    if not (total := sum(map(len, references))):
        raise ValueError(f"the references have no {what}: an error rate has nothing to be taken of")
    return sum(map(edit_distance, references, hypotheses)) / total
