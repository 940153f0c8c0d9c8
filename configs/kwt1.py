"""Methods without retraining on the keyword-spotting transformer KWT-1, 600 clips of the test set.

bqjax compare --config configs/kwt1.py --data DATA --out out/kwt1
bqjax compress --config configs/kwt1.py --data DATA --max-drop 0.5 --out out/kwt1.bq.safetensors
"""

from bqjax.experiment import Experiment
from bqjax.methods import PTQ, ErrorFeedback, KMeans, PTQConfig, RateDistortion, WeightedKMeans
from train.tasks import kwt_task

# All frames of 40 clips; probes on ten clips at a time.
CURVATURE = {"positions": 4096, "examples": 10}

config = Experiment(
    task=lambda data_dir, progress: kwt_task(data_dir),
    data="kwt1/ and speech/ (see train/tasks/keyword_spotting.py)",
    methods=(
        RateDistortion(max_drop=0.005, **CURVATURE, label="rate-distortion, drop 0.5"),
        *(RateDistortion(lmbda=x, **CURVATURE, label=f"rate-distortion, lmbda {x:g}") for x in (6e-09, 1.2e-08, 2.5e-08)),
        *(
            PTQ(config=PTQConfig(bits=b, limits="mse", scale_dtype="bfloat16"), label=f"round to nearest, {b} bits a channel")
            for b in (3, 4, 5)
        ),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 32)),
        *(ErrorFeedback(bits=b, **CURVATURE, label=f"GPTQ, {b} bits a channel") for b in (3, 4, 5)),
        *(WeightedKMeans(k=k, **CURVATURE, label=f"weighted k-means, {k}") for k in (8, 16, 32)),
    ),
)
