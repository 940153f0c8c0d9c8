"""DeepSpeech 2 at full size on the 100 hours of clean LibriSpeech, by CTC. Needs an accelerator, and 25 GB of memory for sound
and features; fewer utterances need less: --train-utterances 5000.

python -m train --config configs/deepspeech2_librispeech.py --data-dir DATA --out out/deepspeech2_librispeech
"""

from train.speech.config import SpeechConfig

config = SpeechConfig(
    dataset="librispeech",
    channels=(32, 32),
    kernels=((11, 41), (11, 21)),
    strides=((2, 2), (1, 2)),
    layers=5,
    cells=800,
    epochs=20,
    batch_size=32,
    buckets=8,
    learning_rate=3e-4,
    time_width=40,
    beam_width=16,
)
