"""Methods without retraining on SqueezeNet 1.1 for ImageNet: 500 images to calibrate on, 500 others to report on.

bqjax compare --config configs/squeezenet11.py --data DATA --out out/squeezenet11
bqjax compress --config configs/squeezenet11.py --data DATA --max-drop 1.0 --out out/squeezenet11.bq.safetensors
bqjax compress --config configs/squeezenet11.py --data DATA --target-size 450KB --out out/squeezenet11_450.bq.safetensors
"""

from bqjax.experiment import Experiment
from bqjax.methods import KMeans, RateDistortion
from train.tasks import squeezenet_task

config = Experiment(
    task=lambda data_dir, progress: squeezenet_task(data_dir),
    data="weights/squeezenet11.safetensors and imagenet_sample/imagenet_sample_224.zip",
    methods=(
        RateDistortion(max_drop=0.01, label="rate-distortion, drop 1"),
        *(RateDistortion(lmbda=p, label=f"rate-distortion, lmbda {p:g}") for p in (0.000185, 0.00043)),
        RateDistortion(target_bytes=450_000, label="rate-distortion, 450 kB"),
        RateDistortion(target_bytes=350_000, label="rate-distortion, 350 kB"),
        *(KMeans(k=k, label=f"k-means, {k}") for k in (8, 16, 32)),
    ),
)
