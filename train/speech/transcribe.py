"""Error rates of a trained speech network and of what it was compressed to, on AN4's test set.

python -m train.speech.transcribe --run out/deepspeech2_an4 --data-dir DATA [--files out/an4.bq.safetensors ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from bqjax import codec
from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.leaves import decode
from bqjax.core.tree import named_leaves, replace
from bqjax.models.ctc import ctc_losses
from train.data.utterances import Batch
from train.speech.error_rates import beam_rates, greedy_rates
from train.speech.loop import speech_data
from train.speech.task import load_run

__all__ = ["Flags", "file_rates", "main"]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """WER and CER on the test set, of the network of a run and of compressed files of it, one line each.

    Attributes:
      run: folder of a run of ``python -m train --config configs/deepspeech2_an4.py``.
      data_dir: the folder that holds an4/.
      files: what ``bqjax compress`` made of it.
      beam_width: of the beam search beside greedy decoding; 0 leaves it out.
    """

    run: Path
    data_dir: Path
    files: tuple[Path, ...] = ()
    beam_width: int = 16


def file_rates(flags: Flags) -> dict[str, dict[str, float]]:
    """By network and file: ``"WER"`` and ``"CER"``, with a beam width also ``"WER, beam"`` and ``"CER, beam"``.

    Raises:
      ValueError: no such run, data or file, or a file of another network.
    """
    if flags.beam_width < 0:
        raise ValueError(f"beam_width must be at least 0, got {flags.beam_width}")
    config, model = load_run(flags.run)
    own, apply = nnx_params(model), nnx_apply(model)
    networks: dict[str, Any] = {"float32": own}
    for file in flags.files:
        networks[str(file)] = _of_file(file, own)
    speech = speech_data(config, flags.data_dir)["test"]

    @jax.jit
    def transcribe(params: Any, batch: Batch) -> Any:
        logits, lengths = apply(params, jnp.asarray(batch.inputs), jnp.asarray(batch.lengths))
        return logits, lengths, *ctc_losses(logits, lengths, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))

    found = {}
    for name, params in networks.items():
        measured, logits = greedy_rates(lambda batch, p=params: transcribe(p, batch), speech, config.batch_size)  # type: ignore[misc]
        found[name] = {"WER": measured["wer"], "CER": measured["cer"]}
        if flags.beam_width:
            beam = beam_rates(logits, speech, flags.beam_width)
            found[name] |= {"WER, beam": beam["wer"], "CER, beam": beam["cer"]}
    return found


def _of_file(file: Path, own: Any) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name files that bqjax compress wrote")
    there, here = named_leaves(decode(codec.load(file))), named_leaves(own)
    if {n: x.shape for n, x in there.items()} != {n: x.shape for n, x in here.items()}:
        odd = sorted(n for n in there.keys() | here.keys() if n not in there or n not in here or there[n].shape != here[n].shape)
        raise ValueError(f"{file} is of another network than the run: {odd[0]!r} differs; name the run that it was made from")
    return replace(own, there)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status, 2 for what the user can put right."""
    flags = tyro.cli(Flags, args=args, prog="python -m train.speech.transcribe")
    try:
        found = file_rates(flags)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, rates in found.items():
        print(f"{name}: " + ", ".join(f"{rate} {value:.2%}" for rate, value in rates.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
