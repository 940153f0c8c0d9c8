"""The most sensitive layers at a fixed budget of evaluations, against the full sweep, replayed on tables of every image's loss.

python benchmarks/race.py --data DIR --depth 20 --tables FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bqjax.core.files import atomic_write
from bqjax.core.journal import Journal
from bqjax.core.rules import select
from bqjax.core.tree import named_leaves
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.sweep_rows import Candidate, point_of
from bqjax.sensitivity.sweep_run import Count, SweepRun
from train.tasks.cifar import resnet_task

CHUNK = 4  # draws of one file


def layers(task: Any, draws: int, level: float = 0.2) -> list[Candidate]:
    """Gaussian noise on each weight leaf, in units of its standard deviation."""
    leaves = named_leaves(task.params)
    return [Candidate(leaf=x, magnitude=level * float(np.std(leaves[x])), draws=draws) for x in select(task.params).taken]


def table(task: Any, draws: int, folder: Path) -> np.ndarray:
    """Each image's increase of the loss under each draw and its mirror image, ``[layers, draws, 2, images]``; kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, start = layers(task, draws), time.monotonic()
    evaluator = Evaluator(task.score, task.test, predict=task.predict, metric="-loss")
    parts = []
    with Journal(None, {}) as journal:
        run = SweepRun(evaluator, task.params, asked, jax.random.key(0), "-loss", None, journal, Count(0, start, None), True)
        for first in range(0, draws, CHUNK):
            path = folder / f"draws{first:03d}.npy"
            if not path.exists():
                found = np.stack(run_chunk(run, range(first, min(first + CHUNK, draws)))).astype(np.float32)
                with atomic_write(path) as file:
                    np.save(file, found)
            parts.append(np.load(path))
            print(f"draws from {first}: {time.monotonic() - start:.0f} s", flush=True)
    return np.concatenate(parts, 1)


def run_chunk(run: SweepRun, draws: range) -> list[np.ndarray]:
    """``[draws, 2, images]`` of each layer."""
    out: list[Any] = [None] * len(run.candidates)
    for (name, noise), members in run.ordered():
        for i in members:
            c = run.candidates[i]
            points = [point_of(c, d, run.key, np.float32, mirrored=m) for d, m in itertools.product(draws, (False, True))]
            found = run.measure(name, noise, points)
            out[i] = run.differences(list(found.parts)).reshape(len(draws), 2, -1)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--tables", type=Path, required=True)
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", "/tmp/jaxcache_races")
    task = resnet_task(args.data, args.depth, n_calibration=250, n_test=args.images)
    t = table(task, args.draws, args.tables / f"{args.depth}.{args.images}")
    print(t.shape)


if __name__ == "__main__":
    main()
