"""Methods without retraining on a sentence encoder (all-MiniLM-L6-v2), the test set of STS-B.

DATA holds text/ (STS-B, SST-2) and minilm/: config.json, model.safetensors and tokenizer.json of the model.

bqjax compare --config configs/minilm.py --data DATA --out out/minilm
bqjax compress --config configs/minilm.py --data DATA --target-size 6MB --out out/minilm.bq.safetensors
bqjax compare --config configs/minilm_sst2.py --data DATA --out out/minilm_sst2    # that file on SST-2
"""

from bqjax.experiment import Experiment
from bqjax.methods import PTQ, ErrorFeedback, KMeans, PTQConfig, RateDistortion, WeightedKMeans
from train.tasks import sts_task

# All tokens of 2,048 sentences; probes on eight rows of some ten sentences at a time.
CURVATURE = {"positions": 32768, "examples": 8}

config = Experiment(
    task=lambda data_dir, progress: sts_task(data_dir),
    data="text/ and minilm/ (see train/tasks/sentences.py)",
    methods=(
        *(RateDistortion(lmbda=x, **CURVATURE, label=f"rate-distortion, lmbda {x:g}") for x in (7e-09, 1e-08, 1.5e-08, 2e-08)),
        *(
            PTQ(config=PTQConfig(bits=b, axis=0, limits="mse", scale_dtype="bfloat16"), label=f"round to nearest, {b} bits a row")
            for b in (3, 4)
        ),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16)),
        *(ErrorFeedback(bits=b, **CURVATURE, label=f"GPTQ, {b} bits a row") for b in (2, 3)),
        *(WeightedKMeans(k=k, **CURVATURE, label=f"weighted k-means, {k}") for k in (4, 8)),
    ),
)
