"""Trained networks with their data as tasks, which configs name.

Each task's module is imported when it is asked for: a config for speech needs no data sets of images.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "an4_task",
    "digits_task",
    "kwt_task",
    "resnet_task",
    "spc_task",
    "squeezenet_task",
    "sst2_task",
    "stories_task",
    "sts_task",
]

_MODULES = {
    "an4_task": "train.speech.task",
    "digits_task": "train.tasks.digits",
    "kwt_task": "train.tasks.keyword_spotting",
    "resnet_task": "train.tasks.cifar",
    "spc_task": "train.tasks.speech_commands",
    "squeezenet_task": "train.tasks.imagenet_sample",
    "sst2_task": "train.tasks.sentences",
    "stories_task": "train.tasks.stories",
    "sts_task": "train.tasks.sentences",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
