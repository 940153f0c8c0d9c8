"""Methods without data at equal error: which one should be the default for weights?

    python benchmarks/weights.py WEIGHTS.safetensors ...

Each method compresses all leaves of two or more dimensions of each file, and each leaf's relative error is measured. Then even
levels compress the same leaves, each at the error that the method had on it. The bytes are those of codes and tables, by the same
coder (ans). So a ratio below 1 says that even levels make the smaller file of leaves that are no further off anywhere. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bqjax import codec
from bqjax.adapters.safetensors import read_weights
from bqjax.cli.weights_methods import WeightMethod
from bqjax.cli.weights_report import measured
from bqjax.core.leaves import is_compressed
from bqjax.core.rules import select
from bqjax.methods.baselines.even import EvenConfig, even_levels

METHODS = {
    "k-means 8": WeightMethod(name="kmeans", bins=8),
    "k-means 16": WeightMethod(name="kmeans", bins=16),
    "k-means 32": WeightMethod(name="kmeans", bins=32),
    "k-means 64": WeightMethod(name="kmeans", bins=64),
    "Gaussian bins 16": WeightMethod(name="gaussian-bins", bins=16),
    "Gaussian bins 32": WeightMethod(name="gaussian-bins", bins=32),
    "int4": WeightMethod(name="int4"),
    "int8": WeightMethod(name="int8"),
    "PQ 256 x 4": WeightMethod(name="pq"),
    "RQ 2 x 256 x 4": WeightMethod(name="rq"),
}


def stored(tree: dict[str, Any], folder: str) -> dict[str, int]:
    """Bytes of each leaf in a file."""
    info = codec.save(Path(folder) / "f", tree, coder="ans", force=True)
    return {leaf.name: leaf.bytes for leaf in info.leaves}


def compared(weights: dict[str, np.ndarray], method: WeightMethod, folder: str) -> dict[str, float]:
    """Bytes of a method and of even levels at its errors, over the leaves that it compresses."""
    start = time.process_time()
    tree = {name: method.compress(name, weight).leaf for name, weight in weights.items()}
    seconds = time.process_time() - start
    errors = {name: measured(name, weights[name], leaf).error for name, leaf in tree.items() if is_compressed(leaf)}
    even: dict[str, Any] = {}
    start = time.process_time()
    for name, error in errors.items():
        # Leaves that came out exact, and those of which nothing is left, have no error that a grid could be asked for.
        config = EvenConfig(rtol=min(max(error, 1e-4), 0.9))
        even[name] = even_levels({"w": weights[name]}, config=config)["w"]
    even_seconds = time.process_time() - start
    theirs, ours = (stored({name: t[name] for name in errors}, folder) for t in (tree, even))
    smaller = sum(ours[name] <= theirs[name] for name in errors)
    return {
        "worst": max(errors.values()),
        "bytes": sum(theirs.values()),
        "even": sum(ours.values()),
        "smaller": smaller,
        "leaves": len(errors),
        "seconds": seconds,
        "even_seconds": even_seconds,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    args = parser.parse_args()
    rows = []
    print("| file | method | worst leaf % | bytes | even levels at its errors | ratio | leaves in fewer bytes | CPU s, even |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for path in args.weights:
            whole = read_weights(path)
            weights = {name: whole[name] for name in select(whole).taken}
            for label in args.methods:
                row = compared(weights, METHODS[label], folder)
                ratio = row["even"] / row["bytes"]
                print(
                    f"| {path.stem} | {label} | {100 * row['worst']:.1f} | {row['bytes']:,} | {row['even']:,} | {ratio:.3f} | "
                    f"{row['smaller']} of {row['leaves']} | {row['seconds']:.1f}, {row['even_seconds']:.1f} |",
                    flush=True,
                )
                rows.append({"file": path.name, "method": label, "ratio": ratio} | row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
