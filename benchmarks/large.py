"""Networks of hundreds of megabytes with random weights through the whole chain, and a file larger than may be in memory.

    python benchmarks/large.py                    # DeepSpeech 1, DeepSpeech 2 and VGG16 at full size: minutes, 2.5 GB
    python benchmarks/large.py --quick vgg16      # a sixteenth of the channels: does it run?
    python benchmarks/large.py --stream 2048      # `bqjax compress` of a file of 2,048 MB under a limit of 1,500 MB

A network's row: Gaussian bins of 16 values for every leaf of two or more dimensions, coded with ANS; the file saved,
loaded, decoded, and compared with what was written. Each network runs in a process of its own. Its peak of memory is what
the kernel counted, less what the process had before there were weights, so that it can be held against the float size.
The limit of --stream is the kernel's on a process's data (RLIMIT_DATA): beyond it, allocations fail. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
PUBLISHED_MB = {"deepspeech1": 181, "deepspeech2": 158, "vgg16": 530}


def _networks(quick: bool) -> dict[str, Callable[[], Any]]:
    from flax import nnx

    from bqjax.models.deep_speech import DeepSpeech1, DeepSpeech2
    from bqjax.models.vgg import VGG

    if quick:
        return {
            "deepspeech1": lambda: DeepSpeech1(hidden=128, cells=80, rngs=nnx.Rngs(0)),
            "deepspeech2": lambda: DeepSpeech2(channels=(2, 2), cells=50, rngs=nnx.Rngs(0)),
            "vgg16": lambda: VGG(16, width=1 / 16, hidden=256, rngs=nnx.Rngs(0)),
        }
    return {
        "deepspeech1": lambda: DeepSpeech1(rngs=nnx.Rngs(0)),
        "deepspeech2": lambda: DeepSpeech2(rngs=nnx.Rngs(0)),
        "vgg16": lambda: VGG(16, rngs=nnx.Rngs(0)),
    }


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(name: str, quick: bool) -> dict[str, float]:
    """Measures one network in this process."""
    import jax
    import numpy as np
    from flax import nnx

    from bqjax import codec
    from bqjax.adapters.flax import nnx_params
    from bqjax.core.leaves import decode
    from bqjax.core.tree import named_leaves
    from bqjax.experiment.runner import same_tree
    from bqjax.methods.bins.gaussian import gaussian_bins
    from bqjax.methods.bins.quantize import bin_and_quant

    shapes = nnx_params(nnx.eval_shape(_networks(quick)[name]))
    rng = np.random.default_rng(0)
    # Everything that the chain compiles and imports is there before memory is counted.
    small = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
    decode(bin_and_quant(small, gaussian_bins(small, 16)))
    before = _peak()

    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02), shapes)
    weights = sum(leaf.size for leaf in named_leaves(params).values())
    seconds = {}

    def timed(what: str, run: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(run(*args))
        seconds[what] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        path = Path(folder) / "net.bq.safetensors"
        tree = timed("bins", lambda params: bin_and_quant(params, gaussian_bins(params, 16)), params)
        peak_of_bins = _peak() - before
        start = time.perf_counter()
        info = codec.save(path, tree, coder="ans")
        seconds["save"] = time.perf_counter() - start
        del params  # who decodes a file has no float weights beside it
        loaded = timed("load", lambda: codec.load(path, like=tree))
        decoded = timed("decode", lambda: decode(loaded))
        start = time.perf_counter()
        if not same_tree(tree, loaded):
            raise RuntimeError(f"{name} does not decode to what was written")
        seconds["verify"] = time.perf_counter() - start
        del decoded
    return {
        "weights": weights,
        "float_mib": 4 * weights / MIB,
        "file_mib": info.file_bytes / MIB,
        "ratio": info.ratio,
        **{f"{what}_s": value for what, value in seconds.items()},
        "total_s": sum(seconds.values()),
        "peak_of_float_in_bins": peak_of_bins / (4 * weights),
        "peak_of_float": (_peak() - before) / (4 * weights),
    }


def _in_process(name: str, quick: bool, queue: Any) -> None:
    queue.put(row(name, quick))


def write_synthetic(path: Path, megabytes: int) -> None:
    """A safetensors file of float32 leaves of 64 MiB, written piece by piece."""
    import numpy as np

    n = max(1, megabytes // 64)
    leaf = 64 * MIB
    entries = {
        f"layer{i:03}": {"dtype": "F32", "shape": [4096, 4096], "data_offsets": [i * leaf, (i + 1) * leaf]} for i in range(n)
    }
    header = json.dumps(entries).encode()
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(n):
            file.write(rng.standard_normal((4096, 4096), np.float32).data)


def stream(megabytes: int, limit: int) -> dict[str, float]:
    """``bqjax compress`` of a synthetic file under a limit of memory, both in MiB."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        source, out = Path(folder) / "w.safetensors", Path(folder) / "w.bq.safetensors"
        write_synthetic(source, megabytes)
        command = [
            sys.executable,
            "-m",
            "bqjax",
            "compress",
            str(source),
            "--method",
            "gaussian-bins",
            "--out",
            str(out),
            "--coder",
            "ans",
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit * MIB, limit * MIB)))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return {
            "megabytes": source.stat().st_size / MIB,
            "limit_mib": limit,
            "seconds": seconds,
            "peak_mib": peak / MIB,
            "ratio": source.stat().st_size / out.stat().st_size,
        }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the channels")
    parser.add_argument("--stream", type=int, metavar="MB", help="compress a synthetic file of this size instead")
    parser.add_argument("--limit", type=int, default=1500, metavar="MB", help="of memory, with --stream")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(PUBLISHED_MB):
        parser.error(f"unknown networks {', '.join(sorted(unknown))}: choose from {', '.join(PUBLISHED_MB)}")
    if args.stream:
        result = stream(args.stream, args.limit)
        print(
            f"{result['megabytes']:.0f} MiB in {result['seconds']:.0f} s, {result['ratio']:.2f}x, "
            f"peak {result['peak_mib']:.0f} MiB of memory"
        )
        print(json.dumps({"stream": result}))
        return
    columns = (
        "weights",
        "MiB",
        "published",
        "bins s",
        "save s",
        "load s",
        "decode s",
        "verify s",
        "total s",
        "ratio",
        "peak/float",
    )
    print(f"{'network':<12}" + "".join(f"{c:>12}" for c in columns))
    rows = {}
    spawn = multiprocessing.get_context("spawn")
    for name in args.networks or PUBLISHED_MB:
        queue = spawn.SimpleQueue()
        process = spawn.Process(target=_in_process, args=(name, args.quick, queue))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} failed")
        r = rows[name] = queue.get()
        seconds = "".join(f"{r[f'{what}_s']:>12.1f}" for what in ("bins", "save", "load", "decode", "verify", "total"))
        print(
            f"{name:<12}{r['weights']:>12,}{r['float_mib']:>12.1f}{PUBLISHED_MB[name]:>12}{seconds}{r['ratio']:>12.2f}"
            f"{r['peak_of_float']:>12.2f}",
            flush=True,
        )
    print(json.dumps({"quick": args.quick, "networks": rows}))


if __name__ == "__main__":
    main()
