"""Methods that train, at equal epochs: a small CNN for handwritten digits, three seeds; a quarter to three quarters of an hour.

python -m train --config configs/compare_trained_digits.py --out out/compare_trained_digits

Each row starts from the same float network and trains on for 20 epochs with the same optimiser, order of images and
distillation, but for the rows without training. The two inner convolutions and the large dense layer are what schemes take; first
and last kernel are int8.
"""

from bqjax.methods.baselines.dkm import DKMConfig
from bqjax.methods.baselines.ptq import PTQConfig
from bqjax.quantizers import QuantizerConfig
from train.image.config import GWKPhase, TrainConfig
from train.image.transfer import Pruning
from train.methods.retrain import Phase, Retrained
from train.schemes import EWGS, Clusters, Codebooks, Plain, SoftKMeans
from train.pipeline.run import PipelineConfig, Stage

EPOCHS, LATE = 20, 6  # LATE: of them, where codebooks are trained at the end
LEAVES = ("conv2/kernel", "conv3/kernel", "fc1/kernel")
INT8 = PTQConfig(bits=8)
PRUNED = Pruning(sparsity=0.8, end=0.6, every=14)
SCALAR, BLOCKS, LONG = {"k": 4, "d": 1}, {"k": 16, "d": 4}, {"k": 32, "d": 8}  # 2, 1 and 0.625 bits a weight


def row(label, *phases, **fields):
    return Retrained(label=label, phases=tuple(Phase(*phase) for phase in phases), leaves=LEAVES, **fields)


def soft(implicit=False, **fields):
    return SoftKMeans(config=DKMConfig(implicit=implicit, iterations=30 if implicit else 5, **fields))


def clusters(k, d, weighting="block"):
    bits = k.bit_length() - 1
    return Clusters(phase=GWKPhase(epochs=1, schedule="step", cv=d, pw=d, bits=bits, weighting=weighting))


def tuned(label, scheme):
    return row(f"{label}, tuned", (scheme, EPOCHS - LATE), (Codebooks(), LATE))


config = PipelineConfig(
    stages=(
        Stage(
            name="float",
            train=TrainConfig(model="digits", dataset="digits", float_epochs=30, batch_size=64, learning_rate=3e-3),
            methods=(
                row("no training, int8", (Plain(store=INT8), 0)),
                *(row(f"no training, {k} values", (Plain(store=k), 0)) for k in (16, 8, 4, 2)),
                row("no training, PQ 4 bits for 4", (clusters(**BLOCKS, weighting="none"), 0)),
                row("no training, PQ 5 bits for 8", (clusters(**LONG, weighting="none"), 0)),
                row("fine-tuned, float32", (Plain(), EPOCHS), others=None),
                row("fine-tuned, 4 values", (Plain(store=4), EPOCHS)),
                *(row(f"shared, {k} values", (Codebooks(k=k), EPOCHS)) for k in (16, 8, 4, 2)),
                *(
                    row(f"EWGS, {b} bit", (EWGS(config=QuantizerConfig(weight_bits=b, activation_bits=None)), EPOCHS))
                    for b in (4, 2, 1)
                ),
                row("DKM, 4 values", (soft(**SCALAR), EPOCHS)),
                row("DKM, 2 values", (soft(k=2, d=1), EPOCHS)),
                row("DKM, 4 values, colder", (soft(**SCALAR, temperature=0.25), EPOCHS)),
                row("DKM, 4 bits for 4", (soft(**BLOCKS), EPOCHS)),
                tuned("DKM, 4 bits for 4", soft(**BLOCKS)),
                row("DKM, 5 bits for 8", (soft(**LONG), EPOCHS)),
                row("IDKM, 4 values", (soft(**SCALAR, implicit=True), EPOCHS)),
                row("IDKM, 4 bits for 4", (soft(**BLOCKS, implicit=True), EPOCHS)),
                row("GWK, 2 bits for 1", (clusters(**SCALAR), EPOCHS)),
                *(
                    row(f"{name}, {bits}", (clusters(**size, weighting=weighting), EPOCHS))
                    for bits, size in (("4 bits for 4", BLOCKS), ("5 bits for 8", LONG))
                    for name, weighting in (("PQ", "none"), ("GWK", "block"))
                ),
                *(
                    tuned(f"{name}, {bits}", clusters(**size, weighting=weighting))
                    for bits, size in (("4 bits for 4", BLOCKS), ("5 bits for 8", LONG))
                    for name, weighting in (("PQ", "none"), ("GWK", "block"))
                ),
                row("pruned 80 %, int8", (Plain(pruning=PRUNED, store=INT8), EPOCHS)),
                row("pruned 80 %, 16 values", (Plain(pruning=PRUNED, store=16), EPOCHS)),
                *(
                    row(
                        f"pruned 80 %, {k} values trained",
                        (Plain(pruning=PRUNED), EPOCHS - LATE),
                        (Codebooks(k=k), LATE),
                    )
                    for k in (16, 8, 4)
                ),
            ),
        ),
    ),
)
