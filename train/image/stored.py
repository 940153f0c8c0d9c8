"""Networks of files: scored on the test data beside the float network, and as the start of another training."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bqjax.core.scoring import paired_error
from bqjax.core.tree import named_leaves, replace
from train.image.config import TrainConfig
from train.image.evaluation import Devices, examined
from train.image.files import Stored, read_quantized
from train.image.objective import ImageObjective, Variables
from train.image.problems import Problem

__all__ = ["FileScore", "as_float", "norms_by_name", "score_file", "settled", "stored_variables", "with_statistics"]

_SETTLED = 1e-5
_Moments = dict[str, tuple[jax.Array, jax.Array]]  # mean and variance [channels] by BatchNorm


class FileScore(NamedTuple):
    """Figures of a file on the test data.

    Attributes:
      accuracy, float_accuracy: shares of right answers of the file, decoded, and of the float network.
      error: standard error of their difference, paired by example.
      images: how many.
    """

    accuracy: float
    float_accuracy: float
    error: float
    images: int

    def __str__(self) -> str:
        points = 100 * (self.accuracy - self.float_accuracy)
        return (
            f"accuracy on {self.images:,} test images: {self.accuracy:.2%}; float network {self.float_accuracy:.2%}; difference "
            f"{points:+.2f} ± {100 * self.error:.2f} points"
        )


def stored_variables(objective: ImageObjective, stored: Stored) -> Variables:
    """The network of a file, as ``objective.evaluate`` takes it.

    Raises:
      ValueError: the file is of another network.
    """
    own, held = named_leaves(objective.network), named_leaves(stored.network)
    shapes = [{name: tuple(np.shape(leaf)) for name, leaf in leaves.items()} for leaves in (own, held)]
    if shapes[0] != shapes[1]:
        name = next(name for name in sorted(own | held) if shapes[0].get(name) != shapes[1].get(name))
        raise ValueError(
            f"leaf {name!r} has shape {shapes[1].get(name)} in the file and {shapes[0].get(name)} in the network of the config: "
            "give the config that the file was made by"
        )
    quantizers = replace(objective.quantizers, stored.quantizers)
    return quantizers, stored.network, replace(objective.statistics, stored.statistics)


def score_file(config: TrainConfig, file: Path, model: Any, small: Any, data: Problem) -> FileScore:
    """Decodes a file of a quantized network and scores it on the test data of a config.

    Args:
      config: what the file was made by.
      file: from training.
      model: the config's float network.
      small: the same with its quantized layers.
      data: of the config.

    Raises:
      ValueError: the file is damaged, or of another network.
    """
    plain, quantized = (ImageObjective(config, network, None, data) for network in (model, small))
    # Read first: a wrong file is refused before anything is scored.
    pairs = (
        (plain, (plain.quantizers, plain.network, plain.statistics)),
        (quantized, stored_variables(quantized, read_quantized(file))),
    )
    devices = Devices()
    before, after = (examined(of, devices.everywhere(variables), data.test, devices)["accuracy"] for of, variables in pairs)
    error = paired_error(before, after, len(after))
    return FileScore(float(after.mean()), float(before.mean()), float(error or 0.0), len(after))


def as_float(config: TrainConfig, model: Any, small: Any, data: Problem) -> Any:
    """The float network ``model`` with the parameters and statistics of the quantized one."""
    plain, quantized = (ImageObjective(config, network, None, data) for network in (model, small))
    kept = named_leaves(plain.statistics)
    told = {name: leaf for name, leaf in named_leaves(quantized.statistics).items() if name in kept}
    return plain.model((plain.quantizers, quantized.network, replace(plain.statistics, told)))


def settled(objective: ImageObjective, variables: Variables, batches: Iterable[Any], key: jax.Array) -> Variables:
    """The network with statistics of BatchNorm taken anew, over many batches of training images, augmented as they are.

    What training leaves behind is a mean over its last twenty batches or so, of a network that was still changing.

    Args:
      objective: of the network.
      variables: of it.
      batches: at least one, of one size.
      key: of their augmentation.

    References:
      Wu, Johnson 2021 (arXiv 2105.07576), section 3: precise statistics.
    """

    data = np.asarray(jax.random.key_data(key))  # which any number of processes can share

    @jax.jit
    def seen(variables: Variables, batch: Any, data: Any, i: Any) -> _Moments:
        inputs, _, model_key = objective.augmented(batch, jax.random.fold_in(jax.random.wrap_key_data(data), i))
        return _moments(objective.model(variables, key=model_key), inputs)

    found = [jax.tree.map(np.asarray, seen(variables, batch, data, np.int32(i))) for i, batch in enumerate(batches)]
    new: dict[str, Any] = {}
    for name in found[0]:
        means, spreads = (np.stack([own[name][i] for own in found]).astype(np.float64) for i in (0, 1))
        new[f"{name}/mean"] = means.mean(0).astype(np.float32)
        new[f"{name}/var"] = (spreads.mean(0) + means.var(0)).astype(np.float32)
    quantizers, network, statistics = variables
    return quantizers, network, replace(statistics, new)


def with_statistics(model: Any, inputs: jax.Array) -> Any:
    """A copy whose BatchNorm has the statistics of a batch, and computes on that batch what it did.

    A file holds BatchNorm folded, ``a x + b``, which training cannot go on from: there the statistics of a batch count. With its
    mean ``m`` and variance ``v``, a scale of ``a sqrt(v + epsilon)`` and a bias of ``b + a m`` are the same line. In training mode
    each pass sets right one more BatchNorm in a row, as those behind it then get their own inputs.

    Args:
      model: in any mode, of any statistics.
      inputs: what the model is called with.
    """
    model = nnx.clone(model)
    graph, _ = nnx.split(nnx.view(model, use_running_average=False, deterministic=True, raise_if_not_found=False))
    norms = norms_by_name(model)
    lines = {name: _line(norm) for name, norm in norms.items()}

    @jax.jit
    def seen(state: Any, inputs: jax.Array) -> _Moments:
        return _moments(nnx.merge(graph, state), inputs)

    before: Any = None
    for _ in lines:
        found = seen(nnx.split(model)[1], inputs)
        for name, (a, b) in lines.items():
            norm, (mean, var) = norms[name], found[name]
            norm.scale[...], norm.bias[...] = a * jnp.sqrt(var + norm.epsilon), b + a * mean
            norm.mean[...], norm.var[...] = mean, var
        if before is not None and jax.tree.all(jax.tree.map(partial(np.allclose, rtol=_SETTLED, atol=_SETTLED), found, before)):
            break
        before = found
    return model


def norms_by_name(model: Any) -> dict[str, nnx.BatchNorm]:
    """The BatchNorms of a network."""
    modules = nnx.iter_modules(model)
    return {"/".join(map(str, path)): module for path, module in modules if isinstance(module, nnx.BatchNorm)}


def _moments(network: Any, inputs: jax.Array) -> _Moments:
    """The batch's own, of a network in training mode."""
    for norm in (norms := norms_by_name(network)).values():
        norm.momentum = 0.0
    network(inputs)
    return {name: (norm.mean[...], norm.var[...]) for name, norm in norms.items()}


def _line(norm: nnx.BatchNorm) -> tuple[jax.Array, jax.Array]:
    """``(a, b)`` of BatchNorm in evaluation."""
    a = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
    return a, norm.bias[...] - norm.mean[...] * a
