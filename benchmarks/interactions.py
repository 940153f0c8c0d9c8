"""Do damages add up in one layer of a network, and does a budget that knows the pairs do better? At several magnitudes of noise.

python benchmarks/interactions.py --data DIR
python benchmarks/interactions.py --data DIR --model minilm
python benchmarks/interactions.py --data DIR --model deepspeech2 --run out/deepspeech2_an4

Pairs are measured on calibration data. A budget then takes the set of matrices with most weights whose expected damage stays below
a limit, once by the sum of single damages and once with the interactions of its pairs; what a set really costs is measured on test
data with other noise. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bqjax.core.tree import named_leaves, replace
from bqjax.experiment.sweep import first_examples
from bqjax.sensitivity.pairs import Interactions, interactions
from bqjax.sensitivity.perturb import Noise
from bqjax.sensitivity.sweep_rows import Candidate, point_of
from train.speech.task import an4_task
from train.tasks.sentences import sts_task
from train.tasks.stories import stories_task

BLOCKS = {  # a task, its metric here, and matrices of one block
    "stories": (
        lambda args: stories_task(args.data),
        "-nats",
        "model.layers.{}.{}.weight",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
    "minilm": (
        lambda args: sts_task(args.data),
        "-loss",
        "encoder.layer.{}.{}.weight",
        ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense", "output.dense"),
    ),
    "deepspeech2": (
        lambda args: an4_task(args.run, args.data),
        "-loss",
        "rnn/{}/{}/kernel",
        ("forward/input", "forward/recurrent", "backward/input", "backward/recurrent"),
    ),
}
LIMITS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # parts of what all together cost


class Sets:
    """Damage of sets of candidates on test data, under noise that no pair was measured with; measured once each."""

    def __init__(self, task: Any, metric: str, batches: Any, asked: list[Candidate], key: jax.Array, draws: int):
        leaves, self._known = named_leaves(task.params), dict[int, float]()
        self._batches, self._draws, self._n = batches, draws, len(asked)
        noise = Noise("gaussian")
        points = [[point_of(c, draw, key, np.float32) for c in asked] for draw in range(draws)]
        self._points = [[p._replace(magnitude=np.float32(0)) for p in own] for own in points], points

        def score(points: Any, batch: Any) -> Any:
            changed = {c.leaf: noise(leaves[c.leaf], point) for c, point in zip(asked, points, strict=True)}
            return task.score(replace(task.params, changed), batch)

        self._score, self._metric = jax.jit(score), metric.removeprefix("-")

    def __call__(self, members: int) -> float:
        if members not in self._known:
            off, on = self._points
            changed = [[on[d][i] if members >> i & 1 else off[d][i] for i in range(self._n)] for d in range(self._draws)]
            self._known[members] = self._mean(changed) - self._mean([off[0]])
        return self._known[members]

    def _mean(self, draws: Any) -> float:
        found = [self._score(points, batch) for points in draws for batch in self._batches]
        return float(sum(sums[self._metric] for sums, _ in found) / sum(count for _, count in found))


def chosen(found: Interactions, sizes: np.ndarray, limit: float, pairs: bool) -> int:
    """The set with most weights whose expected damage is at most the limit, as bits."""
    n, best = len(sizes), (0, 0)
    drops = np.array([row.drop for row in found.singles])
    values = np.nan_to_num(found.matrix()[0])
    for members in range(1 << n):
        inside = np.array([members >> i & 1 for i in range(n)], float)
        expected = drops @ inside + (inside @ values @ inside / 2 if pairs else 0.0)
        if expected <= limit:
            best = max(best, (int(sizes @ inside), members))
    return best[1]


def at(task: Any, level: float, args: argparse.Namespace) -> dict[str, Any]:
    """Interactions at one magnitude, and budgets by both sums."""
    leaves = named_leaves(task.params)
    _, metric, named, matrices = BLOCKS[args.model]
    names = [named.format(args.block, x) for x in args.matrices or matrices]
    asked = [Candidate(leaf=x, magnitude=level * float(np.std(leaves[x])), draws=args.draws) for x in names]
    calibration, test = first_examples(task.calibration, args.examples), first_examples(task.test, args.examples)
    state = None if args.state is None else f"{args.state}.{level:g}"
    found = interactions(
        task.score,
        task.params,
        calibration,
        asked,
        key=jax.random.key(0),
        metric=metric,
        predict=task.predict,
        state_path=state,
    )
    known = [row for row in found.pairs if row.p <= 0.05]
    strongest = max(found.pairs, key=lambda row: abs(row.interaction))
    print(
        f"{level:g} standard deviations, {len(names)} matrices: {len(known)} of {len(found.pairs)} interactions differ from 0; "
        f"largest {strongest.interaction:+.4f} ± {strongest.error:.4f} ({names[strongest.first]}, {names[strongest.second]}); "
        f"singles {found.sum_of_singles:.4f}, with pairs {found.sum_with_pairs:.4f}, all {found.together[0]:.4f} ± "
        f"{found.together[1]:.4f}, beyond the sum {found.excess[0]:+.4f} ± {found.excess[1]:.4f}",
        flush=True,
    )
    sizes, real = np.array([np.size(leaves[x]) for x in names]), Sets(task, metric, test, asked, jax.random.key(1), args.draws)
    budgets = []
    for part in LIMITS:
        limit = part * found.together[0]
        sets = [chosen(found, sizes, limit, pairs) for pairs in (False, True)]
        weights = [int(sum(size for i, size in enumerate(sizes) if s >> i & 1)) for s in sets]
        budgets.append({"limit": limit, "weights": weights, "cost": [real(s) for s in sets], "same": sets[0] == sets[1]})
        print(f"  limit {limit:.4f}: {budgets[-1]}", flush=True)
    return {
        "singles": [row.drop for row in found.singles],
        "differ": len(known),
        "pairs": len(found.pairs),
        "largest": [strongest.interaction, strongest.error],
        "sum": found.sum_of_singles,
        "with_pairs": found.sum_with_pairs,
        "together": found.together,
        "excess": found.excess,
        "budgets": budgets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with lm/stories260k/; with text/ and minilm/; or with an4/"
    )
    parser.add_argument("--run", type=Path, help="folder of a run of configs/deepspeech2_an4.py, for deepspeech2")
    parser.add_argument("--model", choices=list(BLOCKS), default="stories")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.2, 0.4], help="of noise, in standard deviations")
    parser.add_argument(
        "--examples", type=int, default=40, help="stories, utterances, or rows of 128 tokens with about 4 pairs of sentences each"
    )
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--block", type=int, default=2, help="whose matrices are perturbed")
    parser.add_argument("--matrices", nargs="+")
    parser.add_argument("--state", type=Path, help="go on from files of this name")
    args = parser.parse_args()
    if (args.run is None) == (args.model == "deepspeech2"):
        parser.error("--run goes with --model deepspeech2, whose trained network it holds")
    task = BLOCKS[args.model][0](args)
    print(json.dumps({"interactions": {f"{level:g}": at(task, level, args) for level in args.levels}}))


if __name__ == "__main__":
    main()
