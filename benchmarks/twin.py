"""Agreement of the JAX twins with LiteRT's kernels without delegate, over all inputs at hand for each model.

    python benchmarks/twin.py --data ../shared/data [--only NAME] [--examples N]

Prints a line a model: how often the most likely class is the same, the share of outputs that differ by at most a step of
their codes, the share of examples whose outputs are all equal, and right answers of both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from bqjax.tflite.examples import Examples, read_examples, to_int8
from bqjax.tflite.format.model import read
from bqjax.tflite.interpret import interpret
from bqjax.tflite.twin.graph import build
from train.data.tfds import cifar10


def cifar(data_dir):
    images, labels = cifar10(data_dir, "test")
    return Examples(to_int8(images), labels)


IMAGENET = "imagenet_sample/imagenet_sample_224.zip"
MODELS = {
    "kws_ds_cnn_int8": "kws/kws01.npz",
    "person_detect": "vww/vww_500.zip",
    "vww_96_int8": "vww/vww_500.zip",
    "mobilenet_v1_0.25_128_quant": IMAGENET,
    "resnet8_cifar10_int8": cifar,
    "mobilenet_v1_1.0_224_quant": IMAGENET,
    "mobilenet_v2_1.0_224_quant": IMAGENET,
}
BATCH = 50


def compare(name: str, data: Path, limit: int | None) -> str:
    """The line of a model."""
    start = time.monotonic()
    model = read(data / f"tflite/{name}.tflite")
    given = MODELS[name]
    found = given(data) if callable(given) else read_examples(data / given, model.graph.tensors[model.graph.inputs[0]])
    inputs, labels = found
    inputs, labels = inputs[:limit], labels[:limit]
    apply = jax.jit(build(model.graph).apply)
    outputs = []
    for first in range(0, len(inputs), BATCH):
        batch = inputs[first : first + BATCH]
        # Of one shape, so that the twin compiles once.
        padded = np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch), axis=0)])
        outputs.append(np.asarray(apply(model.params, padded)[0])[: len(batch)])
    twin = np.concatenate(outputs).reshape(len(inputs), -1).astype(int)
    litert = interpret(model.content, inputs, kernels="builtin").reshape(len(inputs), -1).astype(int)
    off, guesses = np.abs(twin - litert), (twin.argmax(1), litert.argmax(1))
    right = " / ".join(f"{(guess == labels).sum():,}" for guess in guesses)
    shares = f"{100 * (guesses[0] == guesses[1]).mean():.2f} | {100 * (off <= 1).mean():.3f} | {100 * (off == 0).all(1).mean():.2f}"
    print(f"{name}: {time.monotonic() - start:.0f} s, largest difference {off.max()}", flush=True)
    return f"| {name} | {len(inputs):,} | {shares} | {right} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--examples", type=int)
    args = parser.parse_args()
    lines = [compare(name, args.data, args.examples) for name in args.only]
    print("| model | inputs | same class % | outputs within a step % | outputs all equal % | right, twin / LiteRT |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
