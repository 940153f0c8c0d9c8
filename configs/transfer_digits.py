"""Transfer: the body of a network for Fashion-MNIST with a new head for handwritten digits, fine-tuned and pruned to 70 %.

python -m train --config configs/transfer_digits.py --data-dir DATA --out out/transfer_digits
"""

from bqjax.methods import PTQ, PTQConfig, Uncompressed
from train.pipeline import PipelineConfig, Pruning, Stage, TrainConfig

FLOAT = Uncompressed(label="float32")
INT8 = PTQ(config=PTQConfig(bits=8), label="int8")


def digits(**fields):
    return TrainConfig(model="mnist_small", dataset="digits28", batch_size=64, **fields)


config = PipelineConfig(
    stages=(
        Stage(
            name="body",
            train=TrainConfig(
                model="mnist_small",
                dataset="fashion_mnist",
                train_examples=12_800,
                float_epochs=4,
                batch_size=128,
                learning_rate=2e-3,
            ),
        ),
        Stage(
            name="new head",
            start="body",
            train=digits(float_epochs=10, learning_rate=3e-3, anew=("fc2/*",), freeze=("conv*", "fc1/*")),
            methods=(FLOAT,),
        ),
        Stage(name="fine-tuned", start="new head", train=digits(float_epochs=10, learning_rate=1e-3), methods=(FLOAT, INT8)),
        Stage(
            name="fine-tuned, pruned 70 %",
            start="new head",
            train=digits(float_epochs=10, learning_rate=1e-3, pruning=Pruning(sparsity=0.7, leaves=("conv2/kernel", "fc?/kernel"))),
            methods=(FLOAT, INT8),
        ),
        Stage(name="from scratch", train=digits(float_epochs=20, learning_rate=3e-3), methods=(FLOAT,)),
    ),
    compare_with="fine-tuned",
)
