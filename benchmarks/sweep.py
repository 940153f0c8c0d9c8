"""The sensitivity engine against a jitted loop over full forward passes: same perturbations, same scores.

python benchmarks/sweep.py [--quick] [--data DIR]

Without data the networks have random weights and see random inputs, which takes the same time. Times are wall seconds
of one run after compilation; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.adapters.safetensors import read_weights
from bqjax.core.classification import batches, classification_score
from bqjax.core.rules import select
from bqjax.core.tree import named_leaves, replace
from bqjax.methods.bins.gaussian import gaussian_bins
from bqjax.models.resnet import CifarResNet
from bqjax.models.spc import SpeechConv, load_spc, spc_features
from bqjax.models.vgg import VGG
from bqjax.sensitivity import sweep_run
from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.joint import Jointly, joint_of
from bqjax.sensitivity.pairs import interactions
from bqjax.sensitivity.perturb import Noise, NoiseCandidate
from bqjax.sensitivity.sweep_rows import point_of
from bqjax.sensitivity.sweeps import Candidate, sweep
from train.tasks.cifar import resnet_task
from train.tasks.speech_commands import read_speech

Plan = dict[str, list[NoiseCandidate]]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


class Loop:
    """The alternative: the whole network for every candidate, jitted once a leaf."""

    def __init__(self, score: Any, data: Sequence[Any], noise: Noise):
        self._data = data
        self._function = jax.jit(
            lambda p, batch, c, name: score(replace(p, {name: noise(named_leaves(p)[name], c)}), batch), static_argnums=3
        )

    def __call__(self, params: Any, plan: Plan) -> dict[str, list[float]]:
        found = {}
        for name, points in plan.items():
            # All batches of a candidate are dispatched before the first result is waited for.
            out = [[self._function(params, batch, c, name) for batch in self._data] for c in points]
            found[name] = [sum(float(s["loss"]) for s, _ in o) / sum(float(n) for _, n in o) for o in out]
        return found


def run_engine(evaluator: Evaluator, params: Any, plan: Plan, noise: Noise) -> dict[str, list[float]]:
    return {name: [m["loss"] for m in evaluator.scores(params, [name], noise, points)] for name, points in plan.items()}


def compare(title: str, score: Any, params: Any, data: Sequence[Any], plan: Plan, noise: Noise) -> dict[str, Any]:
    """Seconds of both ways, compilation apart, and how far their scores differ."""
    slow = Loop(score, data, noise)
    fast = Evaluator(score, data)
    first = {name: candidates[:1] for name, candidates in plan.items()}
    loop_first, _ = timed(lambda: slow(params, first))
    engine_first, _ = timed(lambda: run_engine(fast, params, first, noise))
    fast.forget()  # the timed run computes its prefixes itself
    engine_s, a = timed(lambda: run_engine(fast, params, plan, noise))
    # A search asks again and again about one leaf, and finds the prefix kept. Several leaves take turns, and find it gone.
    kept_s = timed(lambda: run_engine(fast, params, plan, noise))[0] if len(plan) == 1 else None
    loop_s, b = timed(lambda: slow(params, plan))
    row = {
        "scores": sum(map(len, plan.values())),
        "loop_s": loop_s,
        "engine_s": engine_s,
        "speedup": loop_s / engine_s,
        "engine_prefix_kept_s": kept_s,
        "speedup_prefix_kept": None if kept_s is None else loop_s / kept_s,
        "loop_first_run_s": loop_first,
        "engine_first_run_s": engine_first,
        "engine_compile_s": fast.compile_seconds,
        "largest_relative_difference": max(abs(x - y) / abs(y) for n in plan for x, y in zip(a[n], b[n], strict=True)),
    }
    kept = "" if kept_s is None else f" ({kept_s:.2f} s, {loop_s / kept_s:.1f}x with the prefix kept from an earlier call)"
    print(
        f"{title}: loop {loop_s:.2f} s, engine {engine_s:.2f} s, {row['speedup']:.1f}x{kept}; first runs, compiling included, "
        f"{loop_first:.1f} and {engine_first:.1f} s; losses differ by {row['largest_relative_difference']:.1e}",
        flush=True,
    )
    return row


def candidates(n: int, magnitude: float, bounds: Sequence[tuple[float, float]] = ((-np.inf, np.inf),)) -> list[NoiseCandidate]:
    """``n`` draws for every bin."""
    keys = jax.random.split(jax.random.key(0), n * len(bounds))
    spread = [b for b in bounds for _ in range(n)]
    numbers = [[np.float32(x) for x in (low, high, magnitude)] for low, high in spread]
    return [NoiseCandidate(*three, key) for three, key in zip(numbers, keys, strict=True)]


def bins_of(params: Any, name: str, n: int) -> list[tuple[float, float]]:
    """Bounds of a leaf's Gaussian bins."""
    edges = gaussian_bins({"w": named_leaves(params)[name]}, n)["w"].edges
    return list(itertools.pairwise([-np.inf, *np.asarray(edges).tolist(), np.inf]))


def random_batches(n: int, batch: int, shape: Sequence[int], classes: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return batches(rng.standard_normal((n, *shape)).astype(np.float32), rng.integers(0, classes, n).astype(np.int32), batch)


def resnet_plan(data_dir: Path | None, quick: bool) -> tuple[Any, Any, Sequence[Any], Plan]:
    """ResNet-20, all weight leaves, Gaussian noise of 0.05."""
    n_images, draws = (100, 4) if quick else (1000, 16)
    if data_dir is not None:
        task = resnet_task(data_dir, n_calibration=1000, n_test=n_images)
        score, params, data = task.score, task.params, task.test
    else:
        model = CifarResNet(20, rngs=nnx.Rngs(0))
        score, params = classification_score(nnx_apply(model)), nnx_params(model)
        data = random_batches(n_images, min(250, n_images), (32, 32, 3), 10)
    # Compiling takes most of a quick run.
    names = list(select(params).taken)[:: 5 if quick else 1]
    return score, params, data, {name: candidates(draws, 0.05) for name in names}


def resnet(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """All leaves of ResNet-20 against the loop."""
    score, params, data, plan = resnet_plan(data_dir, quick)
    title = f"ResNet-20, {len(plan)} leaves x {len(next(iter(plan.values())))}, {len(data)} batches"
    return compare(title, score, params, data, plan, Noise("gaussian"))


def resnet_torch(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """PyTorch's eager mode on the same network: noise on each leaf, a full forward pass for each candidate."""
    import torch
    from sweep_torch import eager_resnet20

    score, params, data, plan = resnet_plan(data_dir, quick)
    published = None if data_dir is None else read_weights(data_dir / "weights" / "resnet20_cifar10.safetensors")
    loss, passes = eager_resnet20(params, data, published, list(plan))
    with torch.no_grad():
        expected = Evaluator(score, data).baseline(params)["loss"]
        if abs(loss() - expected) > 1e-3 * abs(expected):
            raise ValueError(f"the PyTorch network is not the same: loss {loss()}, expected {expected}")
        points = len(next(iter(plan.values())))
        seconds, found = timed(lambda: passes(points))
    print(f"PyTorch {torch.__version__}, eager, 2 threads: {seconds:.2f} s for {len(found)} full forward passes", flush=True)
    return {"seconds": seconds, "scores": len(found)}


def race(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """The leaves of ResNet-20 that matter most, found with a fifth of the evaluations of the other rows about it."""
    score, params, data, plan = resnet_plan(data_dir, quick)
    # At so little noise a few images and draws tell nothing: a quick run has but the seconds right.
    draws, top = (64, "top2") if quick else (16, "top10")
    asked = [Candidate(leaf=name, magnitude=0.05, draws=draws) for name in plan]

    def run() -> Any:
        return sweep(score, params, data, asked, key=jax.random.key(0), metric="-loss", until=top, budget=0.2)

    first_s, _ = timed(run)
    seconds, found = timed(run)  # what was compiled is kept
    spent = found.race.evaluations / found.race.of
    print(f"{top} of {len(asked)} leaves: {seconds:.1f} s, first run {first_s:.1f} s, {spent:.1%} of the evaluations", flush=True)
    return {"seconds": seconds, "first_s": first_s, "share": spent}


def resnet_engine(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Every third leaf of ResNet-20 on the engine alone, with its scores."""
    score, params, data, plan = resnet_plan(data_dir, quick)
    plan = plan if quick else dict(list(plan.items())[::3])
    evaluator = Evaluator(score, data)
    run_engine(evaluator, params, {name: points[:1] for name, points in plan.items()}, Noise("gaussian"))
    evaluator.forget()
    seconds, found = timed(lambda: run_engine(evaluator, params, plan, Noise("gaussian")))
    return {"seconds": seconds, "losses": [x for losses in found.values() for x in losses]}


def spc(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """The dense layer of the Speech Commands network, 8 bins x 4 draws."""
    clips = 40 if quick else 320
    if data_dir is not None:
        model = load_spc(data_dir / "weights" / "spc_conv.safetensors")
        speech = read_speech(data_dir / "speech", "calibration")
        data = batches(spc_features(speech.pcm[:clips]), speech.labels[:clips], 40)
    else:
        model = SpeechConv(rngs=nnx.Rngs(0))
        data = random_batches(clips, 40, (98, 40, 1), 11)
    params = nnx_params(model)
    plan = {"fc/kernel": candidates(4, 0.5, bins_of(params, "fc/kernel", 8))}
    score = classification_score(nnx_apply(model))
    return compare(f"SPC, dense layer, 8 bins x 4, {clips} clips", score, params, data, plan, Noise("relative"))


def vgg16(quick: bool) -> dict[str, Any]:
    """The first dense layer of VGG16 with random weights, 12 bins, images of 224 x 224."""
    images, n_bins = (8, 4) if quick else (64, 12)
    model = nnx.jit(lambda: VGG(16, rngs=nnx.Rngs(0)))()
    params = nnx_params(model)
    score = classification_score(nnx_apply(model))
    del model
    data = random_batches(images, 8, (224, 224, 3), 1000)
    plan = {"fc1/kernel": candidates(1, 0.5, bins_of(params, "fc1/kernel", n_bins))}
    row = compare(f"VGG16, first dense layer, {n_bins} bins, {images} images", score, params, data, plan, Noise("relative"))
    row["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"VGG16: peak memory of the process {row['peak_gigabytes']:.2f} GB", flush=True)
    return row


def devices(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Leaves of ResNet-20 in a process of 1 and in one of 4 CPU devices, both on the same cores."""
    rows = {}
    for n in (1, 4):
        command = [sys.executable, __file__, "--only", "engine", "--devices", str(n), *(["--quick"] if quick else [])]
        command += ["--data", str(data_dir)] if data_dir is not None else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows[n] = json.loads(done.stdout.splitlines()[-1])["engine"]
    row = {
        "one_s": rows[1]["seconds"],
        "four_s": rows[4]["seconds"],
        "overhead": rows[4]["seconds"] / rows[1]["seconds"] - 1,
        "scores": len(rows[1]["losses"]),
        "scores_that_differ": sum(a != b for a, b in zip(rows[1]["losses"], rows[4]["losses"], strict=True)),
    }
    print(
        f"1 against 4 CPU devices: {row['one_s']:.2f} and {row['four_s']:.2f} s, overhead {100 * row['overhead']:.1f} %; "
        f"{row['scores_that_differ']} of {row['scores']} losses differ",
        flush=True,
    )
    return row


def overhead() -> dict[str, Any]:
    """Suffix time of one 3 x 3 convolution of ResNet-20's last stage over the time of that convolution by itself."""
    x = jax.random.normal(jax.random.key(0), (250, 8, 8, 64))
    params = {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 64, 64)) / 24}

    def convolve(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def score(params: Any, x: jax.Array) -> Any:
        return jnp.sum(convolve(params["kernel"], x)), jnp.float32(len(x))

    evaluator, plan = Evaluator(score, [x]), candidates(64, 0.01)
    evaluator.scores(params, ["kernel"], Noise("gaussian"), plan)
    engine_s = min(timed(lambda: evaluator.scores(params, ["kernel"], Noise("gaussian"), plan))[0] for _ in range(3)) / len(plan)
    alone = jax.jit(convolve)
    alone(params["kernel"], x).block_until_ready()
    alone_s = min(timed(lambda: jax.block_until_ready([alone(params["kernel"], x) for _ in range(64)]))[0] for _ in range(3)) / 64
    print(f"suffix {1e3 * engine_s:.2f} ms, its convolution alone {1e3 * alone_s:.2f} ms, {engine_s / alone_s:.2f}x", flush=True)
    return {"suffix_ms": 1e3 * engine_s, "convolution_ms": 1e3 * alone_s, "ratio": engine_s / alone_s}


def pairs(data_dir: Path | None, quick: bool, images: int) -> dict[str, Any]:
    """All pairs of ResNet-20's layers at one magnitude against a loop over full forward passes, in wall and in CPU seconds."""
    score, params, data, _ = resnet_plan(data_dir, True)
    data = [jax.tree.map(lambda x: jnp.tile(x, (-(-images // 100),) + (1,) * (x.ndim - 1))[:images], data[0])]
    leaves = named_leaves(params)
    names = list(select(params).taken)[:: 5 if quick else 1]
    asked = [Candidate(leaf=x, magnitude=0.2 * float(np.std(leaves[x]))) for x in names]
    noise, key = Jointly(Noise("gaussian")), jax.random.key(0)
    function = jax.jit(
        lambda p, batch, joint: score(
            replace(p, {x: noise(named_leaves(p)[x], joint, (np.int32(i), None)) for i, x in enumerate(names)}), batch
        )
    )

    def loop() -> list[float]:
        found = []
        for i, j in itertools.combinations(range(len(names)), 2):
            joint = joint_of([point_of(asked[k], 0, key, np.float32) for k in (i, j)], [i, j])
            out = [function(params, batch, joint) for batch in data]
            found.append(sum(float(s["loss"]) for s, _ in out) / sum(float(n) for _, n in out))
        return found

    def engine() -> Any:
        return interactions(score, params, data, asked, key=key)

    one = joint_of([point_of(asked[0], 0, key, np.float32)] * 2, [0, 1])
    loop_first, _ = timed(lambda: jax.block_until_ready(function(params, data[0], one)))
    engine_first, first = timed(engine)
    start = time.process_time()
    engine_s, found = timed(engine)  # what was compiled is kept
    middle = time.process_time()
    loop_s, losses = timed(loop)
    engine_cpu, loop_cpu = middle - start, time.process_time() - middle
    differ = max(abs(row.drop + found.baseline["loss"] - loss) / loss for row, loss in zip(found.pairs, losses, strict=True))
    print(
        f"{len(losses)} pairs, {images} images: loop {loop_s:.1f} s, engine {engine_s:.1f} s with singles and all together, "
        f"{loop_s / engine_s:.2f}x; CPU {loop_cpu:.1f} and {engine_cpu:.1f} s, {loop_cpu / engine_cpu:.2f}x; first runs "
        f"{loop_first:.1f} s (one call) and {engine_first:.1f} s; losses differ by {differ:.1e}",
        flush=True,
    )
    return {
        "pairs": len(losses),
        "loop_s": loop_s,
        "engine_s": engine_s,
        "speedup": loop_s / engine_s,
        "loop_cpu_s": loop_cpu,
        "engine_cpu_s": engine_cpu,
        "speedup_cpu": loop_cpu / engine_cpu,
        "first_s": engine_first,
        "compile_s": first.compile_seconds,
        "largest_relative_difference": differ,
    }


def first_runs(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """First run of a sweep of ResNet-20's leaves, compiling counted: an executable a leaf, and shared by leaves near each other."""
    score, params, data, _ = resnet_plan(data_dir, True)
    leaves = named_leaves(params)
    names = list(select(params).taken)[:: 5 if quick else 1]
    asked = [Candidate(leaf=x, magnitude=0.2 * float(np.std(leaves[x]))) for x in names]
    rows = {}
    for way, share in (("an executable a leaf", 2.0), ("shared", sweep_run.LEAST_SHARED)):
        sweep_run.LEAST_SHARED, before = share, sweep_run.LEAST_SHARED
        jax.clear_caches()
        start = time.process_time()
        seconds, found = timed(lambda: sweep(score, params, data, asked, key=jax.random.key(0)))
        rows[way] = {"seconds": seconds, "cpu_s": time.process_time() - start, "compile_s": found.compile_seconds}
        sweep_run.LEAST_SHARED = before
        print(f"first run of {len(names)} leaves, {way}: {rows[way]}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images, ends within a minute")
    parser.add_argument("--data", type=Path, help="folder with weights/, speech/ and tfds/")
    names = ["resnet", "torch", "race", "spc", "vgg", "devices", "overhead", "engine", "pairs", "first"]
    parser.add_argument("--only", nargs="+", choices=names)
    parser.add_argument("--images", type=int, default=500, help="of the pairs")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of this process")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    rows = {
        "resnet": ("resnet20", lambda: resnet(args.data, args.quick)),
        "torch": ("resnet20_torch", lambda: resnet_torch(args.data, args.quick)),
        "race": ("resnet20_race", lambda: race(args.data, args.quick)),
        "spc": ("spc_dense", lambda: spc(args.data, args.quick)),
        "vgg": ("vgg16_dense", lambda: vgg16(args.quick)),
        "devices": ("devices", lambda: devices(args.data, args.quick)),
        "overhead": ("overhead", overhead),
        "engine": ("engine", lambda: resnet_engine(args.data, args.quick)),
        "pairs": ("pairs", lambda: pairs(args.data, args.quick, 100 if args.quick else args.images)),
        "first": ("first_runs", lambda: first_runs(args.data, args.quick)),
    }
    left_out = {"engine", *(("vgg", "devices") if args.quick else ())}
    if importlib.util.find_spec("torch") is None:
        left_out.add("torch")
        print("PyTorch is not installed: its row is left out", flush=True)
    chosen = args.only or [row for row in rows if row not in left_out]
    print(json.dumps({rows[row][0]: rows[row][1]() for row in chosen}))


if __name__ == "__main__":
    main()
