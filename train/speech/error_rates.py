"""Error rates of speech networks: WER and CER of the utterances of a split, greedy and by beam search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bqjax.models.transcripts import ENGLISH, beam_search, cer, greedy, wer
from train.data.utterances import Batch, Speech, batches

__all__ = ["Transcribe", "beam_rates", "greedy_rates"]

Transcribe = Callable[[Batch], tuple[Any, Any, Any, Any]]


def greedy_rates(transcribe: Transcribe, speech: Speech, batch_size: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """Loss a character, WER and CER by greedy decoding, and the logits of each utterance.

    Args:
      transcribe: ``transcribe(batch) -> (logits [n, t, classes], lengths [n], losses [n], possible [n])``.
      speech: the utterances.
      batch_size: utterances a call.

    Returns:
      ``{"loss": ..., "wer": ..., "cer": ...}``, and ``[frames, classes]`` an utterance.
    """
    texts, kept = [""] * len(speech.texts), [np.empty(0)] * len(speech.texts)
    loss = characters = 0.0
    for rows, batch in batches(speech, batch_size, None):
        logits, lengths, losses, possible = map(np.asarray, transcribe(batch))
        n = len(rows)
        loss += float(losses[:n].sum())
        characters += float(batch.label_lengths[:n][possible[:n]].sum())
        for i, (row, text) in enumerate(zip(rows, greedy(logits[:n], lengths[:n], ENGLISH), strict=True)):
            texts[row] = text
            kept[row] = logits[i, : lengths[i]]
    rates = {"wer": wer(speech.texts, texts), "cer": cer(speech.texts, texts)}
    return {"loss": loss / max(characters, 1.0), **rates}, kept


def beam_rates(logits: list[np.ndarray], speech: Speech, width: int) -> dict[str, float]:
    """``{"wer": ..., "cer": ...}`` by a prefix beam search of ``width`` without a language model.

    Args:
      logits: as :func:`greedy_rates` gives them.
      speech: the utterances.
      width: of the beam.
    """
    texts = [beam_search(np.asarray(jax.nn.log_softmax(row)), ENGLISH, width)[0][0] for row in logits]
    return {"wer": wer(speech.texts, texts), "cer": cer(speech.texts, texts)}
