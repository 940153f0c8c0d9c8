r"""Other compressors on the same weights and test data: bytes of whole files at equal differences of the metric.

    python benchmarks/rivals.py --config configs/resnet20.py --data DATA --out out/rivals \
        --qwix --coremltools --nncodec VENV/bin/python
    python benchmarks/rivals.py --config configs/resnet20.py --data DATA --out out/rivals --files CERWU=FOLDER

This project's rows are those methods of the config whose labels fit ``--method``, or rate-distortion at each ``--lmbda``; rows that
``bqjax compare`` kept in the same folder are not run again, and no file of another program is scored twice.

``pip install "bqjax[bench]"`` brings qwix and coremltools. NNCodec (Fraunhofer's implementation of the standard ISO/IEC 15938-17)
asks for NumPy before 2 and so needs an interpreter of its own: ``python -m venv VENV``, then ``VENV/bin/pip install nncodec
safetensors "numpy<2"``. Each of the three options takes an interpreter, and without one uses this. None of the three sees data;
what counts as its file is in ``benchmarks/rival_programs.py``.

``--files NAME=DIR`` takes what any other program made: each whole file ``X.bin`` beside ``X.safetensors``, the weights that it
decodes to, by the names that the first line of output gives. That is the way for CERWU, whose own command knows networks by name
and gives an estimate of the entropy, no file. Each program gets all parameters, and no running statistics of BatchNorm. The last
line is one JSON object.

Files are compared at the differences of the rival's own points, by interpolating the logarithm of this project's bytes.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save_file

from bqjax.core.scoring import paired_error, score_on
from bqjax.core.task import Task, signed
from bqjax.core.tree import named_leaves, replace
from bqjax.experiment import Experiment, Reference, load_config, reference, run
from bqjax.methods import RateDistortion
from bqjax.sensitivity.limit import rising_fit

__all__ = ["Point", "bytes_at", "ratios_at_equal_difference"]

# Name in the table and settings of each program, down to where little is left of a network.
PROGRAMS = {
    "coremltools": ("coremltools", ("int8", "int4", "palette6", "palette4", "palette3", "palette2")),
    "qwix": ("qwix", ("int8", "int6", "int5", "int4", "nf4", "int3")),
    "nncodec": ("NNCodec", ("-24", "-22", "-20", "-19", "-18", "-17", "-16", "-15")),
}


class Point(NamedTuple):
    """One file: its bytes, what the metric changes by (negative is a loss), and the standard error of that."""

    label: str
    bytes: int
    difference: float
    error: float | None = None


def bytes_at(points: Sequence[Point], difference: float) -> float | None:
    """Bytes of a program's file at a difference of the metric: straight in the logarithm of the bytes between its points.

    Differences are first made to rise with the bytes by isotonic regression, as each has an error of its own.

    Args:
      points: of one program.
      difference: of the metric.

    Returns:
      Bytes, or None where the points do not reach as far.

    Example:
      >>> points = [Point("a", 1000, -0.02), Point("b", 4000, 0.0)]
      >>> round(bytes_at(points, -0.01)), bytes_at(points, -0.03)
      (2000, None)
    """
    ordered = sorted(points, key=lambda point: point.bytes)
    fit = rising_fit([point.difference for point in ordered])
    if not fit[0] <= difference <= fit[-1]:
        return None
    last = int(np.searchsorted(fit, difference))  # the smallest file that reaches it
    if last == 0 or fit[last] == difference:
        return float(ordered[last].bytes)
    share = (difference - fit[last - 1]) / (fit[last] - fit[last - 1])
    low, high = (math.log(ordered[i].bytes) for i in (last - 1, last))
    return math.exp(low + share * (high - low))


def ratios_at_equal_difference(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, float]:
    """Our bytes over theirs, by the label of each of their points that our points reach."""
    found = {point.label: bytes_at(ours, point.difference) for point in theirs}
    return {point.label: found[point.label] / point.bytes for point in theirs if found[point.label] is not None}  # type: ignore[operator]


def to_torch_layout(tensor: np.ndarray) -> np.ndarray:
    """``[h, w, in, out] -> [out, in, h, w]`` and ``[in, out] -> [out, in]``: the order of axes that NNCodec's scans expect."""
    axes = (tensor.ndim - 1, tensor.ndim - 2, *range(tensor.ndim - 2))
    return np.ascontiguousarray(tensor.transpose(axes)) if tensor.ndim > 1 else tensor


def from_torch_layout(tensor: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_torch_layout`."""
    return tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor


def scored(task: Task, before: Reference, label: str, size: int, tensors: Mapping[str, np.ndarray]) -> Point:
    """The point of a file that decodes to these tensors."""
    leaves = named_leaves(task.params)
    missing = [name for name in leaves if name not in tensors or np.shape(tensors[name]) != np.shape(leaves[name])]
    if missing:
        raise ValueError(f"{label} lacks {missing[0]!r} of shape {np.shape(leaves[missing[0]])}, of {len(missing)} such leaves")
    params = replace(task.params, {name: np.asarray(tensors[name], leaf.dtype) for name, leaf in leaves.items()})
    after = score_on(task, params, task.test)
    difference = float(signed(after.metrics, task.metric) - signed(before.test, task.metric))
    return Point(label, size, difference, paired_error(before.parts, after.parts, after.n_examples))


def kept_score(task: Task, before: Reference, out: Path, folder: Path, stem: str, torch: bool = False) -> Point:
    """The point of ``stem.bin`` beside ``stem.safetensors``, from what was kept where these very weights were scored before."""
    content = (folder / f"{stem}.safetensors").read_bytes()
    scored_by = (torch, task.name, task.metric, before.n_test, sorted(before.test.items()))
    key = hashlib.sha256(content + repr(scored_by).encode()).hexdigest()[:20]
    size, kept = (folder / f"{stem}.bin").stat().st_size, out / "rivals" / f"{key}.json"
    if kept.exists():
        return Point(stem, size, *json.loads(kept.read_text()))
    tensors = load(content)
    if torch:
        tensors = {name: from_torch_layout(tensor) for name, tensor in tensors.items()}
    point = scored(task, before, stem, size, tensors)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([point.difference, point.error]))
    print(f"scored {stem}: {size:,} bytes, {100 * point.difference:+.2f} points", flush=True)
    return point


def other_program(program: str, python: str, task: Task, before: Reference, out: Path, settings: Sequence[str]) -> list[Point]:
    """A program's files at some settings, made and decoded in its interpreter and scored here."""
    if subprocess.run([python, "-c", f"import {program}"], capture_output=True).returncode:
        raise ValueError(f"{python} can't import {program}: pip install {program} safetensors there, or leave out --{program}")
    leaves = {name: np.asarray(leaf, np.float32) for name, leaf in named_leaves(task.params).items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: to_torch_layout(leaf) for name, leaf in leaves.items()}, f"{folder}/source.safetensors")
        script = Path(__file__).with_name("rival_programs.py")
        subprocess.run([python, script, program, f"{folder}/source.safetensors", folder, *settings], check=True)
        return [kept_score(task, before, out, Path(folder), setting, torch=True) for setting in settings]


def own_rows(
    config: Experiment, task: Task, before: Reference, out: Path, patterns: Sequence[str], lmbdas: Sequence[float] | None = None
) -> list[Point]:
    """This project's rows, run where they were not kept: rate-distortion at some lmbdas, or what fits a pattern."""
    methods: tuple[Any, ...] = tuple(m for m in config.methods if any(fnmatch.fnmatchcase(m.label, p) for p in patterns))
    if lmbdas is not None:
        methods = tuple(RateDistortion(lmbda=lmbda, label=f"rate-distortion, lmbda {lmbda:g}") for lmbda in lmbdas)
    if not methods:
        raise ValueError(f"no method of the config fits {', '.join(patterns)}")
    comparison = run(with_fields(config, methods=methods), out, task=task, before=before)
    failed = [entry for entry in comparison.entries if entry.row is None]
    if failed:
        raise ValueError(f"{failed[0].label} failed: {failed[0].error}")
    rows = [entry.row for entry in comparison.entries if entry.row is not None]
    return [Point(row.method, row.file_bytes, row.difference, row.standard_error) for row in rows]


def report(ours: Sequence[Point], rivals: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Prints a line a file, and gives all as one object."""
    print("| program | file | bytes | difference, points | bqjax at that difference, bytes | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    found: dict[str, Any] = {}
    for name, points in {"bqjax": ours, **rivals}.items():
        ratios = {} if name == "bqjax" else ratios_at_equal_difference(ours, points)
        for point in points:
            error = "" if point.error is None else f" ± {100 * point.error:.2f}"
            same = f"{ratios[point.label] * point.bytes:,.0f} | {ratios[point.label]:.3f}" if point.label in ratios else " | "
            print(f"| {name} | {point.label} | {point.bytes:,} | {100 * point.difference:+.2f}{error} | {same} |")
        mean = math.exp(np.mean(np.log(list(ratios.values())))) if ratios else None
        found[name] = {"points": [point._asdict() for point in points], "ratios": ratios, "mean ratio": mean}
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="rows of this project are kept here, as by `bqjax compare`")
    parser.add_argument("--method", nargs="+", default=["rate-distortion*"], help="this project's methods, by their labels")
    parser.add_argument("--lmbda", type=float, nargs="+", help="rate-distortion at these instead, whatever the config has")
    for program, (name, settings) in PROGRAMS.items():
        parser.add_argument(f"--{program}", nargs="?", const=sys.executable, metavar="PYTHON", help=f"{name}, in this interpreter")
        parser.add_argument(f"--{program}-settings", nargs="+", default=settings, metavar="X", help="see rival_programs.py")
    parser.add_argument(
        "--files", nargs="+", default=[], metavar="NAME=FOLDER", help="X.bin beside X.safetensors, of another program"
    )
    args = parser.parse_args()
    config = load_config(args.config, Experiment)
    task = config.task(args.data, None)
    print(f"{len(named_leaves(task.params))} leaves: {', '.join(list(named_leaves(task.params))[:3])} and so on")
    before = reference(task)
    rivals: dict[str, list[Point]] = {}
    for program, (name, _) in PROGRAMS.items():
        if python := getattr(args, program):
            rivals[name] = other_program(program, python, task, before, args.out, getattr(args, f"{program}_settings"))
    for name, _, folder in (given.partition("=") for given in args.files):
        stems = sorted(path.stem for path in Path(folder).glob("*.bin"))
        if not stems:
            raise ValueError(f"{folder} holds no files X.bin of {name}")
        rivals[name] = [kept_score(task, before, args.out, Path(folder), stem) for stem in stems]
    print(json.dumps(report(own_rows(config, task, before, args.out, args.method, args.lmbda), rivals)))


if __name__ == "__main__":
    main()
