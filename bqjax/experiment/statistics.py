"""Statistics that rank a layer's weights by how much they are thought to matter, on a task's calibration data.

References:
  Sakthi, Yadla, Pawate 2022 (arXiv 2210.05111), III-C, for the gradient.
  Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation", NeurIPS 2019 (arXiv 1905.12558), for the true one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.adapters.safetensors import read_weights, write_weights
from bqjax.core.journal import digest
from bqjax.core.progress import Progress
from bqjax.core.task import Task
from bqjax.sensitivity.curvature import Curvature
from bqjax.sensitivity.gradient import loss_gradient
from bqjax.sensitivity.importance import output_importance
from bqjax.sensitivity.task_statistics import task_curvature, task_importance

__all__ = ["curvature_diagonal", "fisher_diagonal", "kept_arrays", "weight_statistics"]

_DRAWS = 4


def fisher_diagonal(
    outputs: Callable[[Any, Any], jax.Array], params: Any, batches: Sequence[Any], *, key: jax.Array, draws: int = _DRAWS
) -> dict[str, np.ndarray]:
    """Diagonal of the true Fisher information of a classifier, by Hutchinson probes.

    With logits ``z [n, c]`` and ``p = softmax(z)`` the Fisher information is ``J^T (diag(p) - p p^T) J``, labels drawn from the
    network's own ``p``. The matrix in the middle is ``S S^T`` with ``S^T z = sqrt(p) (z - sum_j p_j z_j)``, whose Jacobian takes
    the place of ``J``.

    Args:
      outputs: ``outputs(params, batch) -> logits [n, c]``, zero for padding.
      params, batches, key, draws: see :func:`~bqjax.sensitivity.importance.output_importance`.

    Raises:
      ValueError: outputs that are not ``[n, c]``; see also ``output_importance``.
    """

    def whitened(params: Any, batch: Any) -> jax.Array:
        z = outputs(params, batch)
        if z.ndim != 2:
            raise ValueError(f"the Fisher information of a classifier needs logits [n, c], the outputs have shape {z.shape}")
        p = jax.lax.stop_gradient(jax.nn.softmax(z, axis=1))
        return jnp.sqrt(p) * (z - jnp.sum(p * z, axis=1, keepdims=True))

    return output_importance(whitened, params, batches, key=key, draws=draws, examples=32)


def curvature_diagonal(curvature: Curvature) -> dict[str, np.ndarray]:
    """Diagonal of the Kronecker-factored curvature by leaf; the importance of leaves that have none."""
    found = {name: np.asarray(array) for name, array in curvature.importance.items()}
    for name, own in curvature.items():
        power = np.diagonal(own.inputs, axis1=1, axis2=2)  # [G, d]
        found[name] = np.asarray(own.layout.to_leaf(np.asarray(own.outputs[:, :, None] * power[:, None, :], np.float32)))
    return found


def weight_statistics(
    task: Task, statistics: Sequence[str], key: jax.Array, state_path: str | os.PathLike[str] | None = None, progress: Any = None
) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by leaf and statistic (:class:`~bqjax.experiment.figures.StatisticsAgainstRandom`), kept beside a state file.

    Raises:
      ValueError: a statistic that needs outputs, of a task that has none.
    """
    outputs = task.outputs
    if outputs is None and set(statistics) - {"gradient"}:
        raise ValueError(
            f"task {task.name!r} has no outputs, which {', '.join(s for s in statistics if s != 'gradient')} are taken from"
        )

    def measure() -> dict[str, np.ndarray]:
        found: dict[str, Mapping[str, np.ndarray]] = {}
        for statistic in statistics:
            if statistic == "gradient":
                found[statistic] = loss_gradient(task.score, task.params, task.calibration, task.rank_by)
            elif statistic == "fisher" and outputs is not None:
                found[statistic] = fisher_diagonal(outputs, task.params, task.calibration, key=key)
            elif statistic == "outputs":
                found[statistic] = task_importance(task, key=key, draws=_DRAWS)
            else:
                found[statistic] = curvature_diagonal(task_curvature(task, key=key))
        return {f"{statistic} {leaf}": array for statistic, arrays in found.items() for leaf, array in arrays.items()}

    of = digest([task.params, list(task.calibration), np.array([task.rank_by, *statistics]), key])[:12]
    flat = kept_arrays(state_path, of, measure, progress, f"statistics of weights: {', '.join(statistics)}")
    context: dict[str, dict[str, np.ndarray]] = {}
    for name, array in flat.items():
        statistic, _, leaf = name.partition(" ")
        context.setdefault(leaf, {})[statistic] = array
    return context


def kept_arrays(
    state_path: str | os.PathLike[str] | None,
    of: str,
    measure: Callable[[], Mapping[str, np.ndarray]],
    progress: Progress | None,
    what: str,
) -> Mapping[str, np.ndarray]:
    """Arrays by name, read from beside a state file or else measured and kept there.

    An accelerator may sum in another order in the next process, and weights at the edge of the larger half would change sides in
    the middle of a sweep.
    """
    if progress:
        progress(0, 1, what)
    if state_path is None:
        return measure()
    path = Path(f"{os.fspath(state_path)}.gradient-{of}")
    if not path.exists():
        write_weights(path, dict(measure()))
    return read_weights(path)
