"""Methods without retraining on a Llama of 260,032 weights (stories260k), 400 stories it was not calibrated on.

bqjax compare --config configs/stories260k.py --data DATA --out out/stories260k
bqjax compress --config configs/stories260k.py --data DATA --max-drop 0.03 --out out/stories260k.bq.safetensors
"""

from bqjax.experiment import Experiment
from bqjax.methods import PTQ, ErrorFeedback, KMeans, PTQConfig, RateDistortion, WeightedKMeans
from train.tasks import stories_task

# All tokens of a batch of 20 stories; probes on ten stories at a time.
CURVATURE = {"positions": 5120, "examples": 10}

config = Experiment(
    task=lambda data_dir, progress: stories_task(data_dir),
    data="lm/stories260k/ (see train/tasks/stories.py)",
    methods=(
        *(RateDistortion(lmbda=x, **CURVATURE, label=f"rate-distortion, lmbda {x:g}") for x in (3e-06, 6e-06, 1e-05, 2e-05)),
        *(
            PTQ(config=PTQConfig(bits=b, axis=0, limits="mse", scale_dtype="bfloat16"), label=f"round to nearest, {b} bits a row")
            for b in (3, 4, 5)
        ),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 32)),
        *(ErrorFeedback(bits=b, **CURVATURE, label=f"GPTQ, {b} bits a row") for b in (3, 4, 5)),
        *(WeightedKMeans(k=k, **CURVATURE, label=f"weighted k-means, {k}") for k in (8, 16, 32)),
    ),
)
