"""Blocks of several shapes before training: ResNet-20's kernels from the solver, bits against accuracy on calibration images.

    python benchmarks/blocks.py --data DATA
    python benchmarks/blocks.py --data DATA --shapes "whole kernels, 256; *" --lmbdas 2e-4 5e-4 1.2e-3 --test

Channels are equalized over all layers, so that one network and one curvature, of 1,000 training images, serve all shapes. Bits are
those of the file over all 20 kernels, codebooks, first convolution and head among them; activations are float, vectors go to few
bits at the same lmbda. Accuracy is on the images of the curvature, which the network has learnt: it compares shapes and says
nothing about new images, which ``--test`` asks. A seed is that of the solver's k-means. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from bqjax import Rule, codec, decode
from bqjax.adapters.flax import equalize_channels, nnx_apply, nnx_params
from bqjax.adapters.flax.equalize import batch_norms
from bqjax.core.classification import classification_task
from bqjax.core.scoring import Scored, paired_error, score_on
from bqjax.core.task import Task
from bqjax.core.tree import named_leaves
from bqjax.methods.rate_distortion import BlockConfig, block_quant_rd, prepare_blocks
from bqjax.models.resnet import load_resnet
from bqjax.sensitivity.task_statistics import task_curvature
from train.tasks.cifar import resnet_task

REST, FIRST = "layer[23]/*/kernel", "layer1/*/kernel"
# Of stages 2 and 3, and of stage 1.
SHAPES = {
    "whole kernels, 256; rows of three, 32": ((9, 256), (3, 32)),
    "whole kernels, 512; rows of three, 32": ((9, 512), (3, 32)),
    "whole kernels, 256, one codebook": ((9, 256), None),
    "rows of three, 64; rows of three, 32": ((3, 64), (3, 32)),
    "pairs, 32; pairs, 32": ((2, 32), (2, 32)),
    "pairs, 16, one codebook": ((2, 16), None),
    "fours, 128; fours, 64": ((4, 128), (4, 64)),
    "fours, 512; fours, 64": ((4, 512), (4, 64)),
}


def _rules(rest: tuple[int, int], first: tuple[int, int] | None) -> list[Rule[BlockConfig]]:
    if first is None:
        return [Rule("layer*/kernel", BlockConfig(d=rest[0], k=rest[1]), group="all")]
    pairs = ((REST, rest), (FIRST, first))
    return [Rule(pattern, BlockConfig(d=d, k=k), group=pattern) for pattern, (d, k) in pairs]


def _equalized(data: str) -> Task:
    """The task of the network whose channels are equalized."""
    task, model = resnet_task(data), load_resnet(Path(data) / "weights" / "resnet20_cifar10.safetensors")
    layers = [name.removesuffix("/kernel") for name in named_leaves(task.params) if fnmatch.fnmatchcase(name, "layer*/kernel")]
    model = equalize_channels(model, batch_norms(model, layers), dict.fromkeys(layers, "all"))
    return classification_task(nnx_apply(model), nnx_params(model), task.calibration, task.test, name=task.name)


def _row(task: Task, tree: Any, before: Scored | None) -> dict[str, float]:
    """Bytes, bits a weight over all kernels, accuracy on calibration images; with the scores ``before``, on test images too."""
    with TemporaryDirectory() as folder:
        info = codec.save(Path(folder) / "blocks.bq.safetensors", tree)
    kernels, params = [leaf for leaf in info.leaves if len(leaf.shape) > 1], decode(tree)
    row = {
        "bytes": info.file_bytes,
        "bits": 8 * sum(leaf.bytes for leaf in kernels) / sum(leaf.size for leaf in kernels),
        "accuracy": score_on(task, params, task.calibration).metrics["accuracy"],
    }
    if before is not None:
        after = score_on(task, params, task.test)
        row["test"] = after.metrics["accuracy"]
        row["difference"] = row["test"] - before.metrics["accuracy"]
        row["error"] = paired_error(before.parts, after.parts, after.n_examples) or 0.0
    return row


def _text(row: dict[str, Any]) -> str:
    test = (
        f", test {100 * row['test']:.2f} %, {100 * row['difference']:+.2f} ± {100 * row['error']:.2f} points"
        if "test" in row
        else ""
    )
    return (
        f"{row['shape']}, seed {row['seed']}, lmbda {row['lmbda']:g}: {row['bits']:.3f} bits, {row['bytes']:,} bytes, "
        f"{100 * row['accuracy']:.1f} %{test} ({row['seconds']:.0f} s)"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--shapes", nargs="*", default=["*"], help="patterns of labels")
    parser.add_argument("--lmbdas", nargs="*", type=float, default=[2.5e-4, 4e-4, 6.5e-4, 1.2e-3])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--test", action="store_true", help="accuracy on the 10,000 test images, too")
    args = parser.parse_args()
    task, rows = _equalized(args.data), []
    before = score_on(task, task.params, task.test) if args.test else None
    curvature = task_curvature(task, key=jax.random.key(0))
    for label, (rest, first) in SHAPES.items():
        if not any(fnmatch.fnmatchcase(label, pattern) for pattern in args.shapes):
            continue
        blocks = _rules(rest, first)
        prepared = prepare_blocks(task.params, curvature, blocks)
        for seed, lmbda in itertools.product(args.seeds, args.lmbdas):
            start, key = time.perf_counter(), jax.random.key(seed)
            tree = block_quant_rd(task.params, curvature, lmbda=lmbda, blocks=blocks, key=key, prepared=prepared)
            row = {"shape": label, "seed": seed, "lmbda": lmbda, **_row(task, tree, before), "seconds": time.perf_counter() - start}
            rows.append(row)
            print(_text(row), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
