"""Budgets on ResNet-20 for CIFAR-10 at three sizes, without retraining: as compare_resnet20.py, on all 10,000 test images.

bqjax compare --config configs/compare_resnet20_budget.py --data DATA --out out/compare_resnet20_budget
"""

import dataclasses
from pathlib import Path

from bqjax.experiment.config import CompareConfig, load_config
from bqjax.methods.budget.method import WithinBudget

base = load_config(Path(__file__).parent / "compare_resnet20.py", CompareConfig)

# One row after the other, they share what was measured of the layers.
config = dataclasses.replace(
    base,
    methods=tuple(WithinBudget(target_bytes=1000 * kb, budget=base.budget, label=f"planned, {kb} kB") for kb in (120, 90, 160)),
)
