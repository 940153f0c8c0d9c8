"""Objective of image classifiers: loss and accuracy of an NNX network by its parameters, and EWGS's gradient scales."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bqjax.adapters.flax.hessian import hessian_deltas
from bqjax.adapters.flax.quantized import QuantizerParam, quantized_layers, set_quantizers
from bqjax.core.tree import named_leaves, replace
from train.data.augment import crop_and_flip, cutmix
from train.image.config import TrainConfig
from train.image.problems import Problem
from train.image.transfer import with_frozen_statistics
from train.objective import mean_loss
from train.step import Network

__all__ = ["Deltas", "ImageObjective", "Variables"]

Variables = tuple[Any, Any, Any]
"""Quantizers, parameters and statistics of a network, nested dicts of arrays."""

_FILTERS = (QuantizerParam, nnx.Param, nnx.RngState, ...)


class Deltas(NamedTuple):
    """EWGS's gradient scales by layer, and what their measuring met, see :func:`bqjax.quantizers.hessian_delta`."""

    deltas: dict[str, jax.Array]
    reasons: dict[str, jax.Array]


class _Labels(NamedTuple):
    """Labels ``[n]`` of a batch, and the shares ``[n]`` of the images that are their own where they were mixed."""

    labels: jax.Array
    own: jax.Array | None


class ImageObjective:
    """A network of a phase, which learns labels and, with distillation, from a teacher.

    Args:
      config: of the run.
      model: what the phase starts from.
      teacher: the float network to learn from, or None.
      data: of the config.

    Attributes:
      network: nested dict of the model's parameters, those of quantizers apart.
      quantizers: nested dict of intervals and output scales.
      statistics: running statistics of BatchNorm, and what quantizers are told.
      kernels: names of the kernels of quantized layers.
      teacher: arrays of the teacher, NumPy, or None; an argument of the methods that learn from it.
      evaluate: ``evaluate(variables, batch)``, compiled: ``{"loss": [n], "accuracy": [n]}``, cross-entropy of each example and
        whether it is right.
    """

    def __init__(self, config: TrainConfig, model: Any, teacher: Any, data: Problem):
        self._config, self._data = config, data
        modes = {
            training: nnx.view(model, use_running_average=not training, deterministic=not training, raise_if_not_found=False)
            for training in (True, False)
        }
        _, *states = nnx.split(modes[True], *_FILTERS)
        self.quantizers, self.network, self._rng, self.statistics = (nnx.to_pure_dict(s) for s in states)
        modes[True] = with_frozen_statistics(modes[True], self.network, config.freeze)
        self._graphs = {training: nnx.split(modes[training], *_FILTERS)[0] for training in modes}
        self.kernels = tuple(f"{layer}/kernel" for layer in quantized_layers(model))
        self.evaluate = jax.jit(self._evaluate)
        self.teacher = None
        if teacher is not None and config.distillation:
            fixed = nnx.view(teacher, use_running_average=True, deterministic=True, raise_if_not_found=False)
            self._teacher_graph, self._teacher_rng, taught = nnx.split(fixed, nnx.RngState, ...)
            self.teacher = jax.tree.map(np.asarray, nnx.to_pure_dict(taught))

    def rest(self, leaves: Any) -> dict[str, Any]:
        """All parameters but those of the network that are named in ``leaves``: ``{"network": by name, "quantizers": nested}``."""
        others = {name: leaf for name, leaf in named_leaves(self.network).items() if name not in leaves}
        return {"network": others, "quantizers": self.quantizers}

    def variables(self, network: Network) -> Variables:
        """The network as :meth:`model` and :attr:`evaluate` take it."""
        parameters = replace(self.network, network.rest["network"] | network.weights)
        return network.rest["quantizers"], parameters, network.statistics

    def model(self, variables: Variables, training: bool = True, key: jax.Array | None = None) -> Any:
        """The NNX network; ``key`` is of its own draws."""
        quantizers, parameters, statistics = variables
        keys = self._rng if key is None else jax.tree.map(partial(_folded, key), self._rng)
        return nnx.merge(self._graphs[training], quantizers, parameters, keys, statistics)

    def __call__(
        self, network: Network, batch: Any, key: jax.Array, progress: jax.Array, teacher: Any
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """See :data:`train.step.Objective`; the batch is images as stored and labels."""
        inputs, labels, model_key = self.augmented(batch, key)
        running = self.model(self.variables(network), key=model_key)
        if self.kernels:
            set_quantizers(running, progress=progress)
        value, right = self._loss(running, inputs, labels, teacher)
        return value, (_statistics(running), {"loss": value, "accuracy": right})

    def measured(self, network: Network, batch: Any, key: jax.Array, probe_key: jax.Array, teacher: Any) -> tuple[Any, Deltas]:
        """Statistics with EWGS's gradient scale of each layer measured anew on a batch, and the scales."""
        inputs, labels, model_key = self.augmented(batch, key)
        model = self.model(self.variables(network), key=model_key)
        deltas, info = hessian_deltas(model, lambda model: self._loss(model, inputs, labels, teacher)[0], probe_key)
        set_quantizers(model, delta=deltas)
        return _statistics(model), Deltas(deltas, {name: found.reason for name, found in info.items()})

    def _evaluate(self, variables: Variables, batch: Any) -> dict[str, jax.Array]:
        images, labels = batch
        logits = self.model(variables, training=False)(self._data.inputs(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (jnp.argmax(logits, axis=1) == labels) & ~jnp.isnan(logits).any(axis=1)
        return {"loss": losses, "accuracy": right}

    def augmented(self, batch: Any, key: jax.Array) -> tuple[jax.Array, _Labels, jax.Array]:
        """Inputs of a training batch, moved and mixed, what their labels are then, and a key for the network's own draws."""
        images, labels = batch
        augment_key, model_key = jax.random.split(key)
        moved = crop_and_flip(augment_key, images, pad=self._data.pad, flip=self._data.flip)
        own = None
        if self._config.cutmix:
            moved, own = cutmix(jax.random.fold_in(augment_key, 1), moved, probability=self._config.cutmix)
        return self._data.inputs(moved), _Labels(labels, own), model_key

    def _loss(self, model: Any, inputs: jax.Array, of_images: _Labels, teacher: Any) -> tuple[jax.Array, jax.Array]:
        logits, (labels, own) = model(inputs), of_images
        found = jnp.argmax(logits, axis=1)
        right = found == labels
        if own is not None:
            one, other = (jax.nn.one_hot(each, logits.shape[1]) for each in (labels, jnp.roll(labels, 1)))
            labels = own[:, None] * one + (1 - own[:, None]) * other
            right = jnp.take_along_axis(labels, found[:, None], axis=1)
        right = jnp.mean(right.astype(jnp.float32))
        soft = None if teacher is None else nnx.merge(self._teacher_graph, self._teacher_rng, teacher)(inputs)
        return mean_loss(logits, labels, soft, self._config.distillation, self._config.temperature), right


def _statistics(model: Any) -> Any:
    return nnx.to_pure_dict(nnx.split(model, *_FILTERS)[4])


def _folded(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Keys of the model's own draws follow from the step's; counters stay where they start."""
    return key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
