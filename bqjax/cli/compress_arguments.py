"""Arguments of ``bqjax compress``: which go together, and which module does the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

__all__ = ["Compress"]


@dataclass(frozen=True)
class Compress:
    """Compress a trained network.

    Either `--config FILE` names a task and methods, of which one makes the file, or WEIGHTS are compressed as they are.
    """

    weights: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")] = None
    """Any .safetensors weights, as a file, a folder or an index, compressed without model and data; or a .tflite model."""
    others: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MORE")] = ()
    """Further .safetensors files of the same checkpoint, where it is named file by file: together they become one file, --out."""
    config: Path | None = None
    """A Python file that defines `config = Experiment(...)`; see configs/. Its first method makes the file."""
    data: Path | None = None
    """Folder of the data that the config's task reads; of a .tflite model the examples, as .npz or .zip."""
    text: Path | None = None
    """A text in UTF-8, where WEIGHTS is the folder of a transformer (config.json, tokenizer.json, safetensors files): the first
    part is calibrated on, the rest reported on. With --max-drop or --target-size."""
    out: Path | None = None
    """The file to write; default: beside the weights, or out/NAME OF THE CONFIG, with the ending .bq.safetensors."""
    report: Path | None = None
    """Write a self-contained HTML report here (with --config, --text, or a .tflite model and --data)."""
    table: Path | None = None
    """Write the results as Markdown here (with --config, --text, or a .tflite model and --data)."""
    method: str | None = None
    """With --config: the label of the method, in place of the first. Of WEIGHTS: even (the default: even levels at a relative
    error, entropy-coded), kmeans, gaussian-bins, int8, int4, pq or rq. Of a .tflite model: gaussian-bins (the default), kmeans."""
    bins: int | None = None
    """Values a leaf, of kmeans and gaussian-bins; default: 16."""
    sigma_scale: float = 1.0
    """Of gaussian-bins: factor on each leaf's standard deviation when bins are placed."""
    rtol: float | None = None
    """Of WEIGHTS: bound on each leaf's relative error. Even levels have the widest step that keeps it (default: 0.05), kmeans as
    few values; other methods leave a leaf as it was that they cannot keep within it."""
    lmbda: float | None = None
    """Of even levels: Lagrangian weight of a bit, in squared steps; default: 0.1."""
    only: tuple[str, ...] = ()
    """Patterns of the leaves of WEIGHTS to compress; default: floating point, two or more dimensions."""
    skip: tuple[str, ...] = ()
    """Patterns of leaves to leave as they are."""
    coder: Literal["auto", "raw", "zstd", "ans", "huffman", "adaptive"] = "auto"
    """How the indices of WEIGHTS are coded."""
    lossless: bool = False
    """Entropy-code only: WEIGHTS come back bit for bit, a .tflite model byte for byte."""
    target_size: str | None = None
    """A file of at most this size, as 200KB: with --config or --text, one that changes the outputs least; of WEIGHTS alone, even
    levels of the least relative error, the same for all leaves."""
    max_drop: float | None = None
    """With --config: the smallest file whose metric drops by at most so many points on calibration data (nats, losses and
    cosines: by so much).
    Of a .tflite model with --data: at most so many predictions in a hundred change on the half of the examples that is searched
    on, so that accuracy there drops by no more points; default: 1.
    With --text: the smallest file whose cross-entropy on the first part of the text grows by at most so many nats a token, as 0.02;
    of an encoder, whose embeddings there have a cosine with the original's of at least 1 less this, as 0.02."""
    confidence: float = 0.5
    """With --config or --text, and --max-drop: keep the drop at a one-sided bound of this confidence, as 0.9, from the standard
    error on the calibration data. At 0.5 the drop on the calibration data itself counts, and new data may well show a larger
    one."""
    plan: bool = False
    """With --config and --target-size or --max-drop: choose method and setting of every layer by measured curves, in place of one
    Lagrangian weight for all. It takes longer, needs no outputs of the task, and writes the plan beside the file as a config."""
    target: Literal["bq", "tflm"] = "bq"
    """Of a .tflite model: bq is a container that `bqjax decompress` unpacks before the model runs; tflm is a .tflite file whose
    weights stay compressed in TensorFlow Lite Micro (with --out model.cc also a C array of it)."""
    keep_names: bool = False
    """With --target tflm: keep names, metadata and signatures, which no interpreter computes with."""
    max_arena: str | None = None
    """With --target tflm: the decoded weights of an operator take at most this memory, as 32KB; larger ones stay plain."""
    max_decode: float | None = None
    """With --target tflm: decoding takes at most so many milliseconds, by an estimate for one x86 core."""
    force: bool = False
    """Overwrite existing files."""

    def run(self, console: Console, command: str) -> None:
        if self.others:
            self._check_others(self.others)
        # What would have no effect is refused.
        takes, what = self._takes()
        given = [f.name for f in fields(self) if getattr(self, f.name) != f.default and f.name not in (*takes, "out", "force")]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"{options} cannot go with {what}{_instead(given, what)}")
        if self.target_size is not None and self.max_drop is not None:
            raise ValueError("--target-size cannot go with --max-drop: name one of the two")
        if self.max_drop is None and self.confidence != 0.5:
            raise ValueError("--confidence is one of keeping a drop: name it by --max-drop")
        if self.plan and self.target_size is None and self.max_drop is None:
            raise ValueError("--plan is one for --target-size or --max-drop: name one of the two")
        limited = self.target_size is not None or self.max_drop is not None
        if self.method is not None and self.config is not None and limited:
            raise ValueError("--method cannot go with --target-size or --max-drop")
        if self.weights is not None and self.weights.suffix == ".tflite":
            from bqjax.core.recognize import refuse_other

            refuse_other(self.weights, "a .tflite model", "tflite", "text", "empty")
        if self.config is not None:
            self._experiment(self.config, console, command)
        elif self.weights is not None and self.target == "tflm":
            self._micro(self.weights, console, command)
        elif self.weights is not None and self.weights.suffix == ".tflite" and self.data is not None:
            self._tflite(self.weights, self.data, console, command)
        elif self.weights is not None and self.text is not None:
            self._text(self.weights, self.text, console, command)
        elif self.weights is not None:
            self._weights(self.weights, console)

    def _check_others(self, others: tuple[Path, ...]) -> None:
        if self.config is not None:
            raise ValueError(f"--config cannot go with {others[0]}: name either WEIGHTS.safetensors or --config FILE")
        for path in (self.weights, *others):
            if path is not None and path.suffix == ".tflite":
                raise ValueError(f"{path}: a .tflite model is compressed by itself, each in a command of its own")
        if self.out is None:
            files = f"{1 + len(others)} files of one checkpoint"
            raise ValueError(f"{files} become one file: name it by --out; several checkpoints take a command each")

    def _takes(self) -> tuple[tuple[str, ...], str]:
        """The options that have an effect beside what is compressed, and the name of that."""
        if (self.weights is None) == (self.config is None):
            raise ValueError("name either WEIGHTS.safetensors or --config FILE")
        if self.config is not None:
            return ("config", "data", "report", "table", "method", "target_size", "max_drop", "confidence", "plan"), "--config"
        if self.text is not None:
            return ("weights", "text", "report", "table", "target_size", "max_drop", "confidence"), "--text"
        if self.weights is None or self.weights.suffix != ".tflite":
            if self.lossless:
                return ("weights", "others", "lossless"), "--lossless"
            allowed = "weights", "others", "method", "bins", "sigma_scale", "rtol", "lmbda", "target_size", "only", "skip", "coder"
            return allowed, "WEIGHTS"
        shared: tuple[str, ...] = ("weights", "target")
        if self.target == "tflm":
            shared = (*shared, "keep_names", "max_arena", "max_decode")
        else:
            shared = (*shared, "coder") if self.data is None else shared
        if self.data is not None:
            return (*shared, "data", "report", "table", "max_drop"), "a .tflite model and --data"
        if self.lossless:
            return (*shared, "lossless"), "--lossless"
        return (*shared, "method", "bins"), "a .tflite model"

    def _experiment(self, config: Path, console: Console, command: str) -> None:
        from bqjax.cli.compress import Outputs, compress_by_plan, compress_experiment, compress_within
        from bqjax.cli.compress_budget import Budget
        from bqjax.experiment import Experiment, load_config

        experiment = load_config(config, Experiment)
        out = self.out or Path("out") / f"{config.stem}.bq.safetensors"
        outputs = Outputs(out=out, report=self.report, table=self.table, force=self.force, command=command)
        if self.target_size is not None or self.max_drop is not None:
            budget = Budget(target_size=self.target_size, max_drop=self.max_drop, confidence=self.confidence)
            if self.plan:
                compress_by_plan(experiment, config, self.data, outputs, budget, console)
            else:
                compress_within(experiment, self.data, outputs, budget, console)
            return
        chosen = experiment.only(() if self.method is None else (self.method,))
        if self.method is not None and len(chosen.methods) > 1:
            raise ValueError(f"--method {self.method!r} names {len(chosen.methods)} methods: one of them makes the file")
        compress_experiment(chosen, self.data, outputs, console)

    def _tflite(self, source: Path, data: Path, console: Console, command: str) -> None:
        from bqjax.cli.compress import Outputs, compress_experiment
        from bqjax.cli.compress_tflite import tflite_experiment

        out = self.out or source.with_suffix(".bq.safetensors")
        outputs = Outputs(out=out, report=self.report, table=self.table, force=self.force, command=command)
        experiment = tflite_experiment(source, data, max_drop=1.0 if self.max_drop is None else self.max_drop)
        compress_experiment(experiment, None, outputs, console)

    def _micro(self, source: Path, console: Console, command: str) -> None:
        from bqjax.cli.compress import Outputs
        from bqjax.cli.compress_micro import MicroOptions, compress_micro

        out = self.out or source.with_name(f"{source.stem}_tflm.tflite")
        compress_micro(
            source,
            self.data,
            Outputs(out=out, report=self.report, table=self.table, force=self.force, command=command),
            MicroOptions(keep_names=self.keep_names, max_arena=self.max_arena, max_decode=self.max_decode),
            console,
            method="lossless" if self.lossless else self._bins_method(),
            bins=16 if self.bins is None else self.bins,
            max_drop=1.0 if self.max_drop is None else self.max_drop,
        )

    def _bins_method(self) -> str:
        method = self.method or "gaussian-bins"
        if method not in ("gaussian-bins", "kmeans"):
            raise ValueError(f"--method {method!r}: a .tflite model without data is compressed by gaussian-bins or kmeans")
        return method

    def _text(self, folder: Path, text: Path, console: Console, command: str) -> None:
        from bqjax.cli.compress import Outputs
        from bqjax.cli.compress_budget import Budget
        from bqjax.cli.compress_text import compress_text

        if self.target_size is None and self.max_drop is None:
            raise ValueError("--text is for a file of a size, or within a drop: name --target-size, or --max-drop 0.02")
        outputs = Outputs(out=self.out or _beside(folder), report=self.report, table=self.table, force=self.force, command=command)
        budget = Budget(target_size=self.target_size, max_drop=self.max_drop, confidence=self.confidence)
        compress_text(folder, text, outputs, budget, console)

    def _weights(self, source: Path, console: Console) -> None:
        from bqjax.cli.compress_tflite import compress_tflite
        from bqjax.cli.compress_weights import compress_lossless, compress_weights

        out = self.out or _beside(source)
        if source.suffix == ".tflite":
            compress_tflite(
                source,
                out,
                method="lossless" if self.lossless else self._bins_method(),
                bins=16 if self.bins is None else self.bins,
                coder=self.coder,
                force=self.force,
                console=console,
            )
        elif self.lossless:
            compress_lossless(source, out, others=self.others, force=self.force, console=console)
        else:
            compress_weights(
                source,
                out,
                others=self.others,
                method=self._weight_method(),
                target_size=self.target_size,
                only=self.only,
                skip=self.skip,
                coder=self.coder,
                force=self.force,
                console=console,
            )

    def _weight_method(self) -> Any:
        from bqjax.cli.weights_methods import WeightMethod

        if self.target_size is not None and (self.method not in (None, "even") or self.rtol is not None):
            raise ValueError("--target-size chooses the error of even levels itself: it cannot go with --rtol or another --method")
        name = self.method or "even"
        return WeightMethod(name=name, bins=self.bins, sigma_scale=self.sigma_scale, rtol=self.rtol, lmbda=self.lmbda)


def _instead(given: Sequence[str], what: str) -> str:
    """What does for weights alone what some options do where there are data."""
    if what != "WEIGHTS" or not {"data", "max_drop", "confidence", "plan", "report", "table"} & set(given):
        return ""
    remedy = "bound each leaf's error by --rtol or the size by --target-size, or name a task by --config"
    return f", whose accuracy nothing measures: {remedy}"


def _beside(source: Path) -> Path:
    """Where a compressed checkpoint goes that is given no name: beside the file, or beside the folder."""
    if source.is_dir():
        source = source.resolve()
        return source.with_name(f"{source.name}.bq.safetensors")
    stem = source.name.removesuffix(".safetensors.index.json")
    return source.with_suffix(".bq.safetensors") if stem == source.name else source.with_name(f"{stem}.bq.safetensors")
