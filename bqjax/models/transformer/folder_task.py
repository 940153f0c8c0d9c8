"""A folder of Hugging Face and a text as a task: the folder's tensors are the parameters, its file brings the folder back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.adapters.checkpoints import Checkpoint, open_checkpoint
from bqjax.adapters.folder import model_folder
from bqjax.adapters.folder_storage import FolderStorage, tied_names
from bqjax.core.leaves import is_compressed
from bqjax.core.task import Task
from bqjax.methods.baselines.even import EvenConfig, even_levels
from bqjax.models.transformer.packing import packed
from bqjax.models.transformer.pretrained import Pretrained, pretrained
from bqjax.models.transformer.text import Parts, Tokenizer, lines, parts, read_text, windows

__all__ = ["folder_task"]

_LENGTH = 256  # tokens of a sequence at most
_LINE = 128  # of a row of an encoder, where no line is longer
_MOST = (1 << 16, 1 << 18)  # tokens to calibrate on, and to report on
_BATCH = 2048  # tokens
_LOGITS = 1 << 26  # of a batch
_SHARES = {"decoder": 0.5, "encoder": 2 / 3}  # of the text, to calibrate on
_FEWEST = {"decoder": 2, "encoder": 8}  # sequences
_ROWS_AN_INPUT = 10


def folder_task(folder: str | os.PathLike[str], text: str | os.PathLike[str], *, length: int = _LENGTH) -> Task:
    """A folder's network with a text to calibrate and to report on.

    Of a decoder the metric is ``"nats"``, the cross-entropy of a token; of an encoder ``"cosine"``, that of the embeddings with
    those of the original.

    Args:
      folder: with ``config.json``, ``tokenizer.json`` and safetensors files.
      text: a file in UTF-8. Of a decoder any text, its documents ended by ``<|endoftext|>``; of an encoder a sentence or paragraph
        a line.
      length: most tokens of a sequence, where the network has positions for them.

    Raises:
      ValueError: the folder lacks a file, its network is of no known type, or does not fit the tensors; the text is too short.
      ImportError: ``tokenizers`` is not installed.
    """
    folder, text = Path(folder), Path(text)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: --text takes the folder of a model, with config.json and tokenizer.json")
    config = _config(folder)
    checkpoint = open_checkpoint(folder)
    try:
        network = pretrained(config, list(checkpoint.tensors))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}. Without --text its weights are compressed as those of any network") from error
    length = min(length, network.positions or length)
    tokenizer = Tokenizer(folder, network.vocabulary)
    found, cut = _sequences(network, tokenizer, text, length)
    tensors = {name: _single(tensor.read()) for name, tensor in checkpoint.tensors.items()}
    network.check(tensors)
    tied = tied_names(tensors, list(network.shapes))
    params = {name: array for name, array in tensors.items() if name in network.names and name not in tied}
    storage, notes = _storage(checkpoint, tensors, network, tied)
    rows = sum(map(len, found.calibration))
    notes += _of_text(found, cut, length, rows, _widest(params, network.vocabulary))
    if network.kind == "encoder" and not _means(folder):
        notes.append("the folder's pooling is not the mean over tokens, which embeddings are compared by here")
    network_of = _Tied(network, {name: first for name, first in tied.items() if name in network.names})
    calibration, test = (_batches(network_of, params, part, length) for part in (found.calibration, found.test))
    decoder = network.kind == "decoder"
    return Task(
        name=folder.resolve().name,
        params=params,
        score=network_of.score,
        calibration=calibration,
        test=test,
        metric="-nats" if decoder else "cosine",
        rank_by="-nats" if decoder else "cosine",
        predict=network_of.predict,
        outputs=network_of.outputs,
        calibration_name=f"the first part of {text.name}",
        test_name=f"the rest of {text.name}",
        storage=storage,
        note="\n".join(notes),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json, which says what network its weights are of. Without --text they are compressed as those "
            "of any network"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if type(config) is not dict:
        raise ValueError(f"{path} is no JSON object")
    return config


def _sequences(network: Pretrained, tokenizer: Tokenizer, text: Path, length: int) -> tuple[Parts, int]:
    """Sequences of both parts, and how many lines were cut."""
    content, cut = read_text(text), 0
    if network.kind == "decoder":
        found = windows(content, tokenizer, length)
    else:
        found, cut = lines(content, tokenizer, length)
    tokens, fewest = sum(map(len, found)), _FEWEST[network.kind]
    if network.kind == "decoder" and tokens < fewest * length:
        raise ValueError(
            f"{text} has {tokens:,} tokens, fewer than two sequences of {length}, one to calibrate on and one to report on: take a "
            f"longer text (some {10_000:,} tokens are a beginning)"
        )
    if len(found) < fewest:
        raise ValueError(f"{text} has {len(found)} different lines, at least {fewest} are needed: write a sentence a line")
    return parts(found, _SHARES[network.kind], _MOST), cut


def _means(folder: Path) -> bool:
    """Whether the folder's embeddings are means over tokens, as far as it says."""
    try:
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        return bool(pooling.get("pooling_mode_mean_tokens", True))
    except (OSError, ValueError, AttributeError, RecursionError):
        return True


def _single(array: np.ndarray) -> np.ndarray:
    # Without 64-bit mode, JAX has no float64 to decode to.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _storage(
    checkpoint: Checkpoint, tensors: Mapping[str, np.ndarray], network: Pretrained, tied: Mapping[str, str]
) -> tuple[FolderStorage, list[str]]:
    """The folder's file, and what is to be said of tensors that the network does not use."""
    rest = {name: array for name, array in tensors.items() if name not in network.names and name not in tied}
    beside: dict[str, Any] = dict(rest)
    matrices = {name: x for name, x in rest.items() if x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating) and x.itemsize > 1}
    if matrices:
        beside |= even_levels(matrices, config=EvenConfig())
    rtol = f"with a relative error of at most {100 * EvenConfig().rtol:g} %"
    notes = [
        f"not used by the network, stored {rtol if is_compressed(leaf) else f'as it was ({leaf.dtype})'}: {name}"
        for name, leaf in beside.items()
    ]
    notes += [f"tied: {name} is {first}" for name, first in tied.items()]
    folder = model_folder(checkpoint)
    left = {**checkpoint.passed_over, **(folder.left if folder is not None else {})}
    notes += [f"not in the file: {name} ({reason})" for name, reason in left.items()]
    return FolderStorage(checkpoint=checkpoint, folder=folder, beside=beside, tied=tied), notes


def _of_text(found: Parts, cut: int, length: int, rows: int, widest: int) -> list[str]:
    """What is to be said of the text: how much of it each part has, and if that is little."""
    test = sum(map(len, found.test))
    notes = [
        f"calibration: the first {len(found.calibration):,} sequences, {rows:,} tokens; report: {len(found.test):,} sequences, "
        f"{test:,} tokens" + (f"; {found.unused:,} tokens are used for neither" if found.unused else "")
    ]
    if cut:
        notes.append(f"{cut:,} lines have more than {length} tokens and were cut")
    if rows < _ROWS_AN_INPUT * widest:
        notes.append(
            f"few data: {rows:,} tokens to calibrate on are {rows / widest:.1f} for each of a layer's {widest:,} inputs; from "
            f"{_ROWS_AN_INPUT} on ({_ROWS_AN_INPUT * widest:,} tokens) files of the same size lose less"
        )
    return notes


def _widest(params: Mapping[str, np.ndarray], vocabulary: int) -> int:
    """Most inputs of a layer: the longest side of any matrix that has no row for each token."""
    return max((side for x in params.values() if x.ndim == 2 and vocabulary not in x.shape for side in x.shape), default=1)


class _Tied:
    """A network whose tied tensors are one parameter."""

    def __init__(self, network: Pretrained, tied: Mapping[str, str]):
        self._network, self._tied = network, tied
        self.kind, self.vocabulary = network.kind, network.vocabulary

    def _all(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**params, **{name: params[first] for name, first in self._tied.items()}}

    def score(self, params: Any, batch: Any) -> Any:
        return self._network.score(self._all(params), batch)

    def predict(self, params: Any, batch: Any) -> Any:
        return self._network.predict(self._all(params), batch)

    def outputs(self, params: Any, batch: Any) -> jax.Array:
        return self._network.outputs(self._all(params), batch)


def _batches(network: _Tied, params: Any, sequences: Sequence[Sequence[int]], length: int) -> list[dict[str, np.ndarray]]:
    """Packed rows of one shape; of an encoder with the embeddings that the original gives."""
    decoder = network.kind == "decoder"
    width = length if decoder else max(min(_LINE, length), *map(len, sequences))
    rows = packed([[sequence] for sequence in sequences], width)
    size = max(1, _BATCH // width)
    if decoder:
        size = max(1, min(size, _LOGITS // (width * network.vocabulary)))
    size = min(size, len(rows.tokens))
    short = -len(rows.tokens) % size
    arrays = {"tokens": rows.tokens, "mask": rows.mask} | ({} if decoder else {"counted": rows.counted})
    filled = {name: np.concatenate([x, np.zeros((short, *x.shape[1:]), x.dtype)]) for name, x in arrays.items()}
    found = [{name: x[i : i + size] for name, x in filled.items()} for i in range(0, len(filled["tokens"]), size)]
    if not decoder:
        embed = jax.jit(network.outputs)
        found = [batch | {"reference": np.asarray(embed(params, batch))} for batch in found]
    return found
