"""Training of speech recognition with CTC, its error rates, and trained networks as tasks."""

from train.speech.config import SpeechConfig

__all__ = ["SpeechConfig"]
