"""The vocabulary that every room shares: named leaves and rules, compressed leaves, tasks and scores, files and journals."""

from bqjax.core.agreement import agreement_task
from bqjax.core.classification import (
    batches,
    classification_outputs,
    classification_predict,
    classification_score,
    classification_task,
)
from bqjax.core.leaves import Affine, Clustered, Factored, Masked, Residual, Scaled, bits, decode, is_compressed
from bqjax.core.rules import Rule, Selection, select
from bqjax.core.scoring import Scored, mean_metrics, paired_error, score_batches, score_on
from bqjax.core.task import Predictions, Score, Storage, Task
from bqjax.core.tree import named_leaves, replace

__all__ = [
    "Affine",
    "Clustered",
    "Factored",
    "Masked",
    "Predictions",
    "Residual",
    "Rule",
    "Scaled",
    "Score",
    "Scored",
    "Selection",
    "Storage",
    "Task",
    "agreement_task",
    "batches",
    "bits",
    "classification_outputs",
    "classification_predict",
    "classification_score",
    "classification_task",
    "decode",
    "is_compressed",
    "mean_metrics",
    "named_leaves",
    "paired_error",
    "replace",
    "score_batches",
    "score_on",
    "select",
]
