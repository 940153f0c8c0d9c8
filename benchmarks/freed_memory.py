"""The training step of ResNet-20 on a CPU with freed memory kept by the process, against memory given back to the system.

    python benchmarks/freed_memory.py
    python benchmarks/freed_memory.py --batch-sizes 32 128 512 --rounds 5

The W8/A8 step of `benchmarks/training.py`, in processes of their own, one of each kind after the other; the figure is the median
of all steps after the first of each process. System seconds are those that the kernel takes, most of them to fill pages with
zeros. Losses must be the same. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

KINDS = ("given back", "kept")


def _child(kind: str, batch_size: int, steps: int) -> None:
    """Runs some steps and prints what they took."""
    from training import VARIANTS, Step, random_batch

    from bqjax.cli.freed_memory import keep_freed_memory

    if kind == "kept" and not keep_freed_memory():
        raise ValueError("freed memory cannot be kept here: no glibc, or MALLOC_... or GLIBC_TUNABLES are set")
    step = Step(VARIANTS["relu"], random_batch(batch_size), quantized=True)
    step()
    rows = []
    for _ in range(steps):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        step()
        now = resource.getrusage(resource.RUSAGE_SELF)
        user, system = now.ru_utime - before.ru_utime, now.ru_stime - before.ru_stime
        rows.append([time.perf_counter() - start, user + system, system, now.ru_minflt - before.ru_minflt])
    print(json.dumps({"rows": rows, "losses": step.losses, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))


def _measured(kind: str, batch_size: int, steps: int) -> dict[str, Any]:
    """What a child process printed."""
    command = [sys.executable, __file__, "--child", kind, "--batch-sizes", str(batch_size), "--steps", str(steps)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child, args.batch_sizes[0], args.steps)
        return
    results = {}
    for size in args.batch_sizes:
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                runs[kind].append(_measured(kind, size, args.steps))
        medians = {kind: np.median([row for run in runs[kind] for row in run["rows"]], axis=0) for kind in KINDS}
        peaks = {kind: max(run["peak"] for run in runs[kind]) for kind in KINDS}
        for kind, (wall, cpu, system, pages) in medians.items():
            print(
                f"batches of {size}, {kind}: {wall:.3f} s a step, {size / wall:.0f} images/s, {cpu:.3f} CPU s, "
                f"of them {system:.3f} s system; {pages:.0f} pages given; {peaks[kind]:.2f} GB at most"
            )
        before, after = (medians[kind] for kind in KINDS)
        same = len({tuple(run["losses"]) for kind in KINDS for run in runs[kind]}) == 1
        print(f"{before[0] / after[0]:.2f} times as many images a second; losses {'are the same' if same else 'DIFFER'}")
        results[size] = {"wall": before[0] / after[0], "cpu": before[1] / after[1], "losses_same": same}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
