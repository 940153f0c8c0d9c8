"""k-means of weights: CPU seconds and mean squared error against named alternatives, on the same data in the same run.

    python benchmarks/kmeans.py            # 4096 x 4096 weights
    python benchmarks/kmeans.py --quick    # 1024 x 1024
    python benchmarks/kmeans.py --only vector

CPU seconds are those of the whole process on all cores, the least of three runs, compile time apart. Prints a table and,
as its last line, one JSON object. Blocks are compared with faiss (`pip install faiss-cpu`) on all points, from its own
starts, with the assignment of all points included on both sides; without faiss there is no such row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bqjax.kmeans.scalar import kmeans_scalar
from bqjax.kmeans.vector import kmeans_vector

K = 16
BINS = 65_536
BLOCK, ENTRIES, ITERATIONS = 4, 256, 25


def numpy_histogram_lloyd(
    x: np.ndarray, k: int, weights: np.ndarray | None, max_iterations: int = 300, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's algorithm on a linear histogram of 65,536 bins with prefix sums, in NumPy: the alternative.

    Starts from quantiles; ends with the nearest entry of every weight. Returns codebook and indices.
    """
    low, high = float(x.min()), float(x.max())
    cells = ((x - np.float32(low)) * np.float32((BINS - 1) / (high - low))).astype(np.int32)
    mass = np.bincount(cells, weights, BINS).astype(np.float64)
    centres = low + (np.arange(BINS) + 0.5) * ((high - low) / (BINS - 1))
    sum_mass = np.append(0, np.cumsum(mass))
    sum_value = np.append(0, np.cumsum(mass * centres))
    codebook = np.interp((np.arange(k) + 0.5) / k, sum_mass[1:] / sum_mass[-1], centres)
    for _ in range(max_iterations):
        ends = np.searchsorted(centres, (codebook[1:] + codebook[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [BINS]])
        total, value = np.diff(sum_mass[ends]), np.diff(sum_value[ends])
        means = np.where(total > 0, value / np.where(total > 0, total, 1), codebook)
        moved = np.abs(means - codebook).max()
        codebook = means
        if moved <= tolerance * (high - low) / BINS:
            break
    # Every bin has one index, so that the assignment is a lookup; it is exact but for the k - 1 bins at boundaries.
    table = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, centres).astype(np.uint8)
    return codebook.astype(np.float32), table[cells]


def mean_squared_error(x: np.ndarray, codebook: Any, indices: Any, weights: np.ndarray | None) -> float:
    error = np.square((x - np.asarray(codebook)[np.asarray(indices)]).astype(np.float64))
    return float(error.mean() if weights is None else (error * weights).mean() / weights.mean(dtype=np.float64))


def cpu_seconds(run: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return best, result


def scalar_row(name: str, x: np.ndarray, weights: np.ndarray | None) -> dict[str, Any]:
    """One comparison: 16 values for all weights, with the nearest value of every weight."""
    on_device = [None if a is None else jax.device_put(a) for a in (x, weights)]
    start = time.process_time()
    compiled = jax.jit(lambda x, w: kmeans_scalar(x, K, w)).lower(*on_device).compile()
    compile_seconds = time.process_time() - start
    jax.block_until_ready(compiled(*on_device))
    seconds, ours = cpu_seconds(lambda: jax.block_until_ready(compiled(*on_device)))
    alternative_seconds, (codebook, indices) = cpu_seconds(lambda: numpy_histogram_lloyd(x, K, weights))
    mse = mean_squared_error(x, ours.codebook, ours.indices, weights)
    alternative_mse = mean_squared_error(x, codebook, indices, weights)
    return {
        "row": name,
        "n": x.size,
        "k": K,
        "alternative": f"NumPy histogram Lloyd, {BINS:,} bins",
        "bqjax_cpu_s": seconds,
        "alternative_cpu_s": alternative_seconds,
        "speedup": alternative_seconds / seconds,
        "bqjax_mse": mse,
        "alternative_mse": alternative_mse,
        "mse_ratio": mse / alternative_mse,
        "bqjax_compile_cpu_s": compile_seconds,
    }


def faiss_kmeans(x: np.ndarray, k: int, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """faiss's k-means on all points, then the nearest entry of every point: the alternative for blocks."""
    import faiss

    clustering = faiss.Kmeans(x.shape[1], k, niter=ITERATIONS, max_points_per_centroid=x.shape[0], seed=seed)
    clustering.train(x, weights=weights)
    return clustering.centroids, clustering.index.search(x, 1)[1][:, 0]


def vector_row(name: str, x: np.ndarray, weights: np.ndarray, sampling: bool) -> dict[str, Any]:
    """Blocks of 4 weights into 256: three starts each; least seconds and mean error over the starts."""
    on_device = jax.device_put(x), jax.device_put(weights)
    cluster = jax.jit(lambda x, w, key: kmeans_vector(x, ENTRIES, w, key=key, iterations=ITERATIONS, sampling=sampling))
    keys = list(jax.random.split(jax.random.key(0), 3))
    start = time.process_time()
    compiled = cluster.lower(*on_device, keys[0]).compile()
    compile_seconds = time.process_time() - start
    memory = compiled.memory_analysis()
    jax.block_until_ready(compiled(*on_device, keys[0]))
    ours, theirs = [], []
    for i, key in enumerate(keys):  # in turn, so that the machine's other load falls on both
        seconds, result = cpu_seconds(lambda key=key: jax.block_until_ready(compiled(*on_device, key)), 1)
        ours.append((seconds, mean_squared_error(x, result.codebook, result.indices, weights[:, None])))
        seconds, (codebook, indices) = cpu_seconds(lambda i=i: faiss_kmeans(x, ENTRIES, weights, i), 1)
        theirs.append((seconds, mean_squared_error(x, codebook, indices, weights[:, None])))
    seconds, alternative_seconds = min(s for s, _ in ours), min(s for s, _ in theirs)
    mse, alternative_mse = (float(np.mean([e for _, e in each])) for each in (ours, theirs))
    return {
        "row": name,
        "n": x.shape[0],
        "k": ENTRIES,
        "d": x.shape[1],
        "alternative": f"faiss, all points, {ITERATIONS} iterations",
        "bqjax_iterations": int(result.iterations),
        "bqjax_cpu_s": seconds,
        "alternative_cpu_s": alternative_seconds,
        "speedup": alternative_seconds / seconds,
        "bqjax_mse": mse,
        "alternative_mse": alternative_mse,
        "mse_ratio": mse / alternative_mse,
        "bqjax_compile_cpu_s": compile_seconds,
        "bqjax_extra_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
        "bqjax_starts": ours,
        "alternative_starts": theirs,
    }


def vector_rows(x: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    try:
        import faiss  # noqa: F401
    except ImportError:
        print("no row for blocks: faiss is not installed")
        return []
    blocks, block_weights = x.reshape(-1, BLOCK), weights[: x.size // BLOCK]
    return [
        vector_row("blocks, weighted", blocks, block_weights, True),
        vector_row("the same, no sample", blocks, block_weights, False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="1024 x 1024 weights instead of 4096 x 4096")
    parser.add_argument("--only", choices=["scalar", "vector"], help="only these rows")
    arguments = parser.parse_args()
    side = 1024 if arguments.quick else 4096

    rng = np.random.default_rng(0)
    x = rng.standard_normal(side * side, dtype=np.float32)
    weights = rng.exponential(size=side * side).astype(np.float32)
    rows = []
    if arguments.only != "vector":
        rows += [scalar_row("scalar", x, None), scalar_row("scalar, weighted", x, weights)]
    if arguments.only != "scalar":
        rows += vector_rows(x, weights)

    print(f"{'row':<20}{'n':>12}{'k':>5}{'bqjax s':>10}{'other s':>10}{'speedup':>9}{'bqjax mse':>13}{'other mse':>13}{'ratio':>9}")
    for r in rows:
        print(
            f"{r['row']:<20}{r['n']:>12,}{r['k']:>5}{r['bqjax_cpu_s']:>10.3f}{r['alternative_cpu_s']:>10.3f}{r['speedup']:>8.2f}x"
            f"{r['bqjax_mse']:>13.8f}{r['alternative_mse']:>13.8f}{r['mse_ratio']:>9.6f}"
        )
    print(json.dumps({"benchmark": "kmeans", "backend": jax.default_backend(), "jax": jax.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
