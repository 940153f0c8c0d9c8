"""Sensitivity: how much a network loses when some of its weights change, by perturbation sweeps or by curvature."""

from bqjax.sensitivity.evaluator import Evaluator
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.gradient_stats import GradientStats, gradient_recorder
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.limit import highest_within, rising_fit
from bqjax.sensitivity.pairs import Interactions, interactions
from bqjax.sensitivity.perturb import ChosenNoise, Codebook, CodeNoise, HalfNoise, Noise, NoiseCandidate, Perturbation, Quantize
from bqjax.sensitivity.predictions import predicted_effects
from bqjax.sensitivity.sweeps import Candidate, Statement, SweepResult, SweepRow, sweep
from bqjax.sensitivity.task_statistics import task_curvature, task_gradient, task_importance

__all__ = [
    "Candidate",
    "ChosenNoise",
    "CodeNoise",
    "Codebook",
    "Evaluator",
    "GradientStats",
    "HalfNoise",
    "Interactions",
    "Noise",
    "NoiseCandidate",
    "Perturbation",
    "Quantize",
    "Statement",
    "SweepResult",
    "SweepRow",
    "gradient_recorder",
    "highest_within",
    "interactions",
    "loss_gradient",
    "output_importance",
    "predicted_effects",
    "rising_fit",
    "sweep",
    "task_curvature",
    "task_gradient",
    "task_importance",
]
