"""A small DeepSpeech 2 on CMU AN4, by CTC: about 90 minutes on two cores, resumable.

python -m train --config configs/deepspeech2_an4.py --data-dir ../shared/data --out out/deepspeech2_an4
"""

from train.speech.config import SpeechConfig

config = SpeechConfig(epochs=70, beam_width=16)
