"""Phases of an image run: which scheme takes which leaves, and by which optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from bqjax.core.tree import named_leaves
from train.image.config import TrainConfig
from train.image.objective import ImageObjective
from train.image.solved import SolvedClusters, SolvedStart
from train.image.transfer import frozen_leaves, pruned_leaves
from train.objective import adam_by_kind
from train.schemes import Clusters, Codebooks, Plain, Scheme
from train.step import Training, TrainState, start

__all__ = ["image_training"]


def image_training(
    config: TrainConfig,
    name: str,
    epochs: int,
    steps: int,
    objective: ImageObjective,
    clustered: Mapping[str, Any] | None = None,
    solved: SolvedStart | None = None,
) -> tuple[Training, TrainState]:
    """A phase of a config and the state that it starts from.

    Args:
      config: of the run.
      name: ``"float"``, ``"gwk"``, ``"tune"``, or how the quantized phase rounds, ``"ewgs"``.
      epochs: of the phase.
      steps: an epoch.
      objective: of the network that it starts from.
      clustered: leaves that the phase before ended in, for ``"tune"``.
      solved: where ``"gwk"`` starts, if the solver says.
    """
    scheme, leaves = _scheme(config, name, objective, clustered or {}, solved)
    rate = config.gwk.tune_learning_rate if name == "tune" and config.gwk is not None else config.learning_rate
    rates = {"rate": rate, "quantizer_rate": config.quantizer_learning_rate, "decay": config.weight_decay}
    key = jax.random.key(config.seed)
    training = Training(
        name=name,
        scheme=scheme,
        objective=objective,
        optimizer=adam_by_kind(_labels(config, objective), **rates, total=max(1, steps * epochs)),
        epochs=epochs,
        steps=steps,
        key=key,
        teacher=objective.teacher,
    )
    return training, start(training, leaves, objective.rest(leaves), objective.statistics, key)


def _scheme(
    config: TrainConfig, name: str, objective: ImageObjective, clustered: Mapping[str, Any], solved: SolvedStart | None
) -> tuple[Scheme, dict[str, Any]]:
    """What the phase trains through, and the leaves that it takes."""
    if name == "tune":
        return Codebooks(keep_zeros=False, bits=config.codebook_bits), dict(clustered)
    names: tuple[str, ...] = ()
    scheme: Scheme = Plain()
    if name == "gwk" and config.gwk is not None:
        names = objective.kernels
        scheme = Clusters(phase=config.gwk) if solved is None else SolvedClusters(phase=config.gwk, first=solved)
    elif config.pruning is not None:
        names, scheme = pruned_leaves(objective.network, config.pruning, config.freeze), Plain(pruning=config.pruning)
    leaves = named_leaves(objective.network)
    return scheme, {name: leaves[name] for name in names}


def _labels(config: TrainConfig, objective: ImageObjective) -> Callable[[Any], Any]:
    frozen = frozen_leaves(objective.network, config.freeze) if config.freeze else set()

    def labels(params: Any) -> Any:
        def of(leaves: Mapping[str, Any]) -> dict[str, str]:
            return {name: "frozen" if name in frozen else "weights" for name in leaves}

        numbers = {kind: of(leaves) if kind == "weights" else kind for kind, leaves in params["scheme"].items()}
        return {"scheme": numbers, "rest": {"network": of(params["rest"]["network"]), "quantizers": "quantizers"}}

    return labels
