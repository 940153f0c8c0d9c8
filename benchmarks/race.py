"""The ten most sensitive layers within a fifth of the full sweep's evaluations, against the full sweep: replays on tables.

python benchmarks/race.py --data DIR --tables FOLDER [--depth 56 --images 250]

Gaussian noise of 0.2 standard deviations on each layer of a ResNet. A table of every image's increase of the loss under each draw
and its mirror image is measured once and kept, so that an interrupted run goes on; the truth is the mean of all of it. The full
sweep takes plain draws on all images, a race noise and its mirror image on blocks of them; both take theirs from the table, in an
order by their key. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
from bqjax.sensitivity.fixed_budget import FixedBudget
from bqjax.sensitivity.predictions import out_of_reach, predicted_effects, rank_correlation
from bqjax.sensitivity.rounds import run_rounds
from bqjax.sensitivity.sweep_rows import Candidate, point_of
from bqjax.sensitivity.sweep_run import Count, SweepRun
from bqjax.sensitivity.task_statistics import task_curvature
from train.tasks.cifar import resnet_task

CHUNK = 4  # draws of one file
TOP = 10


def layers(task: Any, draws: int, level: float = 0.2) -> list[Candidate]:
    """Gaussian noise on each weight leaf, in units of its standard deviation."""
    leaves = named_leaves(task.params)
    return [Candidate(leaf=x, magnitude=level * float(np.std(leaves[x])), draws=draws) for x in select(task.params).taken]


def table(task: Any, draws: int, folder: Path) -> np.ndarray:
    """Each image's increase of the loss under each draw and its mirror image, ``[layers, draws, 2, images]``; kept in a folder."""
    start, parts = time.monotonic(), []
    run: SweepRun | None = None
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, draws, CHUNK):
        path = folder / f"draws{first:03d}.npy"
        if not path.exists():
            if run is None:
                evaluator = Evaluator(task.score, task.test, predict=task.predict, metric="-loss")
                count = Count(0, start, None)
                run = SweepRun(
                    evaluator, task.params, layers(task, draws), jax.random.key(0), "-loss", None, Journal(), count, True
                )
            found = np.stack(chunk_of(run, range(first, first + CHUNK))).astype(np.float32)
            with atomic_write(path) as file:
                np.save(file, found)
            print(f"draws {first} to {first + CHUNK - 1}: {time.monotonic() - start:.0f} s", flush=True)
        parts.append(np.load(path))
    return np.concatenate(parts, 1).astype(np.float64)


def chunk_of(run: SweepRun, draws: range) -> list[np.ndarray]:
    """``[draws, 2, images]`` of each layer."""
    out: list[Any] = [None] * len(run.candidates)
    for (name, noise), members in run.ordered():
        for i in members:
            pairs = itertools.product(draws, (False, True))
            points = [point_of(run.candidates[i], d, run.key, np.float32, mirrored=m) for d, m in pairs]
            parts = run.measure(name, noise, points).parts
            if parts is None or (differences := run.differences(list(parts))) is None:
                raise ValueError("the task tells no image's own loss")
            out[i] = differences.reshape(len(draws), 2, -1)
    return out


def full_sweep(losses: np.ndarray, draws: int, key: int) -> list[int]:
    """The top by plain draws on all images: some of the table's, each with a sign by the key."""
    rng, means = np.random.default_rng(key), []
    for own in losses:
        means.append(own[rng.permutation(len(own))[:draws], rng.integers(0, 2, draws)].mean())
    return np.argsort(-np.array(means))[:TOP].tolist()


def race(losses: np.ndarray, draws: int, budget: float, key: int, block: int, out: frozenset[int]) -> tuple[list[int], Any]:
    """The top by a race, and its record."""
    rng, (n, pairs, _, images) = np.random.default_rng(key), losses.shape
    blocks = rng.permutation(images)[: images // block * block].reshape(-1, block)
    contest = FixedBudget([Candidate(leaf=str(i)) for i in range(n)], TOP, budget, len(blocks) * draws // 2, out=out)
    most = contest.looks[-1]
    which = [np.concatenate([rng.permutation(k) for _ in range(most // k + 1)]) for k in (len(blocks), pairs)]
    mirrored, scored = losses.mean(2), 0

    def score(places: list[int], first: int, last: int) -> None:
        nonlocal scored
        contest.weights += [float(block)] * (last - first)
        for t in range(first, last):
            for i in places:
                contest.drops[i].append(float(mirrored[i, which[1][t], blocks[which[0][t]]].mean()))
        scored += 2 * block * len(places) * (last - first)

    run_rounds(contest, score)
    record = contest.record(scored / images, n * draws)
    return list(record.order[0][:TOP]), record


def judged(name: str, losses: np.ndarray, tops: list[list[int]], **others: Any) -> dict[str, Any]:
    """How often a way finds the top of all the data together, how much of it, and what a wrong layer costs."""
    means = losses.mean((1, 2, 3))
    order = np.argsort(-means)
    truth, tenth = set(order[:TOP].tolist()), means[order[TOP - 1]]
    common = [len(truth & set(top)) for top in tops]
    behind = [max(0.0, *(float(tenth - means[i]) for i in top)) for top in tops]
    row = {
        "exact": sum(c == TOP for c in common),
        "of": len(tops),
        "common": float(np.mean(common)),
        "common_error": float(np.std(common, ddof=1) / len(common) ** 0.5),
        "worst_behind": float(np.mean(behind)),
        "worst_behind_most": max(behind),
        **others,
    }
    print(f"{name}: {json.dumps({k: round(v, 4) for k, v in row.items()})}", flush=True)
    return row


def replays(losses: np.ndarray, draws: int, budget: float, keys: int, block: int, out: frozenset[int]) -> dict[str, Any]:
    """Full sweep and race against the truth, over keys."""
    full = [full_sweep(losses, draws, key) for key in range(keys)]
    rows = {"full": judged("full sweep", losses, full)}
    # The next key's full sweep, as if it were the truth.
    again = [len(set(full[i]) & set(full[(i + 1) % keys])) for i in range(keys)]
    rows["full_against_itself"] = {"exact": sum(c == TOP for c in again), "of": keys, "common": float(np.mean(again))}
    print(f"full sweep against that of another key: {rows['full_against_itself']}", flush=True)
    truth = set(np.argsort(-losses.mean((1, 2, 3)))[:TOP].tolist())
    asked = {"race": (budget, frozenset()), "race_whole": (1.0, frozenset())}
    if out:
        asked["race_predicted"] = budget, out
    for name, (part, left) in asked.items():
        found = [race(losses, draws, part, 1000 + key, block, left) for key in range(keys)]
        claims = [(i in truth) == (i in top) for top, record in found for i, sure in enumerate(record.sure) if sure >= 0.95]
        rows[name] = judged(
            f"{name}, budget {part:g}",
            losses,
            [top for top, _ in found],
            share=float(np.mean([record.evaluations / record.of for _, record in found])),
            sure=len(claims) / keys,
            sure_wrong=len(claims) - sum(claims),
            with_full=float(np.mean([len(set(top) & set(one)) for (top, _), one in zip(found, full, strict=True)])),
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/ and tfds/")
    parser.add_argument("--tables", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet: 20 or 56")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=16, help="draws of the table, each with its mirror image")
    parser.add_argument("--draws", type=int, default=8, help="of the full sweep")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--block", type=int, default=25, help="images of a race's round; a sweep of 250 images takes 15")
    parser.add_argument("--keys", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--predict", action="store_true", help="leave out of the race what the curvature says is out of reach")
    args = parser.parse_args()
    task = resnet_task(args.data, args.depth, n_calibration=250, n_test=args.images)
    losses = table(task, args.pairs, args.tables / f"{args.depth}.{args.images}")
    means = losses.mean((1, 2, 3))
    errors = np.hypot(losses.mean((2, 3)).std(1, ddof=1) / args.pairs**0.5, losses.mean((1, 2)).std(1, ddof=1) / args.images**0.5)
    border = [f"{means[i]:.4f} ± {errors[i]:.4f}" for i in np.argsort(-means)[TOP - 5 : TOP + 5]]
    print(f"ResNet-{args.depth}, table {losses.shape}; ranks 6 to 15: {', '.join(border)}", flush=True)
    out: frozenset[int] = frozenset()
    if args.predict:
        asked = layers(task, args.pairs)
        predicted = predicted_effects(task_curvature(task, key=jax.random.key(0)), task.params, asked, key=jax.random.key(0))
        out = out_of_reach(predicted, asked, TOP)
        truth = set(np.argsort(-means)[:TOP].tolist())
        rank = rank_correlation(predicted.tolist(), means.tolist())
        print(f"predicted: rank correlation {rank:.2f}; {len(out)} left out, {len(out & truth)} of them in the top", flush=True)
    rows = {str(keys): replays(losses, args.draws, args.budget, keys, args.block, out) for keys in args.keys}
    print(json.dumps({f"race_resnet{args.depth}": rows}))


if __name__ == "__main__":
    main()
