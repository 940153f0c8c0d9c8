"""Every method on one dense layer of the size of VGG16's first: seconds and memory, each in a process of its own.

    python benchmarks/methods.py                 # 25,088 x 4,096 weights, 102.8 million, or as many as the table says
    python benchmarks/methods.py --quick         # 1,024 x 1,024
    python benchmarks/methods.py --only dkm      # methods whose name contains it
    python benchmarks/methods.py --step          # a DKM step of a small CNN against its float step, in one run

Seconds are those of the first call, compilation included, as a user has them, and the CPU seconds of all cores in it. Extra
memory is what the process's resident size rose to above what it was with the weights in place, in units of the weights' bytes. For
DKM, a call is one training step, and ``saved`` is XLA's temporary memory of it per weight. Prints a table and, last, one JSON
object. Needs psutil (`pip install "bqjax[bench]"`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from bqjax.methods.baselines.deep_compression import DeepCompressionConfig, deep_compress
from bqjax.methods.baselines.diba import DiBAConfig, diba_factorize
from bqjax.methods.baselines.dkm import DKMConfig, dkm_forward
from bqjax.methods.baselines.product import ProductConfig, binarize, product_quantize
from bqjax.methods.baselines.pruning import GradualPruning, gradual_pruning, magnitude_masks
from bqjax.methods.baselines.ptq import PTQConfig, correct_biases, quantize
from bqjax.methods.baselines.residual import ResidualConfig, residual_quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share

FULL, QUICK = (25_088, 4_096), (1_024, 1_024)
KEY = jax.random.key(0)

Run = Callable[[dict[str, jax.Array]], Any]


def corrected(params: dict[str, jax.Array]) -> Any:
    tree = quantize(params)
    return correct_biases(params, tree, {"kernel": jnp.ones(params["kernel"].shape[0])})


def pruning_step(params: dict[str, jax.Array]) -> Run:
    """A step that is due, of updates that an optimiser made before."""
    tx = gradual_pruning(GradualPruning(final=0.8, begin=0, end=1))
    updates = jax.block_until_ready(jax.tree.map(jnp.zeros_like, params))
    return lambda params: jax.jit(tx.update)(updates, tx.init(params), params)


def dkm_gradient(config: DKMConfig) -> Callable[..., Any]:
    def loss(params: dict[str, jax.Array], codebooks: dict[str, jax.Array]) -> Any:
        soft, moved = dkm_forward(params, codebooks, config=config)
        return jnp.square(soft["kernel"] - 0.01).sum(), moved

    return jax.jit(jax.grad(loss, has_aux=True))


def start(config: DKMConfig) -> dict[str, jax.Array]:
    """Codebooks for normal weights, so that k-means is not in the figures of a step."""
    return {"kernel": jax.random.normal(KEY, (config.k, config.d)) * 0.02}


def dkm_step(config: DKMConfig) -> Run:
    return lambda params: dkm_gradient(config)(params, start(config))


DKM = {
    "dkm, 4 bits": DKMConfig(k=16),
    "dkm, 4 bits x 4": DKMConfig(k=16, d=4),
    "idkm, 4 bits": DKMConfig(k=16, implicit=True),
    "dkm, 8 bits x 8": DKMConfig(k=256, d=8),
}
# As many weights as ResNet-50 has, in the setting at which the authors of DKM report to have run out of memory (8 GB is the aim).
SHAPES = {"dkm, 8 bits x 8": (6_250, 4_096)}
METHODS: dict[str, Run] = {
    "int8 a channel": quantize,
    "int4, mse": lambda p: quantize(p, config=PTQConfig(bits=4, limits="mse")),
    "int4, percentile": lambda p: quantize(p, config=PTQConfig(bits=4, axis=None, symmetric=False, limits="percentile")),
    "int8, bias corrected": corrected,
    "k-means, 16": lambda p: kmeans_share(p, 16),
    "product, 256 x 4": lambda p: product_quantize(p, key=KEY, config=ProductConfig(k=256, d=4)),
    "residual, 2 x 256 x 8": lambda p: residual_quantize(p, key=KEY, config=ResidualConfig(k=256, d=8, refits=1)),
    "DiBA, middle 256": lambda p: diba_factorize(p, key=KEY, config=DiBAConfig(middle=256, rounds=5)),
    "signs": binarize,
    "signs of channels": lambda p: binarize(p, axis=-1),
    "masks": lambda p: magnitude_masks(p, 0.8),
    "Deep Compression, 16": lambda p: deep_compress(p, config=DeepCompressionConfig(sparsity=0.8, k=16)),
    **{name: dkm_step(config) for name, config in DKM.items()},
}
# Of which the call needs more than the weights.
PREPARED: dict[str, Callable[[dict[str, jax.Array]], Run]] = {"gradual pruning, a step": pruning_step}


class Peak(threading.Thread):
    """The largest resident size of this process while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process, self._done = psutil.Process(), threading.Event()
        self.base = self.peak = self._process.memory_info().rss

    def run(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self) -> None:
        self._done.set()
        self.join()


def measure(name: str, shape: tuple[int, int]) -> dict[str, Any]:
    kernel = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    kernel *= np.float32(0.02)
    params = {"kernel": jax.device_put(kernel), "bias": jnp.zeros(shape[1])}
    jax.block_until_ready(params)
    del kernel
    row: dict[str, Any] = {"method": name, "n": params["kernel"].size}
    run = PREPARED[name](params) if name in PREPARED else METHODS[name]
    peak = Peak()
    peak.start()
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run(params))
    row |= {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    peak.stop()
    row |= {
        "peak_bytes": peak.peak,
        "extra_bytes": peak.peak - peak.base,
        "extra": (peak.peak - peak.base) / params["kernel"].nbytes,
    }
    if name in DKM:
        memory = dkm_gradient(DKM[name]).lower(params, start(DKM[name])).compile().memory_analysis()
        row["saved"] = memory.temp_size_in_bytes / params["kernel"].size
    return row


def seconds(run: Callable[..., Any], *args: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - begin


def steps(batch: int, repeats: int) -> list[dict[str, Any]]:
    """A training step of the digits CNN through DKM against the float step, in turn so that other load falls on both."""
    from flax import nnx

    from bqjax.adapters.flax import nnx_apply, nnx_params
    from bqjax.methods.baselines.dkm import dkm_start
    from bqjax.models.digits import DigitsConv

    model = DigitsConv(rngs=nnx.Rngs(0))
    params, apply = nnx_params(model), nnx_apply(model)
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.random((batch, 8, 8, 1), np.float32)), jnp.asarray(rng.integers(0, 10, batch))

    def loss(params: Any) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), y[:, None], 1).mean()

    float_step = jax.jit(jax.value_and_grad(loss))
    rows = []
    for name, config in (
        ("dkm, 2 bits", DKMConfig(k=4)),
        ("dkm, 4 bits", DKMConfig(k=16)),
        ("dkm, 4 bits x 4", DKMConfig(k=16, d=4)),
        ("idkm, 2 bits", DKMConfig(k=4, implicit=True)),
        ("idkm, 4 bits", DKMConfig(k=16, implicit=True)),
    ):

        def through(params: Any, codebooks: Any, config: DKMConfig = config) -> Any:
            soft, codebooks = dkm_forward(params, codebooks, config=config)
            return loss(soft), codebooks

        step = jax.jit(jax.value_and_grad(through, has_aux=True))
        codebooks = dkm_start(params, key=KEY, config=config)
        (_, codebooks), _ = jax.block_until_ready(step(params, codebooks))
        jax.block_until_ready(float_step(params))
        ours, plain = [], []
        for _ in range(repeats):
            ours.append(seconds(step, params, codebooks))
            plain.append(seconds(float_step, params))
        row = {"method": name, "batch": batch, "step_s": min(ours), "float_step_s": min(plain), "ratio": min(ours) / min(plain)}
        rows.append(row | {"ratio_of_medians": float(np.median(ours) / np.median(plain))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="1,024 x 1,024 weights")
    parser.add_argument("--only", default="", help="only methods whose name contains this")
    parser.add_argument("--step", action="store_true", help="step times of a small CNN instead")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments.row, QUICK if arguments.quick else SHAPES.get(arguments.row, FULL))))
        return

    rows: list[dict[str, Any]] = []
    if arguments.step:
        rows = steps(128, 5 if arguments.quick else 30)
        print(f"{'method':<20}{'batch':>6}{'step ms':>10}{'float ms':>10}{'ratio':>8}{'of medians':>12}")
        for r in rows:
            times = f"{1e3 * r['step_s']:>10.2f}{1e3 * r['float_step_s']:>10.2f}"
            print(f"{r['method']:<20}{r['batch']:>6}{times}{r['ratio']:>7.2f}x{r['ratio_of_medians']:>11.2f}x")
    else:
        print(f"{'method':<26}{'weights':>13}{'seconds':>9}{'CPU s':>9}{'extra':>9}{'saved':>12}", flush=True)
        for name in [m for m in (*METHODS, *PREPARED) if arguments.only in m]:
            command = [sys.executable, __file__, "--row", name, *(["--quick"] if arguments.quick else [])]
            r = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            rows.append(r)
            saved = f"{r['saved']:>7.1f} B/w" if "saved" in r else ""
            print(f"{name:<26}{r['n']:>13,}{r['seconds']:>9.2f}{r['cpu_s']:>9.2f}{r['extra']:>8.2f}x{saved:>12}", flush=True)
    print(json.dumps({"benchmark": "methods", "backend": jax.default_backend(), "jax": jax.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
